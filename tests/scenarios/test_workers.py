"""Two worker processes behind one port: their metrics are one, and a killed worker takes nothing with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from broker_edge.backends.sql_durable import make_engine
from tests.edges import Bureau, EdgeProcess, request, settings, spec, table
from tests.scenarios.herds import process, servers_of, until
from tests.servers import Postgres, Valkey

_REQUESTS = 60


@pytest.fixture
def shared(redis_server: Valkey, postgres_server: Postgres) -> dict[str, str]:
    return servers_of(redis_server, postgres_server)


@pytest.fixture
async def pair(tmp_path: Path, shared: dict[str, str]) -> AsyncIterator[EdgeProcess]:
    async with process(tmp_path, workers=2, **shared) as edge:
        edge.start()
        await edge.ready()
        await until(lambda: _all_serve(edge))
        yield edge


def _workers(edge: EdgeProcess) -> set[int]:
    """Processes that serve: not the one which multiprocessing starts to clean up behind them."""
    assert edge.process is not None
    living = [child for child in psutil.Process(edge.process.pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    return {child.pid for child in living if "resource_tracker" not in " ".join(child.cmdline())}


async def _all_serve(edge: EdgeProcess) -> bool:
    """Both workers have written a metrics file, which they do while they start."""
    workers = _workers(edge)
    written = {path.stem.rpartition("_")[2] for path in edge.data_dir.glob("metrics-*/counter_*.db")}
    return len(workers) == 2 and {str(pid) for pid in workers} <= written


async def _over_a_connection_of_its_own(edge: EdgeProcess, method: str, path: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.request(method, f"{edge.url}{path}", **options)


async def _requests(edge: EdgeProcess, bodies: list[dict[str, Any]]) -> list[str]:
    """Their runs, all answered with 200."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_over_a_connection_of_its_own(edge, "POST", "/v1/fetch-data", json=body)) for body in bodies]
    assert {task.result().status_code for task in tasks} == {200}
    return [body["run_id"] for body in bodies]


async def _counted(edge: EdgeProcess, start: str = "broker_edge_requests_total{") -> int:
    text = (await _over_a_connection_of_its_own(edge, "GET", "/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return round(sum(float(line.rpartition(" ")[2]) for line in lines))


async def test_any_worker_answers_for_all_of_them(pair: EdgeProcess, bureau: Bureau) -> None:
    source = spec(bureau.url)
    await _requests(pair, [request(source) for _ in range(_REQUESTS)])

    async def complete() -> bool:  # an answer is counted when it is on its way
        return await _counted(pair) == _REQUESTS

    await until(complete)
    assert {await _counted(pair) for _ in range(20)} == {_REQUESTS}
    assert len(bureau.calls) == 1


async def test_a_killed_worker_is_replaced_and_neither_counts_nor_rows_are_lost(
    pair: EdgeProcess, bureau: Bureau, shared: dict[str, str]
) -> None:
    source = spec(bureau.url)
    runs = await _requests(pair, [request(source) for _ in range(_REQUESTS)])

    async def complete() -> bool:
        return await _counted(pair) == len(runs)

    await until(complete)
    before = _workers(pair)
    os.kill(min(before), signal.SIGKILL)
    await until(lambda: min(before) not in _workers(pair))
    await until(lambda: _all_serve(pair))
    assert await _counted(pair) == _REQUESTS
    assert await _counted(pair, 'broker_edge_journal_rows_total{stage="appended"}') == _REQUESTS
    deaths = [json.loads(line) for line in pair.log.splitlines() if "worker" in line]
    assert [(one["event"], one["level"], one["pid"], one["signal"]) for one in deaths] == [
        ("a worker died and was replaced", "warning", min(before), "SIGKILL")
    ]
    runs += await _requests(pair, [request(source) for _ in range(_REQUESTS)])
    await until(complete)
    assert await asyncio.to_thread(pair.stop) == 0
    engine = make_engine(settings(pair.data_dir, **shared).database)
    rows = await table(engine, "run_data_request")
    await engine.dispose()
    assert sorted(str(row.run_id) for row in rows) == sorted(runs)


async def test_workers_whose_supervisor_is_killed_finish_what_they_have_and_go(pair: EdgeProcess, bureau: Bureau) -> None:
    workers = [psutil.Process(pid) for pid in _workers(pair)]
    bureau.gate.clear()
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(_requests(pair, [request(spec(bureau.url))]))
        await until(lambda: len(bureau.calls) == 1)
        pair.kill()
        bureau.gate.set()
    assert asked.done()
    await until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))
