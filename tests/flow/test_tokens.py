"""Tokens: one call of the endpoint for all who wait, in this process and in the fleet; and refresh tokens that are good once."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

import pytest

from broker_edge.backends.memory import LoneFleet, MemoryHot
from broker_edge.core.auth import compile_auth
from broker_edge.core.breaker import Breaker
from broker_edge.core.exchange import Entry, Outbound, Reply
from broker_edge.core.spec import Auth
from broker_edge.errors import EdgeError, TierBroken, UpstreamError
from broker_edge.flow.background import Background
from broker_edge.flow.sealed import SealedTexts
from broker_edge.flow.tokens import Tokens, Want
from tests.flow.doubles import BrokenHot, record
from tests.flow.secret_store import vault

GIVEN = {"CLIENT_ID": "me", "CLIENT_SECRET": "secret"}


class Endpoint:
    """Stands for `flow.upstream.Upstream`: answers in turn, the last for ever; a callable is asked for its answer."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.forms: list[dict[str, str]] = []
        self.numbers = itertools.count(1)
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()

    async def send(self, request: Outbound, *_: Any) -> Reply:
        self.forms.append(dict(parse_qsl((request.body or b"").decode())))
        answer = self.answers.pop(0) if self.answers else {"access_token": f"token-{next(self.numbers)}", "expires_in": 3600}
        self.arrived.set()
        await self.gate.wait()
        if isinstance(answer, BaseException):
            raise answer
        return Reply(200, {}, json.dumps(answer).encode())


class FlakyHot(MemoryHot):
    """A hot tier that loses its server when told to."""

    def __init__(self) -> None:
        super().__init__(2**20)
        self.down = False

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        self._reach()
        return await super().get_many(keys)

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None:
        self._reach()
        await super().put(key, entry, lifetime, only_if_absent=only_if_absent)

    def _reach(self) -> None:
        if self.down:
            raise TierBroken("Redis can't be reached")


class Setup:
    """`fleet` and `hot` may be shared with other processes' setups, `endpoint` too."""

    def __init__(self, other: Setup | None = None, hot: Any = None) -> None:
        self.hot = other.hot if other else hot or FlakyHot()
        self.fleet = other.fleet if other else LoneFleet(self.hot)
        self.endpoint = other.endpoint if other else Endpoint()
        self.vault = other.vault if other else vault()
        self.crashes: list[BaseException] = []
        self.failures: list[BaseException] = []
        self.kept: list[str] = []
        self.now = 1000.0
        holders = itertools.count()
        self.background = Background(lambda _name, error: self.crashes.append(error))
        self.tokens = Tokens(
            self.hot,
            self.fleet,
            self.endpoint,  # type: ignore[arg-type]
            self.vault,
            self.background,
            lease=5.0,
            new_token=lambda: f"{id(self)}-{next(holders)}",
            keep=self._keep,
            on_failure=lambda _name, error: self.failures.append(error),
            now=lambda: self.now,
        )

    async def _keep(self, _ref: Any, _project: Any, refresh: str, _precedes: Callable[[str], bool]) -> None:
        self.kept.append(refresh)

    def want(self, key: str = "token:a", patience: float = 30.0, refresh: str | None = None, **members: Any) -> Want:
        grant = "client_credentials" if refresh is None else "refresh_token"
        auth = compile_auth(Auth("bearer", token_url="https://bureau.test/token", grant_type=grant))
        if refresh is None:
            return Want(auth, GIVEN, None, patience, key)
        given = {**GIVEN, "REFRESH_TOKEN": refresh}
        return Want(auth, given, None, patience, key, "refresh:a", self.tokens.mark(refresh), **members)

    async def token(self, *arguments: Any, rejected: str | None = None, **members: Any) -> str:
        return await self.tokens.token(self.want(*arguments, **members), record(), rejected)

    @property
    def spent(self) -> list[str]:
        return [form["refresh_token"] for form in self.endpoint.forms]


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def failure(work: Any) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        await work
    return caught.value


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# Single flight


async def test_all_who_wait_share_one_token(setup: Setup) -> None:
    setup.endpoint.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(setup.token()) for _ in range(20)]
        await setup.endpoint.arrived.wait()
        setup.endpoint.gate.set()
    assert {task.result() for task in tasks} == {"token-1"}
    assert await setup.token() == "token-1"


async def test_all_who_wait_share_one_failure(setup: Setup) -> None:
    setup.endpoint.answers = [UpstreamError("CONNECT_ERROR", "refused", sent=False)]
    setup.endpoint.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(failure(setup.token())) for _ in range(5)]
        await setup.endpoint.arrived.wait()
        setup.endpoint.gate.set()
    assert {task.result().code for task in tasks} == {"CONNECT_ERROR"}
    assert len(setup.endpoint.forms) == 1
    assert await setup.token() == "token-1"
    assert setup.crashes == []


async def test_what_no_one_foresaw_ends_the_flight_and_not_the_next(setup: Setup) -> None:
    setup.endpoint.answers = [RuntimeError("a bug")]
    with pytest.raises(RuntimeError):
        await setup.token()
    await turns()
    assert await setup.token() == "token-1"


