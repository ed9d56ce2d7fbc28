"""Spans as a real OTLP receiver gets them, and the trace that goes on upstream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker_edge import __version__
from broker_edge.settings import Settings
from tests.edges import Bureau, InProcess, edge_process, http_reply, in_process, json_reply, request, settings, spec
from tests.otlp import Receiver, Span, receiver

_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_CALLER = "00f067aa0ba902b7"
_SAMPLED = f"00-{_TRACE}-{_CALLER}-01"
_NOT_SAMPLED = f"00-{_TRACE}-{_CALLER}-00"
_SERVER = "POST /v1/fetch-data"


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that edges of this process export to."""
    with receiver() as taker:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", taker.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
        yield taker


@pytest.fixture
async def edge(traces: Receiver, backends: Settings) -> AsyncIterator[InProcess]:
    async with in_process(backends) as running:
        yield running


async def exported(edge: InProcess, traces: Receiver) -> list[Span]:
    """Every span of what has been done so far; receiving starts anew behind it."""
    await edge.edge.background.drain(30)
    provider = edge.edge.tracing.provider
    assert provider is not None
    assert await asyncio.to_thread(provider.force_flush, 30_000)
    spans, traces.spans = traces.spans, []
    return spans


def named(spans: Sequence[Span], name: str) -> Span:
    (span,) = (span for span in spans if span.name == name)
    return span


def asking(bureau: Bureau, **members: Any) -> dict[str, Any]:
    return request(spec(f"{bureau.url}/score/{{{{ id }}}}", **members), {"id": "7"})


async def test_a_miss_shows_its_whole_path(edge: InProcess, traces: Receiver, bureau: Bureau, backends: Settings) -> None:
    body = asking(bureau)
    answer = await edge.post(body)
    spans = await exported(edge, traces)
    server, flight, attempt = (named(spans, name) for name in (_SERVER, "flight", "GET"))
    looks = [named(spans, name) for name in ("GET hot", "SELECT durable")]
    stores = [named(spans, name) for name in ("INSERT durable", "SET hot")]
    lease = named(spans, "flight fleet_leader")
    assert len(spans) == 8
    assert {span.trace_id for span in spans} == {server.trace_id}
    assert len({span.span_id for span in spans}) == len(spans)
    assert server.parent_id == ""
    assert (looks[0].parent_id, flight.parent_id) == (server.span_id, server.span_id)
    assert {span.parent_id for span in (lease, looks[1], attempt, *stores)} == {flight.span_id}
    assert all(span.within(flight) for span in (lease, looks[1], attempt, *stores))
    assert all(span.within(server) for span in (looks[0], flight))
    assert (server.kind, flight.kind, attempt.kind) == ("SERVER", "INTERNAL", "CLIENT")
    assert {span.failed for span in spans} == {None}

    assert (
        server.attributes
        | {
            "http.request.method": "POST",
            "http.route": "/v1/fetch-data",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "broker.outcome": "fetched",
            "broker.mode": "live",
            "broker.origin": "REQUEST",
            "broker.key": answer.json()["key"],
            "broker.run_id": body["run_id"],
            "broker.data_source_id": body["data_source_spec"]["data_source_id"],
            "broker.data_object_id": answer.json()["data_object_id"],
        }
        == server.attributes
    )
    assert (
        attempt.attributes
        | {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "server.port": bureau.port,
            "url.scheme": "http",
            "network.protocol.version": "1.1",
        }
        == attempt.attributes
    )
    assert "http.request.resend_count" not in attempt.attributes
    hot, durable = ("memory", "sqlite") if backends.redis_url is None else ("redis", "postgresql")
    assert [span.attributes["db.system.name"] for span in (*looks, *stores)] == [hot, durable, durable, hot]
    assert [span.attributes["db.operation.name"] for span in (*looks, *stores)] == ["GET", "SELECT", "INSERT", "SET"]
    assert [span.attributes["broker.result"] for span in (*looks, *stores)] == ["miss", "miss", "ok", "ok"]
    assert {span.kind for span in (looks[1], stores[0])} == {"CLIENT"}
    assert server.resource["service.name"] == "broker-edge"
    assert server.resource["service.version"] == __version__


async def test_a_hit_is_one_look_up(edge: InProcess, traces: Receiver, bureau: Bureau) -> None:
    body = asking(bureau)
    await edge.post(body)
    await exported(edge, traces)
    await edge.post(body)
    spans = await exported(edge, traces)
    server, look = named(spans, _SERVER), named(spans, "GET hot")
    assert len(spans) == 2
    assert (look.parent_id, look.attributes["broker.result"]) == (server.span_id, "hit")
    assert (server.attributes["broker.outcome"], server.attributes["broker.origin"]) == ("hit", "CACHE")


