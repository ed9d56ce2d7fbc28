"""One connection to Redis that all share: order, loss, time, bounds, and how it is dialled. On both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hiredis import ReplyError
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.backends import redis_wire
from broker_edge.backends.redis_connect import connect
from broker_edge.backends.redis_lane import Lane
from broker_edge.backends.redis_wire import ConnectionLost, Wire, packed
from broker_edge.errors import TierBroken
from tests import servers

GONE = r"^Redis can't be reached$"
SECRET = "s3cr3t-canary"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


Serve = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def command(self) -> list[bytes]:
        """The words of the next command; IncompleteReadError at the end of the connection."""
        count = int((await self._reader.readuntil(b"\r\n"))[1:])
        words = []
        for _ in range(count):
            size = int((await self._reader.readuntil(b"\r\n"))[1:])
            words.append((await self._reader.readexactly(size + 2))[:-2])
        return words

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def silence(self) -> None:
        """Until the other end is gone."""
        await self._reader.read()


class Scripted:
    """A Redis that does what a test says; `connections` counts those that were made."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._serve(Peer(self.connections, reader, writer))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def dial(self, deadline: float) -> Wire:
        return (await asyncio.get_running_loop().create_connection(Wire, "127.0.0.1", self.port))[1]


@contextlib.asynccontextmanager
async def lane_to(serve: Serve, timeout: float = 30) -> AsyncIterator[tuple[Lane, Scripted]]:
    async with Scripted(serve).running() as server:
        lane = Lane(server.dial, timeout)
        try:
            yield lane, server
        finally:
            await lane.aclose()


async def echo(peer: Peer) -> None:
    while True:
        word = (await peer.command())[-1]
        await peer.say(b"$%d\r\n%b\r\n" % (len(word), word))


def asking(word: str) -> list[bytes]:
    return [packed("ECHO", word)]


# What is received, however it is cut.


class Nowhere(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


def receive(wire: Wire, data: bytes, sizes: Iterator[int]) -> None:
    while data:
        buffer = memoryview(wire.get_buffer(-1))
        size = min(next(sizes), len(buffer), len(data))
        buffer[:size] = data[:size]
        wire.buffer_updated(size)
        data = data[size:]


def encoded(reply: Any) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(encoded, reply))
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


SIZES = st.sampled_from([0, 1, 2, 40, 5000, 65_535, 65_536, 65_600, 200_000])
VALUES = st.builds(
    lambda size, start: bytes((start + number) & 0xFF for number in range(256)) * (size // 256 + 1), SIZES, st.integers(0, 9)
)
REPLIES = st.lists(st.one_of(VALUES, st.none(), st.integers(-9, 9), st.lists(VALUES, max_size=2)), min_size=1, max_size=6)
CUTS = st.lists(st.sampled_from([1, 3, 9, 17, 1000, 65_536, 10**9]), min_size=1, max_size=8)


@given(REPLIES, CUTS)
def test_replies_are_whole_and_in_order_however_they_arrive(replies: list[Any], cuts: list[int]) -> None:
    async def run() -> None:
        wire = Wire()
        wire.connection_made(Nowhere())
        deadline = asyncio.get_running_loop().time() + 60
        futures = [wire.send([b"?"], 1, deadline) for _ in replies]
        few = [size if sum(map(len, map(encoded, replies))) < 3000 or size > 100 else 1009 for size in cuts]
        receive(wire, b"".join(map(encoded, replies)), (few[number % len(few)] for number in range(10**9)))
        assert [(await future)[0] for future in futures] == replies
        wire.connection_lost(None)

    asyncio.run(run())


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$12x456\r\n" + b"z" * 30, b"$99999999999\r\nxyz", b"+OK\r\n+OK\r\n"]
)
async def test_what_is_no_answer_ends_the_connection(data: bytes) -> None:
    wire, transport = Wire(), Nowhere()
    wire.connection_made(transport)
    future = wire.send([b"?"], 1, asyncio.get_running_loop().time() + 60)
    receive(wire, data, iter([10**9] * 9))
    assert transport.aborted
    if data.startswith(b"+OK"):
        assert await future == [b"OK"]
    else:
        with pytest.raises(ConnectionLost):
            await future
    assert not wire.usable
    with pytest.raises(ConnectionLost):
        wire.send([b"?"], 1, 0)


