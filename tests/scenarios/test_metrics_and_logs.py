"""What operators see: counters that add up, labels that stay few, one log line for every answer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from broker_edge.errors import CODES
from broker_edge.telemetry.metrics import DOCUMENTED
from tests.edges import Bureau, InProcess, http_reply, in_process, json_reply, request, settings, spec

_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
Labels = frozenset[tuple[str, str]]


async def scrape(edge: InProcess) -> dict[str, Metric]:
    text = (await edge.get("/metrics")).body.decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(families: dict[str, Metric], name: str) -> dict[Labels, float]:
    """Values of one metric by labels; `name` as it is exported."""
    found = (sample for family in families.values() for sample in family.samples if sample.name == name)
    return {frozenset(sample.labels.items()): sample.value for sample in found}


async def counted(edge: InProcess, name: str, **labels: str) -> float:
    return samples(await scrape(edge), name).get(frozenset(labels.items()), 0.0)


def asking(bureau: Bureau, **members: Any) -> dict[str, Any]:
    return request(spec(f"{bureau.url}/score/{{{{ id }}}}", **members), {"id": "7"})


async def test_every_answer_counts_once_under_its_outcome(edge: InProcess, bureau: Bureau) -> None:
    body = asking(bureau)
    await edge.post(body)
    await edge.post(body)
    await edge.post(body)
    await edge.post(b"")
    await edge.post({**body, "configured_params": {}})
    await edge.post({**asking(bureau), "mode": "cache_only"})
    bureau._answer = lambda _: http_reply(b"", 500)
    await edge.post(asking(bureau))
    families = await scrape(edge)
    requests = samples(families, "broker_edge_requests_total")
    by_outcome = {dict(labels)["outcome"]: value for labels, value in requests.items()}
    assert by_outcome == {
        "fetched": 1,
        "hit": 2,
        "invalid_request": 1,
        "missing_variable": 1,
        "not_cached": 1,
        "upstream_status": 1,
    }
    durations = samples(families, "broker_edge_request_duration_seconds_count")
    assert {dict(labels)["outcome"]: value for labels, value in durations.items()} == by_outcome
    assert samples(families, "broker_edge_journal_rows_total")[frozenset({("stage", "appended")})] == 7


async def test_the_way_of_a_miss_and_of_a_hit_can_be_counted(edge: InProcess, bureau: Bureau) -> None:
    body = asking(bureau)
    await edge.post(body)
    await edge.post(body)
    assert await counted(edge, "broker_edge_tier_lookups_total", tier="hot", result="miss") == 1
    assert await counted(edge, "broker_edge_tier_lookups_total", tier="hot", result="hit") == 1
    assert await counted(edge, "broker_edge_tier_lookups_total", tier="durable", result="miss") == 1
    assert await counted(edge, "broker_edge_stores_total", tier="durable", result="ok") == 1
    assert await counted(edge, "broker_edge_stores_total", tier="hot", result="ok") == 1
    assert await counted(edge, "broker_edge_flights_total", role="leader") == 1
    assert await counted(edge, "broker_edge_upstream_attempts_total", outcome="ok") == 1
    assert await counted(edge, "broker_edge_upstream_attempt_duration_seconds_count") == 1
    assert await counted(edge, "broker_edge_upstream_in_flight") == 0


async def test_every_retry_is_an_attempt(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(b"", 503) if len(bureau.calls) < 3 else json_reply(1)
    await edge.post(asking(bureau, retry={"max_retries": 3, "backoff_factor": 0}))
    assert await counted(edge, "broker_edge_upstream_attempts_total", outcome="upstream_status") == 2
    assert await counted(edge, "broker_edge_upstream_attempts_total", outcome="ok") == 1


async def test_what_is_never_reused_has_its_attempt_counted_too(edge: InProcess, bureau: Bureau) -> None:
    await edge.post(asking(bureau, caching={"enabled": True, "ttl": 0}))
    assert await counted(edge, "broker_edge_upstream_attempts_total", outcome="ok") == 1
    assert await counted(edge, "broker_edge_stores_total", tier="durable", result="ok") == 1
    assert await counted(edge, "broker_edge_stores_total", tier="hot", result="ok") == 0


async def test_names_units_and_types_are_those_that_are_documented(edge: InProcess, bureau: Bureau) -> None:
    body = asking(bureau)
    await edge.post(body)
    await edge.post(body)
    families = {name: family for name, family in (await scrape(edge)).items() if name.startswith("broker_edge_")}
    documented = {name.removesuffix("_total"): name for name in DOCUMENTED}
    created = {name for name in families if name.endswith("_created")}
    assert families.keys() - created == documented.keys()
    for name in families.keys() - created:
        assert (families[name].type == "counter") == documented[name].endswith("_total")
        assert families[name].documentation
    assert families["broker_edge_request_duration_seconds"].type == "histogram"


async def test_labels_stay_few_whatever_callers_send(edge: InProcess, bureau: Bureau) -> None:
    for number in range(12):
        body = asking(bureau)
        body["data_source_spec"]["name"] = f"name-{number}"
        body["configured_params"] = {"id": f"value-{number}"}
        await edge.post(body)
        await edge.post({**body, "mode": f"mode-{number}"})
    text = (await edge.get("/metrics")).body.decode()
    assert "name-" not in text
    assert "value-" not in text
    assert "mode-" not in text
    assert str(bureau.port) not in text
    families = await scrape(edge)
    outcomes = {dict(labels)["outcome"] for labels in samples(families, "broker_edge_requests_total")}
    assert outcomes <= {"fetched", "hit", "stale", "revalidated", "collapsed", *(code.lower() for code in CODES)}
    series = Counter(sample.name for family in families.values() for sample in family.samples)
    assert max(count for name, count in series.items() if not name.endswith("_bucket")) <= 10


async def test_the_histogram_has_buckets_that_add_up(edge: InProcess, bureau: Bureau) -> None:
    body = asking(bureau)
    await edge.post(body)
    await edge.post(body)
    buckets = samples(await scrape(edge), "broker_edge_request_duration_seconds_bucket")
    hits = {float(dict(labels)["le"]): value for labels, value in buckets.items() if dict(labels)["outcome"] == "hit"}
    ordered = [hits[bound] for bound in sorted(hits)]
    assert ordered == sorted(ordered)
    assert (max(hits), hits[max(hits)]) == (float("inf"), 1)


async def test_the_backlog_of_the_journal_is_shown(edge: InProcess, bureau: Bureau) -> None:
    await edge.post(asking(bureau))
    await edge.rows()
    assert await counted(edge, "broker_edge_journal_backlog_rows") == 0
    assert await counted(edge, "broker_edge_journal_rows_total", stage="shipped") == 1


# Logs


def lines(captured: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.splitlines()]


async def test_every_answer_is_one_line_with_its_trace_and_its_run(
    tmp_path: Path, bureau: Bureau, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    body = asking(bureau)
    wrong = {**body, "mode": "never"}
    async with in_process(settings(tmp_path, bureau.port, log_level="INFO")) as edge:
        answers = [await edge.post(one, {"traceparent": f"00-{_TRACE}-{'1' * 16}-00"}) for one in (body, body, wrong)]
        written = [line for line in lines(capsysbinary.readouterr().out) if line["event"] == "answer"]
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert [line["outcome"] for line in written] == ["fetched", "hit", "invalid_request"]
    assert [line["status"] for line in written] == [200, 200, 400]
    assert {line["trace_id"] for line in written} == {_TRACE}
    assert {line["run_id"] for line in written} == {body["run_id"]}
    assert [line["level"] for line in written] == ["info", "info", "info"]
    assert [line.get("error") for line in written] == [None, None, "INVALID_REQUEST"]
    assert [line["key"] for line in written] == [answers[0].json()["key"]] * 2 + [None]
    assert all(line["timestamp"].endswith("Z") and line["duration"] >= 0 for line in written)


async def test_what_an_upstream_caused_is_a_warning_with_its_status(
    tmp_path: Path, bureau: Bureau, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    bureau._answer = lambda _: http_reply(b"", 500)
    async with in_process(settings(tmp_path, bureau.port, log_level="WARNING")) as edge:
        await edge.post(asking(bureau))
        (line,) = lines(capsysbinary.readouterr().out)
    assert (line["level"], line["error"], line["upstream_status"]) == ("warning", "UPSTREAM_STATUS", 500)


@pytest.mark.parametrize(
    ("level", "events"),
    [("DEBUG", ["flight", "answer", "answer"]), ("INFO", ["answer", "answer"]), ("WARNING", []), ("ERROR", [])],
)
async def test_the_level_filters_lines(
    tmp_path: Path, bureau: Bureau, capsysbinary: pytest.CaptureFixture[bytes], level: str, events: list[str]
) -> None:
    body = asking(bureau)
    async with in_process(settings(tmp_path, bureau.port, log_level=level)) as edge:
        capsysbinary.readouterr()  # what the start has to say
        await edge.post(body)
        await edge.post(body)
        assert [line["event"] for line in lines(capsysbinary.readouterr().out)] == events
