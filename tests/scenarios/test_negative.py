"""Error statuses that a source's negative_ttl remembers: the same error again, without a call."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from broker_edge.api.asgi import Answer as Asgi
from broker_edge.core.exchange import Entry
from tests.edges import Answer, Bureau, InProcess
from tests.scenarios.aging import NEW, OLD, Clock, ask, fails, kept, key_of, recovers, settled, source, summary
from tests.scenarios.herds import PATIENCE, Gathering, fleet, herd, until
from tests.servers import Postgres, Valkey


def remembered(answer: Answer, seconds: float, status: int = 404) -> bool:
    """Whether this is the upstream's error, told again without a call."""
    body, (name, hit, ttl) = answer.json(), answer.headers["cache-status"].split("; ")
    assert (answer.status, body["error"]["code"], body["upstream_status"]) == (502, "UPSTREAM_STATUS", status)
    assert (name, hit) == ("broker-edge", "hit")
    assert int(answer.headers["age"]) >= 0
    return seconds - 50 < int(ttl.removeprefix("ttl=")) <= seconds


async def negative(edge: InProcess, body: dict[str, Any], status: int, age: float) -> None:
    await edge.edge.hot.put(key_of(body), Entry(uuid.UUID(int=0), time.time() - age, b"", status), None)


async def held(edge: InProcess, body: dict[str, Any]) -> Entry | None:
    [entry] = await edge.edge.hot.get_many([key_of(body)])
    assert not isinstance(entry, BaseException)
    return entry


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500, 503])
async def test_a_status_that_is_listed_is_told_again_without_a_call(edge: InProcess, bureau: Bureau, status: int) -> None:
    body = ask(source(bureau, negative_ttl={str(status): 100}))
    fails(bureau, status)
    first, second = await edge.post(body), await edge.post(body)
    assert first.headers["cache-status"] == f"broker-edge; fwd=uri-miss; fwd-status={status}"
    assert remembered(second, 100, status)
    assert second.json() == first.json()
    assert len(bureau.calls) == 1
    rows = sorted(await edge.rows(), key=lambda row: row.created_at)
    assert [(row.outcome, row.data_origin, row.status_code) for row in rows] == [("upstream_status", None, 502)] * 2


async def test_what_the_source_may_have_retried_is_told_as_it_was(edge: InProcess, bureau: Bureau) -> None:
    retry = {"retry": {"max_retries": 1, "backoff_factor": 0, "status_forcelist": [404]}}
    body = ask(source(bureau, members=retry, negative_ttl={"404": 100}))
    fails(bureau, 404)
    first, second = await edge.post(body), await edge.post(body)
    assert first.json()["error"]["retryable"] is True
    assert second.json() == first.json()
    assert len(bureau.calls) == 2


async def test_a_status_that_is_not_listed_is_asked_for_again(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, negative_ttl={"410": 100}))
    fails(bureau, 404)
    await edge.post(body)
    await edge.post(body)
    assert len(bureau.calls) == 2
    assert await held(edge, body) is None


@pytest.mark.parametrize("caching", [{"enabled": False}, {"ttl": 0}], ids=str)
async def test_without_a_cache_nothing_is_remembered(edge: InProcess, bureau: Bureau, caching: dict[str, Any]) -> None:
    body = ask(source(bureau, negative_ttl={"404": 100}, **caching))
    fails(bureau, 404)
    await edge.post(body)
    await edge.post(body)
    assert len(bureau.calls) == 2
    assert await held(edge, body) is None


async def test_it_is_remembered_for_its_own_time_and_no_longer(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, negative_ttl={"404": 100}))
    await negative(edge, body, 404, age=10)
    answer = await edge.post(body)
    assert remembered(answer, 90)
    assert int(answer.headers["age"]) >= 10
    await negative(edge, body, 404, age=101)
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)


async def test_the_hot_tier_forgets_it_by_itself(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, negative_ttl={"404": 0.3}))
    fails(bureau, 404)
    await edge.post(body)

    async def forgotten() -> bool:
        return await held(edge, body) is None

    await until(forgotten)


async def test_a_status_that_has_left_the_policy_is_a_miss(edge: InProcess, bureau: Bureau) -> None:
    data_source = source(bureau, negative_ttl={"404": 100})
    fails(bureau, 404)
    await edge.post(ask(data_source))
    data_source["caching"]["negative_ttl"] = {"410": 100}
    recovers(bureau)
    assert summary(await edge.post(ask(data_source))) == ("REQUEST", NEW, "fwd=uri-miss; fwd-status=200; stored")


async def test_a_refresh_asks_again_and_its_answer_takes_the_place(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, negative_ttl={"404": 100}))
    fails(bureau, 404)
    await edge.post(body)
    recovers(bureau)
    assert summary(await edge.post({**body, "mode": "refresh"}))[:2] == ("REQUEST", NEW)
    assert summary(await edge.post(body))[:2] == ("CACHE", NEW)


async def test_max_age_binds_what_is_remembered(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, negative_ttl={"404": 1000}))
    await negative(edge, body, 404, age=100)
    assert summary(await edge.post({**body, "max_age": 50}))[:2] == ("REQUEST", NEW)


@pytest.mark.parametrize("members", [{"mode": "cache_only"}, {"max_stale": 1000}], ids=str)
async def test_whoever_accepts_what_is_cached_is_told_what_is_remembered(
    edge: InProcess, bureau: Bureau, members: dict[str, Any]
) -> None:
    body = ask(source(bureau, negative_ttl={"404": 100}))
    await negative(edge, body, 404, age=1)
    assert remembered(await edge.post({**body, **members}), 100)
    assert bureau.calls == []


