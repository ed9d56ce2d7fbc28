"""The forms in which a secret may come back, as bytes to be looked for in a text and in what is beneath its escapes (layers.py).

A form is looked for in one of three views of a text, in which its spellings are all alike: PLAIN, without capitals and with form
encoding's plus as a space; HEX, without separators too; BASE64, in one alphabet and without white space (RFC 4648).
"""

from __future__ import annotations

import html
import json
import math
import re
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum
from functools import cached_property
from typing import Any, Final, NamedTuple
from urllib.parse import quote, quote_plus

from broker_edge.core.hosts import BadHost, normalise_host
from broker_edge.core.layers import Layer, bare

SHORTEST: Final = 4

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_DIGITS: Final = {digit: value for value, digit in enumerate(_ALPHABET)}
_LONGEST_HOST: Final = 255
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,3})?")
_NESTED_SLACK: Final = 5  # digits on either side that may hold the rest of what is encoded twice, padding included


class View(Enum):
    """How a text is brought into one spelling: what bytes become, and which are left out."""

    PLAIN = (bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ+", b"abcdefghijklmnopqrstuvwxyz "), b"")
    HEX = (bytes.maketrans(b"ABCDEF", b"abcdef"), b" \t\r\n:-")
    BASE64 = (bytes.maketrans(b"-_", b"+/"), b" \t\r\n")

    def of(self, data: bytes) -> bytes:
        table, left_out = self.value
        return data.translate(table, left_out)


class Form(NamedTuple):
    """What to look for. Of the digit before it `lead` low bits are known to be those of `before`, of that after it `tail` high
    bits those of `after`; `slack` digits on either side may belong to it whatever they are."""

    view: View
    data: bytes
    lead: int = 0
    before: int = 0
    tail: int = 0
    after: int = 0
    slack: int = 0


class Seen:
    """One view of one layer."""

    def __init__(self, layer: Layer, view: View) -> None:
        self._layer = layer
        self._view = view
        self.data = view.of(layer.data)

    @cached_property
    def _left_out(self) -> list[int]:
        """Where each byte that is left out would stand, had it not been."""
        pattern = re.compile(b"[" + re.escape(self._view.value[1]) + b"]")
        return [match.start() - index for index, match in enumerate(pattern.finditer(self._layer.data))]

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Where in the text itself it is, as `Layer.origin`."""
        if len(self.data) < len(self._layer.data):
            start += bisect_right(self._left_out, start)
            end += bisect_right(self._left_out, end - 1)
        return self._layer.origin(start, end)

    def whole(self, form: Form, start: int, end: int) -> tuple[int, int] | None:
        """All that belongs to an occurrence of `form`'s data; None where its neighbours show that it is another's."""
        if form.view is not View.BASE64 and not form.slack:
            return start, end
        data, lone = self.data, end - start == len(form.data)
        if form.lead:
            if start and _DIGITS.get(data[start - 1], -1) & (2**form.lead - 1) == form.before:
                start -= 1
            elif lone:
                return None
        if form.tail:
            if end < len(data) and _DIGITS.get(data[end], -1) >> (6 - form.tail) == form.after:
                end += 1
            elif lone:
                return None
        for _ in range(form.slack):
            start -= start > 0 and data[start - 1] in _DIGITS
            end += end < len(data) and data[end] in _DIGITS
        if form.view is View.BASE64:
            end += 2 - len(data[end : end + 2].lstrip(b"=")) if data[end : end + 1] == b"=" else 0
        return start, end


def texts(secret: Any) -> Iterator[str]:
    """The texts that a secret may stand for: as it is, as a number, and as a URL's host. Booleans and null hide nothing."""
    if isinstance(secret, bool) or secret is None:
        return
    text = (secret if isinstance(secret, str) else repr(secret)).strip()
    if not text:
        return
    yield text
    yield from _numbers(text)
    if len(text) <= _LONGEST_HOST:
        with suppress(BadHost):
            yield normalise_host(text)


def _numbers(text: str) -> Iterator[str]:
    """What a number may become where a template converts it."""
    if _NUMBER.fullmatch(text):
        value = float(text)
        if math.isfinite(value):
            yield repr(value)
            if value.is_integer():
                yield str(int(text) if text.lstrip("+-").isdigit() else int(value))


def lines(text: str) -> Iterator[str]:
    """Long lines of a text of several, which may come back broken otherwise: keys and certificates."""
    if "\n" in text:
        yield from (line for each in text.splitlines() if len(line := each.strip()) >= 2 * SHORTEST)


def plain_forms(text: str) -> Iterator[Form]:
    """As it is, in UTF-8 or Latin-1, UTF-8 that was read as Latin-1 too; and without what looks like escapes in it."""
    for case in {text, text.lower(), text.upper()}:
        data = case.encode("utf-8", "replace")
        for written in (data, case.encode("latin-1", "replace"), data.decode("latin-1").encode()):
            yield Form(View.PLAIN, View.PLAIN.of(written))
            if len(beneath := bare(written)) >= SHORTEST:
                yield Form(View.PLAIN, View.PLAIN.of(beneath))


def encoded_forms(text: str) -> Iterator[Form]:
    """In base64 and in hexadecimal, of UTF-8 read as Latin-1 too."""
    data = text.encode("utf-8", "replace")
    yield from _binary({data, data.decode("latin-1").encode()})


def nested_forms(text: str) -> Iterator[Form]:
    """In base64 and hexadecimal of what is escaped, UTF-16, or encoded so before."""
    data = text.encode("utf-8", "replace")
    written = data.decode()
    escaped = {quote(written, safe=""), quote(written), quote_plus(written), html.escape(written), data.hex(), data.hex().upper()}
    escaped |= {json.dumps(written)[1:-1], json.dumps(written, ensure_ascii=False)[1:-1]}
    yield from _binary({*(each.encode() for each in escaped), written.encode("utf-16-le"), written.encode("utf-16-be")} - {data})
    for form in _base64(data):
        for each in _binary({form.data}):
            yield Form(each.view, each.data, slack=_NESTED_SLACK)


def whole_form(text: str) -> Iterator[tuple[View, bytes]]:
    """The values that are a secret too short to be looked for within others."""
    for form in plain_forms(text):
        yield form.view, form.data
    data = text.encode("utf-8", "replace")
    yield View.PLAIN, View.PLAIN.of(data)
    yield View.HEX, data.hex().encode()
    yield View.BASE64, b64encode(data).rstrip(b"=")


def _binary(written: Iterable[bytes]) -> Iterator[Form]:
    for data in written:
        yield Form(View.HEX, data.hex().encode())
        yield from _base64(data)


def _base64(data: bytes) -> Iterator[Form]:
    """The digits that hold nothing else, where `data` begins 0, 1 or 2 bytes into a group of three."""
    for offset in range(3):
        digits = b64encode(bytes(offset) + data + bytes(2))
        begin, end = 8 * offset, 8 * (offset + len(data))
        first, last, lead, tail = -(-begin // 6), end // 6, -begin % 6, end % 6
        before = _DIGITS[digits[first - 1]] if lead else 0
        after = _DIGITS[digits[last]] >> (6 - tail) if tail else 0
        yield Form(View.BASE64, digits[first:last], lead, before, tail, after)
