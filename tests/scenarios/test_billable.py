"""Calls that cost money: when one may be made again, and on which audit row its price stands."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.edges import Bureau, InProcess, http_reply, in_process, request, settings, spec
from tests.scenarios.herds import Gathering, herd, until
from tests.servers import free_port
from tests.upstreams import Handler, Peer, RawServer

PRICE = {"amount": "2.50", "currency": "BRL"}
RETRY = {"max_retries": 3, "backoff_factor": 0, "status_forcelist": [500, 503]}


def billable(url: str, **members: Any) -> dict[str, Any]:
    return {**spec(url, retry={**RETRY}, **members), "cost_per_call": PRICE, "billable": True}


def money(rows: list[Any]) -> Counter[Any]:
    return Counter((row.outcome, row.calls, row.cost_micros, row.saved_micros, row.currency) for row in rows)


@pytest.fixture(params=["pyreqwest", "httpx"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[InProcess]:
    """An edge over either HTTP engine that may call any port of this machine."""
    chosen = settings(tmp_path, http_engine=request.param, allowed_private_hosts="127.0.0.1", connect_timeout=5)
    async with in_process(chosen) as running:
        yield running


# When a call may be made again


async def resetting(peer: Peer) -> None:
    await peer.receive()
    peer.reset()


async def failing(peer: Peer) -> None:
    while True:
        await peer.receive()
        await peer.reply(status=500)


async def cut_short(peer: Peer) -> None:
    await peer.receive()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123")
    await peer.end()


async def silent(peer: Peer) -> None:
    await peer.receive()
    await peer.until_gone()


FAILURES = [(resetting, "CONNECT_ERROR"), (failing, "UPSTREAM_STATUS"), (cut_short, "UPSTREAM_INCOMPLETE"), (silent, "TIMEOUT")]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("handler", "code"), FAILURES)
async def test_what_was_sent_is_paid_for_and_never_sent_again(
    engine: InProcess, handler: Handler, code: str, method: str
) -> None:
    async with RawServer(handler) as server:
        source = billable(f"http://127.0.0.1:{server.port}/", method=method)
        source["source"]["retry"]["attempt_timeout"] = 1
        answer = await engine.post(request(source))
        assert answer.json()["error"]["code"] == code
        assert len(server.received) == 1
    assert money(await engine.rows()) == {(code.lower(), 1, 2_500_000, None, "BRL"): 1}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("handler", "code"), FAILURES)
async def test_with_a_key_that_the_upstream_knows_it_by_a_call_is_repeated(
    engine: InProcess, handler: Handler, code: str, method: str
) -> None:
    async with RawServer(handler) as server:
        url = f"http://127.0.0.1:{server.port}/"
        source = billable(url, method=method, idempotency_key_header="X-Request-Key")
        source["source"]["retry"] = {**RETRY, "attempt_timeout": 0.5}
        answer = await engine.post(request(source))
        assert answer.json()["error"]["code"] == code
        keys = [got.get("x-request-key") for got in server.received]
    assert len(keys) == 4
    assert len(set(keys)) == 1
    assert str(uuid.UUID(keys[0])) == keys[0]
    assert money(await engine.rows()) == {(code.lower(), 4, 10_000_000, None, "BRL"): 1}


async def test_what_reached_nobody_is_tried_again_and_costs_nothing(engine: InProcess) -> None:
    answer = await engine.post(request(billable(f"http://127.0.0.1:{free_port()}/", method="POST")))
    assert answer.json()["error"]["code"] == "CONNECT_ERROR"
    assert (await metric(engine, 'broker_edge_upstream_attempts_total{outcome="connect_error"}')) == 4
    assert money(await engine.rows()) == {("connect_error", None, None, None, "BRL"): 1}


async def test_each_fetch_has_a_key_of_its_own(edge: InProcess, bureau: Bureau) -> None:
    source = billable(f"{bureau.url}/{{{{ id }}}}", idempotency_key_header="Idempotency-Key")
    for number in ("1", "2"):
        assert (await edge.post(request(source, {"id": number}))).status == 200
    keys = [got.get("idempotency-key") for got in bureau.calls]
    assert len(set(keys)) == 2
    assert None not in keys


async def test_the_spec_may_set_the_key_itself(edge: InProcess, bureau: Bureau) -> None:
    replies = iter([http_reply(b"", 500), http_reply(b"1", 200, "Content-Type: application/json")])
    bureau._answer = lambda _: next(replies)
    source = billable(bureau.url, method="POST", headers={"Idempotency-Key": "order {{ id }}"})
    assert (await edge.post(request(source, {"id": "7"}))).status == 200
    assert [got.get("idempotency-key") for got in bureau.calls] == ["order 7"] * 2


async def test_a_key_that_the_spec_leaves_empty_is_made(edge: InProcess, bureau: Bureau) -> None:
    source = billable(bureau.url, headers={"Idempotency-Key": "{{ env.key }}"})
    assert (await edge.post(request(source, env_variables={"key": None}))).status == 200
    assert bureau.calls[0].get("idempotency-key")


# Where the price stands


async def metric(edge: InProcess, sample: str) -> float:
    lines = (await edge.get("/metrics")).body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


async def test_of_a_herd_one_row_has_the_cost_and_the_others_what_they_saved(edge: InProcess, bureau: Bureau) -> None:
    source = billable(bureau.url)
    answers = await herd(bureau, Gathering(edge), [edge.post(request(source)) for _ in range(100)])
    assert {answer.status for answer in answers} == {200}
    assert (await edge.post(request(source))).json()["origin"] == "CACHE"
    assert money(await edge.rows()) == {
        ("fetched", 1, 2_500_000, None, "BRL"): 1,
        ("collapsed", None, None, 2_500_000, "BRL"): 99,
        ("hit", None, None, 2_500_000, "BRL"): 1,
    }
    assert await metric(edge, 'broker_edge_charged_calls_total{source="inline"}') == 1


async def test_a_source_whose_answers_are_never_reused_pays_for_each(edge: InProcess, bureau: Bureau) -> None:
    source = billable(bureau.url, caching={"enabled": False})
    for _ in range(3):
        assert (await edge.post(request(source))).status == 200
    assert money(await edge.rows()) == {("fetched", 1, 2_500_000, None, "BRL"): 3}
    assert len(bureau.calls) == 3


async def test_a_source_without_a_price_has_rows_without_money(edge: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url)
    for _ in range(2):
        assert (await edge.post(request(source))).status == 200
    assert money(await edge.rows()) == {("fetched", None, None, None, None): 1, ("hit", None, None, None, None): 1}


async def test_what_a_leader_that_timed_out_had_bought_has_a_row_of_its_own(edge: InProcess, bureau: Bureau) -> None:
    """The leader has a second, a follower more: the call goes on for the follower's sake."""
    source = billable(bureau.url, timeout=1)
    bureau.gate.clear()
    async with asyncio.TaskGroup() as group:
        body = request(source)
        leader = group.create_task(edge.post(body))
        await bureau.arrived.wait()
        follower = group.create_task(edge.post(request({**source, "source": {**source["source"], "timeout": 60}})))
        await asyncio.wait([leader])
        bureau.gate.set()
    assert leader.result().json()["error"]["code"] == "TIMEOUT"
    data_object = follower.result().json()["data_object_id"]
    rows = await edge.rows()
    assert money(rows) == {
        ("timeout", None, None, None, "BRL"): 1,
        ("collapsed", None, None, 2_500_000, "BRL"): 1,
        ("refill", 1, 2_500_000, None, "BRL"): 1,
    }
    (row,) = [row for row in rows if row.outcome == "refill"]
    timed_out = next(row for row in rows if row.outcome == "timeout")
    assert (str(row.run_id), str(row.data_object_id), row.data_origin) == (body["run_id"], data_object, "REQUEST")
    assert (row.key, row.trace_id, row.data_source_id) == (timed_out.key, timed_out.trace_id, timed_out.data_source_id)