async def test_a_large_value_is_handed_out_where_it_was_received() -> None:
    value = bytes(range(256)) * 4096

    async def serve(peer: Peer) -> None:
        while await peer.command():
            await peer.say(encoded(value))

    async with lane_to(serve) as (lane, _):
        replies = await lane.execute(["a", "b"], [packed("GET", "a"), packed("GET", "b")])
    assert [type(reply) for reply in replies] == [memoryview, memoryview]
    assert replies == [value, value]


# What is sent.


async def test_commands_of_one_tick_leave_in_one_write() -> None:
    wire, transport = Wire(), Nowhere()
    wire.connection_made(transport)
    deadline = asyncio.get_running_loop().time() + 60
    futures = [wire.send([packed("GET", str(number))], 1, deadline) for number in range(50)]
    await asyncio.sleep(0)
    assert transport.written == [b"".join(packed("GET", str(number)) for number in range(50))]
    wire.connection_lost(None)
    assert [type(future.exception()) for future in futures] == [ConnectionLost] * 50


async def test_nothing_is_written_while_the_transport_is_full() -> None:
    wire, transport = Wire(), Nowhere()
    wire.connection_made(transport)
    wire.pause_writing()
    future = wire.send([b"later"], 1, asyncio.get_running_loop().time() + 60)
    await asyncio.sleep(0)
    assert transport.written == []
    wire.resume_writing()
    assert transport.written == [b"later"]
    receive(wire, b"+OK\r\n", iter([9]))
    assert await future == [b"OK"]
    wire.connection_lost(None)


async def test_the_parts_of_a_large_value_arrive_as_one() -> None:
    got: list[list[bytes]] = []

    async def serve(peer: Peer) -> None:
        got.append(await peer.command())
        await peer.say(b"+OK\r\n")

    value = b"x" * 1_000_000
    async with lane_to(serve) as (lane, _):
        head = b"*2\r\n$3\r\nSET\r\n$%d\r\n" % len(value)
        assert await lane.execute(["a"], [head, memoryview(value), b"\r\n"]) == [b"OK"]
    assert got == [[b"SET", value]]


async def test_more_than_redis_will_catch_up_with_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_wire, "_MOST_COMMANDS", 5)
    monkeypatch.setattr(redis_wire, "_MOST_BYTES", 1000)
    wire = Wire()
    wire.connection_made(Nowhere())
    deadline = asyncio.get_running_loop().time() + 60
    first = wire.send([b"x" * 2000], 1, deadline)  # one command alone may be as large as it likes
    with pytest.raises(TierBroken, match=r"^Redis is behind$"):
        wire.send([b"x"], 1, deadline)
    receive(wire, b"+OK\r\n", iter([9]))
    assert await first == [b"OK"]
    futures = [wire.send([b"x"], 1, deadline) for _ in range(5)]
    with pytest.raises(TierBroken, match=r"^Redis is behind$"):
        wire.send([b"x"], 1, deadline)
    receive(wire, b"+OK\r\n" * 5, iter([99]))
    assert await asyncio.gather(*futures) == [[b"OK"]] * 5
    wire.connection_lost(None)


# Loss.


async def test_what_a_broken_connection_leaves_open_is_sent_once_more() -> None:
    async def serve(peer: Peer) -> None:
        if peer.number == 1:
            for _ in range(3):
                await peer.command()
            return
        await echo(peer)

    async with lane_to(serve) as (lane, server):
        answers = await asyncio.gather(*(lane.execute(["k"], asking(str(number))) for number in range(3)))
        assert answers == [[b"0"], [b"1"], [b"2"]]
        assert server.connections == 2


async def test_nothing_is_sent_a_third_time() -> None:
    async def serve(peer: Peer) -> None:
        await peer.command()

    async with lane_to(serve) as (lane, server):
        with pytest.raises(TierBroken, match=GONE):
            await lane.execute(["k"], asking("x"))
        assert server.connections == 2


