"""What a text says beneath its escapes, one level after the other, and where in the text it says so.

Percent-encoding (RFC 3986), the escapes of JSON strings (RFC 8259) with those of common languages, HTML's character references.
Everything is bytes, as escapes are of bytes in any character set; the work is in proportion to the text's length.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from bisect import bisect_right
from collections.abc import Callable
from typing import Final

DEEPEST: Final = 4  # levels of escapes

_ESCAPE: Final = re.compile(  # a set first: by it the search skips what can't begin a match
    rb"[%\\&](?:"
    rb"(?<=%)(?P<percent>[0-9A-Fa-f]{2}(?:%[0-9A-Fa-f]{2}){0,999})"
    rb"|(?<=\\)u(?P<pair>[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2})"
    rb"|(?<![&])u(?P<unit>[0-9A-Fa-f]{4})"
    rb"|(?<=\\)x(?P<byte>[0-9A-Fa-f]{2})"
    rb"|(?<=\\)(?P<short>[\"'/\\bfnrt])"
    rb"|(?<=&)#(?P<decimal>[0-9]{1,8});?"
    rb"|(?<=&)#[xX](?P<hexadecimal>[0-9A-Fa-f]{1,8});?"
    rb"|(?<=&)(?P<named>amp|lt|gt|quot|apos);)"
)
_SHORT: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_NAMED: Final = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}


class Layer:
    """A text with one level of escapes less than that which it is made of, its `source`; the first has none.

    It is a row of segments: `_starts` is where each begins here, `_origins` where in the source, and `_strides` how many bytes
    there are one here; 0 where a segment is one escape, of which no part can be told from another.
    """

    __slots__ = ("_origins", "_source", "_starts", "_strides", "data")

    def __init__(self, data: bytes, source: Layer | None = None) -> None:
        self.data = data
        self._source = source
        self._starts: list[int] = []
        self._origins: list[int] = []
        self._strides: list[int] = []

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Where in the first layer the bytes from `start` to `end`, which are one at least, come from."""
        if self._source is None:
            return start, end
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, end - 1) - 1
        begun = self._origins[first] + self._strides[first] * (start - self._starts[first])
        ended = self._origins[last] + self._strides[last] * (end - self._starts[last])
        return self._source.origin(begun, ended if self._strides[last] else self._origins[last + 1])

    def beneath(self) -> Layer | None:
        """The next layer, where there is an escape."""
        layer, pieces, at, size = Layer(b"", self), [], 0, 0
        for match in _ESCAPE.finditer(self.data):
            start, end = match.span()
            if start > at:
                layer._begin(size, at, 1)
                size += start - at
            kind = match.lastgroup or ""
            meant = _MEANINGS[kind](match[kind]) or match[0]
            layer._begin(size, start, 3 if kind == "percent" else 0)
            size += len(meant)
            pieces += [self.data[at:start], meant]
            at = end
        if not at:
            return None
        layer._begin(size, at, 1)
        layer._begin(size + len(self.data) - at, len(self.data), 1)
        layer.data = b"".join([*pieces, self.data[at:]])
        return layer

    def _begin(self, start: int, origin: int, stride: int) -> None:
        self._starts.append(start)
        self._origins.append(origin)
        self._strides.append(stride)


def layers(data: bytes) -> list[Layer]:
    """The text itself, and what is beneath it."""
    found = [Layer(data)]
    while len(found) <= DEEPEST and (layer := found[-1].beneath()):
        found.append(layer)
    return found


def bare(data: bytes) -> bytes:
    """A text without any escapes, down to the deepest."""
    return layers(data)[-1].data


def _character(code: int) -> bytes:
    return chr(code).encode("utf-8", "surrogatepass") if code <= 0x10FFFF else b""


def _pair(digits: bytes) -> bytes:
    """UTF-16's two halves of a character."""
    return unhexlify(digits.replace(b"\\u", b"")).decode("utf-16-be").encode()


_MEANINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "percent": lambda digits: unhexlify(digits.replace(b"%", b"")),
    "pair": _pair,
    "unit": lambda digits: _character(int(digits, 16)),
    "byte": unhexlify,
    "short": lambda letter: _SHORT.get(letter, letter),
    "decimal": lambda digits: _character(int(digits)),
    "hexadecimal": lambda digits: _character(int(digits, 16)),
    "named": _NAMED.__getitem__,
}
