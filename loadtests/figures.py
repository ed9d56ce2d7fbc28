"""Numbers of a benchmark: samples of single runs, and what many of them say together. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: times in milliseconds, `cpu_us` of the server for each request, `busy` its share of a core while driven.

    `late_ms` is the P99 of how late an open-loop generator itself was.
    """

    requests: int
    seconds: float
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_us: float
    busy: float
    rss_mb: float
    late_ms: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """One competitor under one drive, over all rounds; `left_out` says why it was not there."""

    name: str
    samples: tuple[Sample, ...] = ()
    left_out: str | None = None

    def median(self, of: Callable[[Sample], float]) -> float | None:
        return statistics.median(map(of, self.samples)) if self.samples else None

    @property
    def rate(self) -> float | None:
        return self.median(lambda sample: sample.rate)

    @property
    def cpu_us(self) -> float | None:
        return self.median(lambda sample: sample.cpu_us)

    @property
    def errors(self) -> int:
        return sum(sample.errors for sample in self.samples)

    def as_json(self) -> dict[str, Any]:
        medians = {
            "rate": self.rate,
            "rate_min": min((sample.rate for sample in self.samples), default=None),
            "rate_max": max((sample.rate for sample in self.samples), default=None),
            "p50_ms": self.median(lambda sample: sample.p50_ms),
            "p95_ms": self.median(lambda sample: sample.p95_ms),
            "p99_ms": self.median(lambda sample: sample.p99_ms),
            "cpu_us": self.cpu_us,
            "busy": self.median(lambda sample: sample.busy),
            "rss_mb": max((sample.rss_mb for sample in self.samples), default=None),
            "errors": self.errors,
        }
        samples = [{**asdict(sample), "rate": sample.rate} for sample in self.samples]
        return {"name": self.name, "left_out": self.left_out, "median": medians, "samples": samples}


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the report."""

    name: str
    title: str
    lines: tuple[Line, ...]

    def line(self, name: str) -> Line | None:
        return next((line for line in self.lines if line.name == name), None)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, "lines": [line.as_json() for line in self.lines]}


_HEAD = ("", "req/s", "min-max", "P50 ms", "P95 ms", "P99 ms", "CPU us", "busy", "RSS MB", "errors")


def table(section: Section) -> str:
    """A section for a person: medians over the rounds."""
    rows = [_HEAD, *(_row(line) for line in section.lines if line.left_out is None)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    body = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows]
    gone = [f"{line.name}: left out, {line.left_out}" for line in section.lines if line.left_out is not None]
    late = max((sample.late_ms for line in section.lines for sample in line.samples), default=0.0)
    notes = [f"the generator itself was late by {late:.2f} ms in the P99 of its worst run"] if late else []
    return "\n".join([section.title, *body, *gone, *notes])


def _row(line: Line) -> tuple[str, ...]:
    shown = line.as_json()["median"]
    return (
        line.name,
        f"{shown['rate']:,.0f}",
        f"{shown['rate_min']:,.0f}-{shown['rate_max']:,.0f}",
        *(f"{shown[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
        f"{shown['cpu_us']:.1f}",
        f"{shown['busy']:.0%}",
        f"{shown['rss_mb']:.0f}",
        str(shown["errors"]),
    )


def ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None
