"""A Redis Cluster: which server is asked for which key, and what happens when slots move or servers go away."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from binascii import crc_hqx
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from hiredis import ReplyError
from redis.crc import key_slot

from broker_edge.backends.redis_cluster import Cluster
from broker_edge.backends.redis_connect import connect
from broker_edge.backends.redis_link import RedisFleet, RedisHot
from broker_edge.backends.redis_wire import packed
from broker_edge.core.exchange import Entry
from broker_edge.errors import TierBroken
from tests import servers

SLOTS = 16_384


def slot_of(key: str) -> int:
    return crc_hqx(key.encode(), 0) % SLOTS


def keys_of(slots: range, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        key = uuid.uuid4().hex
        if slot_of(key) in slots:
            found.append(key)
    return found


def get(key: str) -> bytes:
    return packed("GET", f"be:{{{key}}}")


def test_the_slot_of_a_key_is_that_of_its_names_in_redis() -> None:
    for key in keys_of(range(SLOTS), 100):
        assert key_slot(f"be:{{{key}}}:lead".encode()) == slot_of(key)


Answer = Callable[[list[bytes]], bytes]


class Node:
    """A scripted server of a cluster: says the map of `cluster`, and `answer` to the rest."""

    def __init__(self, cluster: list[tuple[range, Node]]) -> None:
        self._cluster = cluster
        self.answer: Answer = lambda words: b"+%d\r\n" % self.port
        self.said: list[bytes] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                count = int((await reader.readuntil(b"\r\n"))[1:])
                words = [(await reader.readuntil(b"\r\n"), (await reader.readuntil(b"\r\n"))[:-2])[1] for _ in range(count)]
                self.said.append(words[0])
                writer.write(self._slots() if words[0] == b"CLUSTER" else self.answer(words))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def _slots(self) -> bytes:
        rows = [
            b"*3\r\n:%d\r\n:%d\r\n*4\r\n$-1\r\n:%d\r\n$2\r\nid\r\n*0\r\n" % (slots[0], slots[-1], node.port)
            for slots, node in self._cluster
        ]
        return b"*%d\r\n" % len(rows) + b"".join(rows)


@contextlib.asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[Node, Node, RedisHot, list[tuple[range, Node]]]]:
    """A cluster whose servers don't tell their host, as behind some proxies: it is that of whoever was asked."""
    cluster: list[tuple[range, Node]] = []
    low, high = Node(cluster), Node(cluster)
    async with low.running(), high.running():
        cluster += [(range(8192), low), (range(8192, SLOTS), high)]
        hot = RedisHot(connect(f"redis+cluster://127.0.0.1:{low.port}", 30))
        try:
            yield low, high, hot, cluster
        finally:
            await hot.aclose()


LOW, HIGH = keys_of(range(8192), 3), keys_of(range(8192, SLOTS), 3)
MIXED = [LOW[0], HIGH[0], HIGH[1], LOW[1]]


async def test_each_key_is_asked_for_at_its_server_and_answers_keep_their_order() -> None:
    async with two_nodes() as (low, high, hot, _):
        replies = await hot._redis.lane.execute(MIXED, [get(key) for key in MIXED])
        assert replies == [b"%d" % node.port for node in (low, high, high, low)]
        assert (low.said, high.said) == ([b"CLUSTER", b"GET", b"GET"], [b"GET", b"GET"])


async def test_callers_that_come_before_there_is_a_map_share_one_look() -> None:
    async with two_nodes() as (low, high, hot, _):
        await asyncio.gather(*(hot._redis.lane.execute([key], [get(key)]) for key in MIXED * 5))
        assert (low.said + high.said).count(b"CLUSTER") == 1


async def test_a_key_that_moved_is_followed_and_its_slot_remembered() -> None:
    async with two_nodes() as (low, high, hot, _):
        low.answer = lambda words: b"-MOVED %d :%d\r\n" % (slot_of(LOW[0]), high.port)
        for _ in range(3):
            assert await hot._redis.lane.execute([LOW[0]], [get(LOW[0])]) == [b"%d" % high.port]
        assert low.said.count(b"GET") == 1