async def test_who_leaves_takes_nobody_along(setup: Setup) -> None:
    setup.endpoint.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(setup.token())
        await setup.endpoint.arrived.wait()
        second = group.create_task(setup.token())
        await turns()
        first.cancel()
        await turns()
        setup.endpoint.gate.set()
    assert second.result() == "token-1"
    assert len(setup.endpoint.forms) == 1


async def test_who_has_more_time_than_the_flight_that_it_joined_goes_again(setup: Setup) -> None:
    setup.endpoint.gate.clear()
    async with asyncio.TaskGroup() as group:
        hasty = group.create_task(failure(setup.token(patience=0.05)))
        await setup.endpoint.arrived.wait()
        patient = group.create_task(setup.token())
        assert (await hasty).code == "TIMEOUT"
        setup.endpoint.gate.set()
    assert patient.result() == "token-2"
    assert len(setup.endpoint.forms) == 2


async def test_a_refused_token_is_replaced_once_for_all(setup: Setup) -> None:
    assert await setup.token() == "token-1"
    setup.endpoint.gate.clear()
    setup.endpoint.arrived.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(setup.token(rejected="token-1")) for _ in range(10)]
        await setup.endpoint.arrived.wait()
        setup.endpoint.gate.set()
    assert {task.result() for task in tasks} == {"token-2"}
    # Who used the first for a while yet is not told to fetch a third.
    assert await setup.token(rejected="token-1") == "token-2"
    assert len(setup.endpoint.forms) == 2


async def test_a_flight_that_began_without_news_of_the_refusal_is_not_the_answer_to_it(setup: Setup) -> None:
    assert await setup.token() == "token-1"
    setup.endpoint.answers = [{"access_token": "token-1"}]
    await setup.hot.delete("token:a")
    setup.endpoint.gate.clear()
    setup.endpoint.arrived.clear()
    async with asyncio.TaskGroup() as group:
        early = group.create_task(setup.token())
        await setup.endpoint.arrived.wait()
        late = group.create_task(setup.token(rejected="token-1"))
        await turns()
        setup.endpoint.gate.set()
    assert (early.result(), late.result()) == ("token-1", "token-2")


async def test_a_server_that_insists_on_its_token_is_asked_once(setup: Setup) -> None:
    setup.endpoint.answers = [{"access_token": "same"}, {"access_token": "same"}]
    assert await setup.token() == "same"
    assert await setup.token(rejected="same") == "same"
    assert len(setup.endpoint.forms) == 2


async def test_a_refused_token_is_gone_even_if_no_other_can_be_had(setup: Setup) -> None:
    assert await setup.token() == "token-1"
    setup.endpoint.answers = [UpstreamError("TIMEOUT", "late")]
    await failure(setup.token(rejected="token-1"))
    assert await Setup(setup).token() == "token-2"


async def test_a_token_past_its_time_is_none(setup: Setup) -> None:
    assert await setup.token() == "token-1"
    setup.now += 3541
    assert await setup.token() == "token-2"


async def test_what_is_kept_is_sealed(setup: Setup) -> None:
    await setup.token()
    assert b"token-1" not in bytes(setup.hot.peek("token:a").value)


# The fleet


async def test_a_follower_takes_what_the_leader_of_another_process_put(setup: Setup) -> None:
    other = Setup(setup)
    setup.endpoint.gate.clear()
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(setup.token())
        await setup.endpoint.arrived.wait()
        follower = group.create_task(other.token())
        await turns()
        setup.endpoint.gate.set()
    assert (leader.result(), follower.result()) == ("token-1", "token-1")


async def test_a_follower_fetches_for_itself_where_the_leader_failed(setup: Setup) -> None:
    other = Setup(setup)
    setup.endpoint.answers = [UpstreamError("UPSTREAM_STATUS", "503", upstream_status=503)]
    setup.endpoint.gate.clear()
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(failure(setup.token()))
        await setup.endpoint.arrived.wait()
        follower = group.create_task(other.token())
        await turns()
        setup.endpoint.gate.set()
    assert leader.result().upstream_status == 503
    assert follower.result() == "token-1"


async def test_a_lease_that_somebody_else_holds_is_waited_for_no_longer_than_the_deadline(setup: Setup) -> None:
    await setup.fleet.bid("token:a", "somebody who hangs", 60)
    assert (await failure(setup.token(patience=0.05))).code == "TIMEOUT"
    assert setup.endpoint.forms == []


async def test_without_a_hot_tier_each_process_has_its_own() -> None:
    one = Setup(hot=FlakyHot())
    one.hot.down = True
    other = Setup(one)
    for setup in (one, other):
        setup.fleet = _Broken()  # type: ignore[assignment]
        setup.tokens._fleet = setup.fleet
    assert [await setup.token() for setup in (one, other, one, other)] == ["token-1", "token-2", "token-1", "token-2"]


