"""What a hit and a miss cost, counted rather than timed: round trips to Redis, SQL statements, looks at the value."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from broker_edge.core.exchange import Entry
from tests import servers
from tests.edges import Bureau, InProcess, in_process, request, settings, spec


class CountingProxy:
    """A TCP proxy before Redis. A round trip begins where a client speaks after it was silent or answered."""

    def __init__(self, port: int) -> None:
        self._redis = port
        self.round_trips = 0
        self.sent = b""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[CountingProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    def reset(self) -> None:
        self.round_trips, self.sent = 0, b""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self._redis)
        waiting = False

        async def ask() -> None:
            nonlocal waiting
            while data := await reader.read(2**20):
                self.round_trips += not waiting
                self.sent += data
                waiting = True
                downstream.write(data)
                await downstream.drain()
            downstream.close()

        async def answer() -> None:
            nonlocal waiting
            while data := await upstream.read(2**20):
                waiting = False
                writer.write(data)
                await writer.drain()
            writer.close()

        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(ask(), answer())
        downstream.close()
        writer.close()

    def commands(self) -> list[str]:
        """The commands that were sent, by their RESP arrays."""
        return [name.decode().upper() for name in re.findall(rb"\*\d+\r\n\$\d+\r\n([A-Za-z]+)\r\n", self.sent)]


class Statements:
    """What is said to the database, in order; the journal's shipper is stopped, so nobody else says anything."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextlib.contextmanager
    def heard_on(self, edge: InProcess) -> Iterator[Statements]:
        engine = edge.edge.engine.sync_engine

        def statement(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
            self.said.append(" ".join(text.split()[:3]).replace("data_broker.", ""))

        def commit(_connection: Any) -> None:
            self.said.append("COMMIT")

        sa.event.listen(engine, "before_cursor_execute", statement)
        sa.event.listen(engine, "commit", commit)
        try:
            yield self
        finally:
            sa.event.remove(engine, "before_cursor_execute", statement)
            sa.event.remove(engine, "commit", commit)


@pytest.fixture
async def proxy() -> AsyncIterator[CountingProxy]:
    with servers.valkey() as server:
        async with CountingProxy(server.port).running() as proxy:
            yield proxy


@pytest.fixture
async def edge(
    tmp_path: Path, bureau: Bureau, proxy: CountingProxy, postgres_server: servers.Postgres
) -> AsyncIterator[InProcess]:
    """Over Redis and Postgres, its endless loops stopped, its connections and scripts warm."""
    chosen = settings(
        tmp_path,
        bureau.port,
        redis_url=f"redis://127.0.0.1:{proxy.port}/0",
        redis_timeout=20,
        database_url=postgres_server.create(migrated=True),
    )
    async with in_process(chosen) as running:
        await running.edge.background.stop()
        warm = spec(bureau.url)
        for _ in range(2):
            assert (await running.post(request(warm))).status == 200
        await settled(running)
        proxy.reset()
        yield running


async def settled(edge: InProcess) -> None:
    """Wait for what goes on behind a reply."""
    assert await edge.edge.background.drain(30) == 0


async def test_a_hit_is_one_round_trip_with_one_get_and_no_sql(edge: InProcess, bureau: Bureau, proxy: CountingProxy) -> None:
    source = spec(bureau.url)
    await edge.post(request(source))
    await settled(edge)
    proxy.reset()
    with Statements().heard_on(edge) as statements:
        answer = await edge.post(request(source))
        await settled(edge)
    assert answer.json()["origin"] == "CACHE"
    assert (proxy.round_trips, proxy.commands()) == (1, ["GET"])
    assert statements.said == []


async def test_redis_itself_counts_one_command_for_a_hit(edge: InProcess, bureau: Bureau, proxy: CountingProxy) -> None:
    source = spec(bureau.url)
    await edge.post(request(source))
    await settled(edge)
    redis = Redis.from_url(f"redis://127.0.0.1:{proxy._redis}")
    await redis.config_resetstat()
    for _ in range(3):
        assert (await edge.post(request(source))).json()["origin"] == "CACHE"
    stats = {name: row["calls"] for name, row in (await redis.info("commandstats")).items()}
    await redis.aclose()
    assert {name: calls for name, calls in stats.items() if name not in ("cmdstat_info", "cmdstat_config|resetstat")} == {
        "cmdstat_get": 3
    }


@pytest.mark.parametrize("count", [2, 50])
async def test_hits_of_one_moment_share_a_round_trip(edge: InProcess, bureau: Bureau, proxy: CountingProxy, count: int) -> None:
    source = spec(f"{bureau.url}/{{{{ id }}}}")
    for number in range(count):
        await edge.post(request(source, {"id": number}))
    await settled(edge)
    proxy.reset()
    with Statements().heard_on(edge) as statements:
        answers = await asyncio.gather(*(edge.post(request(source, {"id": number})) for number in range(count)))
    assert {answer.json()["origin"] for answer in answers} == {"CACHE"}
    assert (proxy.round_trips, proxy.commands()) == (1, ["GET"] * count)
    assert statements.said == []


async def test_a_hit_never_looks_at_the_value(edge: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url)
    key = (await edge.post(request(source))).json()["key"]
    await settled(edge)
    value, object_id = b"\xff{{ this is no JSON ]]\x00", uuid.uuid4()
    await edge.edge.hot.put(key, Entry(object_id, time.time(), value), None)
    answer = await edge.post(request(source))
    assert answer.status == 200
    head = b'{"data_object_id":"%s","origin":"CACHE","key":"%s","value":' % (str(object_id).encode(), key.encode())
    assert answer.body == head + value + b',"start_time":null,"end_time":null,"duration":null,"error":null}'


async def test_a_miss_is_four_round_trips_one_select_and_one_transaction(
    edge: InProcess, bureau: Bureau, proxy: CountingProxy
) -> None:
    with Statements().heard_on(edge) as statements:
        answer = await edge.post(request(spec(bureau.url)))
        await settled(edge)
    assert answer.json()["origin"] == "REQUEST"
    # Look up; bid and look again in one; put; settle.
    assert (proxy.round_trips, proxy.commands()) == (4, ["GET", "EVALSHA", "SET", "EVALSHA"])
    assert statements.said == ["SELECT run_data_cache.key, data_object.data_object_id,", *STORED]


STORED = ["INSERT INTO data_object", "INSERT INTO run_data_cache", "COMMIT"]


async def test_misses_of_one_moment_share_the_select_and_the_transaction(edge: InProcess, bureau: Bureau) -> None:
    source = spec(f"{bureau.url}/{{{{ id }}}}")
    bureau.gate.clear()
    with Statements().heard_on(edge) as statements:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(edge.post(request(source, {"id": number}))) for number in range(20)]
            async with asyncio.timeout(30):
                while True:
                    if len(bureau.calls) == 1 + 20:
                        break
                    await asyncio.sleep(0.005)
            bureau.gate.set()
        await settled(edge)
    assert all(task.result().json()["origin"] == "REQUEST" for task in tasks)
    # Answers come one after the other, so that there is more than one batch; far fewer than twenty of each all the same.
    assert sum(said.startswith("SELECT") for said in statements.said) < 20
    assert statements.said.count("COMMIT") < 20


