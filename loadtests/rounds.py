"""A section run: competitors started once, driven in turn, round after round, so that the machine's moods meet all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from loadtests.bodies import Drive
from loadtests.competitors import Competitor, LeftOut, Running
from loadtests.figures import Line, Sample, Section
from loadtests.rig import Rig
from loadtests.wrk import check, drive_once

WARM_SECONDS = 1.0
COVERED = 1.3  # the rate while warming up is not exact
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a table; with `cover` a run is long enough to ask for every key."""

    name: str
    competitor: Competitor
    drive: Drive
    cover: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A table to be made; `rounds` and `seconds` are of each line."""

    name: str
    title: str
    entries: tuple[Entry, ...]
    rounds: int = 5
    seconds: float = 3.0


def play(rig: Rig, plan: Plan, progress: Progress) -> Section:
    """Every line, over all rounds. Raises `LoadError` where a competitor answers wrongly."""
    with ExitStack() as stack:
        field = _Field(rig, stack)
        for entry in plan.entries:
            progress(f"{plan.name}: {entry.name} gets ready")
            field.admit(entry, plan.seconds)
        entries = [entry for entry in plan.entries if entry.name in field.seconds]
        samples: dict[str, list[Sample]] = {entry.name: [] for entry in entries}
        for number in range(plan.rounds):
            for entry in turned(entries, number):
                progress(f"{plan.name}: round {number + 1} of {plan.rounds}, {entry.name}")
                samples[entry.name].append(field.run(entry))
    lines = (Line(entry.name, tuple(samples.get(entry.name, ())), field.gone.get(entry.competitor)) for entry in plan.entries)
    return Section(plan.name, plan.title, tuple(lines))


def turned(entries: Sequence[Entry], number: int) -> list[Entry]:
    """Another one begins each round."""
    start = number % len(entries) if entries else 0
    return [*entries[start:], *entries[:start]]


def covering(entry: Entry, seconds: float, rate: float) -> float:
    """How long a run must be to ask for every key, where it must, at the `rate` seen while warming up."""
    return max(seconds, COVERED * entry.drive.keys / rate) if entry.cover and rate else seconds


class _Field:
    """Competitors that run; `gone` are left out and why, `seconds` the length of each line's runs."""

    def __init__(self, rig: Rig, stack: ExitStack) -> None:
        self._rig = rig
        self._stack = stack
        self._running: dict[Competitor, Running] = {}
        self._warm: set[tuple[Competitor, Drive]] = set()
        self.gone: dict[Competitor, str] = {}
        self.seconds: dict[str, float] = {}

    def admit(self, entry: Entry, seconds: float) -> None:
        """Start it unless it runs, warm it unless it is warm, look at one answer, and run it in."""
        who, keys = entry.competitor, (entry.competitor, entry.drive.warm())
        try:
            if who not in self._running and who not in self.gone:
                self._running[who] = self._stack.enter_context(who.start(self._rig))
        except LeftOut as reason:
            self.gone[who] = str(reason)
        if who in self.gone:
            return
        if keys not in self._warm:
            self._running[who].warm(entry.drive.warm())
            self._warm.add(keys)
        check(self._rig, self._running[who], entry.drive, entry.name)
        rate = drive_once(self._rig, self._running[who], entry.drive, WARM_SECONDS).rate
        self.seconds[entry.name] = covering(entry, seconds, rate)

    def run(self, entry: Entry) -> Sample:
        return drive_once(self._rig, self._running[entry.competitor], entry.drive, self.seconds[entry.name])
