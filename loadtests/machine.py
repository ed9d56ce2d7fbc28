"""The machine under a benchmark: which core serves and which offers load, pinned child processes, what they cost."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.processes import ROOT, LoadError, child_environment, stop

START_SECONDS = 60.0
_TRACING = "OTEL_"


@dataclass(frozen=True, slots=True)
class Cores:
    """`server` is for the process that is measured, `load` for all others: generator, Redis, Postgres, upstream."""

    server: frozenset[int]
    load: frozenset[int]


def divide() -> Cores:
    """The last usable core for the server, the rest for the load. Raises `LoadError` where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise LoadError("two cores are needed: one for the server, one for the load")
    return Cores(frozenset(usable[-1:]), frozenset(usable[:-1]))


def settle_in(cores: Cores) -> None:
    """This process, and so every child that is not told otherwise, runs on the load's cores, with all descriptors it may have."""
    os.sched_setaffinity(0, cores.load)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def launched(
    words: Sequence[str],
    ready: Callable[[], bool],
    *,
    cores: frozenset[int],
    output: Path,
    extra: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Iterator[psutil.Process]:
    """`words` as a child pinned to `cores` while the block runs, entered once `ready` says so.

    Its output goes to the file `output`, whose end is shown where it fails to start.
    """
    with output.open("ab") as log:
        child = subprocess.Popen(words, cwd=cwd, env=environment(extra or {}), stdout=log, stderr=log, preexec_fn=_pin(cores))
    try:
        _wait(child, ready, output)
        yield psutil.Process(child.pid)
    finally:
        stop(child)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """`extra` over this process's environment without its settings of the edge and of tracing."""
    return {name: value for name, value in child_environment({}).items() if not name.startswith(_TRACING)} | dict(extra)


def finished(words: Sequence[str], what: str, extra: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Output of a child of this process's cores that must end well; `what` names it in the error."""
    done = subprocess.run(words, cwd=cwd, env=environment(extra or {}), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoadError(f"{what} ended with exit code {done.returncode}: {(done.stdout + done.stderr)[-800:]}")
    return done.stdout


def python(*words: str) -> tuple[str, ...]:
    return (sys.executable, *words)


def _pin(cores: frozenset[int]) -> Callable[[], None]:
    def before_exec() -> None:
        os.sched_setaffinity(0, cores)
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a benchmark that is killed leaves no server behind

    return before_exec


def _wait(child: subprocess.Popen[bytes], ready: Callable[[], bool], output: Path) -> None:
    limit = time.monotonic() + START_SECONDS
    while not ready():
        name = Path(str(child.args[0])).name  # type: ignore[index]
        if child.poll() is not None:
            raise LoadError(f"{name} ended with exit code {child.returncode}: {output.read_text(errors='replace')[-800:]}")
        if time.monotonic() > limit:
            raise LoadError(f"{name} was not ready within {START_SECONDS:.0f} s: {output.read_text(errors='replace')[-800:]}")
        time.sleep(0.05)


def listens(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    return ready


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def cpu_of(process: psutil.Process) -> float:
    """User and system seconds of a process, its threads and its living children."""
    total = 0.0
    for member in family(process):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def rss_of(process: psutil.Process) -> int:
    """Resident bytes of a process and its living children."""
    return sum(int(member.memory_info().rss) for member in family(process))


def described(cores: Cores) -> dict[str, str]:
    """What a reader of the numbers wants to know about where they come from."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": f"server on {sorted(cores.server)}, load, Redis, Postgres and upstream on {sorted(cores.load)}",
    }
