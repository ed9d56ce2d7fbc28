"""What was spent is counted once, and never under a label that a caller chose."""

from __future__ import annotations

import pytest

from broker_edge.core.money import Price
from broker_edge.core.trail import FlightTrail, TraceContext, Trail
from broker_edge.errors import UpstreamError
from broker_edge.telemetry.metrics import Metrics

BRL = Price(2_500_000, "BRL")
CALLS, MICROS = "broker_edge_charged_calls_total", "broker_edge_spent_micros_total"


def trail(name: str | None, price: Price | None = BRL) -> Trail:
    made = Trail(TraceContext(1, 2), 1000.0, lambda: 3)
    made.source_name, made.price = name, price
    return made


def samples(metrics: Metrics) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if line.startswith((CALLS, MICROS))]


def test_an_answer_s_calls_and_their_cost_are_counted() -> None:
    metrics, made = Metrics("1"), trail("bureau")
    made.charge(2_500_000)
    made.charge(2_500_000)
    made.fail(UpstreamError("TIMEOUT", "no"), 1001.0)
    metrics.answer(made)
    assert samples(metrics) == [f'{CALLS}{{source="bureau"}} 2.0', f'{MICROS}{{currency="BRL",source="bureau"}} 5e+06']


def test_a_refill_s_calls_are_its_opener_s_source_s() -> None:
    metrics, opener = Metrics("1"), trail("bureau")
    flight = FlightTrail(TraceContext(1, 2), 1000.0, lambda: 3, opener)
    flight.charge(2_500_000)
    metrics.refill(flight)
    metrics.flight(flight)
    assert samples(metrics) == [f'{CALLS}{{source="bureau"}} 1.0', f'{MICROS}{{currency="BRL",source="bureau"}} 2.5e+06']


@pytest.mark.parametrize("price", [Price(1, "ABC"), None])
def test_of_an_inline_spec_calls_alone_are_counted(price: Price | None) -> None:
    metrics, made = Metrics("1"), trail(None, price)
    made.charge(1)
    made.fail(UpstreamError("TIMEOUT", "no"), 1001.0)
    metrics.answer(made)
    assert samples(metrics) == [f'{CALLS}{{source="inline"}} 1.0']


def test_who_spent_nothing_is_not_counted() -> None:
    metrics, made = Metrics("1"), trail("bureau")
    made.fail(UpstreamError("CONNECT_ERROR", "no", sent=False), 1001.0)
    metrics.answer(made)
    assert samples(metrics) == []
