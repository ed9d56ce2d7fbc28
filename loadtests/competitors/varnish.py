"""Varnish with the body hashed. Every request of one key must be the same bytes for that, so the run id stays the same here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.bodies import DIGITS, RUN, Drive, body, filled
from loadtests.competitors import LeftOut, Running
from loadtests.machine import launched, listens
from loadtests.processes import free_port
from loadtests.rig import SIZES, Rig, filled_template
from loadtests.wire import post


@dataclass(frozen=True, slots=True)
class Varnish:
    label: str = "Varnish, body hashed, run id fixed"

    @contextmanager
    def start(self, rig: Rig) -> Iterator[Running]:
        binary = shutil.which("varnishd", path="/usr/bin:/usr/sbin:/usr/local/sbin")
        if binary is None:
            raise LeftOut("varnishd is not installed (Debian: varnish)")
        if not any(Path("/usr/lib").glob("*/varnish/vmods/libvmod_bodyaccess.so")):
            raise LeftOut("varnishd has no vmod bodyaccess (Debian: varnish-modules)")
        port, home = free_port(), rig.file("varnish")
        home.mkdir(exist_ok=True)
        config = filled_template(rig, "varnish.vcl", upstream_port=rig.upstream_port)
        words = (binary, "-F", "-j", "none", "-n", str(home), "-a", f"127.0.0.1:{port}", "-f", str(config), "-s", "malloc,512m")
        with launched(words, listens(port), cores=rig.cores.server, output=rig.file("varnish.log")) as process:
            yield Running(port, process, lambda drive: _body(rig, drive), lambda drive: _warm(rig, port, drive), _fault)


def _body(rig: Rig, drive: Drive) -> str:
    return body(drive, rig.upstream(drive)).replace(RUN, "0" * DIGITS)


def _warm(rig: Rig, port: int, drive: Drive) -> None:
    template = _body(rig, drive)
    for key in range(drive.keys):
        post(port, filled(template, key))


def _fault(drive: Drive, key: int, answer: dict[str, Any]) -> str | None:
    del key
    return None if len(answer["value"]["pad"]) == SIZES[drive.value] else "the value is not the upstream's"
