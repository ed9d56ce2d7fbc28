"""`make bench-check`: the hit path's CPU over the floor's, in one run, against the ratio that was accepted last."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loadtests.figures import Section
from loadtests.rig import Rig
from loadtests.rounds import Entry, Plan, Progress, play
from loadtests.sections import EDGE, FLOOR, HIT

BASELINE = Path(__file__).with_name("baseline.json")
MARGIN = 0.15
ROUNDS = 9
SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """`ratio` is CPU of a hit over CPU of the floor; a run may be `margin` worse, as a share of it."""

    ratio: float
    margin: float

    @property
    def limit(self) -> float:
        return self.ratio * (1 + self.margin)

    @staticmethod
    def read(path: Path = BASELINE) -> Baseline:
        return Baseline(**json.loads(path.read_text()))

    def write(self, path: Path = BASELINE) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n")


def ratios(section: Section) -> list[float]:
    """Of each round: the two were driven one after the other, so what disturbed the one likely met the other."""
    ours, floor = section.line(EDGE.label), section.line(FLOOR.label)
    if ours is None or floor is None:
        raise ValueError("a section without the edge or the floor")
    return [mine.cpu_us / least.cpu_us for mine, least in zip(ours.samples, floor.samples, strict=True)]


def measure(rig: Rig, progress: Progress, rounds: int = ROUNDS, seconds: float = SECONDS) -> Section:
    entries = (Entry(FLOOR.label, FLOOR, HIT), Entry(EDGE.label, EDGE, HIT))
    return play(rig, replace(Plan("check", "CPU of a hit and of the floor", entries), rounds=rounds, seconds=seconds), progress)


def verdict(found: Sequence[float], baseline: Baseline) -> tuple[bool, str]:
    """Whether speed was kept, and a sentence."""
    median = statistics.median(found)
    numbers = (
        f"a hit costs {median:.2f} times the floor's CPU (rounds {min(found):.2f} to {max(found):.2f}); "
        f"accepted {baseline.ratio:.2f} + {baseline.margin:.0%} = {baseline.limit:.2f}"
    )
    return median <= baseline.limit, numbers


def accepted(found: Sequence[float], margin: float = MARGIN) -> Baseline:
    """The baseline that these rounds become."""
    return Baseline(round(statistics.median(found), 3), margin)
