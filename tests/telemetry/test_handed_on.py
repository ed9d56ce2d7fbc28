"""With several workers, what one has counted is in the shared files soon after, whoever is scraped and whoever dies."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from broker_edge.core.trail import TraceContext, Trail
from broker_edge.errors import UpstreamError
from broker_edge.telemetry.metrics import Metrics
from tests.scenarios.herds import until

ROWS = "broker_edge_journal_rows_total"


def closed() -> Trail:
    made = Trail(TraceContext(1, 2), 1000.0, lambda: 3)
    made.fail(UpstreamError("TIMEOUT", "no"), 1001.0)
    return made


def arrived(metrics: Metrics, count: int) -> bool:
    return bool(metrics._child(ROWS, "appended")._value.get() == count)


async def test_a_watched_counter_is_handed_on_after_an_answer_without_a_scrape(tmp_path: Path) -> None:
    metrics, rows = Metrics("1", tmp_path), 0
    metrics.watch(ROWS, lambda: rows, "appended")
    for appended in (3, 5):
        rows = appended
        metrics.answer(closed())
        await until(partial(arrived, metrics, appended))


def test_a_watched_counter_is_counted_once_however_often_it_is_read() -> None:
    metrics = Metrics("1")
    metrics.watch(ROWS, lambda: 7, "shipped")
    metrics.refresh()
    metrics.refresh()
    assert f'{ROWS}{{stage="shipped"}} 7.0' in metrics.render().decode()
