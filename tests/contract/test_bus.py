"""The contract of `ports.Bus`: Postgres' notifications, Redis' channels, and the bus of one process."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa

from broker_edge.backends.bus_local import LocalBus
from broker_edge.backends.bus_postgres import PostgresBus, announce
from broker_edge.backends.bus_redis import RedisBus
from broker_edge.backends.redis_connect import connect
from broker_edge.backends.sql_durable import make_engine
from broker_edge.errors import TierBroken
from broker_edge.ports import Bus
from broker_edge.settings import load
from tests import servers

PATIENCE = 30.0
REDIS = {"redis": "redis_server", "cluster": "redis_cluster", "sentinel": "redis_watched"}


@dataclass
class Ear:
    """What one process hears; `listening` counts how often nothing could be missed from then on."""

    bus: Bus
    heard: list[uuid.UUID] = field(default_factory=list)
    listening: int = 0
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[asyncio.Task[None]]:
        """Listening within the context, unless that is over before."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.bus.hear(self._hear, self._begin))
            await self.until(lambda: self.listening > 0)
            yield task
            task.cancel()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._more.clear()
                await self._more.wait()

    def _hear(self, data_source_id: uuid.UUID) -> None:
        self.heard.append(data_source_id)
        self._more.set()

    def _begin(self) -> None:
        self.listening += 1
        self._more.set()


@dataclass
class Exchange:
    """A bus for each of several processes, and the way in which a change is told on it."""

    join: Callable[[], Bus]
    tell: Callable[[Bus, uuid.UUID], Awaitable[None]]


async def publish(bus: Bus, data_source_id: uuid.UUID) -> None:
    await bus.publish(data_source_id)


@pytest.fixture(params=["local", "postgres", *REDIS])
async def exchange(request: pytest.FixtureRequest) -> AsyncIterator[Exchange]:
    if request.param == "local":
        bus = LocalBus()
        yield Exchange(lambda: bus, publish)
    elif request.param == "postgres":
        async with postgres(request.getfixturevalue("postgres_server").create()) as made:
            yield made
    else:
        links: list[Any] = []

        def join() -> Bus:
            links.append(connect(request.getfixturevalue(REDIS[request.param]).url, 10))
            return RedisBus(links[-1], 10)

        yield Exchange(join, publish)
        for link in links:
            await link.aclose()


@contextlib.asynccontextmanager
async def postgres(url: str, patience: float = 10) -> AsyncIterator[Exchange]:
    engine = make_engine(load({}, database_url=url).database)

    async def tell(bus: Bus, data_source_id: uuid.UUID) -> None:
        async with engine.begin() as connection:
            await announce(connection, data_source_id)
        await bus.publish(data_source_id)

    yield Exchange(lambda: PostgresBus(engine, patience), tell)
    await engine.dispose()


async def test_all_who_listen_hear_the_teller_included(exchange: Exchange) -> None:
    one, two = Ear(exchange.join()), Ear(exchange.join())
    changed = uuid.uuid4()
    async with one.open(), two.open():
        await exchange.tell(one.bus, changed)
        await one.until(lambda: changed in one.heard)
        await two.until(lambda: changed in two.heard)


async def test_who_tells_need_not_listen(exchange: Exchange) -> None:
    ear, changed = Ear(exchange.join()), uuid.uuid4()
    async with ear.open():
        await exchange.tell(exchange.join(), changed)
        await ear.until(lambda: changed in ear.heard)


async def test_a_burst_is_heard_whole(exchange: Exchange) -> None:
    ear, burst = Ear(exchange.join()), [uuid.uuid4() for _ in range(50)]
    async with ear.open():
        for each in burst:
            await exchange.tell(ear.bus, each)
        await ear.until(lambda: set(burst) <= set(ear.heard))


async def test_who_no_longer_listens_hears_nothing(exchange: Exchange) -> None:
    one, two = Ear(exchange.join()), Ear(exchange.join())
    async with one.open():
        pass
    changed = uuid.uuid4()
    async with two.open():
        await exchange.tell(two.bus, changed)
        await two.until(lambda: changed in two.heard)
    assert one.heard == []


async def test_listening_can_begin_anew(exchange: Exchange) -> None:
    ear = Ear(exchange.join())
    for _ in range(2):
        ear.listening, changed = 0, uuid.uuid4()
        async with ear.open():
            await exchange.tell(ear.bus, changed)
            await ear.until(lambda changed=changed: changed in ear.heard)  # type: ignore[misc]


