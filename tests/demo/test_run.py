"""`broker-edge demo` from nothing: it serves, its sources are there by name, and what it printed works."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import httpx

from broker_edge.demo.requests import IDS
from tests import servers
from tests.edges import EdgeProcess


class Demo(EdgeProcess):
    def start(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        line = self._line("demo", "--port", str(self.port), "--bureau-port", str(servers.free_port()))
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
