"""The compiled form of templates: holes, the values that fill them, and what each value may become.

Values are checked when they are used, on the way upstream: a hit in the cache looks at none of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

import msgspec

from broker_edge.core.exchange import Variables
from broker_edge.errors import CallerError

ValueType = Literal["auto", "str", "int", "float"]
VALUE_TYPES: Final[tuple[ValueType, ...]] = ("auto", "str", "int", "float")

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,4000}")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?")
_INTEGER_BITS: Final = 13_288  # 4,000 digits: past 4,300 Python refuses to write an integer as text


class Scope(msgspec.Struct, frozen=True):
    """The values that one request fills holes with. Reserved env variables are unreachable: no hole may name them."""

    params: Variables
    env: Variables

    def __repr__(self) -> str:
        return "Scope()"


@dataclass(frozen=True, slots=True)
class Hole:
    """A place for one variable; `member` is the path of the spec's member that it stands in, as callers see it."""

    name: str
    env_only: bool
    member: str
    value_type: ValueType = "auto"

    @property
    def label(self) -> str:
        return f"env.{self.name}" if self.env_only else self.name

    def has_param(self, scope: Scope) -> bool:
        """True where the value comes from a configured parameter, the less trusted side."""
        return not self.env_only and self.name in scope.params

    def value(self, scope: Scope) -> Any:
        """The JSON value, converted to `value_type` (null stays null). Raises `CallerError` INVALID_VALUE."""
        value = (scope.params if self.has_param(scope) else scope.env)[self.name]
        _check(self, value)
        return value if value is None or self.value_type == "auto" else _CONVERSIONS[self.value_type](self, value)

    def text(self, scope: Scope) -> str:
        """The value as text; refuses null, objects and arrays."""
        return scalar_text(self, self.value(scope))

    def refuse(self, reason: str) -> NoReturn:
        raise CallerError("INVALID_VALUE", f"{self.label} can't stand in {self.member}: {reason}")


@dataclass(frozen=True, slots=True)
class Template:
    """Literal texts (never two in a row, never empty) and holes, in order.

    `hole` is the one of a template that is a hole and nothing else, which keeps the JSON type of its value; `text` is the whole
    of a template without holes. Both are looked for once: every request that goes upstream asks for them.
    """

    parts: tuple[str | Hole, ...]
    hole: Hole | None = field(init=False, repr=False, compare=False)
    holes: tuple[Hole, ...] = field(init=False, repr=False, compare=False)
    text: str | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        holes = tuple(part for part in self.parts if isinstance(part, Hole))
        object.__setattr__(self, "holes", holes)
        object.__setattr__(self, "hole", holes[0] if len(self.parts) == len(holes) == 1 else None)
        object.__setattr__(self, "text", None if holes else "".join(self.literals))

    @property
    def literals(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if isinstance(part, str))

    def fill(self, scope: Scope, escape: Callable[[str], str] = str) -> str:
        """The text with every hole's value passed through `escape`. Raises `CallerError` INVALID_VALUE."""
        if self.text is not None:
            return self.text
        if self.hole is not None:
            return escape(self.hole.text(scope))
        return "".join([part if isinstance(part, str) else escape(part.text(scope)) for part in self.parts])


def scalar_text(hole: Hole, value: Any) -> str:
    """A JSON scalar as text: booleans as in JSON, integers exact. Raises INVALID_VALUE for anything else."""
    _check(hole, value)
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return hole.refuse("null has no text" if value is None else "an object or array has no text")


def _check(hole: Hole, value: Any) -> None:
    if isinstance(value, str):
        try:
            if not value.isascii():
                value.encode()
        except UnicodeEncodeError:
            hole.refuse("it holds half a surrogate pair, which is no character")
    elif isinstance(value, float) and not math.isfinite(value):
        hole.refuse("it is not a finite number")
    elif isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
        hole.refuse("it is over 4,000 digits long")


def _to_int(hole: Hole, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return hole.refuse("it is not exactly an integer")


def _to_float(hole: Hole, value: Any) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        number = float(value) if value.bit_length() <= 1023 else math.inf
        return number if number == value else hole.refuse("it is not exactly a floating-point number")
    if isinstance(value, str) and _NUMBER.fullmatch(value) and math.isfinite(float(value)):
        return float(value)
    return hole.refuse("it is not a finite number")


_CONVERSIONS: Final[dict[ValueType, Callable[[Hole, Any], Any]]] = {
    "str": scalar_text,
    "int": _to_int,
    "float": _to_float,
}
