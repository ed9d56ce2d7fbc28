"""An upstream's decoded body to the UTF-8 JSON text of its value, once per answer; tiers keep the text, hits splice it.

JSON isn't rebuilt: its text is checked and passed on, so that every number stays as it was written.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import zip_longest

import orjson

from broker_edge.core import charsets, xml_format
from broker_edge.errors import UpstreamError

# The limit is the module's, not a reader's: one value for the process, set once. The body's own bound is what limits a field.
csv.field_size_limit(2**31 - 1)

# What the members of CSV rows may take in the value: names are written again for each row, so a wide header is an amplifier.
_ROOM = 1 << 20
_GROWTH = 32

# A whole string token; a string that is none, with all that follows; or a maximal run of number characters that is a number.
_ATOM = re.compile(
    rb'(?P<string>"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+")'
    rb'|(?P<faulty>"[\s\S]*)'
    rb"|(?<![0-9.eE+-])-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?![0-9.eE+-])"
)


def shape(body: bytes, response_type: str, content_type: str | None) -> bytes:
    """The value of `body` as UTF-8 JSON text; `response_type` is JSON, XML, CSV or PLAIN_TEXT; safe in any thread.

    Raises UpstreamError PARSE_ERROR with the place of the fault, never with a piece of the body, and UPSTREAM_TOO_LARGE where the
    value would be out of proportion to the body. Plain UTF-8 JSON is returned as the same object. An empty body is null, an empty
    list (CSV) or the empty string (PLAIN_TEXT).
    """
    return _SHAPES[response_type](body, content_type)


def _json(body: bytes, content_type: str | None) -> bytes:
    encoding = charsets.detect(body, content_type)
    plain = encoding == ("utf_8", 0)
    text = body if plain else charsets.decode(body, encoding).encode()
    if not text:
        return b"null"
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        if plain:
            charsets.decode(body, encoding)
        _second_opinion(text)
    return text


def _second_opinion(text: bytes) -> None:
    """Raises unless `text`, known to be UTF-8, is JSON by RFC 8259, at most 1024 levels deep.

    orjson also refuses valid JSON: numbers beyond a double (1e400) and escapes of lone surrogates. So it is asked again with
    every valid string and number replaced by an empty string and a zero. They are atoms of the grammar, and blanks up to their
    old length keep the places of faults; the first string that is faulty is left as it is with everything behind it.
    """
    try:
        orjson.loads(_ATOM.sub(_blank, text))
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UpstreamError("PARSE_ERROR", f"The body is not JSON of at most 1024 levels: {place}") from None


def _blank(atom: re.Match[bytes]) -> bytes:
    if atom.lastgroup == "faulty":
        return atom[0]
    return (b'""' if atom.lastgroup == "string" else b"0").ljust(len(atom[0]))


def _xml(body: bytes, content_type: str | None) -> bytes:
    text = charsets.decode(body, charsets.detect(body, content_type, xml=True))
    return xml_format.parse(text) if text else b"null"


def _csv(body: bytes, content_type: str | None) -> bytes:
    text = charsets.decode(body, charsets.detect(body, content_type))
    if "\0" in text:
        raise UpstreamError("PARSE_ERROR", "The body is CSV with a zero character")
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        return b"[" + b",".join(_csv_objects(reader, _ROOM + _GROWTH * len(text))) + b"]"
    except csv.Error:
        raise UpstreamError("PARSE_ERROR", f"The body is not CSV: line {reader.line_num}") from None


def _csv_objects(reader: Iterator[list[str]], room: int) -> Iterator[bytes]:
    """The JSON object of each row that isn't blank, by the names in the first; members that a short row lacks are null."""
    rows = filter(None, reader)
    names = next(rows, [])
    if len(set(names)) != len(names):
        raise UpstreamError("PARSE_ERROR", "The body is CSV whose header repeats a name")
    size = len(orjson.dumps(dict.fromkeys(names)))
    for number, row in enumerate(rows, 1):
        room -= size
        if room < 0:
            raise UpstreamError(
                "UPSTREAM_TOO_LARGE", "The body's names, written out for each row, are out of proportion to its size"
            )
        if len(row) > len(names):
            raise UpstreamError("PARSE_ERROR", f"The body is CSV with more fields than its header has names: row {number}")
        yield orjson.dumps(dict(zip_longest(names, row)))


def _plain_text(body: bytes, content_type: str | None) -> bytes:
    return orjson.dumps(charsets.decode(body, charsets.detect(body, content_type)))


_SHAPES: dict[str, Callable[[bytes, str | None], bytes]] = {
    "JSON": _json,
    "XML": _xml,
    "CSV": _csv,
    "PLAIN_TEXT": _plain_text,
}
