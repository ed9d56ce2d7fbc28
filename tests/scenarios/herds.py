"""Herds and fleets for scenarios: callers that are certainly waiting at the same time, edges over the same servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_durable import make_engine
from broker_edge.settings import Settings
from tests.edges import Answer, Bureau, EdgeProcess, InProcess, in_process, settings
from tests.servers import Postgres, Valkey, free_port

PATIENCE = 60.0  # seconds: a net under every wait, on a machine that may be busy


async def until(happened: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for what no event tells of."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = happened()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.005)


class Gathering:
    """Sees who joins a flight on some edges: `joined` counts, `reached` waits for so many."""

    def __init__(self, *edges: InProcess) -> None:
        self.joined = 0
        self._more = asyncio.Event()
        for edge in edges:
            self._tap(edge.edge.broker._flights)

    def _tap(self, flights: Any) -> None:
        join = flights.join

        async def counted(*arguments: Any) -> Any:
            self.joined += 1
            self._more.set()
            return await join(*arguments)

        flights.join = counted

    async def reached(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.joined < count:
                self._more.clear()
                await self._more.wait()


async def herd(bureau: Bureau, gathering: Gathering, posts: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """The answers of callers who all wait before the upstream says its first word."""
    bureau.gate.clear()
    expected = gathering.joined + len(posts)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(post) for post in posts]
        await gathering.reached(expected)
        bureau.gate.set()
    return [task.result() for task in tasks]


@contextlib.asynccontextmanager
async def fleet(
    size: int, directory: Path, bureau: Bureau, redis: Valkey, database: str, **values: Any
) -> AsyncIterator[list[InProcess]]:
    """Edges with directories of their own over one Redis and one database, their bells hung."""
    async with contextlib.AsyncExitStack() as stack:
        edges = []
        for number in range(size):
            chosen = settings(directory / str(number), bureau.port, redis_url=redis.url, database_url=database, **values)
            edges.append(await stack.enter_async_context(in_process(chosen, migrated=number == 0)))
        for edge in edges:
            async with asyncio.timeout(PATIENCE):
                await edge.edge.fleet.hearing.wait()  # type: ignore[attr-defined]
        yield edges


class _Unsignalled(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def listening(edge: InProcess) -> AsyncIterator[str]:
    """The edge of this process behind a real socket; answers its URL."""
    config = uvicorn.Config(edge.app, lifespan="off", log_config=None, access_log=False, ws="none", http="httptools")  # type: ignore[arg-type]
    server = _Unsignalled(config)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve([sock]))
            await until(lambda: server.started)
            try:
                yield f"http://127.0.0.1:{sock.getsockname()[1]}"
            finally:
                server.should_exit = True


async def migrated(chosen: Settings) -> None:
    chosen.data_dir.mkdir(parents=True, exist_ok=True)
    engine = make_engine(chosen.database)
    try:
        await migrate(engine)
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def process(data_dir: Path, *, workers: int = 1, **values: str) -> AsyncIterator[EdgeProcess]:
    """A migrated edge process that may call any port of this machine; started by the test, killed at the end if it still runs."""
    await migrated(settings(data_dir, **values))
    own = {f"DATA_BROKER_{name.upper()}": value for name, value in values.items()}
    edge = EdgeProcess(data_dir, {"DATA_BROKER_ALLOWED_PRIVATE_HOSTS": "127.0.0.1", **own}, free_port(), workers)
    try:
        yield edge
    finally:
        edge.kill()


def servers_of(redis: Valkey, postgres: Postgres) -> dict[str, str]:
    return {"redis_url": redis.url, "database_url": postgres.create(migrated=True)}
