"""`make bench`: competitors in turn on one core, wrk on the other; tables, a JSON file and a picture.

    python -m loadtests.bench --quick
    python -m loadtests.bench --only hit,near --rounds 7 --seconds 4
    python -m loadtests.bench --check

Exit codes: 0 done, 1 the run could not be made, answers were wrong or speed was lost, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loadtests import guard, tools
from loadtests.bars import judge, verdict_table
from loadtests.draw import draw
from loadtests.figures import Section, table
from loadtests.machine import described, divide, settle_in
from loadtests.processes import ROOT, LoadError
from loadtests.rig import Rig, built
from loadtests.rounds import Plan, play
from loadtests.sections import quick, sections

RESULTS = ROOT / "loadtests" / "results"
SETTINGS = "edge: LOG_LEVEL=WARNING, journal and metrics on, traces at 10% by OTLP, Redis and Postgres (fsync on), where not said"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description="Measures the edge beside its competitors.")
    known = ",".join(sections())
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="hits and misses within two minutes")
    what.add_argument("--only", metavar="SECTIONS", help=f"of {known}")
    what.add_argument("--check", action="store_true", help="compare the CPU of a hit over the floor's with the accepted ratio")
    parser.add_argument("--accept", action="store_true", help="with --check: make this run's ratio the accepted one")
    parser.add_argument("--rounds", type=_rounds, help="runs of each line")
    parser.add_argument("--seconds", type=_rounds, help="length of a run")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIRECTORY", help="where the report is put")
    parser.add_argument(
        "--edge", type=Path, default=ROOT, metavar="CHECKOUT", help="whose edge is measured; this one's if not given"
    )
    options = parser.parse_args(words)
    if options.accept and not options.check:
        parser.error("--accept goes with --check")
    options.plans = _chosen(parser, options)
    return options


def _rounds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 3600):
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 3600")
    return int(text)


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Plan]:
    known = quick() if options.quick else sections()
    names = options.only.split(",") if options.only else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no section {unknown[0]}; there are {', '.join(known)}")
    given = {name: value for name in ("rounds", "seconds") if (value := getattr(options, name)) is not None}
    return [replace(known[name], **given) for name in names]


def progress(text: str) -> None:
    """A line that is written over by the next, for a person who watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def bench(rig: Rig, options: argparse.Namespace) -> int:
    """Section by section; the report is written after each, so that a run that is stopped leaves what it has."""
    about = {**described(rig.cores), "redis": rig.redis_name, "settings": SETTINGS}
    print("\n".join(f"{name}: {text}" for name, text in about.items()))
    made: list[Section] = []
    for plan in options.plans:
        made.append(play(rig, plan, progress))
        progress("")
        print(f"\n{table(made[-1])}", flush=True)
        write(options.output, about, made)
    verdicts = judge({section.name: section for section in made})
    print(f"\n{verdict_table(verdicts)}")
    wrong = [f"{section.name}: {line.name}" for section in made for line in section.lines if line.errors]
    if wrong:
        print(f"\nFAILED: wrong or missing answers in {'; '.join(wrong)}")
    return 1 if wrong else 0


def write(directory: Path, about: dict[str, str], made: list[Section]) -> None:
    """bench.json, bench.txt, bench.png."""
    directory.mkdir(parents=True, exist_ok=True)
    verdicts = judge({section.name: section for section in made})
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "about": about,
        "sections": [section.as_json() for section in made],
        "bars": [verdict.as_json() for verdict in verdicts],
    }
    (directory / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    tables = [*map(table, made), verdict_table(verdicts)]
    (directory / "bench.txt").write_text("\n\n".join(tables) + "\n")
    draw(made, directory / "bench.png")


def check(rig: Rig, options: argparse.Namespace) -> int:
    section = guard.measure(rig, progress, options.rounds or guard.ROUNDS, options.seconds or guard.SECONDS)
    progress("")
    print(table(section))
    found = guard.ratios(section)
    if options.accept:
        guard.accepted(found).write()
    kept, sentence = guard.verdict(found, guard.Baseline.read())
    print(sentence if kept else f"LOST: {sentence}")
    return 0 if kept and not any(line.errors for line in section.lines) else 1


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    try:
        tools.ensure()
        cores = divide()
        settle_in(cores)
        with built(cores, options.edge.resolve()) as rig:
            return check(rig, options) if options.check else bench(rig, options)
    except LoadError as error:
        progress("")
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
