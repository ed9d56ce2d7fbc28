"""What a source may spend in a day: reserved per call, shared by the fleet, never overrun; given back where nothing was sent."""

from __future__ import annotations

import asyncio
import copy
import math
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from broker_edge.backends.sql_budget import SqlBudgets
from broker_edge.errors import TierBroken
from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, json_reply, request, settings, spec
from tests.scenarios.herds import fleet
from tests.servers import Postgres, Valkey, free_port

CALLS = {"calls": 10}
AMOUNT = {"amount": "25.00"}
PRICE = {"amount": "2.50", "currency": "BRL"}


def priced(url: str, budget: Any = None, **members: Any) -> dict[str, Any]:
    return {**spec(url, **members), "cost_per_call": PRICE, "billable": True, "budget": budget}


@pytest.fixture
async def anywhere(tmp_path: Path) -> AsyncIterator[InProcess]:
    """An edge that may call any port of this machine."""
    async with in_process(settings(tmp_path, allowed_private_hosts="127.0.0.1")) as running:
        yield running


async def spent(edge: InProcess, source: dict[str, Any]) -> tuple[int, int]:
    today = datetime.now(UTC).date()
    return await SqlBudgets(edge.edge.engine).spent(uuid.UUID(source["data_source_id"]), None, today)


def codes(answers: list[Answer]) -> Counter[str]:
    return Counter("ok" if answer.status == 200 else answer.json()["error"]["code"] for answer in answers)


@pytest.fixture(autouse=True)
async def one_day() -> None:
    """The day must not change while a test counts."""
    left = 86_400 - time.time() % 86_400
    if left < 60:
        await asyncio.sleep(left + 1)


@pytest.mark.parametrize("budget", [CALLS, AMOUNT, {**CALLS, "amount": "1000"}])
async def test_five_hundred_misses_with_a_budget_for_ten_make_ten_calls(
    edge: InProcess, bureau: Bureau, budget: dict[str, Any]
) -> None:
    source = priced(f"{bureau.url}/{{{{ id }}}}", budget)
    answers = await asyncio.gather(*[edge.post(request(source, {"id": str(number)})) for number in range(500)])
    assert codes(list(answers)) == {"ok": 10, "BUDGET_EXHAUSTED": 490}
    assert len(bureau.calls) == 10
    rows = await edge.rows()
    assert Counter((row.outcome, row.status_code, row.calls, row.cost_micros, row.currency) for row in rows) == {
        ("fetched", 200, 1, 2_500_000, "BRL"): 10,
        ("budget_exhausted", 429, None, None, "BRL"): 490,
    }
    assert await spent(edge, source) == (10, 25_000_000)


@pytest.mark.parametrize("budget", [CALLS, AMOUNT])
async def test_instances_share_a_budget(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres, budget: dict[str, Any]
) -> None:
    source = priced(f"{bureau.url}/{{{{ id }}}}", budget)
    async with fleet(2, tmp_path, bureau, redis_server, postgres_server.create(migrated=True)) as edges:
        posts = [edges[number % 2].post(request(source, {"id": str(number)})) for number in range(500)]
        answers = await asyncio.gather(*posts)
        assert codes(list(answers)) == {"ok": 10, "BUDGET_EXHAUSTED": 490}
        assert len(bureau.calls) == 10
        await edges[1].rows()
        rows = await edges[0].rows()
    assert Counter((row.outcome, row.calls) for row in rows) == {("fetched", 1): 10, ("budget_exhausted", None): 490}


async def test_a_refusal_says_when_the_next_day_begins(edge: InProcess, bureau: Bureau) -> None:
    before = 86_400 - time.time() % 86_400
    answer = await edge.post(request(priced(bureau.url, {"calls": 0})))
    after = 86_400 - time.time() % 86_400
    assert (answer.status, answer.json()["error"]["code"]) == (429, "BUDGET_EXHAUSTED")
    assert answer.json()["error"]["retryable"] is False
    assert math.floor(after) <= int(answer.headers["retry-after"]) <= math.ceil(before)
    assert bureau.calls == []


async def test_hits_cost_nothing(edge: InProcess, bureau: Bureau) -> None:
    source = priced(bureau.url, {"calls": 1})
    answers = [await edge.post(request(source)) for _ in range(3)]
    assert [answer.json()["origin"] for answer in answers] == ["REQUEST", "CACHE", "CACHE"]
    assert codes([await edge.post(request(source, mode="refresh"))]) == {"BUDGET_EXHAUSTED": 1}
    assert len(bureau.calls) == 1


