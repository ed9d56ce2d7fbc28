"""Starting what a load run needs on free loopback ports, and stopping exactly that again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0
STOP_SECONDS = 40.0


class LoadError(Exception):
    """The run could not be made; the text is for the person who asked for it."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without its own settings of the edge, so that a run measures what its arguments say."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DATA_BROKER_")}  # noqa: TID251 - not settings
    return {**inherited, **extra}


def python(*words: str, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A child of this interpreter, in the checkout, its output on this process's stderr."""
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=child_environment(extra or {}), stdout=2)


@contextmanager
def served(words: Sequence[str], ready_url: str, extra: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`python words` while the block runs, entered once `ready_url` answers 200. Raises `LoadError` where it never does."""
    child = python(*words, extra=extra)
    try:
        _wait_until_ready(child, ready_url)
        yield child
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM and wait; a child that outstays its time is killed."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _wait_until_ready(child: subprocess.Popen[bytes], url: str) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        if child.poll() is not None:
            raise LoadError(f"a server ended with exit code {child.returncode} before it was ready; its output is above")
        if answers(url):
            return
        time.sleep(0.05)
    raise LoadError(f"a server was not ready within {START_SECONDS:.0f} s")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its living children."""
    parent = psutil.Process(pid)
    total = 0.0
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
