"""The predecessor's Beam nodes against a running edge. `make test-beam` sets up their Python and runs this."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import httpx

from tests.edges import Bureau, edge_process, json_reply
from tests.upstreams import Received

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-beam" / "bin" / "python"
ELEMENTS, DISTINCT = 60, 7


def score(got: Received) -> bytes:
    return json_reply({"tax_id": got.line.split()[1].rpartition("/")[2], "score": 700})


async def run_pipeline(*arguments: str) -> list[dict[str, object]]:
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, ROOT / "tests_beam" / "pipeline.py", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, log = await process.communicate()
    assert process.returncode == 0, log.decode()
    return [json.loads(line) for line in out.splitlines()]


async def test_elements_with_the_same_parameters_share_one_upstream_call(tmp_path: Path) -> None:
    async with Bureau(score).running() as bureau:
        with edge_process(tmp_path, bureau.port) as edge:
            await edge.ready()
            source = {"url": f"{bureau.url}/score/{{{{ tax_id }}}}", "response_type": "JSON"}
            body = {"name": "credit_score", "source": source, "caching": {"enabled": True, "ttl": 3600}}
            async with httpx.AsyncClient(base_url=edge.url, trust_env=False) as http:
                created = await http.post("/data-sources", json=body)
                assert created.status_code == 201, created.text
            answers = await run_pipeline(edge.url, "credit_score", str(uuid.uuid4()), str(ELEMENTS), str(DISTINCT))
    assert len(answers) == ELEMENTS
    for answer in answers:
        expected = f"0{int(str(answer['element'])) % DISTINCT:010d}"
        assert answer["value"] == {"tax_id": expected, "score": 700}
    assert len(bureau.calls) == DISTINCT
    assert sorted({str(answer["origin"]) for answer in answers}) == ["CACHE", "REQUEST"]
