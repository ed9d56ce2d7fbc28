"""What a source's stale_while_revalidate and stale_if_error let through (RFC 5861), and how failing refills back off."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from broker_edge.core.exchange import Entry
from broker_edge.errors import EdgeError
from tests.edges import Bureau, InProcess, in_process, request, settings
from tests.scenarios.aging import NEW, OLD, Clock, ask, fails, kept, key_of, recovers, settled, source, summary
from tests.scenarios.herds import PATIENCE, Gathering, fleet, herd, until
from tests.servers import Postgres, Valkey, free_port
from tests.upstreams import Handler, Peer, RawServer, replying

HELD_BACK = "broker_edge_refills_held_back_total"


async def count(edge: InProcess, sample: str) -> float:
    lines = (await edge.get("/metrics")).body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


# While it is revalidated


@pytest.mark.parametrize("hot", [True, False])
async def test_a_stale_entry_is_served_at_once_and_refilled_once_behind(edge: InProcess, bureau: Bureau, hot: bool) -> None:
    body = ask(source(bureau, stale_while_revalidate=100))
    object_id = await kept(edge, body, age=100, hot=hot)
    bureau.gate.clear()
    stale = [await edge.post(body) for _ in range(5)] if hot else [await edge.post(body)]
    await bureau.arrived.wait()
    bureau.gate.set()
    await settled(edge)
    assert [summary(one) for one in stale] == [("CACHE", OLD, "hit; ttl=-41")] * len(stale)
    assert {one.json()["data_object_id"] for one in stale} == {str(object_id)}
    assert {one.headers["age"] for one in stale} == {"100"}
    fresh = await edge.post(body)
    assert (fresh.json()["origin"], fresh.json()["value"], len(bureau.calls)) == ("CACHE", NEW, 1)
    assert sorted(row.outcome for row in await edge.rows()) == ["hit"] + ["stale"] * len(stale)


async def test_what_only_the_durable_tier_holds_is_hot_again_once_it_was_served_stale(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_while_revalidate=1000))
    object_id = await kept(edge, body, age=100, hot=False)
    fails(bureau)
    await edge.post(body)
    await settled(edge)
    [entry] = await edge.edge.hot.get_many([key_of(body)])
    assert isinstance(entry, Entry)
    assert entry.object_id == object_id


async def test_a_stale_entry_past_the_bound_is_fetched_anew(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_while_revalidate=30))
    await kept(edge, body, age=100)
    assert summary(await edge.post(body)) == ("REQUEST", NEW, "fwd=stale; fwd-status=200; stored")


async def test_a_request_s_max_age_binds_what_is_stale(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_while_revalidate=1000, stale_if_error=1000), max_age=80)
    await kept(edge, body, age=100)
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)


async def test_a_request_s_max_age_binds_what_is_served_where_a_refill_fails(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_if_error=1000))
    await kept(edge, body, age=100)
    fails(bureau)
    assert (await edge.post({**body, "max_age": 80})).json()["error"]["code"] == "UPSTREAM_STATUS"
    assert summary(await edge.post({**body, "max_age": 200}))[:2] == ("CACHE", OLD)


@pytest.mark.parametrize("hot", [True, False])
async def test_cache_only_serves_what_is_stale_and_starts_nothing(edge: InProcess, bureau: Bureau, hot: bool) -> None:
    body = ask(source(bureau, stale_while_revalidate=100), mode="cache_only")
    await kept(edge, body, age=100, hot=hot)
    assert summary(await edge.post(body)) == ("CACHE", OLD, "hit; ttl=-41")
    await settled(edge)
    assert bureau.calls == []


async def test_cache_only_is_no_reason_to_serve_what_is_kept_for_failures(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_if_error=1000), mode="cache_only")
    await kept(edge, body, age=100)
    assert (await edge.post(body)).json()["error"]["code"] == "NOT_CACHED"


async def test_a_herd_that_meets_a_stale_entry_in_the_durable_tier_is_served_it_and_makes_one_call(
    edge: InProcess, bureau: Bureau
) -> None:
    body = ask(source(bureau, stale_while_revalidate=100))
    await kept(edge, body, age=100, hot=False)
    bureau.gate.clear()
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*(edge.post(body) for _ in range(20)))
    bureau.gate.set()
    await settled(edge)
    assert {answer.json()["origin"] for answer in answers} == {"CACHE"}
    assert len(bureau.calls) == 1


async def test_one_who_accepts_nothing_old_is_not_served_what_the_leader_of_the_flight_takes(
    edge: InProcess, bureau: Bureau
) -> None:
    body = ask(source(bureau, stale_while_revalidate=100))
    await kept(edge, body, age=100, hot=False)
    tolerant, strict = await asyncio.gather(edge.post(body), edge.post({**body, "max_age": 30}))
    assert tolerant.json()["value"] == OLD
    assert strict.json()["value"] == NEW
    await settled(edge)


async def test_the_fleet_makes_one_call_behind_stale_replies(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    body = ask(source(bureau, stale_while_revalidate=100))
    async with fleet(2, tmp_path, bureau, redis_server, postgres_server.create(migrated=True)) as edges:
        await kept(edges[0], body, age=100)
        bureau.gate.clear()
        answers = [await edge.post(body) for edge in edges for _ in range(3)]
        await bureau.arrived.wait()
        bureau.gate.set()
        for edge in edges:
            await settled(edge)
        assert {answer.json()["value"]["score"] for answer in answers} == {OLD["score"]}
        assert len(bureau.calls) == 1
        assert [(await edge.post(body)).json()["value"] for edge in edges] == [NEW, NEW]


# Where its refill fails


@pytest.mark.parametrize("hot", [True, False])
@pytest.mark.parametrize("status", [403, 429, 500, 502, 503, 504])
async def test_a_failure_is_masked_by_a_stale_entry(edge: InProcess, bureau: Bureau, status: int, hot: bool) -> None:
    body = ask(source(bureau, stale_if_error=100))
    object_id = await kept(edge, body, age=100, hot=hot)
    fails(bureau, status)
    answer = await edge.post(body)
    assert (answer.status, summary(answer)) == (200, ("CACHE", OLD, f"fwd=stale; fwd-status={status}"))
    assert (answer.headers["age"], answer.json()["data_object_id"]) == ("100", str(object_id))
    [row] = await edge.rows()
    assert (row.outcome, row.data_origin, row.status_code) == ("stale", "CACHE", 200)


@pytest.mark.parametrize("status", [400, 401, 404, 410, 304])
async def test_an_answer_that_is_none_of_the_upstream_s_troubles_is_not_masked(
    edge: InProcess, bureau: Bureau, status: int
) -> None:
    body = ask(source(bureau, stale_if_error=100))
    await kept(edge, body, age=100)
    fails(bureau, status)
    answer = await edge.post(body)
    assert (answer.status, answer.json()["upstream_status"]) == (502, status)
    assert answer.headers["cache-status"] == f"broker-edge; fwd=stale; fwd-status={status}"
    # Nor is it by the pause that refills make after a failure.
    assert [(await edge.post(body)).status for _ in range(5)] == [502] * 5
    assert len(bureau.calls) == 6


async def test_a_caller_s_error_is_not_masked(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, members={"headers": {"X-Name": "{{ env.name }}"}}, stale_if_error=100))
    body["env_variables"] = {"name": "a\r\nb"}
    await kept(edge, body, age=100)
    assert (await edge.post(body)).json()["error"]["code"] == "INVALID_VALUE"


async def dropping(peer: Peer) -> None:
    await peer.receive()
    peer.reset()


async def truncating(peer: Peer) -> None:
    await peer.receive()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    await peer.end()


@pytest.mark.parametrize("handler", [dropping, truncating, replying(b"<html>")])
async def test_an_upstream_that_breaks_off_or_talks_nonsense_is_masked(tmp_path: Path, handler: Handler) -> None:
    bureau = Bureau()
    async with RawServer(handler) as server, in_process(settings(tmp_path, server.port)) as edge:
        bureau.port = server.port
        body = ask(source(bureau, stale_if_error=100))
        await kept(edge, body, age=100)
        answer = await edge.post(body)
        assert (answer.json()["value"], answer.headers["cache-status"]) == (OLD, "broker-edge; fwd=stale")
        assert server.received


async def test_an_upstream_that_can_not_be_reached_is_masked(tmp_path: Path) -> None:
    bureau = Bureau()
    bureau.port = free_port()
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        body = ask(source(bureau, stale_if_error=100))
        await kept(edge, body, age=100)
        assert summary(await edge.post(body)) == ("CACHE", OLD, "fwd=stale")


@pytest.mark.parametrize(
    "code",
    [
        *("BUDGET_EXHAUSTED", "CIRCUIT_OPEN", "OVERLOADED", "STORAGE_UNAVAILABLE"),
        *("DNS_ERROR", "TLS_ERROR", "UPSTREAM_TOO_LARGE"),
    ],
)
async def test_what_keeps_a_call_from_being_made_is_masked(
    edge: InProcess, bureau: Bureau, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    body = ask(source(bureau, stale_if_error=100))
    await kept(edge, body, age=100)
    refuse(edge, monkeypatch, code)
    assert summary(await edge.post(body)) == ("CACHE", OLD, "fwd=stale")


@pytest.mark.parametrize("code", ["TARGET_DENIED", "INTERNAL"])
async def test_what_is_no_trouble_of_the_moment_is_not_masked(
    edge: InProcess, bureau: Bureau, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    body = ask(source(bureau, stale_if_error=100))
    await kept(edge, body, age=100)
    refuse(edge, monkeypatch, code)
    assert (await edge.post(body)).json()["error"]["code"] == code


def refuse(edge: InProcess, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    async def call(*_: Any, **__: Any) -> Any:
        raise EdgeError(code, "refused")

    monkeypatch.setattr(edge.edge.broker._kitchen.calls, "call", call)


@pytest.mark.parametrize("hot", [True, False])
async def test_the_caller_s_deadline_is_answered_with_the_stale_entry(edge: InProcess, bureau: Bureau, hot: bool) -> None:
    body = ask(source(bureau, members={"timeout": 0.5}, stale_if_error=100))
    await kept(edge, body, age=100, hot=hot)
    bureau.gate.clear()
    assert summary(await edge.post(body)) == ("CACHE", OLD, "fwd=stale")
    assert len(bureau.calls) == 1


async def test_a_refresh_that_fails_says_so(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_if_error=100, stale_while_revalidate=100))
    await kept(edge, body, age=100)
    fails(bureau)
    assert (await edge.post({**body, "mode": "refresh"})).json()["error"]["code"] == "UPSTREAM_STATUS"


async def test_a_stale_entry_past_the_bound_masks_nothing(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_if_error=30))
    await kept(edge, body, age=100)
    fails(bureau)
    assert (await edge.post(body)).json()["upstream_status"] == 503


async def test_what_nobody_has_masks_nothing(edge: InProcess, bureau: Bureau) -> None:
    fails(bureau)
    assert (await edge.post(ask(source(bureau, stale_if_error=30)))).json()["upstream_status"] == 503


@pytest.mark.parametrize("hot", [True, False])
async def test_everybody_who_waits_for_a_failing_call_is_served_the_stale_entry(
    edge: InProcess, bureau: Bureau, hot: bool
) -> None:
    body = ask(source(bureau, stale_if_error=100))
    await kept(edge, body, age=100, hot=hot)
    fails(bureau)
    answers = await herd(bureau, Gathering(edge), [edge.post(body) for _ in range(20)])
    assert {summary(one)[:2] == ("CACHE", OLD) for one in answers} == {True}
    assert {summary(one)[2] for one in answers} == {"fwd=stale; fwd-status=503", "fwd=stale; fwd-status=503; collapsed"}
    assert len(bureau.calls) == 1


@pytest.mark.parametrize("hot", [True, False])
async def test_a_follower_in_another_instance_is_served_the_stale_entry(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres, hot: bool
) -> None:
    body = ask(source(bureau, stale_if_error=100))
    fails(bureau)
    async with fleet(
        2, tmp_path, bureau, redis_server, postgres_server.create(migrated=True), flight_lease=60, flight_wait=300
    ) as edges:
        await kept(edges[0], body, age=100, hot=hot)
        bureau.gate.clear()
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group, Redis.from_url(redis_server.url) as redis:
            led = group.create_task(edges[0].post(body))
            await bureau.arrived.wait()
            followed = group.create_task(edges[1].post(body))
            await until(lambda: _somebody_waits(redis, key_of(body)))
            bureau.gate.set()
        assert [summary(one.result()) for one in (led, followed)] == [("CACHE", OLD, "fwd=stale; fwd-status=503")] * 2
        assert len(bureau.calls) == 1


async def _somebody_waits(redis: Redis, key: str) -> bool:
    return bool(await redis.exists(f"be:{{{key}}}:bell"))


# Back-off


async def test_a_refill_that_fails_behind_stale_replies_is_not_begun_again_at_once(edge: InProcess, bureau: Bureau) -> None:
    body, clock = ask(source(bureau, stale_while_revalidate=100)), Clock(edge)
    await kept(edge, body, age=100)
    fails(bureau)
    await edge.post(body)
    await settled(edge)
    for _ in range(5):
        assert summary(await edge.post(body)) == ("CACHE", OLD, "hit; ttl=-41")
    await settled(edge)
    assert len(bureau.calls) == 1
    assert await count(edge, HELD_BACK) == 5
    clock.now += 1.01
    await edge.post(body)
    await settled(edge)
    assert len(bureau.calls) == 2


@pytest.mark.parametrize("hot", [True, False])
async def test_while_a_failed_refill_is_left_alone_what_is_kept_for_failures_is_served_at_once(
    edge: InProcess, bureau: Bureau, hot: bool
) -> None:
    body, clock = ask(source(bureau, stale_if_error=100)), Clock(edge)
    await kept(edge, body, age=100, hot=hot)
    fails(bureau)
    assert summary(await edge.post(body)) == ("CACHE", OLD, "fwd=stale; fwd-status=503")
    if not hot:
        await edge.edge.hot.delete(key_of(body))
    assert summary(await edge.post(body)) == ("CACHE", OLD, "hit; ttl=-41")
    await settled(edge)
    assert len(bureau.calls) == 1
    clock.now += 1.01
    recovers(bureau)
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)


async def test_the_upstream_s_retry_after_is_honoured(edge: InProcess, bureau: Bureau) -> None:
    body, clock = ask(source(bureau, stale_if_error=100)), Clock(edge)
    await kept(edge, body, age=100)
    fails(bureau, 429, "Retry-After: 120")
    await edge.post(body)
    clock.now += 119
    await edge.post(body)
    assert len(bureau.calls) == 1
    clock.now += 1
    await edge.post(body)
    assert len(bureau.calls) == 2


async def test_each_failure_doubles_the_pause_up_to_a_minute(edge: InProcess, bureau: Bureau) -> None:
    body, clock = ask(source(bureau, stale_if_error=1000)), Clock(edge)
    await kept(edge, body, age=100)
    fails(bureau)
    await edge.post(body)
    for number, pause in enumerate((1, 2, 4, 8, 16, 32, 60, 60)):
        clock.now += pause - 0.5
        await edge.post(body)
        assert len(bureau.calls) == 1 + number
        clock.now += 0.5
        await edge.post(body)
        assert len(bureau.calls) == 2 + number


async def test_a_success_ends_the_pause(edge: InProcess, bureau: Bureau) -> None:
    body, clock = ask(source(bureau, stale_if_error=1000)), Clock(edge)
    await kept(edge, body, age=100)
    fails(bureau)
    for _ in range(3):
        await edge.post(body)
        clock.now += 4.1
    recovers(bureau)
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)
    fails(bureau)
    edge.edge.broker._kitchen.now = lambda: time.time() + 100
    assert summary(await edge.post(body)) == ("CACHE", NEW, "fwd=stale; fwd-status=503")
    clock.now += 1.01  # as after a first failure
    await edge.post(body)
    assert len(bureau.calls) == 6


async def test_a_refresh_takes_no_notice_of_the_pause(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_if_error=1000))
    Clock(edge)
    await kept(edge, body, age=100)
    fails(bureau)
    await edge.post(body)
    await edge.post({**body, "mode": "refresh"})
    assert len(bureau.calls) == 2


async def test_a_failure_in_another_instance_is_a_reason_to_pause_too(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    body = ask(source(bureau, stale_if_error=100))
    fails(bureau)
    async with fleet(
        2, tmp_path, bureau, redis_server, postgres_server.create(migrated=True), flight_lease=60, flight_wait=300
    ) as edges:
        Clock(*edges)
        await kept(edges[0], body, age=100)
        bureau.gate.clear()
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group, Redis.from_url(redis_server.url) as redis:
            group.create_task(edges[0].post(body))
            await bureau.arrived.wait()
            group.create_task(edges[1].post(body))
            await until(lambda: _somebody_waits(redis, key_of(body)))
            bureau.gate.set()
        assert summary(await edges[1].post(body)) == ("CACHE", OLD, "hit; ttl=-41")
        assert len(bureau.calls) == 1


async def test_a_failure_that_no_stale_entry_covers_is_no_reason_to_wait(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_if_error=100))
    Clock(edge)
    fails(bureau)
    await edge.post(body)
    recovers(bureau)
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)


async def test_a_budget_that_is_spent_is_masked_and_costs_no_call(edge: InProcess, bureau: Bureau) -> None:
    data_source = {**source(bureau, stale_if_error=100), "budget": {"calls": 1}}
    Clock(edge)
    await edge.post(request(data_source, {"id": "8"}))
    assert (await edge.post(request(data_source, {"id": "9"}))).json()["error"]["code"] == "BUDGET_EXHAUSTED"
    body = ask(data_source)
    await kept(edge, body, age=100)
    assert [summary(await edge.post(body))[2] for _ in range(2)] == ["fwd=stale", "hit; ttl=-41"]
    assert len(bureau.calls) == 1