# Beside a positive entry


@pytest.mark.parametrize("status", [403, 429, 503])
async def test_a_stale_entry_that_masks_the_failure_keeps_its_place(edge: InProcess, bureau: Bureau, status: int) -> None:
    body, clock = ask(source(bureau, stale_if_error=1000, negative_ttl={str(status): 100})), Clock(edge)
    object_id = await kept(edge, body, age=100)
    fails(bureau, status)
    assert summary(await edge.post(body))[:2] == ("CACHE", OLD)
    clock.now += 100
    assert summary(await edge.post(body))[:2] == ("CACHE", OLD)
    entry = await held(edge, body)
    assert entry is not None
    assert entry.object_id == object_id


async def test_a_stale_entry_that_does_not_mask_the_failure_gives_way(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_if_error=1000, negative_ttl={"404": 100}))
    await kept(edge, body, age=100)
    fails(bureau, 404)
    assert (await edge.post(body)).headers["cache-status"] == "broker-edge; fwd=stale; fwd-status=404"
    assert remembered(await edge.post(body), 100)
    assert len(bureau.calls) == 1


async def test_a_stale_entry_that_is_past_masking_gives_way(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_if_error=30, negative_ttl={"503": 100}))
    await kept(edge, body, age=100)
    fails(bureau)
    await edge.post(body)
    assert remembered(await edge.post(body), 100, 503)


async def test_a_refresh_that_fails_leaves_what_is_fresh(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, negative_ttl={"404": 100}))
    await kept(edge, body, age=1)
    fails(bureau, 404)
    assert (await edge.post({**body, "mode": "refresh"})).json()["upstream_status"] == 404
    assert summary(await edge.post(body))[:2] == ("CACHE", OLD)


async def test_a_refill_behind_a_stale_reply_may_learn_that_there_is_nothing_any_more(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_while_revalidate=1000, negative_ttl={"410": 100}))
    await kept(edge, body, age=100)
    fails(bureau, 410)
    assert summary(await edge.post(body))[:2] == ("CACHE", OLD)
    await settled(edge)
    assert remembered(await edge.post(body), 100, 410)


async def test_a_fresh_object_in_the_durable_tier_takes_the_place_of_what_is_no_longer_remembered(
    edge: InProcess, bureau: Bureau
) -> None:
    body = ask(source(bureau, negative_ttl={"404": 100}))
    object_id = await kept(edge, body, age=10, hot=False)
    await negative(edge, body, 404, age=101)
    assert summary(await edge.post(body))[:2] == ("CACHE", OLD)
    entry = await held(edge, body)
    assert entry is not None
    assert entry.object_id == object_id
    assert bureau.calls == []


# Many at once


async def test_everybody_who_waits_is_told_and_whoever_comes_later_too(edge: InProcess, bureau: Bureau) -> None:
    data_source = source(bureau, members={"headers": {"X-Key": "{{ env.key }}"}}, negative_ttl={"404": 100})
    fails(bureau, 404)
    posts = [edge.post(ask(data_source, env_variables={"key": f"secret-{number % 5}"})) for number in range(20)]
    answers = await herd(bureau, Gathering(edge), posts)
    assert {one.json()["upstream_status"] for one in answers} == {404}
    assert len(bureau.calls) == 1  # though secrets differ: what is remembered is told to everyone
    assert remembered(await edge.post(ask(data_source, env_variables={"key": "another"})), 100)


async def test_the_fleet_remembers_together(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    data_source = source(bureau, members={"headers": {"X-Key": "{{ env.key }}"}}, negative_ttl={"404": 100})
    body = ask(data_source, env_variables={"key": "secret"})
    fails(bureau, 404)
    async with fleet(2, tmp_path, bureau, redis_server, postgres_server.create(migrated=True), flight_wait=300) as edges:
        bureau.gate.clear()
        gathering = Gathering(*edges)
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            tasks = [group.create_task(edge.post(body)) for edge in edges]
            await bureau.arrived.wait()
            await gathering.reached(2)
            bureau.gate.set()
        assert {one.result().json()["upstream_status"] for one in tasks} == {404}
        assert len(bureau.calls) == 1
        for edge in edges:
            assert remembered(await edge.post(body), 100)
        assert len(bureau.calls) == 1


async def test_the_near_tier_tells_it_too(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    body = ask(source(bureau, negative_ttl={"404": 100}))
    fails(bureau, 404)
    async with fleet(1, tmp_path, bureau, redis_server, postgres_server.create(migrated=True)) as (edge,):
        tracking: Any = edge.edge.tracking
        await edge.post(body)

        async def near() -> bool:
            assert remembered(await edge.post(body), 100)
            return tracking.near.get(key_of(body)) is not None

        await until(near)
        assert remembered(await edge.post(body), 100)
        assert len(bureau.calls) == 1


async def test_it_is_told_without_a_task_of_its_own(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, negative_ttl={"404": 100}))
    fails(bureau, 404)
    await edge.post(body)
    answered: asyncio.Future[Asgi] = asyncio.get_running_loop().create_future()
    tasks: list[object] = []
    edge.app.begin(b"/v1/fetch-data", [], json.dumps(body).encode(), answered.set_result, tasks.append)
    async with asyncio.timeout(PATIENCE):
        assert (await answered).status == 502
    assert tasks == []