async def test_what_a_caller_gave_up_is_not_sent_again() -> None:
    got: list[bytes] = []
    end = asyncio.Event()

    async def serve(peer: Peer) -> None:
        if peer.number == 1:
            for _ in range(2):
                await peer.command()
            end.set()
            await asyncio.sleep(0)
            return
        while True:
            got.append((await peer.command())[-1])
            await peer.say(b"+OK\r\n")

    async with lane_to(serve) as (lane, _), asyncio.TaskGroup() as group:
        left = group.create_task(lane.execute(["k"], asking("left")))
        stays = group.create_task(lane.execute(["k"], asking("stays")))
        await end.wait()
        left.cancel()
        assert await stays == [b"OK"]
        assert got == [b"stays"]


async def test_a_primary_that_was_demoted_is_left_for_whoever_it_is_by_then() -> None:
    async def serve(peer: Peer) -> None:
        while await peer.command():
            await peer.say(b"-READONLY You can't write against a read only replica.\r\n" if peer.number == 1 else b"+OK\r\n")

    async with lane_to(serve) as (lane, server):
        assert await lane.execute(["k"], [packed("SET", "k", "v")]) == [b"OK"]
        assert server.connections == 2


async def test_an_error_is_an_answer_like_others() -> None:
    async def serve(peer: Peer) -> None:
        for reply in (b"+OK\r\n", b"-ERR no\r\n", b":3\r\n"):
            await peer.command()
            await peer.say(reply)
        await peer.silence()

    async with lane_to(serve) as (lane, _):
        replies = await lane.execute(["a", "b", "c"], [packed("X")] * 3)
        assert (replies[0], type(replies[1]), replies[2]) == (b"OK", ReplyError, 3)


# Time.


async def test_one_that_is_silent_is_given_up_with_all_that_wait_and_dialled_anew() -> None:
    async def serve(peer: Peer) -> None:
        if peer.number == 1:
            await peer.silence()
        await echo(peer)

    async with lane_to(serve, timeout=0.2) as (lane, server):
        answers = await asyncio.gather(*(lane.execute(["k"], asking("x")) for _ in range(20)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [TierBroken] * 20
        assert len({id(answer) for answer in answers}) == 20
        assert server.connections == 1
        patient = Lane(server.dial, 30)
        assert await patient.execute(["k"], asking("y")) == [b"y"]
        assert server.connections == 2
        await patient.aclose()


async def test_what_arrived_while_this_process_stood_still_counts_as_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_wire, "_GRACE", 30.0)
    said = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.command()
        await said.wait()
        await peer.say(b"+OK\r\n")
        await peer.silence()

    async with lane_to(serve, timeout=0.05) as (lane, _), asyncio.TaskGroup() as group:
        asked = group.create_task(lane.execute(["k"], asking("x")))
        await asyncio.sleep(0.2)
        said.set()
        assert await asked == [b"OK"]


# Dialling.


async def test_callers_that_come_at_once_share_one_dial() -> None:
    async with lane_to(echo) as (lane, server):
        answers = await asyncio.gather(*(lane.execute(["k"], asking(str(number))) for number in range(100)))
        assert answers == [[b"%d" % number] for number in range(100)]
        assert server.connections == 1


async def test_a_dial_that_fails_fails_for_all_that_waited_for_it() -> None:
    dialled, gate = 0, asyncio.Event()

    async def dial(deadline: float) -> Wire:
        nonlocal dialled
        dialled += 1
        await gate.wait()
        raise ConnectionRefusedError(SECRET)

    lane = Lane(dial, 30)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(_outcome(lane)) for _ in range(50)]
        await asyncio.sleep(0)
        gate.set()
    assert {str(task.result()) for task in asked} == {"Redis can't be reached"}
    assert dialled == 1
    assert isinstance(await _outcome(lane), TierBroken)
    assert dialled == 2


async def _outcome(lane: Lane) -> Any:
    try:
        return await lane.execute(["k"], asking("x"))
    except TierBroken as error:
        return error


