"""The predecessor's broker, from its published package, in a Python 3.12 environment of its own, on the run's Postgres."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bodies import KEY, Drive, filled
from loadtests.competitors import LeftOut, Running
from loadtests.competitors.answers import fault
from loadtests.machine import launched, listens
from loadtests.processes import ROOT, free_port
from loadtests.rig import Rig
from loadtests.wire import post_all

VERSION = "0.1.0.dev20251126200800"
HOME = ROOT / ".venv-predecessor"
_APP = Path(__file__).with_name("predecessor_app.py")
_RUN_ID = "7d1c2b3a-0000-4000-8000-000000000001"
_BESIDE = (
    f"vulkanlabs-vulkan=={VERSION} sqlalchemy psycopg[binary] pandas structlog requests redis pydantic-settings asyncpg "
    "cryptography alembic greenlet fastapi uvicorn[standard]"
).split()


@dataclass(frozen=True, slots=True)
class Predecessor:
    label: str = "predecessor"

    @contextmanager
    def start(self, rig: Rig) -> Iterator[Running]:
        python, port = environment(), free_port()
        database = rig.postgres.create().replace("postgresql://", "postgresql+psycopg://")
        words = (str(python), "-W", "ignore", str(_APP), str(port), database, f"{rig.upstream(Drive())}/v/1k")
        with launched(words, listens(port), cores=rig.cores.server, output=rig.file("predecessor.log")) as process:
            yield Running(port, process, _body, lambda drive: _warm(port, drive), fault)


def _body(drive: Drive) -> str:
    del drive
    asked = {"data_source_name": "bureau", "configured_params": {"tax_id": KEY}, "run_id": _RUN_ID}
    return json.dumps(asked, separators=(",", ":"))


def _warm(port: int, drive: Drive) -> None:
    post_all(port, (filled(_body(drive), key) for key in range(drive.keys)))


def environment() -> Path:
    """Its Python, made once and kept. Raises `LeftOut` where that can't be done here."""
    python, mark = HOME / "bin" / "python", HOME / ".installed"
    if mark.exists() and mark.read_text() == VERSION:
        return python
    found = python312()
    if found is None:
        raise LeftOut("it needs Python 3.12, which is not installed")
    install = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python))
    _run((sys.executable, "-m", "uv", "venv", "--quiet", "--clear", "--python", found, str(HOME)))
    _run((*install, "--no-deps", f"vulkanlabs-vulkan-engine=={VERSION}"))  # others of its requirements are published nowhere
    _run((*install, *_BESIDE))
    mark.write_text(VERSION)
    return python


def _run(words: Sequence[str]) -> None:
    if subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode != 0:
        raise LeftOut("its environment could not be installed")


def python312() -> str | None:
    """A Python 3.12 that starts: a shim of a version manager may be there without one behind it."""
    candidates = [shutil.which("python3.12"), *map(str, sorted(Path.home().glob(".pyenv/versions/3.12.*/bin/python")))]
    for candidate in filter(None, candidates):
        if subprocess.run((candidate, "--version"), capture_output=True, check=False).returncode == 0:
            return candidate
    return None