async def test_every_attempt_is_counted_and_not_every_request(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(b"", 503)
    retry = {"max_retries": 5, "backoff_factor": 0, "status_forcelist": [503]}
    source = priced(bureau.url, {"calls": 3}, retry=retry, idempotency_key_header="Idempotency-Key")
    answer = await edge.post(request(source))
    assert codes([answer]) == {"BUDGET_EXHAUSTED": 1}
    assert len(bureau.calls) == 3
    assert await spent(edge, source) == (3, 7_500_000)
    (row,) = await edge.rows()
    assert (row.outcome, row.calls, row.cost_micros) == ("budget_exhausted", 3, 7_500_000)


@pytest.mark.parametrize("status", [304, 404, 500])
async def test_what_the_upstream_refuses_it_may_charge_all_the_same(edge: InProcess, bureau: Bureau, status: int) -> None:
    bureau._answer = lambda _: http_reply(b"", status)
    source = priced(bureau.url, {"calls": 1}, retry={"max_retries": 0})
    assert codes([await edge.post(request(source)) for _ in range(2)]) == {"UPSTREAM_STATUS": 1, "BUDGET_EXHAUSTED": 1}
    assert await spent(edge, source) == (1, 2_500_000)


async def test_what_was_never_sent_costs_nothing(anywhere: InProcess) -> None:
    retry = {"max_retries": 3, "backoff_factor": 0}
    source = priced(f"http://127.0.0.1:{free_port()}/", {"calls": 1}, retry=retry)
    assert codes([await anywhere.post(request(source)) for _ in range(3)]) == {"CONNECT_ERROR": 3}
    assert await anywhere.edge.background.drain(30) == 0
    assert await spent(anywhere, source) == (0, 0)
    assert {(row.calls, row.cost_micros) for row in await anywhere.rows()} == {(None, None)}


async def test_a_redirect_is_one_call_wherever_it_leads(anywhere: InProcess, bureau: Bureau) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/"
    places = {"/here": http_reply(b"", 302, "Location: /there"), "/away": http_reply(b"", 302, f"Location: {nowhere}")}
    bureau._answer = lambda got: places.get(got.line.split()[1], json_reply(1))
    source = priced(f"{bureau.url}/{{{{ to }}}}", {"calls": 2}, retry={"max_retries": 3, "backoff_factor": 0})
    assert codes([await anywhere.post(request(source, {"to": "here"}))]) == {"ok": 1}
    # The second hop reaches nobody, but the first one was answered, and may be charged: no retry, and nothing is given back.
    assert codes([await anywhere.post(request(source, {"to": "away"}))]) == {"CONNECT_ERROR": 1}
    assert len(bureau.calls) == 3
    assert await spent(anywhere, source) == (2, 5_000_000)


async def test_while_the_account_can_not_be_asked_nothing_is_spent(
    edge: InProcess, bureau: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> bool:
        raise TierBroken("the database can't be reached")

    monkeypatch.setattr(SqlBudgets, "reserve", broken)
    answer = await edge.post(request(priced(bureau.url, CALLS)))
    assert (answer.status, answer.json()["error"]["code"]) == (503, "STORAGE_UNAVAILABLE")
    assert answer.headers["retry-after"]
    assert bureau.calls == []
    unlimited = await edge.post(request(priced(bureau.url)))  # it has a price, but no account that must be asked
    assert unlimited.status == 200


async def test_a_call_that_is_given_up_half_way_is_spent(edge: InProcess, bureau: Bureau) -> None:
    source = priced(bureau.url, {"calls": 1}, timeout=0.5)
    bureau.gate.clear()
    assert codes([await edge.post(request(source))]) == {"TIMEOUT": 1}
    bureau.gate.set()
    assert codes([await edge.post(request(source))]) == {"BUDGET_EXHAUSTED": 1}
    assert await spent(edge, source) == (1, 2_500_000)


@pytest.mark.parametrize("engine", ["pyreqwest", "httpx"])
@pytest.mark.parametrize("attempt_timeout", [None, 0.2])
async def test_a_call_that_is_given_up_while_it_waits_for_its_turn_costs_nothing(
    tmp_path: Path, bureau: Bureau, engine: Any, attempt_timeout: float | None
) -> None:
    source = priced(f"{bureau.url}/{{{{ id }}}}", {"calls": 2})
    queued = copy.deepcopy(source)
    queued["source"] |= {"timeout": 0.5, "retry": {"max_retries": 0, "attempt_timeout": attempt_timeout}}
    bureau.gate.clear()
    async with in_process(settings(tmp_path, bureau.port, origin_max_in_flight=1, http_engine=engine)) as edge:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(edge.post(request(source, {"id": "1"})))
            await bureau.arrived.wait()
            assert codes([await edge.post(request(queued, {"id": str(number)})) for number in (2, 3)]) == {"TIMEOUT": 2}
            bureau.gate.set()
        assert first.result().status == 200
        assert await edge.edge.background.drain(30) == 0
        assert await spent(edge, source) == (1, 2_500_000)
        assert Counter((row.outcome, row.calls) for row in await edge.rows()) == {("fetched", 1): 1, ("timeout", None): 2}


async def test_a_budget_is_exhausted_for_one_project_alone(edge: InProcess, bureau: Bureau) -> None:
    source = priced(f"{bureau.url}/{{{{ id }}}}", {"calls": 1})
    projects = [str(uuid.uuid4()), str(uuid.uuid4()), None]
    answers = [
        await edge.post(request(source, {"id": number}, project_id=project)) for project in projects for number in ("1", "2")
    ]
    assert [answer.status for answer in answers] == [200, 429] * 3
