"""Driving one competitor once: wrk (or the open-loop generator) against it, its CPU and memory read around the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from loadtests.bodies import Drive, filled
from loadtests.competitors import Running
from loadtests.figures import Sample
from loadtests.machine import cpu_of, finished, python, rss_of
from loadtests.processes import LoadError
from loadtests.rig import Rig
from loadtests.wire import PATH, post

SHARES = {"hit": 1.0, "mixed": 0.6, "miss": 0.0}  # of the answers that come from the cache
_ODD = 5  # a mixed run need not end with a whole turn
_SCRIPT = Path(__file__).with_name("wrk.lua")
_MARK = "@json "


def drive_once(rig: Rig, running: Running, drive: Drive, seconds: float) -> Sample:
    """One run of `seconds`; the CPU of the work that is done behind the answers is counted, its time is not."""
    template = rig.file("body.json")
    template.write_text(running.body(drive))
    words = _offered(running, drive, seconds, template, rig) if drive.rate else _wrk(running, drive, seconds, template, rig)
    hits = running.hits() if running.hits else 0.0
    before = cpu_of(running.process)
    said = read(finished(words, "the load generator"))
    during = cpu_of(running.process) - before
    running.settle()
    cpu = cpu_of(running.process) - before
    requests = int(said["requests"])
    strays = astray(drive, requests, running.hits() - hits) if running.hits else 0
    return Sample(
        requests=requests,
        seconds=said["seconds"],
        errors=int(said["errors"]) + strays,
        p50_ms=said["p50"],
        p95_ms=said["p95"],
        p99_ms=said["p99"],
        cpu_us=cpu / requests * 1e6 if requests else 0.0,
        busy=during / said["seconds"],
        rss_mb=rss_of(running.process) / 2**20,
        late_ms=said.get("late_p99", 0.0),
    )


def astray(drive: Drive, requests: int, hits: float) -> int:
    """How many answers came from elsewhere than the drive means, beyond those still under way when the generator stopped."""
    return max(0, round(abs(hits - SHARES[drive.kind] * requests)) - drive.connections - _ODD)


def read(output: str) -> dict[str, Any]:
    """The one line of JSON that a generator prints. Raises `LoadError` where there is none."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    raise LoadError("the load generator left no counts")


def _wrk(running: Running, drive: Drive, seconds: float, template: Path, rig: Rig) -> list[str]:
    binary = shutil.which("wrk")
    if binary is None:
        raise LoadError("wrk is missing: see `make bench`")
    size = ("-t1", f"-c{drive.connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s")
    return [binary, *size, "-s", str(_SCRIPT), f"http://127.0.0.1:{running.port}{PATH}", "--", *_script(drive, template, rig)]


def _offered(running: Running, drive: Drive, seconds: float, template: Path, rig: Rig) -> list[str]:
    size = (str(running.port), str(drive.rate), str(seconds), str(drive.connections))
    return [*python("-m", "loadtests.offered"), *size, str(template), str(drive.keys)]


def _script(drive: Drive, template: Path, rig: Rig) -> tuple[str, ...]:
    return (str(template), drive.kind, str(drive.keys), str(rig.new_keys()))


def check(rig: Rig, running: Running, drive: Drive, label: str) -> None:
    """One request whose answer is read: nobody is measured for wrong answers. Raises `LoadError`."""
    key = rig.new_keys() if drive.kind == "miss" else drive.keys - 1
    try:
        wrong = running.fault(drive, key, json.loads(post(running.port, filled(running.body(drive), key))))
    except LoadError as error:
        wrong = str(error)
    except (ValueError, KeyError, TypeError) as error:
        wrong = f"the reply can't be read ({type(error).__name__})"
    if wrong:
        raise LoadError(f"{label} answers wrongly: {wrong}")