@pytest.mark.parametrize("caching", [{"enabled": True, "ttl": 3600}, {"enabled": False}])
async def test_a_call_that_nobody_waits_for_any_more_is_accounted_for_once(
    edge: InProcess, bureau: Bureau, caching: dict[str, Any]
) -> None:
    bureau.gate.clear()
    answer = await edge.post(request(billable(bureau.url, timeout=0.5, caching=caching)))
    assert answer.json()["error"]["code"] == "TIMEOUT"
    assert await edge.edge.background.drain(60) == 0
    rows = await edge.rows()
    assert [row.cost_micros for row in rows if row.calls] == [2_500_000]


@pytest.mark.parametrize("status", [200, 404])
async def test_a_refill_behind_a_stale_reply_has_a_row_of_its_own(edge: InProcess, bureau: Bureau, status: int) -> None:
    source = billable(bureau.url)
    assert (await edge.post(request(source))).status == 200
    bureau._answer = lambda _: http_reply(b"2", status, "Content-Type: application/json")
    stale = {**source, "caching": {"enabled": True, "ttl": 0.000001}}
    answer = await edge.post(request(stale, max_stale=3600))
    assert (answer.status, answer.json()["origin"]) == (200, "CACHE")
    assert await edge.edge.background.drain(60) == 0
    rows = await edge.rows()
    assert money(rows) == {
        ("fetched", 1, 2_500_000, None, "BRL"): 1,
        ("stale", None, None, 2_500_000, "BRL"): 1,
        ("refill", 1, 2_500_000, None, "BRL"): 1,
    }
    (refill,) = [row for row in rows if row.outcome == "refill"]
    assert (refill.data_origin, refill.status_code) == (("REQUEST", 200) if status == 200 else (None, 502))
    assert (refill.error is None) is (status == 200)


@pytest.mark.parametrize("waits", [True, False])
async def test_a_call_that_the_shutdown_cuts_off_is_accounted_for_once(bureau: Bureau, tmp_path: Path, waits: bool) -> None:
    chosen = settings(tmp_path, bureau.port, shutdown_timeout=1)
    bureau.gate.clear()
    async with in_process(chosen) as edge:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(edge.post(request(billable(bureau.url))))
            await bureau.arrived.wait()
            if not waits:
                running.cancel()
                await asyncio.wait([running])
            assert await edge.edge.background.drain(0) == 1
        assert running.result().status == 503
        rows = await edge.rows()
    assert [(row.outcome, row.cost_micros) for row in rows if row.calls] == [("overloaded" if waits else "refill", 2_500_000)]
    assert len(rows) == (1 if waits else 2)


async def test_rows_of_refills_are_no_answers(edge: InProcess, bureau: Bureau) -> None:
    """Whoever counts requests counts answers: a refill's row is told by its outcome."""
    source = billable(bureau.url)
    await edge.post(request(source))
    stale = {**source, "caching": {"enabled": True, "ttl": 0.000001}}
    await edge.post(request(stale, max_stale=3600))
    await until(lambda: len(bureau.calls) == 2)
    assert await edge.edge.background.drain(60) == 0
    assert await metric(edge, "broker_edge_requests_total{") == 2
    assert await metric(edge, "broker_edge_charged_calls_total{") == 2
    assert len(await edge.rows()) == 3