class _Broken:
    def listen(self, key: str) -> Any:
        return LoneFleet(MemoryHot(0)).listen(key)

    async def bid(self, *_: Any) -> Any:
        raise TierBroken("Redis can't be reached")


# Refresh tokens


def grant(number: int, **members: Any) -> dict[str, Any]:
    return {"access_token": f"token-{number}", "expires_in": 60, "refresh_token": f"refresh-{number}", **members}


async def test_successors_are_used_and_told_to_the_registry(setup: Setup) -> None:
    setup.endpoint.answers = [grant(number) for number in range(1, 5)]
    ref: Any = ("source", "credential", "REFRESH_TOKEN", 1)
    for number in range(1, 5):
        assert await setup.token(refresh="refresh-0", kept=ref) == f"token-{number}"
    assert setup.spent == ["refresh-0", "refresh-1", "refresh-2", "refresh-3"]
    assert setup.kept == ["refresh-1", "refresh-2", "refresh-3", "refresh-4"]


async def test_whoever_still_has_an_earlier_one_means_the_chain(setup: Setup) -> None:
    setup.endpoint.answers = [grant(number) for number in range(1, 6)]
    for configured in ("refresh-0", "refresh-1", "refresh-0", "refresh-3", "refresh-2"):
        await setup.token(refresh=configured)
    assert setup.spent == ["refresh-0", "refresh-1", "refresh-2", "refresh-3", "refresh-4"]


async def test_a_new_one_begins_a_chain_of_its_own_and_needs_a_token_of_its_own(setup: Setup) -> None:
    setup.endpoint.answers = [grant(1, expires_in=3600), grant(8), grant(9)]
    assert await setup.token(refresh="refresh-0") == "token-1"
    assert await setup.token(refresh="another") == "token-8"
    assert await setup.token(refresh="another") == "token-9"
    assert setup.spent == ["refresh-0", "another", "refresh-8"]


async def test_a_server_without_rotation_gets_the_same_one_again(setup: Setup) -> None:
    setup.endpoint.answers = [grant(1, refresh_token=None), grant(2, refresh_token="refresh-0"), grant(3)]
    for _ in range(3):
        await setup.token(refresh="refresh-0")
    assert setup.spent == ["refresh-0"] * 3


async def test_a_refresh_is_brought_to_its_end_though_everybody_left(setup: Setup) -> None:
    setup.endpoint.answers = [grant(1), grant(2)]
    setup.endpoint.gate.clear()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(setup.token(refresh="refresh-0", patience=0.01))
        await setup.endpoint.arrived.wait()
        task.cancel()
    setup.endpoint.gate.set()
    await setup.background.drain(10)
    assert await setup.token(refresh="refresh-0") == "token-2"
    assert setup.spent == ["refresh-0", "refresh-1"]


async def test_a_successor_that_could_not_be_put_is_put_again(setup: Setup) -> None:
    setup.endpoint.answers = [grant(1), grant(2)]
    setup.endpoint.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(setup.token(refresh="refresh-0"))
        await setup.endpoint.arrived.wait()
        setup.hot.down = True
        setup.endpoint.gate.set()
    setup.hot.down = False
    assert [type(error) for error in setup.failures] == [TierBroken]
    assert await setup.token(refresh="refresh-0") == "token-2"
    assert setup.spent == ["refresh-0", "refresh-1"]


async def test_which_one_is_the_last_must_be_known(setup: Setup) -> None:
    setup.hot.down = True
    assert (await failure(setup.token(refresh="refresh-0"))).code == "STORAGE_UNAVAILABLE"
    assert setup.endpoint.forms == []


# Sealed texts


def texts(hot: Any, *entries: str) -> SealedTexts:
    return SealedTexts(hot, vault(*entries), Breaker(), now=lambda: 1.0)


async def test_a_text_comes_back_under_its_key_alone() -> None:
    hot = MemoryHot(2**20)
    kept = texts(hot)
    await kept.put("token:a", "text", 60.0)
    assert (await kept.get("token:a"), await kept.get("token:b")) == ("text", None)
    moved = hot.peek("token:a")
    assert moved is not None
    await hot.put("token:b", moved, None)
    assert await kept.get("token:b") is None


@pytest.mark.parametrize("value", [b"", b"text", b"v1.a.AAAA", b"\xff"])
async def test_what_another_sealed_is_as_good_as_nothing(value: bytes) -> None:
    hot = MemoryHot(2**20)
    assert await texts(hot).get("token:a") is None
    await hot.put("token:a", Entry(uuid.UUID(int=0), 1.0, value), None)
    assert await texts(hot).get("token:a") is None
    await texts(hot).put("token:a", "text", None)
    assert await texts(hot).get("token:a") is None  # another ring


async def test_this_process_knows_what_it_put_while_the_hot_tier_is_gone() -> None:
    kept = texts(BrokenHot())
    with pytest.raises(TierBroken):
        await kept.put("token:a", "text", 60.0)
    with pytest.raises(TierBroken):
        await kept.get("token:a")
    assert (kept.own("token:a"), kept.own("token:b")) == ("text", None)
