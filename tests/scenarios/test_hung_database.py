"""A database that is there and says nothing: connections stay up, no answer comes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.edges import Bureau, in_process, request, settings, spec, table
from tests.servers import Postgres, postgres


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    with postgres() as server:
        yield server
        _signal(server, signal.SIGCONT)


def _signal(server: Postgres, number: int) -> None:
    assert server.process is not None
    main = psutil.Process(server.process.pid)
    for process in (main, *main.children(recursive=True)):
        process.send_signal(number)


async def test_misses_are_answered_and_their_objects_arrive_when_it_speaks_again(
    own_postgres: Postgres, bureau: Bureau, tmp_path: Path
) -> None:
    chosen = settings(tmp_path, bureau.port, database_url=own_postgres.create(migrated=True), db_timeout=0.3)
    async with in_process(chosen) as edge:
        source = spec(f"{bureau.url}/{{{{ id }}}}")
        assert (await edge.post(request(source, {"id": "before"}))).status == 200
        _signal(own_postgres, signal.SIGSTOP)
        answers = [await edge.post(request(source, {"id": str(number)})) for number in range(8)]
        _signal(own_postgres, signal.SIGCONT)
        assert {answer.status for answer in answers} == {200}
        assert len(await edge.rows()) == 9
        kept = {str(row.data_object_id) for row in await table(edge.edge.engine, "data_object")}
    assert {answer.json()["data_object_id"] for answer in answers} <= kept


async def test_the_journal_says_that_it_fails_and_ships_when_it_speaks_again(
    own_postgres: Postgres, bureau: Bureau, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_edge.wiring.stores._SHORTEST_BATCH", 0.3)
    chosen = settings(tmp_path, bureau.port, database_url=own_postgres.create(migrated=True), db_timeout=0.05)
    async with in_process(chosen) as edge:
        _signal(own_postgres, signal.SIGSTOP)
        assert (await edge.post(request(spec(bureau.url)))).status == 200
        async with asyncio.timeout(30):
            while not edge.edge.journal.failing:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)
        _signal(own_postgres, signal.SIGCONT)
        async with asyncio.timeout(30):
            while edge.edge.spool.backlog_frames:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not edge.edge.journal.failing
