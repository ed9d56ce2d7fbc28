"""uvicorn with nothing behind it, on the same event loop and parser as the edge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loadtests.bodies import Drive, body
from loadtests.competitors import Running
from loadtests.competitors.answers import envelope
from loadtests.machine import launched, listens, python
from loadtests.processes import free_port
from loadtests.rig import SIZES, Rig


@dataclass(frozen=True, slots=True)
class Floor:
    size: str = "1k"
    label: str = "floor: uvicorn, constant bytes"

    @contextmanager
    def start(self, rig: Rig) -> Iterator[Running]:
        port, answer = free_port(), rig.file(f"floor-{self.size}.json")
        answer.write_bytes(envelope(Drive(value=self.size), 0))
        words = python("-m", "loadtests.competitors.floor_app", str(port), str(answer))
        with launched(words, listens(port), cores=rig.cores.server, output=rig.file("floor.log")) as process:
            yield Running(port, process, lambda drive: body(drive, rig.upstream(drive)), lambda _: None, self._fault)

    def _fault(self, _: Drive, key: int, answer: dict[str, Any]) -> str | None:
        del key
        return None if len(answer["value"]["pad"]) == SIZES[self.size] else "the constant is not of this size"
