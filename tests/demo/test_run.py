"""`broker-edge demo` from nothing: it serves, its sources are there by name, and what it printed works."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from pathlib import Path

import httpx

from broker_edge.demo.requests import IDS
from tests import servers
from tests.edges import EdgeProcess


class Demo(EdgeProcess):
    def start(self) -> None:
        self.begin("demo", "--port", str(self.port), "--bureau-port", str(servers.free_port()))

    def begin(self, *words: str) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        line = self._line(*words)
        with (self.data_dir / "log").open("ab") as output:
            self.process = subprocess.Popen(line, env=self._env(), stdout=output, stderr=output)


async def printed(demo: Demo, words: str) -> None:
    async with asyncio.timeout(30):
        while True:
            if words in demo.log:
                return
            await asyncio.sleep(0.02)


async def test_the_samples_can_be_asked_for_by_name_from_the_first_start_on(tmp_path: Path) -> None:
    demo = Demo(tmp_path, {})
    demo.start()
    try:
        await demo.ready()
        async with httpx.AsyncClient(base_url=demo.url, trust_env=False) as http:
            there = (await http.get("/data-sources")).json()
            body = {"data_source_name": "credit_score", "configured_params": {"tax_id": "01234567890"}, "run_id": IDS["notice"]}
            reply = (await http.post("/internal/data-broker", json=body)).json()
        fetched = demo.command("fetch", "notice", "--url", demo.url)
        await printed(demo, f"fetch credit_score tax_id=01234567890 --url {demo.url}")
        assert demo.stop() == 0
    finally:
        demo.kill()
    assert {source["name"]: source["data_source_id"] for source in there} == IDS
    assert (reply["origin"], reply["value"]["tax_id"]) == ("REQUEST", "01234567890")
    assert (fetched.returncode, fetched.stdout[:6]) == (0, "Aviso:"), fetched.stderr


async def test_a_port_that_is_left_to_the_demo_is_in_what_it_prints(tmp_path: Path) -> None:
    demo = Demo(tmp_path, {})
    demo.begin("demo", "--port", "0", "--bureau-port", "0")
    try:
        await printed(demo, "sources list --url http://127.0.0.1:")
        found = re.search(r"The edge listens on http://127\.0\.0\.1:(\d+)", demo.log)
        assert found is not None
        demo.port = int(found[1])
        await demo.ready()
        assert demo.stop() == 0
    finally:
        demo.kill()


def test_a_bureau_on_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = Demo(tmp_path, {}).command("bureau", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"127.0.0.1:{port} can't be listened on: take another port with --port\n"


async def test_a_bureau_alone_says_where_it_listens_and_answers(tmp_path: Path) -> None:
    alone = Demo(tmp_path, {})
    alone.begin("bureau", "--port", "0")
    try:
        await printed(alone, "\n")
        url = alone.log.split()[-1]
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/notice")).status_code == 200
    finally:
        alone.kill()
