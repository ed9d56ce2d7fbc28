"""Request bodies: compiled per spec into JSON trees or texts, rendered into bytes with their default content type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from broker_edge.core.escaping import Escape, encode_json, escape_for, placed
from broker_edge.core.holes import Hole, Scope, Template, scalar_text
from broker_edge.core.template import hole_object, invalid, parse_template, refuse_template_name
from broker_edge.errors import CallerError

BODY_LIMIT: Final = 10 * 1024 * 1024
DEPTH_LIMIT: Final = 100
JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
XML_TYPE: Final = "text/xml; charset=utf-8"

_CHARSET: Final = re.compile(r';[ \t]*charset="?([^";\s]+)', re.IGNORECASE)
# Character sets that encode each part of a text by itself: no UTF-16 (one byte-order mark for the whole), no shift states.
# Python also knows codecs that are no character sets at all (idna, unicode_escape).
_CODECS: Final = {
    **dict.fromkeys(("utf-8", "utf8"), "utf_8"),
    **dict.fromkeys(("us-ascii", "ascii"), "ascii"),
    **dict.fromkeys(("iso-8859-1", "latin1", "latin-1"), "latin_1"),
    **{f"iso-8859-{part}": f"iso8859_{part}" for part in (*range(2, 12), *range(13, 17))},
    **{f"windows-{page}": f"cp{page}" for page in range(1250, 1259)},
    **{name: name.replace("-", "_") for name in ("gbk", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr", "koi8-r")},
}


class RenderedBody(NamedTuple):
    """What is sent, None for nothing, and the content type where the spec names none."""

    content: bytes | None
    content_type: str


@dataclass(frozen=True, slots=True)
class JsonBody:
    """An object or array; its tree holds `Template`s where there are holes, plain JSON everywhere else."""

    member: str
    tree: Any
    holes: tuple[Hole, ...]

    def render(self, scope: Scope) -> RenderedBody:
        tree = _fill(self.tree, scope)
        content = encode_json(tree, lambda why: CallerError("INVALID_VALUE", f"A value can't stand in {self.member}: {why}"))
        return RenderedBody(_bounded(content, self.member), JSON_TYPE)


@dataclass(frozen=True, slots=True)
class ValueBody:
    """A body that is one hole: text is sent as it is, for there is nothing around it that it could break out of."""

    member: str
    hole: Hole
    codec: str
    content_type: str
    as_json: bool

    @property
    def holes(self) -> tuple[Hole, ...]:
        return (self.hole,)

    def render(self, scope: Scope) -> RenderedBody:
        value = self.hole.value(scope)
        if value is None:
            return RenderedBody(None, self.content_type)
        if isinstance(value, dict | list) and self.as_json:
            return RenderedBody(_bounded(encode_json(value, self.hole.refuse), self.member), JSON_TYPE)
        return RenderedBody(
            _bounded(_encode(scalar_text(self.hole, value), self.codec, self.hole), self.member), self.content_type
        )


@dataclass(frozen=True, slots=True)
class TextBody:
    """Literal text with holes, each escaped for its place in the spec's content type."""

    member: str
    parts: tuple[bytes | tuple[Hole, Escape], ...]
    codec: str
    content_type: str

    @property
    def holes(self) -> tuple[Hole, ...]:
        return tuple(part[0] for part in self.parts if isinstance(part, tuple))

    def render(self, scope: Scope) -> RenderedBody:
        return RenderedBody(_bounded(b"".join(self._chunks(scope)), self.member), self.content_type)

    def _chunks(self, scope: Scope) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                hole, escape = part
                yield _encode(escape(hole, hole.value(scope)), self.codec, hole)


Body = JsonBody | ValueBody | TextBody


def compile_body(raw: Any, content_type: Template | None, member: str) -> Body | None:
    """Compile a spec's body. `content_type` is the spec's own header, None where it has none.

    Null, {} and "" are no body. Raises `CallerError` INVALID_DATA_SOURCE or TEMPLATE_REJECTED.
    """
    if raw is None or raw in ({}, ""):
        return None
    xml = raw.get("xml") if isinstance(raw, dict) and len(raw) == 1 else None
    if isinstance(xml, str) or hole_object(xml, f"{member}.xml"):
        return _compile_text(xml, content_type or Template((XML_TYPE,)), f"{member}.xml")
    if isinstance(raw, str) or hole_object(raw, member):
        return _compile_text(raw, content_type or Template((TEXT_TYPE,)), member)
    if not isinstance(raw, dict | list):
        raise invalid(member, "must be an object, an array, text or null")
    holes: list[Hole] = []
    return JsonBody(member, _compile_tree(raw, member, holes, DEPTH_LIMIT), tuple(holes))


def _compile_text(raw: Any, content_type: Template, member: str) -> Body | None:
    template = _template(raw, member)
    if template.holes and content_type.holes:
        raise invalid(member, "must not hold variables beside a Content-Type that holds variables")
    media_type = "".join(content_type.literals)
    family = escape_for(media_type)
    codec = "utf_8" if content_type.holes else _codec(media_type, member)
    if template.hole is not None:
        return ValueBody(member, template.hole, codec, media_type, family != "xml")
    parts = placed(template, family, member)
    encoded = tuple(_literal(part, codec, member) if isinstance(part, str) else part for part in parts)
    return TextBody(member, encoded, codec, media_type) if encoded else None


def _template(raw: Any, member: str) -> Template:
    if isinstance(raw, str):
        return parse_template(raw, member, limit=None)
    hole = hole_object(raw, member)
    return Template((hole,)) if hole else Template(())


def _compile_tree(raw: Any, member: str, holes: list[Hole], depth: int) -> Any:
    if depth < 0:
        raise invalid(member.partition("body")[0] + "body", f"must be nested at most {DEPTH_LIMIT} levels deep")
    if isinstance(raw, list):
        return [_compile_tree(item, f"{member}[{index}]", holes, depth - 1) for index, item in enumerate(raw)]
    if isinstance(raw, dict) and not hole_object(raw, member):
        for name in raw:
            refuse_template_name(name, member)
        return {name: _compile_tree(item, f"{member}.{name}", holes, depth - 1) for name, item in raw.items()}
    if not isinstance(raw, str | dict):
        return raw
    template = _template(raw, member)
    holes.extend(template.holes)
    return template if template.holes else "".join(template.literals)


def _fill(node: Any, scope: Scope) -> Any:
    match node:
        case Template():
            return node.fill(scope) if node.hole is None else node.hole.value(scope)
        case dict():
            return {name: _fill(item, scope) for name, item in node.items()}
        case list():
            return [_fill(item, scope) for item in node]
    return node


def _codec(media_type: str, member: str) -> str:
    charset = _CHARSET.search(media_type)
    if charset is None:
        return "utf_8"
    if charset[1].lower() not in _CODECS:
        raise invalid(member, "can't be sent: the charset of its Content-Type is not known")
    return _CODECS[charset[1].lower()]


def _literal(text: str, codec: str, member: str) -> bytes:
    try:
        return text.encode(codec)
    except UnicodeEncodeError:
        raise invalid(member, "holds a character that the charset of its Content-Type lacks") from None


def _encode(text: str, codec: str, hole: Hole) -> bytes:
    try:
        return text.encode(codec)
    except UnicodeEncodeError:
        hole.refuse("it holds a character that the charset of the Content-Type lacks")


def _bounded(content: bytes, member: str) -> bytes:
    if len(content) > BODY_LIMIT:
        raise CallerError("INVALID_VALUE", f"{member} is over {BODY_LIMIT} bytes once filled")
    return content