async def test_a_key_that_is_on_its_way_is_asked_for_where_it_goes() -> None:
    async with two_nodes() as (low, high, hot, _):
        low.answer = lambda words: b"-ASK %d 127.0.0.1:%d\r\n" % (slot_of(LOW[0]), high.port)
        replies = await hot._redis.lane.execute([LOW[0], HIGH[0]], [get(LOW[0]), get(HIGH[0])])
        assert replies == [b"%d" % high.port] * 2
        assert high.said == [b"GET", b"ASKING", b"GET"]
        await hot._redis.lane.execute([LOW[0]], [get(LOW[0])])
        assert low.said.count(b"GET") == 2  # nothing is remembered: the slot is not there yet


async def test_servers_that_send_each_other_callers_for_ever_are_an_error() -> None:
    async with two_nodes() as (low, high, hot, _):
        low.answer = lambda words: b"-MOVED %d :%d\r\n" % (slot_of(LOW[0]), high.port)
        high.answer = lambda words: b"-MOVED %d :%d\r\n" % (slot_of(LOW[0]), low.port)
        [reply] = await hot._redis.lane.execute([LOW[0]], [get(LOW[0])])
        assert isinstance(reply, ReplyError)
        assert isinstance((await hot.get_many([LOW[0]]))[0], TierBroken)


async def test_a_cluster_without_all_its_slots_is_broken() -> None:
    async with two_nodes() as (_, _, hot, cluster):
        cluster.pop()
        with pytest.raises(TierBroken, match=r"^Redis can't be reached$"):
            await hot.get_many([LOW[0]])
        with pytest.raises(TierBroken, match=r"^Redis can't be reached$"):
            await hot.ping()


async def test_a_server_that_took_over_is_found_after_the_other_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_edge.backends.redis_cluster._DOUBT", 0.0)
    async with two_nodes() as (low, high, hot, cluster):
        assert await hot._redis.lane.execute(MIXED, [get(key) for key in MIXED])
        high._server.close()
        high.answer = lambda words: b""
        for lane in hot._redis.lane._lanes.values():
            await asyncio.sleep(0)
            lane._wire.abort()
        failed = await hot.get_many([HIGH[0]])
        assert isinstance(failed[0], TierBroken)
        cluster[:] = [(range(SLOTS), low)]
        assert await hot._redis.lane.execute(MIXED, [get(key) for key in MIXED]) == [b"%d" % low.port] * 4


