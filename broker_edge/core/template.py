"""Templates: holes parsed once per spec, filled per request that goes upstream; a value is never read as a template again.

Jinja2's parser reads the text and nothing else of Jinja2 is used: rendering would run filters, calls and arithmetic that
a caller chose, and would turn a missing name into nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from jinja2 import Environment, TemplateError, nodes

from broker_edge.core.holes import VALUE_TYPES, Hole, Template, ValueType
from broker_edge.errors import CallerError

TEXT_LIMIT: Final = 65_536
NAME_LIMIT: Final = 255
# Callers send these beside the variables for `source.auth`; a template that could read them would send them anywhere.
RESERVED: Final = frozenset({"CLIENT_ID", "CLIENT_SECRET", "USERNAME", "PASSWORD"})

_ALLOWED: Final = 'only {{ name }}, {{ env.name }} and {{ "text" }} are allowed'
_OPENINGS: Final = ("{{", "{%", "{#")
_PARSER: Final = Environment(autoescape=True, keep_trailing_newline=True)
_TOKENS: Final = {"block_begin": "a block", "raw_begin": "a raw block", "comment_begin": "a comment"}
_TOKENS_LIMIT: Final = 20_000
_NODES: Final[tuple[tuple[type[nodes.Node], str], ...]] = (
    (nodes.Filter, "a filter"),
    (nodes.Test, "a test"),
    (nodes.Call, "a call"),
    (nodes.Getattr, "an attribute walk"),
    (nodes.Getitem, "an item access"),
    (nodes.CondExpr, "a condition"),
    (nodes.Const, "a constant that is no text"),
    (nodes.Literal, "a list, tuple or mapping"),
    (nodes.Expr, "an operator"),
)
# Jinja2 turns every CR LF into LF. A CR travels through its parser as a space character that the text does not use.
_CR_STAND_INS: Final = "\x1c\x1d\x1e\x1f\x0b\x0c\x85\u2028\u2029"


def invalid(member: str, what: str) -> CallerError:
    """INVALID_DATA_SOURCE about one member: `what` continues the sentence and holds no value."""
    return CallerError("INVALID_DATA_SOURCE", f"{member} {what}")


def rejected(member: str, what: str) -> CallerError:
    return CallerError("TEMPLATE_REJECTED", f"{member} {what}")


def parse_template(text: str, member: str, *, limit: int | None = TEXT_LIMIT) -> Template:
    """Text with holes, compiled. Raises `CallerError`: TEMPLATE_REJECTED, or INVALID_DATA_SOURCE over `limit` characters."""
    if limit is not None and len(text) > limit:
        raise invalid(member, f"must be at most {limit} characters long")
    if not any(opening in text for opening in _OPENINGS):
        return Template((text,) if text else ())
    stand_in = next((char for char in _CR_STAND_INS if char not in text), None)
    if stand_in is None:
        raise rejected(member, "mixes too many kinds of line separators")
    parts = _parse(text.replace("\r", stand_in), member)
    restored = (part.replace(stand_in, "\r") if isinstance(part, str) else part for part in parts)
    return Template(_merged(restored, member))


def hole_object(raw: Any, member: str) -> Hole | None:
    """The hole that `{"param": name, "value_type": ...}` or `{"env": name}`, with exactly those members, stands for."""
    if not isinstance(raw, dict):
        return None
    if isinstance(raw.get("env"), str) and len(raw) == 1:
        return _hole(raw["env"], True, member)
    if isinstance(raw.get("param"), str) and raw.keys() <= {"param", "value_type"}:
        return _hole(raw["param"], False, member, _value_type(raw.get("value_type"), member))
    return None


def parse_scalar(raw: Any, member: str) -> Template:
    """A member that becomes text: a string template, number, boolean or hole object. Raises `CallerError`."""
    if isinstance(raw, str):
        return parse_template(raw, member)
    if isinstance(raw, bool):
        return Template(("true" if raw else "false",))
    if isinstance(raw, int | float):
        return Template((repr(raw),))
    hole = hole_object(raw, member)
    if hole is None:
        raise invalid(member, 'must be text, a number, a boolean, {"param": name} or {"env": name}')
    return Template((hole,))


def refuse_template_name(name: str, member: str) -> None:
    """Names are sent as they are; one that looks like a template was meant as one, which costs money for nothing."""
    if any(opening in name for opening in _OPENINGS):
        raise rejected(member, "has a member whose name holds a template; only values may")


def _parse(text: str, member: str) -> Iterator[str | Hole]:
    try:
        # The syntax tree no longer shows comments and raw blocks; the tokens do. They come one by one.
        tokens = list(islice(_PARSER.lex(text), _TOKENS_LIMIT + 1))
        kinds = {kind for _, kind, _ in tokens}
        if len(tokens) > _TOKENS_LIMIT:
            raise rejected(member, "is too long a template")
        tree = _PARSER.parse(text) if kinds.isdisjoint(_TOKENS) else nodes.Template([])
    except (TemplateError, RecursionError, ValueError, OverflowError):  # ValueError: an integer of over 4,300 digits
        raise rejected(member, f"is not a valid template; {_ALLOWED}") from None
    for kind in sorted(kinds & _TOKENS.keys()):
        raise rejected(member, f"holds {_TOKENS[kind]}; {_ALLOWED}")
    for output in tree.body:
        for node in output.iter_child_nodes():
            yield _part(node, member)


def _part(node: nodes.Node, member: str) -> str | Hole:
    match node:
        case nodes.TemplateData(data=data):
            return data
        case nodes.Const(value=str(text)):
            return text
        case nodes.Name(name=name):
            return _hole(name, False, member)
        case nodes.Getattr(node=nodes.Name(name="env"), attr=name):
            return _hole(name, True, member)
    what = next((words for kind, words in _NODES if isinstance(node, kind)), "an expression")
    raise rejected(member, f"holds {what}; {_ALLOWED}")


def _hole(name: str, env_only: bool, member: str, value_type: ValueType = "auto") -> Hole:
    if name in RESERVED:
        raise rejected(member, f"names {name}, which is never a template variable")
    if not name or len(name) > NAME_LIMIT:
        raise rejected(member, f"must name a variable in 1 to {NAME_LIMIT} characters")
    return Hole(name, env_only, member, value_type)


def _value_type(raw: Any, member: str) -> ValueType:
    for value_type in VALUE_TYPES:
        if raw == value_type:
            return value_type
    if raw is None:
        return "auto"
    raise invalid(f"{member}.value_type", "must be auto, str, int or float")


def _merged(parts: Iterable[str | Hole], member: str) -> tuple[str | Hole, ...]:
    merged: list[str | Hole] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part:
            merged.append(part)
    if any(isinstance(part, str) and any("\ud800" <= char <= "\udfff" for char in part) for part in merged):
        raise rejected(member, "holds half a surrogate pair, which is no character")
    return tuple(merged)