async def test_an_incoming_trace_is_continued_and_goes_on_upstream(edge: InProcess, traces: Receiver, bureau: Bureau) -> None:
    await edge.post(asking(bureau), {"traceparent": _SAMPLED, "tracestate": "vendor=a1,other=b2"})
    spans = await exported(edge, traces)
    assert {span.trace_id for span in spans} == {_TRACE}
    assert named(spans, _SERVER).parent_id == _CALLER
    assert {span.state for span in spans} == {"vendor=a1,other=b2"}
    (call,) = bureau.calls
    assert call.get("traceparent") == f"00-{_TRACE}-{named(spans, 'GET').span_id}-01"
    assert call.get("tracestate") == "vendor=a1,other=b2"


async def test_what_the_caller_does_not_sample_is_not_exported_and_goes_on_all_the_same(
    edge: InProcess, traces: Receiver, bureau: Bureau
) -> None:
    await edge.post(asking(bureau), {"traceparent": _NOT_SAMPLED})
    assert await exported(edge, traces) == []
    sent = bureau.calls[0].get("traceparent") or ""
    assert re.fullmatch(rf"00-{_TRACE}-[0-9a-f]{{16}}-00", sent)
    assert _CALLER not in sent


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"00-{_TRACE}-{_CALLER}",
        f"00-{_TRACE}-{_CALLER}-01-more",
        f"00-{_TRACE.upper()}-{_CALLER}-01",
        f"00-{'0' * 32}-{_CALLER}-01",
        f"00-{_TRACE}-{'0' * 16}-01",
        f"ff-{_TRACE}-{_CALLER}-01",
        f"00-{_TRACE}-{_CALLER}-0g",
        f"00-{_TRACE}-{_CALLER}-01\n",
        f"{_SAMPLED},{_SAMPLED}",
    ],
)
async def test_a_traceparent_that_is_malformed_starts_a_new_trace(
    tmp_path: Path, traces: Receiver, bureau: Bureau, traceparent: str
) -> None:
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        assert (await edge.post(asking(bureau), {"traceparent": traceparent, "tracestate": "vendor=a1"})).status == 200
        spans = await exported(edge, traces)
    server = named(spans, _SERVER)
    assert (server.parent_id, server.trace_id != _TRACE, server.state) == ("", True, "")
    assert bureau.calls[0].get("tracestate") is None


async def test_a_traceparent_of_a_later_version_is_read_as_far_as_it_is_known(
    tmp_path: Path, traces: Receiver, bureau: Bureau
) -> None:
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        await edge.post(asking(bureau), {"traceparent": f"cc-{_TRACE}-{_CALLER}-01-what-the-future-holds"})
        spans = await exported(edge, traces)
    assert named(spans, _SERVER).parent_id == _CALLER
    assert (bureau.calls[0].get("traceparent") or "").startswith(f"00-{_TRACE}-")


@pytest.mark.parametrize("state", ["vendor=\u00e9", "=,=;", "a" * 600, "vendor=a\tb", "vendor=\x7f", ""], ids=ascii)
@pytest.mark.parametrize("engine", ["pyreqwest", "httpx"])
async def test_a_tracestate_that_can_not_be_sent_harms_no_fetch(
    tmp_path: Path, traces: Receiver, bureau: Bureau, engine: str, state: str
) -> None:
    async with in_process(settings(tmp_path, bureau.port, http_engine=engine)) as edge:
        answer = await edge.post(asking(bureau), {"traceparent": _SAMPLED, "tracestate": state})
        assert answer.status == 200
        assert {span.trace_id for span in await exported(edge, traces)} == {_TRACE}