async def test_a_flushed_redis_costs_one_select_and_no_call(edge: InProcess, bureau: Bureau, proxy: CountingProxy) -> None:
    source = spec(bureau.url)
    await edge.post(request(source))
    await settled(edge)
    redis = Redis.from_url(f"redis://127.0.0.1:{proxy._redis}")
    await redis.flushall()
    await redis.aclose()
    proxy.reset()
    calls = len(bureau.calls)
    with Statements().heard_on(edge) as statements:
        answer = await edge.post(request(source))
        await settled(edge)
    assert answer.json()["origin"] == "CACHE"
    assert len(bureau.calls) == calls
    assert statements.said == ["SELECT run_data_cache.key, data_object.data_object_id,"]
    assert proxy.commands() == ["GET", "EVALSHA", "SET", "EVALSHA"]


async def test_an_answer_that_is_never_reused_asks_neither_tier(edge: InProcess, bureau: Bureau, proxy: CountingProxy) -> None:
    with Statements().heard_on(edge) as statements:
        await edge.post(request(spec(bureau.url, caching={"enabled": False})))
        await settled(edge)
    assert proxy.commands() == []
    assert statements.said == ["INSERT INTO data_object", "COMMIT"]


async def test_rows_of_many_answers_travel_in_one_transaction(edge: InProcess, bureau: Bureau) -> None:
    assert await edge.edge.journal.flush(60)
    source = spec(bureau.url)
    for _ in range(100):
        await edge.post(request(source))
    with Statements().heard_on(edge) as statements:
        assert await edge.edge.journal.flush(60)
    # COPY goes past the statements that are heard here.
    assert statements.said == ["COMMIT"]
