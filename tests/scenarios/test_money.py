"""A call is paid for once: what a refresh, a promotion, a full spool, late joiners or a shutdown must not undo."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from broker_edge.core.exchange import DataObject, Entry
from broker_edge.errors import TierBroken
from broker_edge.flow.tiers import shaped
from broker_edge.wiring import Edge
from tests.edges import Bureau, InProcess, http_reply, in_process, json_reply, request, settings, spec, table
from tests.flow.doubles import closed_trail


async def test_a_refresh_too_large_for_the_hot_tier_replaces_the_old_answer_there(bureau: Bureau, tmp_path: Path) -> None:
    sizes = iter([10, 5000])
    bureau._answer = lambda _: json_reply("x" * next(sizes))
    async with in_process(settings(tmp_path, bureau.port, hot_max_value_bytes=1024)) as edge:
        source = spec(bureau.url)
        await edge.post(request(source))
        fresh = (await edge.post(request(source, mode="refresh"))).json()
        after = (await edge.post(request(source))).json()
    assert after["origin"] == "CACHE"
    assert after["data_object_id"] == fresh["data_object_id"]


async def test_what_is_read_from_the_durable_tier_never_replaces_what_is_hot(edge: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url)
    answer = (await edge.post(request(source))).json()
    hot = edge.edge.hot
    (entry,) = await hot.get_many([answer["key"]])
    assert isinstance(entry, Entry)
    older = Entry(entry.object_id, entry.created_at - 10, b'"older"')
    await hot.put(answer["key"], older, 60, only_if_absent=True)
    assert await hot.get_many([answer["key"]]) == [entry]
    await hot.delete(answer["key"])
    await hot.put(answer["key"], older, 60, only_if_absent=True)
    assert await hot.get_many([answer["key"]]) == [older]


async def test_while_answers_can_not_be_written_down_nothing_is_bought(edge: InProcess, bureau: Bureau) -> None:
    source = spec(f"{bureau.url}/{{{{ id }}}}")
    spool = edge.edge.spool
    spool._max_bytes = spool.backlog_bytes
    with pytest.raises(TierBroken):
        spool.append(b"one too many")
    answers = [await edge.post(request(source, {"id": str(number)})) for number in range(5)]
    assert {answer.status for answer in answers} == {503}
    assert {answer.json()["error"]["code"] for answer in answers} == {"STORAGE_UNAVAILABLE"}
    assert all(answer.headers["retry-after"] for answer in answers)
    assert bureau.calls == []


async def test_an_entry_that_ran_out_is_forwarded_as_stale(edge: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url)
    key = (await edge.post(request(source))).json()["key"]
    await edge.edge.hot.delete(key)
    again = await edge.post(request({**source, "caching": {"enabled": True, "ttl": 0.000001}}))
    assert again.headers["cache-status"] == "broker-edge; fwd=stale; fwd-status=200; stored"


async def test_latecomers_with_the_same_patience_keep_no_hung_call_alive(edge: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url, timeout=1)
    bureau.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(edge.post(request(source)))
        await bureau.arrived.wait()
        bureau.arrived.clear()
        for number in itertools.count():
            late = group.create_task(edge.post(request(source)))
            await asyncio.wait([first], timeout=0.3)
            if first.done() or number == 10:
                break
        async with asyncio.timeout(20):
            await bureau.arrived.wait()  # the second call: only then is the first one certainly given up
        bureau.gate.set()
    assert first.result().json()["error"]["code"] == "TIMEOUT"
    # The one that came last has time left when the call is given up, and gets one of its own.
    assert late.result().status == 200
    assert len(bureau.calls) == 2


async def test_a_request_that_the_shutdown_gives_up_is_answered_and_written_down(edge: InProcess, bureau: Bureau) -> None:
    bureau.gate.clear()
    body = request(spec(bureau.url))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(edge.post(body))
        await bureau.arrived.wait()
        running.cancel()
        answer = await running
        bureau.gate.set()
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "OVERLOADED"
    assert [(str(row.run_id), row.status_code) for row in await edge.rows()] == [(body["run_id"], 503)]


class SlowShaping:
    """In the place of the shaping of answers: it waits for leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.leave = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr("broker_edge.flow.refill.shaped", self)

    async def __call__(self, item: DataObject) -> bytes:
        self.begun.set()
        await self.leave.wait()
        return await shaped(item)


@pytest.mark.parametrize("ttl", [3600, 0])
async def test_an_answer_that_is_being_shaped_when_the_deadline_strikes_is_kept(
    edge: InProcess, bureau: Bureau, monkeypatch: pytest.MonkeyPatch, ttl: int
) -> None:
    shaping, source = SlowShaping(monkeypatch), spec(bureau.url, timeout=0.5, caching={"enabled": True, "ttl": ttl})
    answer = await edge.post(request(source))
    assert answer.json()["error"]["code"] == "TIMEOUT"
    assert shaping.begun.is_set()
    shaping.leave.set()
    assert await edge.edge.background.drain(30) == 0
    assert [object_.status_code for object_ in await table(edge.edge.engine, "data_object")] == [200]
    if ttl:
        assert (await edge.post(request(source))).json()["origin"] == "CACHE"
        assert len(bureau.calls) == 1


@pytest.mark.parametrize("ttl", [3600, 0])
async def test_an_answer_that_can_not_be_read_is_not_kept_and_no_crash(
    edge: InProcess, bureau: Bureau, monkeypatch: pytest.MonkeyPatch, ttl: int
) -> None:
    crashes: list[str] = []
    monkeypatch.setattr(edge.edge.background, "_on_crash", lambda name, _: crashes.append(name))
    monkeypatch.setattr(bureau, "_answer", lambda _: http_reply(b"{not json", 200, "Content-Type: application/json"))
    source = spec(bureau.url, caching={"enabled": True, "ttl": ttl})
    for calls in (1, 2):
        answer = await edge.post(request(source))
        assert answer.json()["error"]["code"] == "PARSE_ERROR"
        assert len(bureau.calls) == calls
    assert await table(edge.edge.engine, "data_object") == []
    assert crashes == []


async def test_the_end_says_whether_anything_is_left_in_the_spool(
    bureau: Bureau, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    for late in (False, True):
        async with in_process(settings(tmp_path / str(late), bureau.port)) as running:
            edge = running.edge
            monkeypatch.setattr(edge.log, "event", lambda name, **facts: said.append(facts["journal"]))
            assert (await running.post(request(spec(bureau.url)))).status == 200
            aclose = edge.durable.aclose

            async def closed(edge: Edge = edge, aclose: Any = aclose, late: bool = late) -> None:
                await aclose()
                if late:  # a request that outlived its cancellation
                    edge.journal.record(closed_trail())

            monkeypatch.setattr(edge.durable, "aclose", closed)
    assert said == ["empty", "waits for the next start"]


async def test_a_follower_with_much_more_time_is_waited_for(
    edge: InProcess, bureau: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_edge.flow.upstream._GROWTH", 0.0)
    other, source = spec(bureau.url), spec(f"{bureau.url}/slow", timeout=1)
    assert (await edge.post(request(other))).status == 200  # others have twenty seconds
    bureau.gate.clear()
    bureau.arrived.clear()
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(edge.post(request(source)))
        await bureau.arrived.wait()
        source["source"]["timeout"] = 20
        follower = group.create_task(edge.post(request(source)))
        await asyncio.sleep(2.5)  # beyond what the leader's time alone would give the call
        bureau.gate.set()
    assert leader.result().json()["error"]["code"] == "TIMEOUT"
    assert follower.result().status == 200
    assert len(bureau.calls) == 2
