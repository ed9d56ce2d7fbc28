"""How a caller makes the sample bureau slow, failing, large, coded or cut: query parameters, read once per request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class BadKnob(ValueError):
    """A knob's value is outside what it takes; the text names the knob, never the value."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """One request's wishes. `status` alone answers with that status; beside a failure knob it is the failure's status (503)."""

    latency_ms: int = 0
    fail_rate: float = 0.0
    fail_first: int = 0
    status: int | None = None
    retry_after: int | None = None
    size: int = 0
    encoding: str | None = None
    truncate: bool = False
    auth: bool = False
    page: int = 1


def _whole(low: int, high: int) -> Callable[[str, str], int]:
    def read(name: str, text: str) -> int:
        # isdigit alone takes other scripts' digits, and int() takes signs, blanks and underscores
        if not (text.isascii() and text.isdigit() and len(text) < 12) or not low <= int(text) <= high:
            raise BadKnob(f"{name} must be a whole number from {low} to {high}.")
        return int(text)

    return read


def _share(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadKnob(f"{name} must be a number from 0 to 1.")
    return value


def _flag(name: str, text: str) -> bool:
    if text not in {"0", "1"}:
        raise BadKnob(f"{name} must be 0 or 1.")
    return text == "1"


def _coding(name: str, text: str) -> str:
    if text not in {"gzip", "br", "zstd", "deflate"}:
        raise BadKnob(f"{name} must be gzip, br, zstd or deflate.")
    return text


READERS: dict[str, Callable[[str, str], Any]] = {
    "latency_ms": _whole(0, 60_000),
    "fail_rate": _share,
    "fail_first": _whole(0, 1_000_000),
    "status": _whole(200, 599),
    "retry_after": _whole(0, 86_400),
    "size": _whole(0, 64 * 1024 * 1024),
    "encoding": _coding,
    "truncate": _flag,
    "auth": _flag,
    "page": _whole(1, 1_000_000),
}


def read_knobs(query: Mapping[str, str]) -> Knobs:
    """The knobs among `query`'s parameters; others are the endpoint's own and left alone. Raises `BadKnob`."""
    return Knobs(**{name: READERS[name](name, text) for name, text in query.items() if name in READERS})
