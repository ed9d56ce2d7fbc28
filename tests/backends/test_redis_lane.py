"""One connection to Redis that all share: order, loss, time, bounds, and how it is dialled. On both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from hiredis import ReplyError
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.backends import redis_lane, redis_wire
from broker_edge.backends.redis_connect import connect
from broker_edge.backends.redis_lane import Lane
from broker_edge.backends.redis_link import RedisFleet, RedisHot
from broker_edge.backends.redis_wire import ConnectionLost, Wire, packed
from broker_edge.core.exchange import Entry
from broker_edge.core.packing import pack
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


LARGE = bytes(range(256)) * 300


def boundaries(replies: list[Any], around: int = 40) -> Iterator[int]:
    """Each place in the encoded replies where something of their structure is, or nearly."""
    end, total = 0, sum(len(encoded(reply)) for reply in replies)
    places = set(range(1, around))
    for reply in replies:
        end += len(encoded(reply))
        places |= set(range(end - around, end + around))
    return iter(sorted(place for place in places if 0 < place < total))


@pytest.mark.parametrize(
    "replies",
    [[[1, LARGE], LARGE, [0, 5]], [[LARGE, LARGE], None, LARGE], [LARGE, [1, [2, LARGE]], LARGE], [7, [1, LARGE], b"x"]],
    ids=["a bid", "two in one", "nested", "after a number"],
)
async def test_an_array_with_a_large_value_may_be_cut_anywhere(replies: list[Any]) -> None:
    data = b"".join(map(encoded, replies))
    for cut in boundaries(replies):
        for second in (1, 10, 10**9):
            wire = Wire()
            wire.connection_made(Nowhere())
            futures = [wire.send([b"?"], 1, asyncio.get_running_loop().time() + 60) for _ in replies]
            for piece in (data[:cut], data[cut : cut + second], data[cut + second :]):
                receive(wire, piece, iter([10**9] * 99))
            assert [future.done() and future.result()[0] for future in futures] == replies, (cut, second)
            wire.connection_lost(None)


class Heard(Nowhere):
    def __init__(self, spoken: asyncio.Event) -> None:
        super().__init__()
        self._spoken = spoken

    def write(self, data: Any) -> None:
        super().write(data)
        self._spoken.set()


class Played:
    """A lane whose server says what a test says, in the pieces that it says."""

    def __init__(self) -> None:
        self.wires: list[tuple[Wire, Nowhere]] = []
        self.link: Any = SimpleNamespace(lane=Lane(self._dial, 30))
        self._spoken = asyncio.Event()

    async def _dial(self, deadline: float) -> Wire:
        wire, transport = Wire(), Heard(self._spoken)
        wire.connection_made(transport)
        self.wires.append((wire, transport))
        return wire

    async def asked(self, count: int) -> Wire:
        """The connection, once it has written so many commands."""
        while not self.wires or b"".join(self.wires[-1][1].written).count(b"*") < count:
            await self._spoken.wait()
            self._spoken.clear()
        return self.wires[-1][0]


async def test_bids_and_look_ups_get_their_own_answers_wherever_these_are_cut() -> None:
    item, other = Entry(uuid.uuid4(), 1.5, LARGE), Entry(uuid.uuid4(), 2.5, b"[2]")
    replies = [[1, pack(item)], pack(item), [0, 5000], pack(other)]
    for cut in boundaries(replies):
        played = Played()
        fleet, hot = RedisFleet(played.link), RedisHot(played.link)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(fleet.bid("a", "one", 60))
            looked = group.create_task(hot.get_many(["a"]))
            second = group.create_task(fleet.bid("b", "two", 60))
            again = group.create_task(hot.get_many(["b"]))
            wire, data = await played.asked(4), b"".join(map(encoded, replies))
            for piece in (data[:cut], data[cut:]):
                receive(wire, piece, iter([10**9] * 99))
        assert (first.result().won, first.result().entry) == (True, item)
        assert (second.result().won, second.result().lease_left) == (False, 5)
        assert (looked.result(), again.result()) == ([item], [other])
        assert len(played.wires) == 1
        played.wires[0][0].connection_lost(None)


BID, GET, PUT, DELETE, RENEW, SETTLE = "bid", "get", "put", "delete", "renew", "settle"
SHIFTED = [(BID, reply) for reply in (None, 1, b"x" * 30, [], [1], [1, 2], [0, b"x"], [0, None], [2, 2], [1, None, 3])]
SHIFTED += [(GET, reply) for reply in (1, [1, b"x" * 30])]
SHIFTED += [(what, reply) for what in (DELETE, RENEW, SETTLE) for reply in (None, b"x" * 30, [1, None])]
SHIFTED += [(PUT, reply) for reply in (b"x" * 30, [1, None])]


@pytest.mark.parametrize(("what", "reply"), SHIFTED, ids=repr)
async def test_the_answer_to_something_else_ends_the_connection(what: str, reply: Any) -> None:
    played = Played()
    fleet, hot = RedisFleet(played.link), RedisHot(played.link)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        BID: lambda: fleet.bid("a", "one", 60),
        GET: lambda: hot.get_many(["a"]),
        PUT: lambda: hot.put("a", Entry(uuid.uuid4(), 1.5, b"[1]"), 60),
        DELETE: lambda: hot.delete("a"),
        RENEW: lambda: fleet.renew("a", "one", 60),
        SETTLE: lambda: fleet.settle("a", "one", b""),
    }

    async def ask() -> None:
        with pytest.raises(TierBroken, match=r"^Redis answered something else$"):
            await calls[what]()

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        receive(await played.asked(1), encoded(reply), iter([10**9]))
    assert [(wire.usable, transport.aborted) for wire, transport in played.wires] == [(False, True)]


async def test_a_large_value_that_ends_elsewhere_ends_the_connection() -> None:
    wire, transport = Wire(), Nowhere()
    wire.connection_made(transport)
    future = wire.send([b"?"], 1, asyncio.get_running_loop().time() + 60)
    receive(wire, encoded(LARGE)[:-2] + b"+OK\r\n", iter([10**9] * 9))
    assert transport.aborted
    assert isinstance(future.exception(), ConnectionLost)


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


async def test_a_put_whose_answer_was_lost_undoes_nothing_newer(redis_server: servers.Valkey) -> None:
    name = uuid.uuid4().hex
    older, newer = Entry(uuid.uuid4(), 1.5, b"[1]"), Entry(uuid.uuid4(), 2.5, b"[2]")
    commands: list[bytes] = []
    real = connect(redis_server.url, 30)
    others = RedisHot(real)

    async def serve(peer: Peer) -> None:
        while True:
            words = await peer.command()
            commands.append(words[0])
            reply = await real.execute_command(*words)
            if peer.number == 1:
                await others.put(name, newer, 60)
                return
            await peer.say(b":%d\r\n" % reply)

    async with lane_to(serve) as (lane, _):
        link: Any = SimpleNamespace(lane=lane)
        await RedisHot(link).put(name, older, 60)
        assert await others.get_many([name]) == [None]  # the durable tier knows the newer one
    assert commands == [b"SET", b"DEL"]
    await real.aclose()


async def test_a_put_that_a_replica_refused_is_done_at_the_primary() -> None:
    said: list[bytes] = []

    async def serve(peer: Peer) -> None:
        while True:
            said.append((await peer.command())[0])
            await peer.say(b"-READONLY You can't write against a read only replica.\r\n" if peer.number == 1 else b"+OK\r\n")

    async with lane_to(serve) as (lane, _):
        link: Any = SimpleNamespace(lane=lane)
        await RedisHot(link).put("a", Entry(uuid.uuid4(), 1.5, b"[1]"), 60)
    assert said == [b"SET", b"SET"]


async def refuse(peer: Peer) -> None:
    while await peer.command():
        await peer.say(b"-READONLY You can't write against a read only replica.\r\n")


async def test_a_server_that_stays_a_replica_does_not_cost_a_dial_for_each_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_lane, "_READONLY", 3600.0)
    async with lane_to(refuse) as (lane, server):
        alone = [await lane.execute(["k"], asking("x")) for _ in range(10)]
        together = await asyncio.gather(*(lane.execute(["k"], asking("x")) for _ in range(10)))
        assert {type(reply) for replies in alone + together for reply in replies} == {ReplyError}
        assert server.connections == 2


async def test_a_server_that_stays_a_replica_is_dialled_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_lane, "_READONLY", 0.0)
    async with lane_to(refuse) as (lane, server):
        for number in range(1, 4):
            assert isinstance(await _outcome(lane), TierBroken)
            assert server.connections == 2 * number


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


async def test_one_whose_time_ends_before_that_of_those_ahead_of_it_waits_no_longer() -> None:
    wire, transport = Wire(), Nowhere()
    wire.connection_made(transport)
    now = asyncio.get_running_loop().time()
    ahead, older, left, behind = (wire.send([b"?"], 1, now + seconds, now + 60) for seconds in (60, 0.05, 0.05, 60))
    left.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(TierBroken, match=GONE):
            await older
    assert (wire.usable, ahead.done(), behind.done()) == (True, False, False)
    receive(wire, b":1\r\n:2\r\n:3\r\n:4\r\n", iter([10**9]))
    assert (await ahead, await behind) == ([1], [4])
    wire.connection_lost(None)


async def test_a_caller_with_little_time_left_does_not_end_the_connection_of_the_others() -> None:
    answer = asyncio.Event()

    async def serve(peer: Peer) -> None:
        for _ in range(2):
            await peer.command()
        await answer.wait()
        await peer.say(b":1\r\n:2\r\n")
        await peer.silence()

    async with lane_to(serve, timeout=60) as (lane, server), asyncio.timeout(30), asyncio.TaskGroup() as group:
        hurried = group.create_task(_outcome(lane, asyncio.get_running_loop().time() + 0.05))
        patient = group.create_task(lane.execute(["k"], asking("y")))
        assert str(await hurried) == "Redis can't be reached"
        answer.set()
        assert await patient == [2]
        assert server.connections == 1


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


async def _outcome(lane: Lane, deadline: float | None = None) -> Any:
    try:
        return await lane.execute(["k"], asking("x"), None, deadline)
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
