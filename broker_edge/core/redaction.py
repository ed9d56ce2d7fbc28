"""Secrets taken out of what is shown of a call: however an upstream, or an encoding on the way, has written them.

A secret is looked for as it is and percent-encoded (form encoding's plus included), escaped as JSON or HTML do, any mixture of
these and several deep; in base64 and base64url at any alignment (RFC 4648), with the digits that share bits with a neighbour; and
in hexadecimal. What is shorter than `SHORTEST` characters would be found everywhere: it is taken out only where it is a whole
value. Booleans hide nothing and are left.
"""

from __future__ import annotations

import re
from base64 import b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, chain
from typing import Any, Final

import msgspec

from broker_edge.core.hosts import BadHost, normalise_host

MASK: Final = "********"
SHORTEST: Final = 4

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_JSON_SHORT: Final = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", '"': '"', "/": "/", "'": "'"}
_HTML_NAMED: Final = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
_PERCENT: Final = "%(?:25){0,3}"
_BACKSLASH: Final = r"\\\\{0,3}"  # a literal one first: by it the search skips what can't begin a match
_AMPERSAND: Final = "&(?:amp;){0,2}"
_WRAP: Final = r"[ \t\r\n]{0,3}"  # where encoders break lines
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*', re.DOTALL)
_PART: Final = re.compile(r"[^/?&=;,:@#]+")
_END: Final = "\0"

Pattern = re.Pattern[str]


class Redaction:
    """`secrets` are JSON scalars. Compiling costs a few microseconds for each character; none of it is a hot path."""

    def __init__(self, secrets: Iterable[Any]) -> None:
        texts = sorted(set(chain.from_iterable(map(_texts, secrets))))
        self._anywhere = [pattern for text in texts if len(text) >= SHORTEST for pattern in _patterns(text)]
        self._whole = [pattern for text in texts if len(text) < SHORTEST for pattern in _patterns(text)]

    def text(self, text: str) -> str:
        """A text, or the value of a header: what follows its first word counts as a whole value too, as in `Bearer x`."""
        found = self._spans(text)
        if found:
            return _masked(text, found)
        scheme, blank, rest = text.partition(" ")
        if self._is_whole(text):
            return MASK
        return f"{scheme}{blank}{MASK}" if blank and self._is_whole(rest) else text

    def url(self, url: str) -> str:
        """A URL, whose segments, names and values are whole values each."""
        return _PART.sub(lambda part: MASK if self._is_whole(part[0]) else part[0], _masked(url, self._spans(url)))

    def json(self, text: bytes) -> bytes:
        """Valid JSON, and valid JSON it stays: strings, members' names and numbers are judged as what they mean.

        Nothing else is rewritten, so that numbers stay exact.
        """
        source = text.decode()
        tokens = list(_TOKEN.finditer(source))
        meant = [_meant(token[0]) for token in tokens]
        guilty = self._guilty(meant)
        pieces, at = [], 0
        for index in sorted(guilty):
            token = tokens[index]
            shown = self.text(meant[index]) if token[0].startswith('"') else MASK
            pieces += [source[at : token.start()], msgspec.json.encode(shown).decode()]
            at = token.end()
        return "".join([*pieces, source[at:]]).encode()

    def _guilty(self, meant: Sequence[str]) -> set[int]:
        """Which of the texts hold a secret: looked for in all at once, which is far cheaper than in each."""
        starts = list(accumulate((len(text) + len(_END) for text in meant), initial=0))
        guilty = {index for index, text in enumerate(meant) if self._whole and self.text(text) != text}
        for start, end in self._spans(_END.join(meant)):
            guilty.update(range(bisect_right(starts, start) - 1, bisect_left(starts, end)))
        return guilty

    def _is_whole(self, text: str) -> bool:
        return any(pattern.fullmatch(text) for pattern in self._whole)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where secrets are, in order; overlapping ones as one, so that no end of one is left by the mask of another."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(chain.from_iterable(_found(pattern, text) for pattern in self._anywhere)):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged


def _found(pattern: Pattern, text: str) -> Iterator[tuple[int, int]]:
    """Every match, those that begin inside another too."""
    match = pattern.search(text)
    while match is not None:
        yield match.span()
        match = pattern.search(text, match.start() + 1)


def _masked(text: str, spans: Iterable[tuple[int, int]]) -> str:
    pieces, at = [], 0
    for start, end in spans:
        pieces += [text[at:start], MASK]
        at = end
    return "".join([*pieces, text[at:]])


