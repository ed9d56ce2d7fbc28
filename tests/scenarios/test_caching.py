"""What is served from the cache, for how long, and what Cache-Status (RFC 9211) and Age say about it; on both backends."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from redis.asyncio import Redis

from broker_edge.core.exchange import DataObject
from broker_edge.core.plan import make_plan
from broker_edge.core.source import parse_source
from broker_edge.settings import Settings
from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, json_reply, request, spec, table


def cached(url: str, **caching: Any) -> dict[str, Any]:
    return spec(f"{url}/score/{{{{ id }}}}", caching={"enabled": True, **caching})


def ask(source: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    return request(source, {"id": "7"}, **members)


def cache_status(answer: Answer) -> dict[str, str]:
    """Cache-Status of this one cache, as parameters."""
    name, *parameters = answer.headers["cache-status"].split("; ")
    assert name == "broker-edge"
    return {one.partition("=")[0]: one.partition("=")[2] for one in parameters}


async def stored(edge: InProcess, body: Mapping[str, Any], age: float) -> uuid.UUID:
    """An answer to `body` that an instance got `age` seconds ago, and that only the durable tier still holds."""
    source = parse_source(json.dumps(body["data_source_spec"]).encode())
    key = make_plan(source, body["configured_params"], body.get("env_variables") or {}).key
    now = time.time()
    object_id = uuid.uuid4()
    item = DataObject(
        object_id, source.data_source_id, key, b'{"score": 1}', now - age, "application/json", "JSON", 200, reusable=True
    )
    await edge.edge.durable.store([item])
    return object_id


def values(*answers: Answer) -> list[Any]:
    return [answer.json()["value"] for answer in answers]


def counting(bureau: Bureau) -> None:
    """Every call gets another answer."""
    bureau._answer = lambda _: json_reply({"call": len(bureau.calls)})


# How long


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [(60, 60), (1.5, 1.5), ({"minutes": 2, "seconds": 3}, 123), ({"days": 1, "hours": None}, 86_400), ({"hours": 1.5}, 5400)],
    ids=str,
)
async def test_a_hit_tells_what_is_left_of_its_ttl(edge: InProcess, bureau: Bureau, ttl: Any, seconds: float) -> None:
    body = ask(cached(bureau.url, ttl=ttl), max_stale=60)
    await edge.post(body)
    hit = await edge.post(body)
    assert hit.json()["origin"] == "CACHE"
    assert seconds - 60 <= int(cache_status(hit)["ttl"]) <= seconds


async def test_a_ttl_of_null_never_expires(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=None))
    object_id = await stored(edge, body, age=5e8)
    hit = await edge.post(body)
    assert (hit.json()["origin"], uuid.UUID(hit.json()["data_object_id"])) == ("CACHE", object_id)
    assert hit.headers["cache-status"] == "broker-edge; hit"
    assert int(hit.headers["age"]) >= 500_000_000
    assert bureau.calls == []


@pytest.mark.parametrize("caching", [{"enabled": True, "ttl": 0}, {"enabled": False, "ttl": 60}, None], ids=str)
async def test_an_answer_that_is_never_reused_is_kept_all_the_same(edge: InProcess, bureau: Bureau, caching: Any) -> None:
    body = ask(spec(f"{bureau.url}/score/{{{{ id }}}}", caching=caching))
    answers = [await edge.post(body), await edge.post(body)]
    assert [answer.json()["origin"] for answer in answers] == ["REQUEST", "REQUEST"]
    assert {answer.headers["cache-status"] for answer in answers} == {"broker-edge; fwd=bypass; fwd-status=200"}
    assert len(bureau.calls) == len(await table(edge.edge.engine, "data_object")) == 2
    assert await table(edge.edge.engine, "run_data_cache") == []


async def test_an_entry_past_its_ttl_is_fetched_anew(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=60))
    await stored(edge, body, age=61)
    answer = await edge.post(body)
    assert (answer.json()["origin"], len(bureau.calls)) == ("REQUEST", 1)
    assert cache_status(answer)["fwd"] in ("uri-miss", "stale")


async def test_a_ttl_that_was_shortened_holds_for_what_is_in_the_cache_already(edge: InProcess, bureau: Bureau) -> None:
    source = cached(bureau.url, ttl=3600)
    await stored(edge, ask(source), age=100)
    assert (await edge.post(ask(source))).json()["origin"] == "CACHE"
    source["caching"]["ttl"] = 60
    answer = await edge.post(ask(source))
    assert answer.json()["origin"] == "REQUEST"
    assert answer.headers["cache-status"] == "broker-edge; fwd=stale; fwd-status=200; stored"


# What a request accepts


async def test_an_entry_older_than_max_age_is_fetched_anew_for_this_request(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=3600))
    await stored(edge, body, age=100)
    assert (await edge.post({**body, "max_age": 200})).headers["age"] == "100"
    young = await edge.post({**body, "max_age": 50})
    assert young.headers["cache-status"] == "broker-edge; fwd=request; fwd-status=200; stored"
    assert len(bureau.calls) == 1


async def test_a_stale_entry_within_max_stale_is_served_and_refilled_behind(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=60))
    object_id = await stored(edge, body, age=100)
    bureau.gate.clear()
    stale = await edge.post({**body, "max_stale": 100})
    again = await edge.post({**body, "max_stale": 100})
    await bureau.arrived.wait()
    bureau.gate.set()
    assert [uuid.UUID(one.json()["data_object_id"]) for one in (stale, again)] == [object_id, object_id]
    assert (stale.json()["origin"], stale.headers["age"], cache_status(stale)) == ("CACHE", "100", {"hit": "", "ttl": "-41"})
    await edge.edge.background.drain(30)
    fresh = await edge.post(body)
    assert (fresh.json()["origin"], fresh.json()["value"]) == ("CACHE", {"score": 700})
    assert len(bureau.calls) == 1


async def test_a_stale_entry_beyond_max_stale_is_not_served(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=60))
    await stored(edge, body, age=100)
    answer = await edge.post({**body, "max_stale": 30})
    assert (answer.json()["origin"], cache_status(answer)["fwd"]) == ("REQUEST", "stale")


async def test_max_age_bounds_what_max_stale_lets_through(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=60))
    await stored(edge, body, age=100)
    assert (await edge.post({**body, "max_stale": 100, "max_age": 90})).json()["origin"] == "REQUEST"


async def test_refresh_calls_the_upstream_and_renews_the_entry_for_everyone(edge: InProcess, bureau: Bureau) -> None:
    counting(bureau)
    body = ask(cached(bureau.url, ttl=60))
    first, second, third = [await edge.post({**body, "mode": mode}) for mode in ("live", "refresh", "live")]
    assert values(first, second, third) == [{"call": 1}, {"call": 2}, {"call": 2}]
    assert second.headers["cache-status"] == "broker-edge; fwd=request; fwd-status=200; stored"
    assert third.json()["data_object_id"] == second.json()["data_object_id"]


async def test_who_shares_a_call_is_told_so(edge: InProcess, bureau: Bureau, monkeypatch: pytest.MonkeyPatch) -> None:
    both = asyncio.Event()
    flights = edge.edge.broker._flights
    boarding = flights._board

    def board(*arguments: Any) -> Any:
        boarded = boarding(*arguments)
        if not boarded[1]:
            both.set()
        return boarded

    monkeypatch.setattr(flights, "_board", board)
    body = ask(cached(bureau.url, ttl=60))
    bureau.gate.clear()
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(edge.post(body))
        await bureau.arrived.wait()
        follower = group.create_task(edge.post(body))
        await both.wait()
        bureau.gate.set()
    statuses = [task.result().headers["cache-status"] for task in (leader, follower)]
    assert statuses[0] == "broker-edge; fwd=uri-miss; fwd-status=200; stored"
    assert statuses[1] == "broker-edge; fwd=uri-miss; fwd-status=200; stored; collapsed"
    assert [task.result().json()["origin"] for task in (leader, follower)] == ["REQUEST", "REQUEST"]
    assert len(bureau.calls) == 1


# Never calling


async def test_cache_only_answers_from_the_hot_tier(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=60))
    await edge.post(body)
    assert (await edge.post({**body, "mode": "cache_only"})).json()["origin"] == "CACHE"
    assert len(bureau.calls) == 1


async def test_cache_only_answers_from_the_durable_tier(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=60))
    object_id = await stored(edge, body, age=10)
    answer = await edge.post({**body, "mode": "cache_only"})
    assert (uuid.UUID(answer.json()["data_object_id"]), answer.headers["age"]) == (object_id, "10")
    assert bureau.calls == []


async def test_cache_only_without_an_entry_says_so(edge: InProcess, bureau: Bureau) -> None:
    answer = await edge.post({**ask(cached(bureau.url, ttl=60)), "mode": "cache_only"})
    assert (answer.status, answer.json()["error"]["code"], bureau.calls) == (404, "NOT_CACHED", [])


async def test_cache_only_of_what_is_never_reused_says_so(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=0))
    await edge.post(body)
    answer = await edge.post({**body, "mode": "cache_only"})
    assert (answer.status, answer.json()["error"]["code"], len(bureau.calls)) == (404, "NOT_CACHED", 1)


async def test_cache_only_serves_stale_within_max_stale_and_refills_nothing(edge: InProcess, bureau: Bureau) -> None:
    body = {**ask(cached(bureau.url, ttl=60)), "mode": "cache_only"}
    await stored(edge, body, age=100)
    assert (await edge.post(body)).json()["error"]["code"] == "NOT_CACHED"
    stale = await edge.post({**body, "max_stale": 100})
    assert (stale.json()["origin"], stale.headers["age"]) == ("CACHE", "100")
    await edge.edge.background.drain(30)
    assert bureau.calls == []


# Under which key


async def keys(edge: InProcess, *bodies: Mapping[str, Any]) -> list[str]:
    answers = [await edge.post(body) for body in bodies]
    assert [answer.status for answer in answers] == [200] * len(bodies)
    return [answer.json()["key"] for answer in answers]


async def test_secrets_are_no_part_of_the_key(edge: InProcess, bureau: Bureau) -> None:
    source = cached(bureau.url, ttl=60)
    source["source"]["headers"] = {"X-Key": "{{ env.token }}"}
    one, other = await keys(edge, *(ask(source, env_variables={"token": token}) for token in "ab"))
    assert (one == other, len(bureau.calls)) == (True, 1)


async def test_vary_env_tells_entries_apart(edge: InProcess, bureau: Bureau) -> None:
    source = cached(bureau.url, ttl=60, vary_env=["token"])
    source["source"]["headers"] = {"X-Key": "{{ env.token }}", "X-Trace": "{{ env.other }}"}
    tokens = [("a", "1"), ("b", "1"), ("a", "2")]
    one, other, same = await keys(edge, *(ask(source, env_variables={"token": token, "other": other}) for token, other in tokens))
    assert (one != other, one == same, len(bureau.calls)) == (True, True, 2)


@pytest.mark.parametrize(
    "edit",
    [
        {"url": "/other/{{ id }}"},
        {"method": "POST"},
        {"headers": {"X-Version": "2"}},
        {"params": {"page": 2}},
        {"method": "GET", "body": {"a": 1}},
        {"response_type": "PLAIN_TEXT"},
    ],
    ids=lambda edit: "-".join(edit),
)
async def test_another_question_has_another_key(edge: InProcess, bureau: Bureau, edit: dict[str, Any]) -> None:
    before, after = ask(cached(bureau.url, ttl=60)), ask(cached(bureau.url, ttl=60))
    after["data_source_spec"]["data_source_id"] = before["data_source_spec"]["data_source_id"]
    after["data_source_spec"]["source"] |= {**edit, "url": bureau.url + edit.get("url", "/score/{{ id }}")}
    one, other = await keys(edge, before, after)
    assert (one != other, len(bureau.calls)) == (True, 2)


@pytest.mark.parametrize(
    ("place", "edit"),
    [
        ("source", {"timeout": 9}),
        ("source", {"retry": {"max_retries": 3}}),
        ("source", {"method": None, "params": {}, "body": None}),
        ("", {"name": "another"}),
        ("", {"description": "unknown members make no difference"}),
        ("caching", {"ttl": 120}),
    ],
    ids=str,
)
async def test_the_same_question_keeps_its_key(edge: InProcess, bureau: Bureau, place: str, edit: dict[str, Any]) -> None:
    body = ask(cached(bureau.url, ttl=60))
    edited = json.loads(json.dumps(body))
    (edited["data_source_spec"][place] if place else edited["data_source_spec"]).update(edit)
    one, other = await keys(edge, body, edited)
    assert (one == other, len(bureau.calls)) == (True, 1)


async def test_the_order_of_parameters_makes_no_difference(edge: InProcess, bureau: Bureau) -> None:
    source = cached(bureau.url, ttl=60)
    ordered = [{"id": "7", "more": {"a": 1, "b": 2}}, {"more": {"b": 2, "a": 1}, "id": "7"}]
    one, other = await keys(edge, *(request(source, params) for params in ordered))
    assert (one == other, len(bureau.calls)) == (True, 1)


@pytest.mark.parametrize("other", [{"id": "8"}, {"id": 7}, {"id": "7", "more": None}], ids=str)
async def test_other_parameters_make_another_key(edge: InProcess, bureau: Bureau, other: dict[str, Any]) -> None:
    source = cached(bureau.url, ttl=60)
    assert len(set(await keys(edge, request(source, {"id": "7"}), request(source, other)))) == 2


async def test_another_data_source_has_entries_of_its_own(edge: InProcess, bureau: Bureau) -> None:
    one, other = await keys(edge, *(ask(cached(bureau.url, ttl=60)) for _ in range(2)))
    assert (one != other, len(bureau.calls)) == (True, 2)


async def test_a_key_is_32_hex_digits(edge: InProcess, bureau: Bureau) -> None:
    (key,) = await keys(edge, ask(cached(bureau.url, ttl=60)))
    assert (len(key), int(key, 16) > 0, key.lower()) == (32, True, key)


# Across restarts


async def test_a_restarted_edge_answers_from_the_durable_tier(backends: Settings, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=3600))
    async with in_process(backends) as edge:
        await stored(edge, body, age=50)
        assert (await edge.post(body)).headers["age"] == "50"
    if backends.redis_url is not None:
        async with Redis.from_url(backends.redis_url.get_secret_value()) as redis:
            await redis.flushall()
    async with in_process(backends, migrated=False) as edge:
        answer = await edge.post(body)
    assert (answer.json()["origin"], int(answer.headers["age"]) >= 50) == ("CACHE", True)
    assert 3500 < int(cache_status(answer)["ttl"]) <= 3550
    assert bureau.calls == []


# Failures


async def test_a_failure_says_why_it_went_forward_and_what_came_back(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(b"", 418)
    answer = await edge.post(ask(cached(bureau.url, ttl=60)))
    assert (answer.status, answer.headers["cache-status"]) == (502, "broker-edge; fwd=uri-miss; fwd-status=418")


async def test_a_failed_refresh_keeps_the_entry(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=60))
    await edge.post(body)
    bureau._answer = lambda _: http_reply(b"", 500)
    failed = await edge.post({**body, "mode": "refresh"})
    assert (failed.status, failed.headers["cache-status"]) == (502, "broker-edge; fwd=request; fwd-status=500")
    assert (await edge.post(body)).json()["origin"] == "CACHE"


async def test_a_failure_of_what_is_never_reused_is_a_bypass(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(b"", 500)
    answer = await edge.post(ask(cached(bureau.url, ttl=0)))
    assert answer.headers["cache-status"] == "broker-edge; fwd=bypass; fwd-status=500"


async def test_an_answer_that_can_not_be_read_is_never_cached(edge: InProcess, bureau: Bureau) -> None:
    body = ask(cached(bureau.url, ttl=60))
    bureau._answer = lambda _: http_reply(b"<html>", 200)
    answers = [await edge.post(body), await edge.post(body)]
    assert [answer.json()["error"]["code"] for answer in answers] == ["PARSE_ERROR", "PARSE_ERROR"]
    assert [cache_status(answer)["fwd"] for answer in answers] == ["uri-miss", "uri-miss"]
    assert len(bureau.calls) == 2


@pytest.mark.parametrize("response", [b"", b'""', b"null", b"0", b"[]"], ids=repr)
async def test_empty_answers_are_hits_like_any_other(edge: InProcess, bureau: Bureau, response: bytes) -> None:
    bureau._answer = lambda _: http_reply(response, 200, "Content-Type: application/json")
    body = ask(cached(bureau.url, ttl=60))
    first, second = await edge.post(body), await edge.post(body)
    assert values(first, second) == [json.loads(response or b"null")] * 2
    assert (second.json()["origin"], len(bureau.calls)) == ("CACHE", 1)
