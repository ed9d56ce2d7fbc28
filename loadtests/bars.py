"""What the figures are judged by: the bars, each a number from the tables. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loadtests.competitors.edge import NEAR_BYTES
from loadtests.competitors.predecessor import Predecessor
from loadtests.figures import Line, Section, ratio
from loadtests.sections import (
    EDGE,
    FEW_KEYS,
    FLOOR,
    MANY_KEYS,
    NEAR,
    NGINX,
    OFFERED,
    ONE_WORKER,
    TRACES_ALL,
    TRACES_OFF,
    TWO_WORKERS,
)

Sections = Mapping[str, Section]
IDLE_FROM = 0.9  # share of its core below which something else than the server is the limit


@dataclass(frozen=True, slots=True)
class Bar:
    """`measure` answers None where its tables were not made; `at_most` bars are better when lower."""

    name: str
    bar: float
    aim: float
    measure: Callable[[Sections], float | None]
    at_most: bool = False
    note: Callable[[Sections], str] = lambda _: ""

    def judge(self, sections: Sections) -> Verdict:
        return Verdict(self.name, self.bar, self.aim, self.at_most, self.measure(sections), self.note(sections))


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    bar: float
    aim: float
    at_most: bool
    measured: float | None
    note: str = ""

    def reached(self, limit: float) -> bool:
        return self.measured is not None and (self.measured <= limit if self.at_most else self.measured >= limit)

    @property
    def words(self) -> str:
        if self.measured is None:
            return "not measured"
        if self.reached(self.aim):
            return "met, and the aim"
        if self.reached(self.bar):
            return "met"
        share = self.bar / self.measured if self.at_most else self.measured / self.bar
        return f"not reached: {share:.2f} of the bar{self.note}"

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "bar": self.bar, "aim": self.aim, "measured": self.measured, "verdict": self.words}


def _line(section: str, name: str) -> Callable[[Sections], Line | None]:
    def find(sections: Sections) -> Line | None:
        return sections[section].line(name) if section in sections else None

    return find


def _rates(section: str, over: str, under: str) -> Callable[[Sections], float | None]:
    def measure(sections: Sections) -> float | None:
        first, second = _line(section, over)(sections), _line(section, under)(sections)
        return ratio(first.rate, second.rate) if first and second else None

    return measure


def _rate(section: str, name: str) -> Callable[[Sections], float | None]:
    def measure(sections: Sections) -> float | None:
        line = _line(section, name)(sections)
        return line.rate if line else None

    return measure


def _spare(section: str, name: str) -> Callable[[Sections], str]:
    """Where the server was not busy the rate is what the load's core could offer, and says less than the CPU of a request."""

    def note(sections: Sections) -> str:
        line = _line(section, name)(sections)
        busy, cost = (line.median(lambda sample: sample.busy), line.cpu_us) if line else (None, None)
        if not busy or not cost or busy >= IDLE_FROM:
            return ""
        return f" (server busy {busy:.0%}, the load's core was the limit; by its CPU a core does {1e6 / cost:,.0f}/s)"

    return note


def _growth(sections: Sections) -> float | None:
    many = _line("growth", f"{EDGE.label}, 1000 connections")(sections)
    few = _line("growth", f"{EDGE.label}, 10 connections")(sections)
    return ratio(many.cpu_us, few.cpu_us) if many and few else None


def _workers(sections: Sections) -> float | None:
    one, two = _line("workers", ONE_WORKER)(sections), _line("workers", TWO_WORKERS)(sections)
    if one is None or two is None:
        return None
    grown = ratio(one.cpu_us, two.cpu_us)
    return None if grown is None else 2 * grown


def _p99(sections: Sections) -> float | None:
    line = _line("offered", EDGE.label)(sections)
    return line.median(lambda sample: sample.p99_ms) if line else None


def _memory(sections: Sections) -> float | None:
    few, many = _line("keys", FEW_KEYS)(sections), _line("keys", MANY_KEYS)(sections)
    if few is None or many is None:
        return None
    before, after = (line.median(lambda sample: sample.rss_mb) for line in (few, many))
    return None if before is None else ratio(after, before + NEAR_BYTES / 2**20)


BARS = (
    Bar("hit through Redis / nginx + Lua + Redis, req/s", 0.75, 1.0, _rates("hit", EDGE.label, NGINX.label)),
    Bar("near hit / uvicorn floor, req/s", 0.65, 0.85, _rates("near", NEAR.label, FLOOR.label)),
    Bar("hit / predecessor, req/s", 40, 60, _rates("hit", EDGE.label, Predecessor().label)),
    Bar("traces at 100% with OTLP export / traces off, req/s", 0.6, 0.8, _rates("traces", TRACES_ALL, TRACES_OFF)),
    Bar("miss by HTTP/1.1, durable, req/s of one core", 4000, 8000, _rate("miss", EDGE.label), note=_spare("miss", EDGE.label)),
    Bar(
        "miss by HTTP/2 and TLS, durable, req/s of one core",
        4000,
        8000,
        _rate("miss-tls", EDGE.label),
        note=_spare("miss-tls", EDGE.label),
    ),
    Bar("CPU of a hit at 1,000 connections / at 10", 2.0, 1.5, _growth, at_most=True),
    Bar("capacity of two workers / one on hits", 1.7, 1.9, _workers),
    Bar(f"P99 of hits at {OFFERED:,} req/s offered, ms", 5.0, 2.0, _p99, at_most=True),
    Bar("RSS after 1,000,000 keys / RSS after 1,000 + near tier", 1.1, 1.1, _memory, at_most=True),
)


def judge(sections: Sections) -> list[Verdict]:
    return [bar.judge(sections) for bar in BARS]


def verdict_table(verdicts: list[Verdict]) -> str:
    rows = [("bar", "at", "aim", "measured", ""), *map(_row, verdicts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:4], widths[1:4]), row[4])) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(verdict: Verdict) -> tuple[str, ...]:
    sign = "<=" if verdict.at_most else ">="
    measured = "-" if verdict.measured is None else _number(verdict.measured)
    return verdict.name, f"{sign} {_number(verdict.bar)}", f"{sign} {_number(verdict.aim)}", measured, verdict.words


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
