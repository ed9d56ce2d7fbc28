"""FastAPI with models and redis-py, one worker, access log off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loadtests.bodies import body
from loadtests.competitors import Running
from loadtests.competitors.answers import fault, fill_redis
from loadtests.machine import launched, listens, python
from loadtests.processes import free_port
from loadtests.rig import Rig


@dataclass(frozen=True, slots=True)
class Idiomatic:
    label: str = "FastAPI, models, redis-py"

    @contextmanager
    def start(self, rig: Rig) -> Iterator[Running]:
        port = free_port()
        words = python("-m", "loadtests.competitors.fastapi_app", str(port), str(rig.redis_port))
        with launched(words, listens(port), cores=rig.cores.server, output=rig.file("fastapi.log")) as process:
            yield Running(
                port, process, lambda drive: body(drive, rig.upstream(drive)), lambda drive: fill_redis(rig, drive), fault
            )
