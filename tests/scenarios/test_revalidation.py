"""Conditional revalidation (RFC 9111 section 4.3): what the upstream confirms is renewed instead of fetched again."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from broker_edge.core.exchange import Entry
from broker_edge.settings import Settings
from tests.edges import Bureau, InProcess, http_reply, in_process, json_reply, settings, table
from tests.scenarios.aging import NEW, OLD, ask, kept, key_of, settled, source, summary
from tests.scenarios.herds import PATIENCE, Gathering, fleet, herd
from tests.servers import Postgres, Valkey
from tests.upstreams import Received

ETAG = '"v1"'
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
REVALIDATED = ("CACHE", OLD, "fwd=stale; fwd-status=304")


def confirms(bureau: Bureau, *headers: str) -> None:
    """304 to a conditional request, else another answer."""

    def answer(got: Received) -> bytes:
        conditional = got.get("if-none-match") or got.get("if-modified-since")
        return http_reply(b"", 304, *headers) if conditional else json_reply(NEW)

    bureau._answer = answer


def conditions(got: Received) -> tuple[str | None, str | None]:
    return got.get("if-none-match"), got.get("if-modified-since")


async def pointer(edge: InProcess, body: Mapping[str, Any]) -> tuple[uuid.UUID, float]:
    """What the index of the durable tier says: the object, and the age of its word in seconds."""
    [item] = await edge.edge.durable.lookup([key_of(body)])
    assert item is not None
    return item.object_id, time.time() - item.confirmed_at


async def test_a_304_renews_the_entry_and_is_a_hit_that_was_revalidated(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau))
    object_id = await kept(edge, body, age=100, etag=ETAG, last_modified=DATE)
    confirms(bureau)
    answer = await edge.post(body)
    assert (summary(answer), answer.headers["age"]) == (REVALIDATED, "0")
    assert [conditions(got) for got in bureau.calls] == [(ETAG, DATE)]
    reply = answer.json()
    assert reply["data_object_id"] == str(object_id)
    assert [reply[name] for name in ("start_time", "end_time", "duration", "error")] == [None] * 4
    [row] = await edge.rows()
    assert (row.outcome, row.data_origin, row.start_time) == ("revalidated", "CACHE", None)
    assert len(await table(edge.edge.engine, "data_object")) == 1


@pytest.mark.parametrize("tier", ["hot", "durable"])
async def test_what_was_renewed_is_fresh_again_in_every_tier(edge: InProcess, bureau: Bureau, tier: str) -> None:
    body = ask(source(bureau))
    object_id = await kept(edge, body, age=100, etag=ETAG)
    confirms(bureau)
    await edge.post(body)
    if tier == "durable":
        await edge.edge.hot.delete(key_of(body))
    again = await edge.post(body)
    assert (again.json()["origin"], again.json()["data_object_id"], len(bureau.calls)) == ("CACHE", str(object_id), 1)
    assert int(again.headers["age"]) < 50
    assert again.headers["cache-status"].startswith("broker-edge; hit; ttl=")
    known, age = await pointer(edge, body)
    assert known == object_id
    assert age < 50


@pytest.mark.parametrize(("members", "sent"), [({"etag": ETAG}, (ETAG, None)), ({"last_modified": DATE}, (None, DATE))], ids=str)
async def test_either_validator_is_enough(
    edge: InProcess, bureau: Bureau, members: dict[str, str], sent: tuple[str | None, str | None]
) -> None:
    body = ask(source(bureau))
    await kept(edge, body, age=100, **members)
    confirms(bureau)
    assert summary(await edge.post(body)) == REVALIDATED
    assert conditions(bureau.calls[0]) == sent


async def test_validators_are_those_that_the_answer_came_with(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, ttl=3600))
    bureau._answer = lambda _: json_reply(OLD, 200, f"ETag: W/{ETAG}", f"Last-Modified: {DATE}")
    await edge.post(body)
    confirms(bureau)
    assert summary(await edge.post({**body, "max_age": 0})) == ("CACHE", OLD, "fwd=request; fwd-status=304")
    assert conditions(bureau.calls[1]) == (f"W/{ETAG}", DATE)


async def test_what_has_changed_is_fetched_with_its_new_validators(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau))
    await kept(edge, body, age=100, etag=ETAG)
    bureau._answer = lambda _: json_reply(NEW, 200, 'ETag: "v2"')
    assert summary(await edge.post(body)) == ("REQUEST", NEW, "fwd=stale; fwd-status=200; stored")
    [item] = await edge.edge.durable.lookup([key_of(body)])
    assert item is not None
    assert (item.etag, item.validated_at) == ('"v2"', None)


async def test_a_304_that_names_another_version_is_no_confirmation(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau))
    await kept(edge, body, age=100, etag=ETAG)
    confirms(bureau, 'ETag: "v2"')
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)
    assert [conditions(got) for got in bureau.calls] == [(ETAG, None), (None, None)]


async def test_a_304_that_nobody_asked_for_is_an_error(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(b"", 304)
    answer = await edge.post(ask(source(bureau)))
    assert (answer.status, answer.json()["upstream_status"]) == (502, 304)


async def test_a_refresh_asks_for_the_whole_answer(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau), mode="refresh")
    await kept(edge, body, age=100, etag=ETAG)
    confirms(bureau)
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)
    assert conditions(bureau.calls[0]) == (None, None)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_only_get_and_head_are_made_conditional(edge: InProcess, bureau: Bureau, method: str) -> None:
    body = ask(source(bureau, members={"method": method}))
    await kept(edge, body, age=100, etag=ETAG)
    confirms(bureau)
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)
    assert conditions(bureau.calls[0]) == (None, None)


async def test_a_spec_that_makes_its_requests_conditional_means_what_it_says(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, members={"headers": {"if-none-match": '"mine"'}}))
    await kept(edge, body, age=100, etag=ETAG)
    confirms(bureau)
    assert (await edge.post(body)).json()["upstream_status"] == 304
    assert conditions(bureau.calls[0]) == ('"mine"', None)


async def test_where_a_redirect_leads_the_validators_do_not_follow(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau))
    await kept(edge, body, age=100, etag=ETAG)

    def answer(got: Received) -> bytes:
        elsewhere = "/elsewhere" in got.line
        return json_reply(NEW, 200, 'ETag: "other"') if elsewhere else http_reply(b"", 302, "Location: /elsewhere")

    bureau._answer = answer
    assert summary(await edge.post(body))[:2] == ("REQUEST", NEW)
    assert [conditions(got) for got in bureau.calls] == [(ETAG, None), (None, None)]
    [item] = await edge.edge.durable.lookup([key_of(body)])
    assert item is not None
    assert item.etag is None  # of another URL than the one that is asked


async def test_a_refill_behind_a_stale_reply_revalidates(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau, stale_while_revalidate=100))
    object_id = await kept(edge, body, age=100, etag=ETAG)
    confirms(bureau)
    assert summary(await edge.post(body)) == ("CACHE", OLD, "hit; ttl=-41")
    await settled(edge)
    again = await edge.post(body)
    assert (again.json()["data_object_id"], len(bureau.calls)) == (str(object_id), 1)
    assert int(again.headers["age"]) < 50


async def test_everybody_who_waits_for_a_304_is_answered_by_it(edge: InProcess, bureau: Bureau) -> None:
    body = ask(source(bureau), max_age=0)
    await kept(edge, body, age=100, etag=ETAG)
    confirms(bureau)
    answers = await herd(bureau, Gathering(edge), [edge.post(body) for _ in range(10)])
    assert {one.json()["origin"] for one in answers} == {"CACHE"}
    assert {summary(one)[2] for one in answers} == {"fwd=stale; fwd-status=304", "fwd=stale; fwd-status=304; collapsed"}
    assert len(bureau.calls) == 1
    assert {row.outcome for row in await edge.rows()} == {"revalidated"}


async def test_the_fleet_revalidates_once(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    body = ask(source(bureau))
    async with fleet(2, tmp_path, bureau, redis_server, postgres_server.create(migrated=True), flight_wait=300) as edges:
        object_id = await kept(edges[0], body, age=100, etag=ETAG)
        confirms(bureau)
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*(edge.post(body) for edge in edges))
        assert {one.json()["data_object_id"] for one in answers} == {str(object_id)}
        assert {one.json()["origin"] for one in answers} == {"CACHE"}
        assert len(bureau.calls) == 1


async def test_an_object_that_was_renewed_outlives_a_restart(backends: Settings, bureau: Bureau) -> None:
    body = ask(source(bureau))
    confirms(bureau)
    async with in_process(backends) as edge:
        object_id = await kept(edge, body, age=100, hot=False, etag=ETAG)
        await edge.post(body)
        await edge.edge.hot.delete(key_of(body))
    async with in_process(backends) as edge:
        again = await edge.post(body)
    assert (again.json()["data_object_id"], len(bureau.calls)) == (str(object_id), 1)


async def test_without_the_database_a_304_renews_what_is_hot_and_the_rest_follows(
    tmp_path: Path, bureau: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        body = ask(source(bureau))
        object_id = await kept(edge, body, age=100, etag=ETAG)
        confirms(bureau)

        async def hangs(*_: Any) -> None:
            raise TimeoutError

        with monkeypatch.context() as broken:
            broken.setattr(edge.edge.durable, "_insert_objects", hangs)
            assert summary(await edge.post(body)) == REVALIDATED
        [entry] = await edge.edge.hot.get_many([key_of(body)])
        assert isinstance(entry, Entry)
        assert (entry.object_id, json.loads(bytes(entry.value))) == (object_id, OLD)
        assert time.time() - entry.created_at < 50
        assert (await pointer(edge, body))[1] > 50
        assert await edge.edge.journal.flush(30)
        known, age = await pointer(edge, body)
        assert known == object_id
        assert age < 50
        assert len(await table(edge.edge.engine, "data_object")) == 1