async def test_a_caller_that_leaves_while_it_dials_leaves_the_others() -> None:
    async with Scripted(echo).running() as server:
        begun, gate = asyncio.Event(), asyncio.Event()

        async def dial(deadline: float) -> Wire:
            begun.set()
            await gate.wait()
            return await server.dial(deadline)

        lane = Lane(dial, 30)
        async with asyncio.TaskGroup() as group:
            leaver = group.create_task(lane.execute(["k"], asking("x")))
            await begun.wait()
            others = [group.create_task(lane.execute(["k"], asking("y"))) for _ in range(3)]
            await asyncio.sleep(0)
            leaver.cancel()
            gate.set()
        assert [task.result() for task in others] == [[b"y"]] * 3
        assert server.connections == 1
        await lane.aclose()


async def test_a_dial_that_hangs_ends_in_time_for_all() -> None:
    async def dial(deadline: float) -> Wire:
        await asyncio.Event().wait()
        raise AssertionError

    lane = Lane(dial, 0.1)
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*(_outcome(lane) for _ in range(20)))
    assert {str(outcome) for outcome in outcomes} == {"Redis can't be reached"}


async def test_a_connection_that_is_there_too_late_is_closed() -> None:
    async with Scripted(lambda peer: peer.silence()).running() as server:
        gate, made = asyncio.Event(), []

        async def dial(deadline: float) -> Wire:
            await gate.wait()
            made.append(await server.dial(deadline))
            return made[0]

        lane = Lane(dial, 30)
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(_outcome(lane))
            await asyncio.sleep(0)
            await lane.aclose()
            gate.set()
        assert isinstance(asked.result(), TierBroken)
        await made[0].lost
        assert isinstance(await _outcome(lane), TierBroken)


async def test_it_says_who_it_is_before_anything_else() -> None:
    said: list[list[bytes]] = []

    async def serve(peer: Peer) -> None:
        while True:
            said.append(await peer.command())
            await peer.say(b"+OK\r\n")

    async with Scripted(serve).running() as server:
        link = connect(f"redis://us%40er:{SECRET}%2F@127.0.0.1:{server.port}/7?client_name=edge", 30)
        assert await link.lane.execute(["k"], [packed("GET", "k")]) == [b"OK"]
        await link.aclose()
        alone = connect(f"redis://:{SECRET}@127.0.0.1:{server.port}", 30)
        await alone.lane.probe()
        await alone.aclose()
    assert said == [
        [b"AUTH", b"us@er", f"{SECRET}/".encode()],
        [b"CLIENT", b"SETNAME", b"edge"],
        [b"SELECT", b"7"],
        [b"GET", b"k"],
        [b"AUTH", SECRET.encode()],
        [b"PING"],
    ]


async def test_credentials_that_are_refused_break_the_tier_and_are_not_told(redis_server: servers.Valkey) -> None:
    link = connect(f"redis://somebody:{SECRET}@127.0.0.1:{redis_server.port}/0", 30)
    with pytest.raises(TierBroken) as caught:
        await link.lane.probe()
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None
    await link.aclose()


async def test_a_unix_socket_is_dialled(tmp_path: Path) -> None:
    with servers.valkey() as server:
        server.kill()
        path = server.directory / "s"
        server.extra = ("--unixsocket", str(path))
        server.start()
        link = connect(f"unix://{path}?db=3", 30)
        assert await link.lane.execute(["k"], [packed("SET", "k", "v")]) == [b"OK"]
        assert await link.get("k") == b"v"
        await link.aclose()


async def test_tls_is_verified(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with Scripted(echo).running(context) as server:
        url = f"rediss://127.0.0.1:{server.port}"
        link = connect(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}", 30)
        big = "x" * 300_000
        assert await link.lane.execute(["a", "b"], [*asking(big), *asking("y")]) == [big.encode(), b"y"]
        await link.aclose()
        stranger = connect(url, 30)
        with pytest.raises(TierBroken, match=GONE):
            await stranger.lane.probe()
        await stranger.aclose()
