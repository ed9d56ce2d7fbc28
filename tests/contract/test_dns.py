"""The contract of `ports.Resolver`, over the system's resolver; names that need a name server are answered by a given lookup."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from broker_edge.backends.dns import BoundedMemoryCache, SystemResolver, system_lookup
from broker_edge.errors import TargetDenied, UpstreamError
from broker_edge.guard.addresses import AddressGuard

SPELLED = [
    "2130706433",
    "0x7f.1",
    "017700000001",
    "127.1",
    "0",
    "localhost",
    "LOCALHOST",
    "127.0.0.1",
    "\uff11\uff12\uff17.0.0.1",
]


class Lookup:
    """Answers from a table, counts, and waits for leave where it is told to."""

    def __init__(self, answers: Callable[[int], tuple[str, ...]] = lambda _: ("8.8.8.8",)) -> None:
        self._answers = answers
        self.asked: list[str] = []
        self.leave = threading.Event()
        self.leave.set()

    def __call__(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        assert self.leave.wait(20)
        return self._answers(len(self.asked))


@pytest.fixture
def lookup() -> Lookup:
    return Lookup()


@pytest.fixture
async def resolver(lookup: Lookup) -> AsyncIterator[SystemResolver]:
    resolver = SystemResolver(lookup)
    yield resolver
    lookup.leave.set()
    await resolver.aclose()


async def started(lookup: Lookup, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while len(lookup.asked) < count:  # noqa: ASYNC110 (the lookup runs in a thread, without a loop to tell)
            await asyncio.sleep(0)


async def test_addresses_are_answered_without_a_lookup(resolver: SystemResolver, lookup: Lookup) -> None:
    for literal in ("8.8.8.8", "::1", "2606:4700:0::1111"):
        assert len(await resolver.resolve(literal, 80)) == 1
    assert not lookup.asked


async def test_answers_are_kept_whatever_the_case_and_the_port(resolver: SystemResolver, lookup: Lookup) -> None:
    for host, port in (("bureau.test", 80), ("BUREAU.test", 443), ("bureau.test", 80)):
        assert await resolver.resolve(host, port) == ("8.8.8.8",)
    assert lookup.asked == ["bureau.test"]


async def test_answers_are_asked_for_again_when_their_time_is_over() -> None:
    lookup = Lookup(lambda count: (f"8.8.8.{count}",))
    resolver = SystemResolver(lookup, keep=0.01)
    assert await resolver.resolve("bureau.test", 80) == ("8.8.8.1",)
    async with asyncio.timeout(10):
        while await resolver.resolve("bureau.test", 80) == ("8.8.8.1",):  # noqa: ASYNC110 (the loop's own timer ends it)
            await asyncio.sleep(0)
    assert len(lookup.asked) > 1
    await resolver.aclose()


async def test_all_who_ask_at_once_share_one_lookup_and_none_takes_it_away(resolver: SystemResolver, lookup: Lookup) -> None:
    lookup.leave.clear()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(resolver.resolve("bureau.test", 80)) for _ in range(20)]
    await started(lookup)
    tasks[0].cancel()
    tasks[7].cancel()
    await asyncio.wait([tasks[0], tasks[7]])
    lookup.leave.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(result == ("8.8.8.8",) for result in results) == 18
    assert lookup.asked == ["bureau.test"]


async def test_no_answer_is_a_dns_error_and_remembered_for_a_moment() -> None:
    lookup = Lookup(lambda _: ())
    resolver = SystemResolver(lookup, keep_failure=30)
    for _ in range(3):
        with pytest.raises(UpstreamError) as caught:
            await resolver.resolve("none.test", 80)
        assert (caught.value.code, caught.value.sent) == ("DNS_ERROR", False)
        assert "none.test" not in caught.value.message
    assert len(lookup.asked) == 1
    await resolver.aclose()


async def test_a_slow_answer_is_a_dns_error_in_bounded_time(lookup: Lookup) -> None:
    resolver = SystemResolver(lookup, timeout=0.02)
    lookup.leave.clear()
    with pytest.raises(UpstreamError) as caught:
        await resolver.resolve("slow.test", 80)
    assert (caught.value.code, caught.value.sent) == ("DNS_ERROR", False)
    lookup.leave.set()
    await resolver.aclose()


async def test_the_deadline_of_the_asker_stays_a_time_out(resolver: SystemResolver, lookup: Lookup) -> None:
    lookup.leave.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await resolver.resolve("slow.test", 80)


async def test_the_cache_is_bounded() -> None:
    cache = BoundedMemoryCache(3)
    for number in range(10):
        await cache.set(str(number), (str(number),), ttl=30)
    assert [number for number in range(10) if await cache.exists(str(number))] == [7, 8, 9]
    await cache.set("8", ("new",), ttl=30)
    assert await cache.get("8") == ("new",)
    assert await cache.exists("7")
    await cache.clear()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test", "nul\0.test"])
def test_what_is_no_name_has_no_answer(host: str) -> None:
    assert system_lookup(host) == ()


@pytest.mark.parametrize("host", SPELLED)
async def test_loopback_is_denied_however_it_is_spelled(host: str) -> None:
    resolver = SystemResolver()
    with pytest.raises(TargetDenied):
        await AddressGuard(resolver).targets("http", host, 80)
    for form in ("[::ffff:7f00:1]", "[::1]", "[::]"):
        with pytest.raises(TargetDenied):
            await AddressGuard(resolver).targets("http", form, 80)
    await resolver.aclose()


# Answers asked for again behind the callers' backs


class Hands:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


async def test_a_name_in_use_waits_for_its_first_lookup_alone() -> None:
    lookup, clock = Lookup(lambda count: (f"8.8.8.{count}",)), Hands()
    resolver = SystemResolver(lookup, now=clock)
    await resolver.resolve("bureau.test", 80)
    for count in range(1, 6):
        assert await resolver.resolve("bureau.test", 80) == (f"8.8.8.{count}",)
        clock.at += 19.9
        await resolver.refresh()
        assert len(lookup.asked) == count
        clock.at += 0.2
        await resolver.refresh()
        assert len(lookup.asked) == count + 1
    await resolver.aclose()


async def test_a_name_that_nobody_asked_for_again_is_let_go() -> None:
    lookup, clock = Lookup(), Hands()
    resolver = SystemResolver(lookup, now=clock)
    await resolver.resolve("once.test", 80)
    await resolver.resolve("twice.test", 80)
    await resolver.resolve("twice.test", 80)
    for _ in range(3):
        clock.at += 25
        await resolver.refresh()
    assert lookup.asked == ["once.test", "twice.test", "twice.test"]
    await resolver.aclose()


async def test_a_refresh_that_fails_leaves_the_answer_to_its_own_end_and_no_longer() -> None:
    lookup, clock = Lookup(lambda count: ("8.8.8.8",) if count == 1 else ()), Hands()
    resolver = SystemResolver(lookup, now=clock)
    await resolver.resolve("bureau.test", 80)
    await resolver.resolve("bureau.test", 80)
    for _ in range(2):
        clock.at += 14.9
        await resolver.refresh()
        assert await resolver.resolve("bureau.test", 80) == ("8.8.8.8",)
    assert len(lookup.asked) == 2
    clock.at += 0.2
    with pytest.raises(UpstreamError):
        await resolver.resolve("bureau.test", 80)
    await resolver.aclose()


async def test_a_refresh_that_hangs_leaves_the_answer_to_its_own_end() -> None:
    lookup, clock = Lookup(), Hands()
    resolver = SystemResolver(lookup, now=clock, timeout=0.02)
    await resolver.resolve("bureau.test", 80)
    await resolver.resolve("bureau.test", 80)
    lookup.leave.clear()
    clock.at += 25
    await resolver.refresh()
    assert await resolver.resolve("bureau.test", 80) == ("8.8.8.8",)
    clock.at += 5
    with pytest.raises(UpstreamError):
        await resolver.resolve("bureau.test", 80)
    lookup.leave.set()
    await resolver.aclose()


async def test_requests_do_not_wait_while_a_refresh_is_under_way() -> None:
    lookup, clock = Lookup(lambda count: (f"8.8.8.{count}",)), Hands()
    resolver = SystemResolver(lookup, now=clock)
    await resolver.resolve("bureau.test", 80)
    await resolver.resolve("bureau.test", 80)
    lookup.leave.clear()
    clock.at += 25
    async with asyncio.TaskGroup() as group:
        group.create_task(resolver.refresh())
        await started(lookup, 2)
        assert await resolver.resolve("bureau.test", 80) == ("8.8.8.1",)
        lookup.leave.set()
    assert await resolver.resolve("bureau.test", 80) == ("8.8.8.2",)
    await resolver.aclose()


async def test_a_name_that_turns_private_is_refused_with_the_refresh() -> None:
    lookup, clock = Lookup(lambda count: ("8.8.8.8",) if count == 1 else ("10.0.0.1",)), Hands()
    resolver = SystemResolver(lookup, now=clock)
    guard = AddressGuard(resolver)
    for _ in range(2):
        (target,) = await guard.targets("http", "rebind.test", 80)
        assert target.address == "8.8.8.8"
    clock.at += 20.1
    await resolver.refresh()
    with pytest.raises(TargetDenied):
        await guard.targets("http", "rebind.test", 80)
    await resolver.aclose()


class SlowFor(Lookup):
    """Answers at once but for names that it was asked for before, which wait for leave."""

    def __call__(self, host: str) -> tuple[str, ...]:
        known = host in self.asked
        self.asked.append(host)
        assert not known or self.leave.wait(20)
        return ("8.8.8.8",)


async def test_a_hundred_slow_refreshes_keep_no_new_name_waiting() -> None:
    lookup, clock = SlowFor(), Hands()
    resolver = SystemResolver(lookup, now=clock)
    names = [f"bureau{number}.test" for number in range(100)]
    for name in (*names, *names):
        await resolver.resolve(name, 80)
    lookup.leave.clear()
    clock.at += 25
    async with asyncio.TaskGroup() as group:
        group.create_task(resolver.refresh())
        await started(lookup, 101)
        assert await resolver.resolve("new.test", 80) == ("8.8.8.8",)
        assert len(lookup.asked) < 110
        lookup.leave.set()
    assert sorted(lookup.asked) == sorted([*names, *names, "new.test"])
    await resolver.aclose()


async def test_a_refresh_that_outlives_its_time_out_keeps_its_place_until_it_ends() -> None:
    lookup, clock = SlowFor(), Hands()
    resolver = SystemResolver(lookup, now=clock, timeout=0.02)
    names = [f"bureau{number}.test" for number in range(6)]
    for name in (*names, *names):
        await resolver.resolve(name, 80)
    lookup.leave.clear()
    clock.at += 25
    async with asyncio.TaskGroup() as group:
        group.create_task(resolver.refresh())
        await started(lookup, 10)
        clock.at += 6
        with pytest.raises(UpstreamError):  # whose time-out ends after those of the refresh
            await resolver.resolve(names[0], 80)
        assert len(lookup.asked) == 10
        lookup.leave.set()
    assert len(lookup.asked) == 12
    await resolver.aclose()


async def test_a_name_whose_refresh_fails_is_spared_for_longer_each_time() -> None:
    lookup, clock = Lookup(lambda count: ("8.8.8.8",) if count == 1 else ()), Hands()
    resolver = SystemResolver(lookup, now=clock)
    await resolver.resolve("bureau.test", 80)
    await resolver.resolve("bureau.test", 80)
    clock.at += 20.5
    tried = []
    for second in range(9):
        before = len(lookup.asked)
        await resolver.refresh()
        tried += [second] if len(lookup.asked) > before else []
        clock.at += 1
    assert tried == [0, 1, 3, 7]
    await resolver.aclose()
