"""Nothing that was answered is lost: not by kill -9 at any moment, not by an outage of the database, not by a torn file."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker_edge.backends.spool import FileSpool
from broker_edge.backends.sql_durable import make_engine
from broker_edge.settings import Settings
from tests import servers
from tests.edges import Bureau, EdgeProcess, InProcess, in_process, json_reply, request, settings, spec, table
from tests.scenarios.herds import process, servers_of, until
from tests.servers import Postgres, Valkey
from tests.upstreams import Received

_CLIENTS = 16


class Ledger:
    """What clients were told: the data object of every answer that came whole, by run; None for a failure."""

    def __init__(self) -> None:
        self.told: dict[str, str | None] = {}

    def note(self, body: dict[str, Any], status: int, answer: dict[str, Any]) -> None:
        assert body["run_id"] not in self.told
        assert (status == 200) == (answer["data_object_id"] is not None)
        self.told[body["run_id"]] = answer["data_object_id"]

    async def reached(self, count: int) -> None:
        await until(lambda: len(self.told) >= count)

    async def check(self, chosen: Settings) -> None:
        """One row for every answer, none twice, and every object that a reply named."""
        engine = make_engine(chosen.database)
        try:
            rows = await table(engine, "run_data_request")
            objects = {str(row.data_object_id) for row in await table(engine, "data_object")}
        finally:
            await engine.dispose()
        written = Counter(str(row.run_id) for row in rows)
        missing = self.told.keys() - written.keys()
        assert not missing, f"{len(missing)} of {len(self.told)} answers have no row"
        assert set(written.values()) <= {1}, "a run has two rows"
        named = {str(row.run_id): row.data_object_id and str(row.data_object_id) for row in rows}
        assert {run: named[run] for run in self.told} == self.told
        assert {name for name in self.told.values() if name} <= objects


def _upstream(got: Received) -> bytes:
    return json_reply({}, 500) if "/broken" in got.line else json_reply({"score": 700})


def mixed(bureau: Bureau) -> Callable[[], dict[str, Any]]:
    """Requests, one after the other: hits, misses, an upstream's failures and a caller's."""
    source = spec(f"{bureau.url}/{{{{ what }}}}/{{{{ id }}}}", retry={"max_retries": 0})

    def body() -> dict[str, Any]:
        dice = random.random()
        if dice < 0.4:
            return request(source, {"what": "score", "id": str(random.randrange(5))})
        if dice < 0.8:
            return request(source, {"what": "score", "id": uuid.uuid4().hex})
        return request(source, {"what": "broken", "id": "1"}) if dice < 0.9 else request(source, {})

    return body


async def _client(edge: EdgeProcess, ledger: Ledger, next_body: Callable[[], dict[str, Any]]) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        while True:
            body = next_body()
            try:
                answer = await client.post(f"{edge.url}/v1/fetch-data", json=body)
            except httpx.TransportError:
                return
            ledger.note(body, answer.status_code, answer.json())


async def _killed_under_load(edge: EdgeProcess, chosen: Settings, bureau: Bureau, kills: int) -> None:
    bureau._answer = _upstream
    ledger, next_body = Ledger(), mixed(bureau)
    for _ in range(kills):
        edge.start()
        await edge.ready()
        async with asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(_client(edge, ledger, next_body))
            await ledger.reached(len(ledger.told) + random.randint(1, 300))
            edge.kill()
    edge.start()
    await edge.ready()
    assert await asyncio.to_thread(edge.stop) == 0, edge.log
    await ledger.check(chosen)


async def _embedded(directory: Path, bureau: Bureau, kills: int) -> None:
    async with process(directory) as edge:
        await _killed_under_load(edge, settings(directory), bureau, kills)


async def _over_servers(directory: Path, bureau: Bureau, redis: Valkey, postgres: Postgres, kills: int) -> None:
    shared = servers_of(redis, postgres)
    async with process(directory, **shared) as edge:
        await _killed_under_load(edge, settings(directory, **shared), bureau, kills)


async def test_three_kills_lose_no_row_and_double_none_embedded(tmp_path: Path, bureau: Bureau) -> None:
    await _embedded(tmp_path, bureau, 3)


async def test_two_kills_lose_no_row_and_double_none_over_servers(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    await _over_servers(tmp_path, bureau, redis_server, postgres_server, 2)


@pytest.mark.chaos
@pytest.mark.parametrize("run", range(5))
async def test_five_kills_again_and_again_embedded(tmp_path: Path, bureau: Bureau, run: int) -> None:
    await _embedded(tmp_path, bureau, 5)


@pytest.mark.chaos
@pytest.mark.parametrize("run", range(5))
async def test_five_kills_again_and_again_over_servers(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres, run: int
) -> None:
    await _over_servers(tmp_path, bureau, redis_server, postgres_server, 5)


async def _caller(edge: InProcess, ledger: Ledger, next_body: Callable[[], dict[str, Any]], over: asyncio.Event) -> None:
    while not over.is_set():
        body = next_body()
        answer = await edge.post(body)
        ledger.note(body, answer.status, answer.json())
        # What the upstream and the caller did wrong may fail; the outage may fail nothing.
        assert answer.status in (200, 400) or answer.json()["error"]["code"] == "UPSTREAM_STATUS"


async def test_an_outage_of_the_database_under_load_fails_nobody_and_loses_nothing(tmp_path: Path, bureau: Bureau) -> None:
    bureau._answer = _upstream
    with servers.postgres() as database:
        chosen = settings(tmp_path, bureau.port, database_url=database.create())
        async with in_process(chosen) as edge:
            ledger, next_body, over = Ledger(), mixed(bureau), asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for _ in range(_CLIENTS):
                    group.create_task(_caller(edge, ledger, next_body, over))
                await ledger.reached(100)
                await asyncio.to_thread(database.kill)
                await ledger.reached(len(ledger.told) + 300)
                held = edge.edge.spool.backlog_frames
                await asyncio.to_thread(database.start)
                over.set()
            assert held > 300  # rows, and the objects of misses
            await until(lambda: edge.edge.journal.flush(10))
        await ledger.check(chosen)


async def test_rows_that_were_shipped_already_are_not_doubled_by_the_next_start(tmp_path: Path, bureau: Bureau) -> None:
    chosen = settings(tmp_path, bureau.port)
    body = request(spec(bureau.url))
    async with in_process(chosen) as edge:
        assert (await edge.post(body)).status == 200
        assert len(await edge.rows()) == 1
        # A process that dies here leaves the segment as it is: what it shipped is known to the database alone.
        left = {path.name: path.read_bytes() for path in (tmp_path / "spool").glob("*.segment")}
    for name, data in left.items():
        (tmp_path / "spool" / name).write_bytes(data)
    async with in_process(chosen, migrated=False) as edge:
        assert edge.edge.spool.backlog_frames == 1
        assert [str(row.run_id) for row in await edge.rows()] == [body["run_id"]]


def _spool(directory: Path, **bounds: int) -> FileSpool:
    return FileSpool(directory, **{"segment_bytes": 2**20, "max_bytes": 2**24, **bounds})


def _orphan(directory: Path, *frames: bytes) -> Path:
    """A segment whose process died."""
    spool = _spool(directory)
    for frame in frames:
        spool.append(frame)
    spool.close()
    (path,) = directory.glob("*.segment")
    return path


@pytest.mark.parametrize("tail", [b"\x00", b"\x00\x00\x00\x05\x00\x00\x00\x00ab", b"\xff" * 9, b"\x00" * 64], ids=range(4))
def test_a_torn_tail_is_cut_and_what_stands_before_it_is_kept(tmp_path: Path, tail: bytes) -> None:
    path = _orphan(tmp_path, b"one", b"two")
    with path.open("ab") as file:
        file.write(tail)
    spool = _spool(tmp_path)
    assert list(spool.read(10)) == [b"one", b"two"]
    assert spool.torn_bytes == len(tail)
    spool.commit()
    assert spool.backlog_bytes == spool.backlog_frames == 0
    assert not list(spool.read(10))
    spool.close()
    assert not list(tmp_path.iterdir())


def test_a_frame_cut_in_the_middle_is_dropped_alone(tmp_path: Path) -> None:
    path = _orphan(tmp_path, b"one", b"two")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    spool = _spool(tmp_path)
    assert list(spool.read(10)) == [b"one"]
    spool.close()


def test_two_live_spools_in_one_directory_keep_their_own_segments(tmp_path: Path) -> None:
    one, other = _spool(tmp_path), _spool(tmp_path)
    one.append(b"one")
    other.append(b"other")
    assert one.adopt() == other.adopt() == 0
    assert (list(one.read(10)), list(other.read(10))) == ([b"one"], [b"other"])
    one.close()
    other.close()


def test_a_dead_ones_segments_are_read_first_by_whoever_adopts_them(tmp_path: Path) -> None:
    dead, live = _spool(tmp_path, segment_bytes=1), _spool(tmp_path)
    live.append(b"mine")
    for frame in (b"1", b"2", b"3"):  # a segment each
        dead.append(frame)
    dead.close()
    assert live.adopt() == 3
    read = []
    while frames := live.read(10):
        read += frames
        live.commit()
    assert read == [b"1", b"2", b"3", b"mine"]
    live.close()
    assert not list(tmp_path.iterdir())


async def test_a_living_edge_ships_what_a_dead_one_left(tmp_path: Path, bureau: Bureau) -> None:
    chosen = settings(tmp_path, bureau.port)
    body = request(spec(bureau.url))
    async with in_process(chosen) as edge:
        async with in_process(chosen, migrated=False) as other:
            assert (await other.post(body)).status == 200
            left = {path.name: path.read_bytes() for path in (tmp_path / "spool").glob("*.segment")}
        await edge.rows()
        assert left
        for name, data in left.items():
            (tmp_path / "spool" / name).write_bytes(data.replace(b"fetched", b"adopted"))
        assert edge.edge.spool.adopt() == 0  # its checksum no longer fits: torn
        for name, data in left.items():
            (tmp_path / "spool" / f"again-{name}").write_bytes(data)
        assert edge.edge.spool.adopt() == 1
        assert [str(row.run_id) for row in await edge.rows()] == [body["run_id"]]


async def test_a_frame_that_this_version_cannot_read_is_set_aside_and_holds_up_nothing(tmp_path: Path, bureau: Bureau) -> None:
    _orphan(tmp_path / "spool", b"\x93from another version")
    body = request(spec(bureau.url))
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        await edge.post(body)
        assert [str(row.run_id) for row in await edge.rows()] == [body["run_id"]]
        assert edge.edge.journal.rejected == 1