async def test_each_retry_is_an_attempt_of_its_own(edge: InProcess, traces: Receiver, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(b"", 503) if len(bureau.calls) < 3 else json_reply(1)
    await edge.post(asking(bureau, retry={"max_retries": 3, "backoff_factor": 0}))
    attempts = [span for span in await exported(edge, traces) if span.name == "GET"]
    assert [span.attributes.get("http.request.resend_count") for span in attempts] == [None, 1, 2]
    assert [span.attributes["http.response.status_code"] for span in attempts] == [503, 503, 200]
    assert [span.attributes.get("error.type") for span in attempts] == ["503", "503", None]
    assert [bool(span.failed) for span in attempts] == [True, True, False]
    sent = [(call.get("traceparent") or "").split("-")[2] for call in bureau.calls]
    assert sent == [span.span_id for span in attempts]


async def test_a_failure_is_named_where_it_happened(edge: InProcess, traces: Receiver, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(b"<html>", 200)
    await edge.post(asking(bureau))
    spans = await exported(edge, traces)
    server, flight, attempt = (named(spans, name) for name in (_SERVER, "flight", "GET"))
    assert (server.attributes["error.type"], server.attributes["http.response.status_code"]) == ("PARSE_ERROR", 502)
    assert (server.failed, flight.failed, attempt.failed) == ("PARSE_ERROR", "parse_error", None)


async def test_a_callers_mistake_is_no_failure_of_the_server(edge: InProcess, traces: Receiver) -> None:
    await edge.post(b"{}")
    (server,) = await exported(edge, traces)
    assert (server.failed, server.attributes["error.type"]) == (None, "INVALID_REQUEST")


async def test_a_follower_is_linked_to_the_flight_that_it_waited_for(
    monkeypatch: pytest.MonkeyPatch, edge: InProcess, traces: Receiver, bureau: Bureau
) -> None:
    body = asking(bureau)
    other = "0af7651916cd43dd8448eb211c80319c"
    both = asyncio.Event()
    flights = edge.edge.broker._flights
    boarding = flights._board

    def board(*arguments: Any) -> Any:
        boarded = boarding(*arguments)
        if not boarded[1]:
            both.set()
        return boarded

    monkeypatch.setattr(flights, "_board", board)
    bureau.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(edge.post(body, {"traceparent": _SAMPLED}))
        await bureau.arrived.wait()
        group.create_task(edge.post(body, {"traceparent": f"00-{other}-{_CALLER}-01"}))
        await both.wait()
        bureau.gate.set()
    spans = await exported(edge, traces)
    flight, wait = named(spans, "flight"), named(spans, "flight follower")
    assert (flight.trace_id, wait.trace_id) == (_TRACE, other)
    assert wait.links == [(_TRACE, flight.span_id)]
    assert wait.attributes["broker.flight.role"] == "follower"
    server = next(span for span in spans if span.name == _SERVER and span.trace_id == other)
    assert (wait.parent_id, server.attributes["broker.outcome"]) == (server.span_id, "collapsed")


async def test_a_ratio_of_zero_exports_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, traces: Receiver, bureau: Bureau
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        await edge.post(asking(bureau))
        assert await exported(edge, traces) == []
    assert (bureau.calls[0].get("traceparent") or "").endswith("-00")


async def test_without_an_endpoint_the_trace_goes_on_as_the_caller_sampled_it(tmp_path: Path, bureau: Bureau) -> None:
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        await edge.post(asking(bureau), {"traceparent": _SAMPLED})
        await edge.post(asking(bureau), {"traceparent": _NOT_SAMPLED})
        await edge.post(asking(bureau))
    sent = [call.get("traceparent") or "" for call in bureau.calls]
    assert [(_TRACE in one, one[-2:]) for one in sent] == [(True, "01"), (True, "00"), (False, "00")]


async def test_a_traceparent_of_the_spec_is_the_one_that_is_sent(edge: InProcess, traces: Receiver, bureau: Bureau) -> None:
    await edge.post(asking(bureau, headers={"Traceparent": _NOT_SAMPLED}), {"traceparent": _SAMPLED})
    assert [value for name, value in bureau.calls[0].headers if name.lower() == "traceparent"] == [_NOT_SAMPLED]


async def test_other_routes_have_spans_of_their_own_and_probes_have_none(edge: InProcess, traces: Receiver) -> None:
    for path in ("/health", "/healthz", "/readyz", "/metrics"):
        await edge.get(path)
    servers = [span for span in await exported(edge, traces) if span.kind == "SERVER"]
    assert [span.name for span in servers] == ["GET /health"]


async def test_a_served_process_exports_by_opentelemetrys_own_variables(tmp_path: Path, bureau: Bureau) -> None:
    with receiver() as traces:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_SERVICE_NAME": "scores",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with edge_process(tmp_path, bureau.port, **variables) as edge:
            await edge.ready()
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                answer = await client.post(f"{edge.url}/v1/fetch-data", json=asking(bureau), headers={"traceparent": _SAMPLED})
            assert answer.status_code == 200
            spans = await asyncio.to_thread(traces.wait, lambda spans: len(spans) >= 8)
            assert await asyncio.to_thread(edge.stop) == 0
    assert {span.trace_id for span in spans} == {_TRACE}
    assert named(spans, _SERVER).parent_id == _CALLER
    assert named(spans, "GET").parent_id == named(spans, "flight").span_id
    resource = spans[0].resource
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("scores", "test")


async def test_spans_that_wait_are_exported_when_the_edge_stops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, traces: Receiver, bureau: Bureau
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        await edge.post(asking(bureau))
        assert traces.spans == []
    assert len(traces.spans) == 8
