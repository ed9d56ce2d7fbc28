"""A test of a data source among everything else: what it shows to those who watch, and how little it takes from others."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from broker_edge.api import probe
from broker_edge.core.redaction import MASK, UNSHOWN
from broker_edge.settings import Settings
from tests.edges import Bureau, InProcess, in_process, json_reply, settings
from tests.otlp import receiver
from tests.scenarios.herds import until
from tests.scenarios.test_billable import metric
from tests.scenarios.test_source_life import send, source
from tests.scenarios.test_tracing import exported, named

PRICED: dict[str, Any] = {"cost_per_call": {"amount": "1.50", "currency": "EUR"}}


async def test_a_test_is_in_the_metrics_of_what_was_spent(edge: InProcess, bureau: Bureau) -> None:
    path = await source(edge, bureau.url, **PRICED)
    name = (await send(edge, "GET", path)).json()["name"]
    assert (await send(edge, "POST", f"{path}/test", {})).status == 200
    assert await metric(edge, f'broker_edge_charged_calls_total{{source="{name}"}}') == 1
    assert await metric(edge, f'broker_edge_spent_micros_total{{currency="EUR",source="{name}"}}') == 1_500_000
    assert await metric(edge, f'broker_edge_requests_total{{outcome="test",source="{name}"}}') == 1
    assert await metric(edge, 'broker_edge_upstream_attempts_total{outcome="ok"}') == 1


async def test_a_test_has_its_spans_below_those_of_its_route(
    monkeypatch: pytest.MonkeyPatch, backends: Settings, bureau: Bureau
) -> None:
    with receiver() as traces:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", traces.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
        async with in_process(backends) as edge:
            path = await source(edge, bureau.url)
            await exported(edge, traces)
            await send(edge, "POST", f"{path}/test", {})
            spans = await exported(edge, traces)
    server, trial, call = (named(spans, name) for name in ("POST /data-sources/{data_source_id}/test", "test", "GET"))
    assert (server.kind, trial.kind, call.kind) == ("SERVER", "INTERNAL", "CLIENT")
    assert (trial.parent_id, call.parent_id) == (server.span_id, trial.span_id)
    assert trial.attributes["broker.outcome"] == "test"
    assert call.span_id in (bureau.calls[0].get("traceparent") or "")


class Turns:
    """Reports that wait in their threads until `go`."""

    def __init__(self, report: Callable[..., bytes]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self.go = threading.Event()
        self.running = self.most = 0

    def __call__(self, *told: Any, blind: bool = False) -> bytes:
        if blind:
            return self._report(*told, blind=True)
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            assert self.go.wait(60)
            return self._report(*told)
        finally:
            with self._lock:
                self.running -= 1


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns(probe._report)
    monkeypatch.setattr(probe, "_report", turns)
    monkeypatch.setattr(probe, "_PATIENCE", 0.0)
    return turns


async def test_two_reports_are_searched_at_a_time_and_the_others_wait(edge: InProcess, bureau: Bureau, turns: Turns) -> None:
    path = await source(edge, bureau.url)
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(send(edge, "POST", f"{path}/test", {})) for _ in range(6)]
        try:
            await until(lambda: len(bureau.calls) == 6 and turns.running == 2)
        finally:
            turns.go.set()
    assert [task.result().json()["response_body"] for task in running] == [{"score": 700}] * 6
    assert turns.most == 2


async def test_a_caller_who_leaves_does_not_free_the_turn_of_a_report_that_goes_on(
    edge: InProcess, bureau: Bureau, turns: Turns
) -> None:
    path = await source(edge, bureau.url)
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(send(edge, "POST", f"{path}/test", {})) for _ in range(2)]
            await until(lambda: turns.running == 2)
            for task in running:
                task.cancel()
        late = await source(edge, bureau.url, timeout=0.2)
        report = (await send(edge, "POST", f"{late}/test", {})).json()
    finally:
        turns.go.set()
    assert report["response_body"] == UNSHOWN
    assert turns.most == 2
    await until(lambda: turns.running == 0)


async def test_a_report_that_gets_no_turn_in_time_shows_nothing_that_must_be_searched(
    edge: InProcess, bureau: Bureau, turns: Turns
) -> None:
    path, late = await source(edge, bureau.url), await source(edge, bureau.url, timeout=0.2)
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(send(edge, "POST", f"{path}/test", {}))
        try:
            await until(lambda: turns.running == 2)
            report = (await send(edge, "POST", f"{late}/test", {})).json()
        finally:
            turns.go.set()
    assert (report["status_code"], report["error_code"]) == (200, None)
    assert (report["request_url"], report["response_body"]) == (MASK, UNSHOWN)


async def test_what_the_call_did_not_use_is_not_looked_for(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: json_reply({"status": "pending", "of": "approved"})
    path = await source(edge, bureau.url, headers={"X-Key": "{{ env.key }}"})
    variables = [{"name": "key", "value": "approved"}, {"name": "unused", "value": "pending"}]
    await send(edge, "PUT", f"{path}/variables", variables)
    given = {"env_vars": {"another": "status"}}
    assert (await send(edge, "POST", f"{path}/test", given)).json()["response_body"] == {"status": "pending", "of": MASK}


async def test_a_short_user_and_password_are_taken_out_where_basic_has_joined_them(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda got: json_reply({"you": f"are {got.get('authorization')}, indeed"})
    path = await source(edge, bureau.url, auth={"method": "basic"})
    credentials = [{"credential_type": "USERNAME", "value": "me"}, {"credential_type": "PASSWORD", "value": "pw"}]
    await send(edge, "PUT", f"{path}/credentials", credentials)
    assert (await send(edge, "POST", f"{path}/test", {})).json()["response_body"] == {"you": f"are Basic {MASK}, indeed"}


async def test_a_test_with_more_secrets_than_can_be_searched_shows_none(backends: Settings, bureau: Bureau) -> None:
    bureau._answer = lambda got: json_reply(json.loads(got.body))
    async with in_process(settings(backends.data_dir, bureau.port)) as edge:
        path = await source(edge, bureau.url, method="POST", body={"key": "{{ env.key }}"})
        long = "0123456789abcdef" * 5000
        report = await send(edge, "POST", f"{path}/test", {"env_vars": {"key": long}})
    assert (report.json()["status_code"], report.json()["response_body"]) == (200, UNSHOWN)
    assert long[:1000] not in report.body.decode()
