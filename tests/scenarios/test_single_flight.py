"""Single flight on one instance and on three: whoever asks at the same time shares one call, and takes nobody along."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.edges import Bureau, InProcess, http_reply, json_reply, request, spec, table
from tests.scenarios.herds import Gathering, fleet, herd, listening, until
from tests.servers import Postgres, Valkey
from tests.upstreams import Received

_PATIENT = 100  # seconds that a caller in a herd has: longer than a busy machine takes
_ONCE = {"max_retries": 0}


async def _herd_on_one(edge: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url, timeout=_PATIENT)
    bodies = [request(source) for _ in range(10_000)]
    answers = await herd(bureau, Gathering(edge), [edge.post(body) for body in bodies])
    assert len(bureau.calls) == 1
    assert Counter(answer.status for answer in answers) == {200: 10_000}
    assert len({answer.json()["data_object_id"] for answer in answers}) == 1
    assert len(await table(edge.edge.engine, "data_object")) == 1
    rows = await edge.rows()
    assert len(rows) == 10_000
    assert {str(row.run_id) for row in rows} == {body["run_id"] for body in bodies}
    outcomes = Counter(row.outcome for row in rows)
    assert outcomes.pop("fetched") == 1
    assert set(outcomes) <= {"collapsed", "hit"}


async def _herd_on_three(directory: Path, bureau: Bureau, redis: Valkey, database: str) -> None:
    # Three instances and their callers share one event loop here: a turn of it takes longer than Redis may without a herd.
    patient = {"flight_lease": 30, "flight_wait": _PATIENT, "redis_timeout": 30}
    async with fleet(3, directory, bureau, redis, database, **patient) as edges:
        source = spec(bureau.url, timeout=_PATIENT)
        posts = [edge.post(request(source)) for _ in range(2000) for edge in edges]
        answers = await herd(bureau, Gathering(*edges), posts)
        assert len(bureau.calls) == 1
        assert Counter(answer.status for answer in answers) == {200: 6000}
        assert len({answer.json()["data_object_id"] for answer in answers}) == 1
        for edge in edges:
            assert await edge.edge.journal.flush(30)
        rows = await table(edges[0].edge.engine, "run_data_request")
        assert len(rows) == 6000
        assert Counter(row.outcome for row in rows)["fetched"] == 1
        assert len(await table(edges[0].edge.engine, "data_object")) == 1


async def test_ten_thousand_at_once_on_one_instance_make_one_call(edge: InProcess, bureau: Bureau) -> None:
    await _herd_on_one(edge, bureau)


async def test_two_thousand_at_once_on_each_of_three_instances_make_one_call(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    await _herd_on_three(tmp_path, bureau, redis_server, postgres_server.create(migrated=True))


@pytest.mark.chaos
@pytest.mark.parametrize("run", range(20))
async def test_ten_thousand_at_once_again_and_again(edge: InProcess, bureau: Bureau, run: int) -> None:
    await _herd_on_one(edge, bureau)


@pytest.mark.chaos
@pytest.mark.parametrize("run", range(20))
async def test_three_instances_again_and_again(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres, run: int
) -> None:
    await _herd_on_three(tmp_path, bureau, redis_server, postgres_server.create(migrated=True))


def _raw(body: Any) -> bytes:
    data = json.dumps(body).encode()
    return b"POST /v1/fetch-data HTTP/1.1\r\nHost: edge\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(data), data)


async def _over_socket(port: int, body: Any) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_raw(body))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_leader_that_disconnects_takes_no_follower_along(edge: InProcess, bureau: Bureau) -> None:
    source, gathering = spec(bureau.url), Gathering(edge)
    bureau.gate.clear()
    async with listening(edge) as url:
        port = int(url.rpartition(":")[2])
        leader = socket.create_connection(("127.0.0.1", port))
        leader.sendall(_raw(request(source)))
        await gathering.reached(1)
        async with asyncio.TaskGroup() as group:
            followers = [group.create_task(_over_socket(port, request(source))) for _ in range(20)]
            await gathering.reached(21)
            leader.close()
            await bureau.arrived.wait()
            bureau.gate.set()
    assert all(task.result().startswith(b"HTTP/1.1 200") for task in followers)
    assert len(bureau.calls) == 1


async def test_a_follower_with_less_time_leaves_at_its_own_deadline(edge: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url, timeout=_PATIENT)
    hasty = {**source, "source": {**source["source"], "timeout": 0.2}}
    bureau.gate.clear()
    async with asyncio.TaskGroup() as group:
        patient = [group.create_task(edge.post(request(source))) for _ in range(3)]
        await bureau.arrived.wait()
        late = await edge.post(request(hasty))
        bureau.gate.set()
    assert late.status == 502
    assert late.json()["error"]["code"] == "TIMEOUT"
    assert [task.result().status for task in patient] == [200] * 3
    assert len(bureau.calls) == 1


async def test_a_follower_with_more_time_gets_the_answer_that_its_leader_gave_up(edge: InProcess, bureau: Bureau) -> None:
    patient = spec(bureau.url, timeout=_PATIENT)
    hasty = {**patient, "source": {**patient["source"], "timeout": 0.5}}
    bureau.gate.clear()
    gathering = Gathering(edge)
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(edge.post(request(hasty)))
        await gathering.reached(1)
        follower = group.create_task(edge.post(request(patient)))
        await gathering.reached(2)
        late = await leader
        bureau.gate.set()
    assert late.json()["error"]["code"] == "TIMEOUT"
    assert follower.result().status == 200
    assert len(bureau.calls) == 1


async def test_who_comes_after_a_flight_timed_out_gets_a_call_of_its_own(edge: InProcess, bureau: Bureau) -> None:
    patient = spec(bureau.url, timeout=_PATIENT)
    hasty = {**patient, "source": {**patient["source"], "timeout": 0.2}}
    bureau.gate.clear()
    assert (await edge.post(request(hasty))).json()["error"]["code"] == "TIMEOUT"
    bureau.gate.set()
    assert (await edge.post(request(patient))).status == 200


async def test_a_flight_that_is_giving_up_takes_nobody_on_board(edge: InProcess, bureau: Bureau) -> None:
    patient = spec(bureau.url, timeout=_PATIENT)
    hasty = {**patient, "source": {**patient["source"], "timeout": 0.2}}
    fleet_of_edge: Any = edge.edge.fleet
    settle, settling, go_on = fleet_of_edge.settle, asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: Any) -> None:
        settling.set()
        await go_on.wait()
        await settle(*arguments)

    fleet_of_edge.settle = slowly
    bureau.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(edge.post(request(hasty)))
        await settling.wait()
        gathering = Gathering(edge)
        second = group.create_task(edge.post(request(patient)))
        await gathering.reached(1)
        go_on.set()
        bureau.gate.set()
    assert first.result().json()["error"]["code"] == "TIMEOUT"
    assert second.result().status == 200


async def test_all_who_wait_get_the_same_failure_and_the_next_request_calls_again(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: json_reply({}, 500)
    source = spec(bureau.url, retry=_ONCE)
    answers = await herd(bureau, Gathering(edge), [edge.post(request(source)) for _ in range(20)])
    assert {answer.status for answer in answers} == {502}
    assert {json.dumps(answer.json()["error"]) for answer in answers} == {json.dumps(answers[0].json()["error"])}
    assert answers[0].json()["error"]["code"] == "UPSTREAM_STATUS"
    assert answers[0].json()["upstream_status"] == 500
    assert len(bureau.calls) == 1
    await edge.post(request(source))
    assert len(bureau.calls) == 2


def _only_for(token: str, got: Received) -> bytes:
    known = got.get("authorization") == f"Bearer {token}"
    return json_reply({"score": 700}) if known else http_reply(b"", 401)


async def test_another_callers_refused_secret_fails_nobody_else(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda got: _only_for("good", got)
    source = spec(bureau.url, headers={"Authorization": "Bearer {{ token }}"}, retry=_ONCE)
    tokens = ["bad", "worse", "worst", "good", "good"]
    posts = [edge.post(request(source, env_variables={"token": token})) for token in tokens]
    answers = await herd(bureau, Gathering(edge), posts)
    assert [answer.status for answer in answers] == [502, 502, 502, 200, 200]
    assert {answer.json()["upstream_status"] for answer in answers[:3]} == {401}
    assert len(bureau.calls) == 4


async def test_an_upstream_that_is_down_is_not_called_for_every_secret(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(b"", 503)
    source = spec(bureau.url, headers={"Authorization": "Bearer {{ token }}"}, retry=_ONCE)
    posts = [edge.post(request(source, env_variables={"token": str(number)})) for number in range(10)]
    answers = await herd(bureau, Gathering(edge), posts)
    assert {answer.status for answer in answers} == {502}
    assert len(bureau.calls) == 1


async def test_a_herd_that_refreshes_makes_one_call(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: json_reply({"call": len(bureau.calls)})
    source = spec(bureau.url)
    before = (await edge.post(request(source))).json()
    answers = await herd(bureau, Gathering(edge), [edge.post(request(source, mode="refresh")) for _ in range(50)])
    assert {json.dumps(answer.json()["value"]) for answer in answers} == {'{"call": 2}'}
    assert before["data_object_id"] not in {answer.json()["data_object_id"] for answer in answers}
    assert len(bureau.calls) == 2
    assert (await edge.post(request(source))).json()["value"] == {"call": 2}


async def test_a_refresh_during_a_live_flight_is_not_answered_from_what_was_cached(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: json_reply({"call": len(bureau.calls)})
    source = spec(bureau.url)
    await edge.post(request(source))
    posts = [edge.post(request(source, max_age=0)), edge.post(request(source, mode="refresh"))]
    live, refreshed = await herd(bureau, Gathering(edge), posts)
    assert (live.status, refreshed.status) == (200, 200)
    assert refreshed.json()["value"]["call"] > 1
    assert 2 <= len(bureau.calls) <= 3


async def test_a_strict_max_age_is_kept_where_the_leader_accepts_older_answers(edge: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url)
    kept = (await edge.post(request(source))).json()
    await edge.edge.hot.delete(kept["key"])
    async with asyncio.TaskGroup() as group:
        easy = group.create_task(edge.post(request(source)))
        strict = group.create_task(edge.post(request(source, max_age=0)))
    assert easy.result().status == strict.result().status == 200
    assert strict.result().json()["data_object_id"] != kept["data_object_id"]
    assert len(bureau.calls) == 2


@pytest.mark.parametrize("caching", [{"enabled": False, "ttl": 3600}, {"enabled": True, "ttl": 0}], ids=["disabled", "ttl-0"])
async def test_answers_that_are_never_reused_are_never_shared(edge: InProcess, bureau: Bureau, caching: dict[str, Any]) -> None:
    source = spec(bureau.url, caching=caching)
    bureau.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(edge.post(request(source))) for _ in range(5)]
        await until(lambda: len(bureau.calls) == 5)
        bureau.gate.set()
    objects = {task.result().json()["data_object_id"] for task in tasks}
    assert len(objects) == 5
    assert {str(row.data_object_id) for row in await table(edge.edge.engine, "data_object")} == objects