def _meant(token: str) -> str:
    if not token.startswith('"'):
        return token
    try:
        return str(msgspec.json.decode(token, type=str))
    except (msgspec.DecodeError, UnicodeError):  # half a surrogate pair: JSON's grammar takes it, no text does
        return token


def _texts(secret: Any) -> Iterator[str]:
    """The texts that a secret may stand for."""
    if isinstance(secret, bool) or secret is None:
        return
    text = secret if isinstance(secret, str) else repr(secret)
    given = [text, *_lines(text)]
    with suppress(BadHost):
        given.append(normalise_host(text.strip()))  # what a host name becomes in a URL
    for form in (each.strip() for each in given):
        if form:
            yield form
            yield form.encode("utf-8", "replace").decode("latin-1")  # UTF-8 that was read as the old default of HTTP


def _lines(text: str) -> list[str]:
    """Long lines of a text of several, which may come back broken otherwise: keys and certificates."""
    return [line for line in text.splitlines() if len(line) >= 2 * SHORTEST] if "\n" in text else []


def _patterns(text: str) -> Iterator[Pattern]:
    data = text.encode("utf-8", "replace")
    yield re.compile("".join(map(_character, re.findall(r"\\+|[\s\S]", text))))
    yield re.compile(r"[:\s-]?".join("".join(map(_hex_digit, f"{byte:02x}")) for byte in data))
    for offset in range(3):
        yield re.compile(_WRAP.join(_base64(data, offset)) + "(?:=|%3[dD]){0,2}")


def _character(text: str) -> str:
    """One character, or a run of backslashes, which only together can be told from what they escape."""
    if text.startswith("\\"):
        encoded = f"(?:{_PERCENT}5[cC])|{_BACKSLASH}(?:u005[cC]|x5[cC])|{_AMPERSAND}#(?:0{{0,5}}92|[xX]0{{0,4}}5[cC]);?"
        return rf"(?:(?:{encoded}){{{len(text)}}}|\\{{{len(text)},{8 * len(text)}}})"
    code = ord(text)
    ways = {re.escape(case) for case in (text, text.lower(), text.upper()) if len(case) == 1}
    for encoding in ("utf-8", "latin-1"):
        ways.add("".join(f"{_PERCENT}{_hex(byte, 2)}" for byte in text.encode(encoding, "replace")))
    units = text.encode("utf-16-be", "surrogatepass")
    ways.add("".join(f"{_BACKSLASH}u{_hex(units[at] * 256 + units[at + 1], 4)}" for at in range(0, len(units), 2)))
    ways.add(f"{_AMPERSAND}#(?:0{{0,5}}{code}|[xX]0{{0,4}}{_hex(code, 1)});?")
    if code < 0x100:
        ways.add(f"{_BACKSLASH}x{_hex(code, 2)}")
    if short := _JSON_SHORT.get(text):
        ways.add(_BACKSLASH + short)
    if named := _HTML_NAMED.get(text):
        ways.add(f"{_AMPERSAND}{named};")
    if text == " ":
        ways.add(r"\+")
    return f"(?:{'|'.join(sorted(ways, key=len, reverse=True))})"


def _hex(number: int, digits: int) -> str:
    return "".join(map(_hex_digit, f"{number:0{digits}x}"))


def _hex_digit(digit: str) -> str:
    return digit if digit.isdigit() else f"[{digit}{digit.upper()}]"


def _base64(data: bytes, offset: int) -> Iterator[str]:
    """The digits that hold bits of `data` where it begins `offset` bytes into a group of three.

    The first and the last may hold bits of a neighbour: then any digit will do that agrees in the bits that are known.
    """
    low, high = (b64encode(bytes([fill]) * offset + data + bytes([fill]) * 2).decode() for fill in (0, 255))
    for at in range(8 * offset // 6, -(-8 * (offset + len(data)) // 6)):
        first, last = _ALPHABET.index(low[at]), _ALPHABET.index(high[at])
        known = ~(first ^ last)
        yield _one_of(digit for value, digit in enumerate(_ALPHABET) if value & known == first & known)


def _one_of(digits: Iterable[str]) -> str:
    """One of these digits, in either alphabet and percent-encoded where it needs to be."""
    found = set(digits)
    letters = "".join(sorted(found - {"+", "/"}))
    ways = [f"[{letters}{'+-' * ('+' in found)}]".replace("+-", r"+\-")] if letters or "+" in found else []
    if "+" in found:
        ways.append(f"{_PERCENT}2[bB]")
    if "/" in found:
        ways += ["[/_]", r"\\\\{0,3}/", f"{_PERCENT}2[fF]"]
    return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"