async def test_a_change_that_is_rolled_back_is_told_to_nobody(postgres_server: servers.Postgres) -> None:
    url = postgres_server.create()
    engine = make_engine(load({}, database_url=url).database)
    async with postgres(url) as exchange:
        ear, undone, done = Ear(exchange.join()), uuid.uuid4(), uuid.uuid4()
        async with ear.open():
            async with engine.connect() as connection:
                await announce(connection, undone)
                await connection.rollback()
            await exchange.tell(ear.bus, done)
            await ear.until(lambda: done in ear.heard)
            assert ear.heard == [done]
    await engine.dispose()


async def test_a_word_of_somebody_else_is_passed_over(postgres_server: servers.Postgres, redis_server: servers.Valkey) -> None:
    url = postgres_server.create()
    engine = make_engine(load({}, database_url=url).database)
    async with postgres(url) as exchange:
        ear, changed = Ear(exchange.join()), uuid.uuid4()
        async with ear.open():
            async with engine.begin() as connection:
                await connection.execute(sa.text("SELECT pg_notify('broker_edge_registry', 'hello')"))
            await exchange.tell(ear.bus, changed)
            await ear.until(lambda: changed in ear.heard)
    await engine.dispose()
    link = connect(redis_server.url, 10)
    ear, changed = Ear(RedisBus(link, 10)), uuid.uuid4()
    async with ear.open():
        for word in (b"hello", b"\xff"):
            await asyncio.to_thread(servers.ask, redis_server, "PUBLISH", "be:registry", word)
        await ear.bus.publish(changed)
        await ear.until(lambda: changed in ear.heard)
    await link.aclose()


async def broken(task: asyncio.Task[None]) -> str:
    async with asyncio.timeout(PATIENCE):
        [error] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(error, TierBroken)
    return error.message


@contextlib.asynccontextmanager
async def deafened(ear: Ear) -> AsyncIterator[asyncio.Task[None]]:
    """An ear whose listening may end by itself."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(ear.bus.hear(ear._hear, ear._begin))
    try:
        await ear.until(lambda: ear.listening > 0)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def own_postgres() -> Iterator[servers.Postgres]:
    with servers.postgres() as server:
        yield server


async def test_a_database_that_goes_away_ends_the_listening(own_postgres: servers.Postgres) -> None:
    async with postgres(own_postgres.create()) as exchange, deafened(Ear(exchange.join())) as task:
        own_postgres.kill()
        assert "127.0.0.1" not in await broken(task)


async def test_a_database_that_falls_silent_ends_the_listening(own_postgres: servers.Postgres) -> None:
    import signal

    import psutil

    async with postgres(own_postgres.create(), patience=0.2) as exchange, deafened(Ear(exchange.join())) as task:
        assert own_postgres.process is not None
        everyone = psutil.Process(own_postgres.process.pid).children(recursive=True)
        for process in everyone:
            process.send_signal(signal.SIGSTOP)
        try:
            await broken(task)
        finally:
            for process in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)


async def test_a_redis_that_falls_silent_or_goes_away_ends_the_listening() -> None:
    for end in ("pause", "kill"):
        with servers.valkey() as redis:
            link = connect(redis.url, 0.2)
            async with deafened(Ear(RedisBus(link, 0.2))) as task:
                getattr(redis, end)()
                await broken(task)
            await link.aclose()


async def test_a_bus_that_can_not_be_reached_is_a_broken_tier() -> None:
    link = connect(f"redis://127.0.0.1:{servers.free_port()}", 1)
    engine = make_engine(f"postgresql+psycopg://nobody@127.0.0.1:{servers.free_port()}/none")
    for bus in (RedisBus(link, 1), PostgresBus(engine, 1)):
        with pytest.raises(TierBroken):
            await bus.hear(lambda _: None, lambda: None)
    with pytest.raises(TierBroken):
        await RedisBus(link, 1).publish(uuid.uuid4())
    await link.aclose()
    await engine.dispose()


async def test_a_database_that_takes_listen_and_passes_nothing_on_is_deaf(postgres_server: servers.Postgres) -> None:
    """As a pooler does that lends sessions by the transaction: here the echo is sent to another database."""
    engine, other = (make_engine(load({}, database_url=postgres_server.create()).database) for _ in range(2))
    bus = PostgresBus(engine, 0.3)
    bus._engine = other
    connected = PostgresBus(engine, 0.3)._connected
    bus._connected = connected  # type: ignore[method-assign]
    ear = Ear(bus)
    with pytest.raises(TierBroken):
        await bus.hear(ear._hear, ear._begin)
    assert ear.listening == 0
    for each in (engine, other):
        await each.dispose()
