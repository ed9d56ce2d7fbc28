"""The rule decides as the SDK's samplers do, for the same trace."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import SpanKind

from broker_edge.core.trail import TraceContext
from broker_edge.telemetry.otel import Tracing
from broker_edge.telemetry.otel_sampling import Rule, configured
from broker_edge.telemetry.otel_spans import parent_context

_RATIOS = ["0", "1", "0.5", "0.1", "1e-9", "0.9999999999", "2.5e-20"]
CASES = [
    *((name, None) for name in (None, "always_on", "always_off", "parentbased_always_on", "PARENTBASED_ALWAYS_OFF")),
    *((name, ratio) for name in ("traceidratio", "parentbased_traceidratio") for ratio in _RATIOS),
]
LEFT_TO_SDK = [("nonsense", None), ("parentbased_nonsense", "1"), *(("traceidratio", bad) for bad in ("", "x", "2", "-1", "nan"))]


def environment(name: str | None, argument: str | None) -> dict[str, str]:
    given = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    return {key: value for key, value in given.items() if value is not None}


def contexts(bound: int) -> list[TraceContext]:
    """Roots and children of either flag, with ids drawn anywhere and close to where the decision changes."""
    draw = random.Random(7)
    low = [bound + step for step in (-2, -1, 0, 1) if 0 <= bound + step < 2**64]
    ids = [draw.getrandbits(128) or 1 for _ in range(200)] + [draw.getrandbits(63) + 1 << 64 | part for part in low]
    return [TraceContext(one, 5, parent, flag) for one in ids for parent, flag in ((None, False), (6, False), (6, True))]


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_the_rule_decides_as_the_sdk_does(monkeypatch: pytest.MonkeyPatch, name: str | None, argument: str | None) -> None:
    variables = environment(name, argument)
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    theirs = sampling._get_from_env_or_default()
    found = configured(variables)
    assert found is not None
    rule, sampler = found
    for context in contexts(rule.bound):
        expected = sampled(theirs, context)
        assert sampled(sampler, context) is expected
        follows = rule.follows and context.parent_id is not None
        assert (context.sampled if follows else context.trace_id & (2**64 - 1) < rule.bound) is expected


def sampled(sampler: sampling.Sampler, context: TraceContext) -> bool:
    parent = parent_context(context, remote=True)
    return bool(sampler.should_sample(parent, context.trace_id, "name", SpanKind.SERVER).decision.is_sampled())


@pytest.mark.parametrize(("name", "argument"), LEFT_TO_SDK)
def test_what_only_the_sdk_understands_is_left_to_it(name: str, argument: str | None) -> None:
    assert configured(environment(name, argument)) is None


class Opposite(sampling.Sampler):
    """Samples what its parent doesn't: no rule of ours says that."""

    def should_sample(self, parent_context: Any, *_: Any, **__: Any) -> sampling.SamplingResult:
        drop = sampling.ALWAYS_ON.should_sample(parent_context, 1, "")
        parent = sampling.DEFAULT_ON.should_sample(parent_context, 1, "")
        return drop if not parent.decision.is_sampled() else sampling.ALWAYS_OFF.should_sample(parent_context, 1, "")

    def get_description(self) -> str:
        return "Opposite"


async def test_a_sampler_of_the_sdk_decides_where_there_is_no_rule() -> None:
    tracing = Tracing({"OTEL_TRACES_EXPORTER": "console"}, "1", {})
    try:
        assert tracing.provider is not None
        tracing._rule, tracing.provider.sampler = None, Opposite()
        parent = f"00-{1:032x}-{2:016x}-"
        assert tracing.begin(f"{parent}00".encode(), None).sampled is True
        assert tracing.begin(f"{parent}01".encode(), None).sampled is False
        assert tracing.begin(None, None).sampled is False
    finally:
        tracing.close()


@pytest.mark.parametrize(("rule", "expected"), [(Rule(0, False), False), (Rule(2**64, False), True), (Rule(2**64, True), True)])
def test_a_new_trace_is_sampled_by_the_bound(rule: Rule, expected: bool) -> None:
    tracing = Tracing({}, "1", {})
    tracing._rule = rule
    assert {tracing.begin(None, None).sampled for _ in range(100)} == {expected}
