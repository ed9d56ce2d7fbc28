"""GET /data-sources/{id}/usage, /metrics and /cache-stats: what they tell of real fetches, and what they refuse."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker_edge.core.record import Draft
from tests.edges import Answer, Bureau, InProcess

ROUTES = ["usage", "metrics", "cache-stats"]


def today() -> str:
    return datetime.now(UTC).date().isoformat()


async def created(edge: InProcess, bureau: Bureau, project: str | None = None, **terms: Any) -> str:
    source = {"url": f"{bureau.url}/score/{{{{ tax_id }}}}", "response_type": "JSON"}
    draft = Draft(f"sample_{uuid.uuid4().hex}", source, {"enabled": True, "ttl": 3600}, terms)
    return str((await edge.edge.registry.create(project, draft)).data_source_id)


async def fetched(edge: InProcess, source: str, run: str | None = None, **params: Any) -> Answer:
    record = await edge.edge.registry.get(None, uuid.UUID(source))
    body = {"data_source_name": record.name, "configured_params": params, "run_id": run or str(uuid.uuid4())}
    answer = await edge.post(body, path="/internal/data-broker")
    await edge.rows()
    return answer


async def told(edge: InProcess, source: str, what: str, query: str = "") -> Any:
    answer = await edge.get(f"/data-sources/{source}/{what}{query}")
    assert answer.status == 200, answer.body
    return answer.json()


async def refused(edge: InProcess, path: str) -> tuple[int, str, str]:
    answer = await edge.get(path)
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status, answer.json()["error"]["code"], answer.json()["detail"]


async def test_a_source_that_nobody_asked_has_empty_lists(edge: InProcess, bureau: Bureau) -> None:
    source = await created(edge, bureau)
    assert await told(edge, source, "usage") == {
        "requests_by_date": [],
        "money": [],
        "money_by_date": [],
        "money_by_run": [],
    }
    assert await told(edge, source, "metrics") == {"avg_response_time_by_date": [], "error_rate_by_date": []}
    assert await told(edge, source, "cache-stats") == {"cache_hit_ratio_by_date": []}


async def test_requests_hits_and_failures_are_counted_by_day(edge: InProcess, bureau: Bureau) -> None:
    source, before = await created(edge, bureau), today()
    for _ in range(3):
        assert (await fetched(edge, source, tax_id="1")).status == 200
    assert (await fetched(edge, source)).status == 400
    (requests,) = (await told(edge, source, "usage"))["requests_by_date"]
    assert before <= requests["date"] <= today()
    assert (requests["count"], requests["value"]) == (4, 4)
    performance = await told(edge, source, "metrics")
    assert [one["value"] for one in performance["error_rate_by_date"]] == [25.0]
    assert [one["value"] > 0 for one in performance["avg_response_time_by_date"]] == [True]
    assert [one["value"] for one in (await told(edge, source, "cache-stats"))["cache_hit_ratio_by_date"]] == [66.67]


async def test_money_is_told_in_total_by_day_and_by_run(edge: InProcess, bureau: Bureau) -> None:
    source = await created(edge, bureau, cost_per_call={"amount": "0.35", "currency": "BRL"})
    buyer, saver = str(uuid.uuid4()), str(uuid.uuid4())
    await fetched(edge, source, buyer, tax_id="1")
    await fetched(edge, source, saver, tax_id="1")
    await fetched(edge, source, saver, tax_id="1")
    found = await told(edge, source, "usage")
    sums = {"currency": "BRL", "calls": 1, "spent": "0.35", "saved_by_cache": "0.70", "saved_by_coalescing": "0.00"}
    assert found["money"] == [sums]
    assert [{name: day[name] for name in sums} for day in found["money_by_date"]] == [sums]
    assert {one["run_id"]: (one["spent"], one["saved_by_cache"]) for one in found["money_by_run"]} == {
        buyer: ("0.35", "0.00"),
        saver: ("0.00", "0.70"),
    }
    alone = await told(edge, source, "usage", f"?run_id={buyer}")
    assert [one["run_id"] for one in alone["money_by_run"]] == [buyer]
    assert alone["money"] == [sums]


async def test_days_outside_the_period_are_left_out(edge: InProcess, bureau: Bureau) -> None:
    source = await created(edge, bureau)
    await fetched(edge, source, tax_id="1")
    earlier = (datetime.now(UTC).date() - timedelta(days=2)).isoformat()
    assert (await told(edge, source, "usage", f"?end_date={earlier}"))["requests_by_date"] == []
    assert len((await told(edge, source, "usage", f"?start_date={earlier}"))["requests_by_date"]) == 1


async def test_figures_of_an_archived_source_stay_readable(edge: InProcess, bureau: Bureau) -> None:
    source = await created(edge, bureau)
    await fetched(edge, source, tax_id="1")
    await edge.edge.registry.publish(None, uuid.UUID(source))
    await edge.edge.registry.remove(None, uuid.UUID(source))
    assert len((await told(edge, source, "usage"))["requests_by_date"]) == 1


@pytest.mark.parametrize("route", ROUTES)
async def test_a_source_of_another_project_does_not_exist(edge: InProcess, bureau: Bureau, route: str) -> None:
    project, other = str(uuid.uuid4()), str(uuid.uuid4())
    source = await created(edge, bureau, project)
    assert (await edge.get(f"/data-sources/{source}/{route}?project_id={project}")).status == 200
    for query in ("", f"?project_id={other}"):
        assert (await refused(edge, f"/data-sources/{source}/{route}{query}"))[:2] == (404, "DATA_SOURCE_NOT_FOUND")


@pytest.mark.parametrize("route", ROUTES)
async def test_an_unknown_source_is_not_found(edge: InProcess, route: str) -> None:
    assert (await refused(edge, f"/data-sources/{uuid.uuid4()}/{route}"))[:2] == (404, "DATA_SOURCE_NOT_FOUND")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("start_date=2026-03-02&end_date=2026-03-01", "start_date"),
        ("start_date=2999-01-01", "start_date"),
        ("start_date=yesterday", "start_date"),
        ("start_date=", "start_date"),
        ("end_date=2026-02-30", "end_date"),
        ("end_date=1700000000", "end_date"),
        ("end_date=9999-12-31", "end_date"),
        ("start_date=2019-01-01&end_date=2026-01-01", "five years"),
        ("project_id=mine", "project_id"),
    ],
)
async def test_bad_questions_are_refused_by_name(edge: InProcess, bureau: Bureau, route: str, query: str, named: str) -> None:
    source = await created(edge, bureau)
    status, code, detail = await refused(edge, f"/data-sources/{source}/{route}?{query}")
    assert (status, code) == (400, "INVALID_REQUEST")
    assert named in detail


async def test_a_run_id_that_is_none_is_refused(edge: InProcess, bureau: Bureau) -> None:
    source = await created(edge, bureau)
    status, code, detail = await refused(edge, f"/data-sources/{source}/usage?run_id=1")
    assert (status, code) == (400, "INVALID_REQUEST")
    assert "run_id" in detail


async def test_an_id_that_is_none_is_refused(edge: InProcess) -> None:
    for route in ROUTES:
        assert (await refused(edge, f"/data-sources/sample/{route}"))[:2] == (400, "INVALID_REQUEST")


async def test_the_page_names_what_is_answered(edge: InProcess, bureau: Bureau) -> None:
    page = json.loads((await edge.get("/openapi.json")).body)
    source = await created(edge, bureau)
    for route in ROUTES:
        operation = page["paths"][f"/data-sources/{{data_source_id}}/{route}"]["get"]
        model = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert set(page["components"]["schemas"][model]["properties"]) == set(await told(edge, source, route))
        assert {one["name"] for one in operation["parameters"]} >= {"start_date", "end_date", "project_id"}