async def test_a_call_over_servers_that_hang_has_one_deadline_map_included() -> None:
    asked = 0

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        with contextlib.suppress(OSError):
            await reader.read()
            await reader.read()
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        seeds = [await stack.enter_async_context(await asyncio.start_server(hang, "127.0.0.1", 0)) for _ in range(12)]
        hosts = ",".join(f"127.0.0.1:{seed.sockets[0].getsockname()[1]}" for seed in seeds)
        hot = RedisHot(connect(f"redis+cluster://{hosts}", 0.2))
        outcomes = await asyncio.gather(*(hot.get_many([key]) for key in MIXED), hot.ping(), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["Redis can't be reached"] * 5
        # Half the time for each server: those that share the look may use what is left of their own, all began at once.
        assert 1 <= asked <= 4
        await hot.aclose()


class Asked:
    """A lane that says what a test says, and notes by when it was to be answered."""

    def __init__(self, noted: list[tuple[bytes, float]], replies: Callable[[bytes], list[Any]]) -> None:
        self._noted = noted
        self._replies = replies

    async def execute(
        self, keys: Sequence[str], parts: Sequence[bytes], instead: Sequence[bytes] | None, deadline: float
    ) -> list[Any]:
        self._noted.append((parts[-1], deadline))
        return self._replies(parts[-1])

    async def aclose(self) -> None: ...

    def distrust(self, key: str) -> None:
        self._noted.append((b"distrusted", 0))


def fake_cluster(replies: Callable[[bytes], list[Any]]) -> tuple[Cluster, list[tuple[bytes, float]]]:
    noted: list[tuple[bytes, float]] = []
    lane: Any = lambda address: Asked(noted, replies)  # noqa: E731
    client: Any = None
    return Cluster([("127.0.0.1", 1)], lane, client, 30), noted


async def test_a_call_that_is_redirected_keeps_its_deadline() -> None:
    moved = ReplyError(f"MOVED {slot_of(LOW[0])} 127.0.0.1:2")

    def replies(command: bytes) -> list[Any]:
        return [[[0, SLOTS - 1, [b"127.0.0.1", 1]]] if b"CLUSTER" in command else moved]

    cluster, noted = fake_cluster(replies)
    assert await cluster.execute([LOW[0]], [get(LOW[0])]) == [moved]
    assert len(noted) == 5  # the map, the call, three redirections
    assert len({deadline for _, deadline in noted}) == 1


@pytest.mark.parametrize("reply", [7, b"x" * 30, None, [7], [[0, 1]], [[0, SLOTS - 1, [7, 7]]], [[b"0", 1, [b"h", 1]]]], ids=repr)
async def test_what_is_no_map_is_none_and_its_connection_is_not_trusted(reply: Any) -> None:
    cluster, noted = fake_cluster(lambda _: [reply])
    with pytest.raises(TierBroken, match=r"^Redis can't be reached$"):
        await cluster.execute([LOW[0]], [get(LOW[0])])
    assert [command for command, _ in noted[1:]] == [b"distrusted"]


async def test_the_answer_to_something_else_ends_the_connection_to_its_server_alone() -> None:
    async with two_nodes() as (low, high, hot, _):
        high.answer = lambda words: b":7\r\n"
        with pytest.raises(TierBroken, match=r"^Redis answered something else$"):
            await hot.get_many([HIGH[0]])
        lanes = hot._redis.lane._lanes
        assert [lanes["127.0.0.1", node.port]._wire.usable for node in (low, high)] == [True, False]


async def test_a_put_that_was_lost_on_its_way_between_servers_is_not_done_twice() -> None:
    async with two_nodes() as (low, high, hot, _):
        said: list[list[bytes]] = []

        def answer(words: list[bytes]) -> bytes:
            said.append(words[:1])
            if words[0] == b"SET":
                raise ConnectionResetError
            return b"+OK\r\n" if words[0] == b"ASKING" else b":1\r\n"

        low.answer = lambda words: b"-ASK %d 127.0.0.1:%d\r\n" % (slot_of(LOW[0]), high.port)
        high.answer = answer
        await hot.put(LOW[0], Entry(uuid.uuid4(), 1.5, b"[1]"), 60)
        assert said == [[b"ASKING"], [b"SET"], [b"ASKING"], [b"DEL"]]


# Real servers.


@pytest.fixture
async def hot(redis_cluster: servers.Cluster) -> AsyncIterator[RedisHot]:
    hot = RedisHot(connect(redis_cluster.url, 10))
    yield hot
    await hot.aclose()


async def test_a_slot_moves_between_servers_while_it_is_used(redis_cluster: servers.Cluster, hot: RedisHot) -> None:
    source, target, *_ = redis_cluster.servers
    key = keys_of(range(2000), 1)[0]
    slot, item = slot_of(key), Entry(uuid.uuid4(), 1.5, b"[1]")
    ids = [servers.ask(server, "CLUSTER", "MYID") for server in (source, target)]
    await hot.put(key, item, None)
    servers.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    servers.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    assert await hot.get_many([key]) == [item]
    servers.ask(source, "MIGRATE", "127.0.0.1", target.port, f"be:{{{key}}}", 0, 5000)
    assert await hot.get_many([key]) == [item]
    for server in (target, source):
        servers.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    assert await hot.get_many([key]) == [item]
    fleet = RedisFleet(hot._redis)
    assert (await fleet.bid(key, "one", 60)).entry == item


async def test_without_one_server_the_others_keys_are_served() -> None:
    with servers.valkey_cluster() as cluster:
        hot = RedisHot(connect(cluster.url, 10))
        keys, item = keys_of(range(5000), 2) + keys_of(range(11_000, SLOTS), 2), Entry(uuid.uuid4(), 1.5, b"[1]")
        for key in keys:
            await hot.put(key, item, None)
        cluster.servers[2].kill()
        found = await hot.get_many(keys)
        assert list(found[:2]) == [item, item]
        assert [type(answer) for answer in found[2:]] == [TierBroken, TierBroken]
        with pytest.raises(TierBroken):
            await hot.put(keys[2], item, None)
        with pytest.raises(TierBroken):
            await hot.ping()
        await hot.aclose()
