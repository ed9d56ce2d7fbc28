"""What a load run is judged by: locust's counts in, numbers, a verdict and a table out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

P95_BAR_MS = {"hit": 100.0, "miss": 500.0}
RATE_HELD = 0.95


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of request: `name` is hit or miss, `rate` answers a second, percentiles in milliseconds (None without any)."""

    name: str
    requests: int
    failures: int
    rate: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """One run: what was offered, what came of it, and the CPU seconds each side took."""

    profile: str
    offered: float
    seconds: float
    lines: tuple[Line, ...]
    cpu_seconds: Mapping[str, float]

    @property
    def rate(self) -> float:
        return sum(line.rate for line in self.lines)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate, "missed": missed(self)}


def percentile(buckets: Mapping[float, int], share: float) -> float | None:
    """The smallest response time that `share` of the counted ones do not exceed (nearest rank); None where none is counted."""
    rank, seen = share * sum(buckets.values()), 0
    for time in sorted(buckets):
        seen += buckets[time]
        if seen >= rank:
            return time
    return None


def read_lines(stats: Iterable[Mapping[str, Any]]) -> tuple[Line, ...]:
    """Lines from locust's `--json` entries; its response times are rounded to 1 ms below 100 ms and to 1 % above."""
    return tuple(_line(entry) for entry in sorted(stats, key=lambda entry: entry["name"]) if entry["num_requests"])


def _line(entry: Mapping[str, Any]) -> Line:
    buckets: Counter[float] = Counter()
    for time, number in entry["response_times"].items():
        buckets[float(time)] += number
    elapsed = entry["last_request_timestamp"] - entry["start_time"]
    rate = entry["num_requests"] / elapsed if elapsed > 0 else 0.0
    shown = (percentile(buckets, share) for share in (0.5, 0.95, 0.99))
    return Line(entry["name"], entry["num_requests"], entry["num_failures"], rate, *shown)


def missed(report: Report) -> list[str]:
    """Each bar that the run missed, as a sentence; empty is a pass.

    Misses are judged by their time alone: how many a second two cores can fetch is a property of the machine.
    """
    if not report.lines:
        return ["nothing was measured"]
    found = [f"{line.failures} of {line.requests} {line.name} requests failed" for line in report.lines if line.failures]
    if report.profile == "hit" and report.rate < RATE_HELD * report.offered:
        found.append(f"{report.rate:.0f} requests a second were held of {report.offered:.0f} offered")
    for line in report.lines:
        bar = P95_BAR_MS[line.name]
        if line.p95_ms is None or line.p95_ms >= bar:
            found.append(f"P95 of {line.name} requests is {_ms(line.p95_ms)} ms, not below {bar:.0f}")
    return found


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1 else "<1"


def table(report: Report) -> str:
    """The report for a person."""
    rows = [("", "req/s", "requests", "failures", "P50 ms", "P95 ms", "P99 ms")]
    rows += [
        (
            line.name,
            f"{line.rate:.0f}",
            str(line.requests),
            str(line.failures),
            _ms(line.p50_ms),
            _ms(line.p95_ms),
            _ms(line.p99_ms),
        )
        for line in report.lines
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    body = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    requests = sum(line.requests for line in report.lines) or 1
    cpu = [
        f"{name} {seconds:.1f} s ({seconds / requests * 1e6:.0f} us a request)" for name, seconds in report.cpu_seconds.items()
    ]
    head = f"{report.profile}: {report.offered:.0f} requests a second offered for {report.seconds:.0f} s, {report.rate:.0f} held"
    notes = [f"CPU on this machine, shared by all: {', '.join(cpu)}"] if cpu else []
    return "\n".join([head, *body, *notes, *(f"MISSED: {sentence}" for sentence in missed(report))])
