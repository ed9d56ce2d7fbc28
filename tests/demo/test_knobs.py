"""Reading knobs: every value is either understood or refused with a sentence that does not repeat it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.demo.knobs import READERS, BadKnob, Knobs, read_knobs


def test_no_knobs_is_an_ordinary_answer() -> None:
    assert read_knobs({}) == Knobs()


def test_every_field_has_a_reader_and_the_reverse() -> None:
    assert set(READERS) == set(Knobs.__slots__)


def test_each_knob_takes_its_own_kind() -> None:
    knobs = read_knobs(
        {"latency_ms": "60000", "fail_rate": "0.25", "status": "429", "truncate": "1", "encoding": "br", "other": "x"}
    )
    assert knobs == Knobs(latency_ms=60_000, fail_rate=0.25, status=429, truncate=True, encoding="br")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("latency_ms", "60001"),
        ("latency_ms", "-1"),
        ("latency_ms", "1_0"),
        ("latency_ms", "٣"),
        ("latency_ms", ""),
        ("latency_ms", "9" * 5000),
        ("fail_rate", "1.1"),
        ("fail_rate", "nan"),
        ("fail_rate", "often"),
        ("fail_first", "1.5"),
        ("status", "199"),
        ("status", "600"),
        ("retry_after", "soon"),
        ("size", "67108865"),
        ("encoding", "lzma"),
        ("truncate", "yes"),
        ("auth", "2"),
        ("page", "0"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(BadKnob, match=rf"^{name} must be .*\.$"):
        read_knobs({name: text})


@given(name=st.sampled_from(sorted(READERS)), text=st.text())
def test_any_text_is_read_or_refused(name: str, text: str) -> None:
    try:
        knobs = read_knobs({name: text})
    except BadKnob:
        return
    assert isinstance(getattr(knobs, name), int | float | str)
