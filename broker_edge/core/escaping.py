"""How a value stands inside a text body: one escape per place, so that a value adds nothing but itself to a document.

The place is found once per spec, from the literal text before the hole; the escape runs per request that goes upstream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import msgspec

from broker_edge.core.holes import Hole, Template, scalar_text
from broker_edge.core.template import rejected

Escape = Callable[[Hole, Any], str]

# What XML 1.0 section 2.2 does not let a document carry, not even as a character reference.
_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Line ends and tabs as references: raw ones would be normalised (sections 2.11 and 3.3.3), and would add lines.
_XML_REFERENCES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;", "\r": "&#13;", "\n": "&#10;", "\t": "&#9;"}
)
# JSON has no backslash outside of strings.
_JSON_ESCAPE: Final = re.compile(r"\\.", re.DOTALL)
_CDATA_START: Final = "<![CDATA["
_CDATA_SPLIT: Final = "]]><![CDATA["
_XML_OPENING: Final = re.compile(r"<!--|<!\[CDATA\[|<\?")
_XML_CLOSING: Final = {"<!--": "-->", _CDATA_START: "]]>", "<?": "?>"}


def escape_for(media_type: str) -> str:
    """The family whose escapes apply to a media type: xml, json, form or plain."""
    lowered = media_type.lower()
    if lowered.startswith("application/x-www-form-urlencoded"):
        return "form"
    return next((family for family in ("xml", "json") if family in lowered), "plain")


def placed(template: Template, family: str, member: str) -> tuple[str | tuple[Hole, Escape], ...]:
    """The template's parts, each hole with the escape for its place. Raises `CallerError` TEMPLATE_REJECTED."""
    return tuple(_FAMILIES[family](template, member))


def encode_json(value: Any, refuse: Callable[[str], Any]) -> bytes:
    """Compact UTF-8 JSON, integers exact; calls `refuse` with a reason for what JSON can't carry."""
    try:
        return msgspec.json.encode(value)
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError):
        raise refuse("it can't be written as JSON") from None


def _all_with(escape: Escape) -> Callable[[Template, str], Iterator[str | tuple[Hole, Escape]]]:
    def places(template: Template, _member: str) -> Iterator[str | tuple[Hole, Escape]]:
        for part in template.parts:
            yield part if isinstance(part, str) else (part, escape)

    return places


def _json_places(template: Template, member: str) -> Iterator[str | tuple[Hole, Escape]]:
    quoted = False
    for part in template.parts:
        if isinstance(part, Hole):
            yield part, _in_json_string if quoted else _as_json
            continue
        bare = _JSON_ESCAPE.sub("", part)
        if bare.endswith("\\"):
            raise rejected(member, "must not hold a variable behind a backslash")
        quoted ^= bare.count('"') % 2 == 1
        yield part


def _xml_places(template: Template, _member: str) -> Iterator[str | tuple[Hole, Escape]]:
    state = ""
    for part in template.parts:
        if isinstance(part, Hole):
            yield part, _in_cdata if state == _CDATA_START else _in_xml
        else:
            state = _xml_state(part, state)
            yield part


def _xml_state(text: str, state: str) -> str:
    """Which of comment, CDATA section and processing instruction is open behind `text`, by its opening; none is empty."""
    position = 0
    while True:
        if state:
            found = text.find(_XML_CLOSING[state], position)
            if found < 0:
                return state
            position, state = found + len(_XML_CLOSING[state]), ""
        opening = _XML_OPENING.search(text, position)
        if opening is None:
            return ""
        position, state = opening.end(), opening[0]


def _plain(hole: Hole, value: Any) -> str:
    text = scalar_text(hole, value)
    if any(char in text for char in "\r\n\x00"):
        hole.refuse("it holds a line end or NUL, and the body's content type has no escape for them")
    return text


def _in_form(hole: Hole, value: Any) -> str:
    return quote(scalar_text(hole, value), safe="")


def _in_json_string(hole: Hole, value: Any) -> str:
    text = scalar_text(hole, value)
    return encode_json(text, hole.refuse).decode()[1:-1]


def _as_json(hole: Hole, value: Any) -> str:
    """Outside quotes a value is a whole JSON value, text with its quotes: unquoted it could add members."""
    return encode_json(value, hole.refuse).decode()


def _in_xml(hole: Hole, value: Any) -> str:
    return _xml_text(hole, value).translate(_XML_REFERENCES)


def _in_cdata(hole: Hole, value: Any) -> str:
    """A CDATA section has no references: it is closed for line ends, and around what could close it with its neighbours."""
    text = _xml_text(hole, value)
    # Nothing at all lets the literal text on both sides meet.
    if not text or "]" in text or ">" in text:
        text = _CDATA_SPLIT + text.replace("]]>", f"]]{_CDATA_SPLIT}>") + _CDATA_SPLIT
    return text.replace("\r", f"]]>&#13;{_CDATA_START}").replace("\n", f"]]>&#10;{_CDATA_START}")


def _xml_text(hole: Hole, value: Any) -> str:
    text = scalar_text(hole, value)
    if _NOT_XML.search(text):
        hole.refuse("it holds a character that XML can't carry")
    return text


_FAMILIES: Final = {"xml": _xml_places, "json": _json_places, "form": _all_with(_in_form), "plain": _all_with(_plain)}
