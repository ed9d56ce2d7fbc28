"""Who takes part: each is started on the server's core, warmed, asked once to see that its answer is right, then driven."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from loadtests.bodies import Drive
from loadtests.rig import Rig

Fault = str | None


def nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Running:
    """A competitor that answers.

    `body` is the template of its requests, `warm` puts the keys of a drive where its hits come from, `fault` says what is wrong
    with an answer to a key (None: nothing), `settle` returns when the work it does behind its answers is done, and `hits`, where
    the competitor counts them itself, answers how many of its answers came from the cache so far.
    """

    port: int
    process: psutil.Process
    body: Callable[[Drive], str]
    warm: Callable[[Drive], None]
    fault: Callable[[Drive, int, dict[str, Any]], Fault]
    settle: Callable[[], None] = nothing
    hits: Callable[[], float] | None = None


class Competitor(Protocol):
    """Comparable by value: lines of a section that name equal ones share one that runs."""

    @property
    def label(self) -> str: ...

    def start(self, rig: Rig) -> AbstractContextManager[Running]: ...


class LeftOut(Exception):
    """This competitor can't take part on this machine; the text says why and what would change it."""
