"""Which traces are sampled: OpenTelemetry's variables as two numbers that decide without the SDK's objects.

The SDK's samplers answer the same (its `Sampler.should_sample`), at the price of a Context, a span context and a SamplingResult.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

LOW_BITS = TraceIdRatioBased.TRACE_ID_LIMIT


class Rule(NamedTuple):
    """A trace is sampled when the low 64 bits of its id are below `bound`; with `follows`, when its parent is, if it has one."""

    bound: int
    follows: bool


PASSED_ON = Rule(0, follows=True)  # nothing is exported: a trace is sampled when its caller says so
_ALL = Rule(LOW_BITS + 1, follows=False)
_NONE = Rule(0, follows=False)


def configured(environment: Mapping[str, str]) -> tuple[Rule, Sampler] | None:
    """The rule of OTEL_TRACES_SAMPLER and _ARG, and the SDK's sampler that decides the same; None leaves both to the SDK."""
    name = environment.get("OTEL_TRACES_SAMPLER", "parentbased_always_on").lower()
    root = _root(name.removeprefix("parentbased_"), environment.get("OTEL_TRACES_SAMPLER_ARG", ""))
    if root is None or not name.startswith("parentbased_"):
        return root
    rule, sampler = root
    return Rule(rule.bound, follows=True), ParentBased(sampler)


def _root(name: str, argument: str) -> tuple[Rule, Sampler] | None:
    if name == "traceidratio":
        try:
            sampler = TraceIdRatioBased(float(argument))
        except ValueError:  # the SDK has a warning and a default for that
            return None
        return Rule(sampler.bound, follows=False), sampler
    return {"always_on": (_ALL, ALWAYS_ON), "always_off": (_NONE, ALWAYS_OFF)}.get(name)
