"""Secrets taken out of what is shown of a call: however an upstream, or an encoding on the way, has written them.

A text is read as it is and beneath its escapes (layers.py), and searched for the forms of each secret (disguises.py): plain, in
base64 and base64url at any alignment, with the digits that share bits with a neighbour; and in hexadecimal. What is shorter than
`SHORTEST` characters would be found everywhere: it is taken out only where it is a whole value. Booleans hide nothing.

The work grows with the secrets times the text, and is bounded: where there is too much of it, nothing is shown.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, Final

import msgspec

from broker_edge.core.disguises import (
    SHORTEST,
    Form,
    Seen,
    View,
    encoded_forms,
    lines,
    nested_forms,
    plain_forms,
    texts,
    whole_form,
)
from broker_edge.core.layers import layers

MASK: Final = "********"
MOST_SECRETS: Final = 64 * 1024  # characters of all secrets: their forms are made
MOST_WORK: Final = 2**31  # bytes that are searched, for each form: less than a second
UNSHOWN: Final = "<not shown: it takes too long to search it for secrets>"

_FIND: Final = 1_000  # bytes that could be searched in the time that it takes to begin
_HIT: Final = 5_000  # in the time that an occurrence takes, or a look at a whole value
_STEP: Final = 200  # in the time that one more repetition takes
_LONGEST_WHOLE: Final = 256  # bytes of a short secret in its longest disguise
_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?[0-9][0-9.eE+-]*', re.DOTALL)
_MARKED: Final = re.compile(rb"\x01+")
_PART: Final = re.compile(r"[^/?&=;,:@#]+")

Span = tuple[int, int]


class _TooMuch(Exception):
    """The text is not searched to its end."""


class Redaction:
    """`secrets` are JSON scalars. `blind`: nothing is searched, and nothing shown; so it is where the secrets are too many."""

    def __init__(self, secrets: Iterable[Any], *, blind: bool = False) -> None:
        given = sorted({text for secret in secrets for text in texts(secret)})
        self.blind = blind or sum(map(len, given)) > MOST_SECRETS
        self._left = MOST_WORK
        self._forms: dict[View, list[Form]] = {view: [] for view in View}
        self._whole: set[tuple[View, bytes]] = set()
        if not self.blind:
            for form in set(chain.from_iterable(_forms(text) for text in given if len(text) >= SHORTEST)):
                self._forms[form.view].append(form)
            self._whole.update(chain.from_iterable(whole_form(text) for text in given if len(text) < SHORTEST))

    @property
    def work(self) -> int:
        """What was spent of `MOST_WORK`."""
        return MOST_WORK - self._left

    def text(self, text: str) -> str:
        """A text, or the value of a header: what follows its first word counts as a whole value too, as in `Bearer x`."""
        try:
            found = self._found(text)
            return found if found != text else self._without_whole(text)
        except _TooMuch:
            return MASK

    def url(self, url: str) -> str:
        """A URL, whose segments, names and values are whole values each."""
        try:
            return _PART.sub(lambda part: MASK if self._is_whole(part[0]) else part[0], self._found(url))
        except _TooMuch:
            return MASK

    def json(self, text: bytes) -> bytes:
        """Valid JSON, and valid JSON it stays: strings, members' names and numbers are judged as what they mean.

        Nothing else is rewritten, so that numbers stay exact.
        """
        source = text.decode()
        tokens = [token for token in _TOKEN.finditer(source)]  # noqa: C416 list() would hold all other threads until the end
        meant = [_meant(token[0]) for token in tokens]
        try:
            shown = self._shown(meant)
        except _TooMuch:
            return msgspec.json.encode(UNSHOWN)
        pieces, at = [], 0
        for index in sorted(shown):
            token = tokens[index]
            told = shown[index] if token[0].startswith('"') else MASK
            pieces += [source[at : token.start()], msgspec.json.encode(told).decode()]
            at = token.end()
        return "".join([*pieces, source[at:]]).encode()

    def _shown(self, meant: Sequence[str]) -> dict[int, str]:
        """What is shown of those texts that hold a secret: all are searched at once, which is far cheaper than each."""
        each = [_bytes(text) for text in meant]
        starts = list(accumulate((len(data) + 1 for data in each), initial=0))
        spans: defaultdict[int, list[Span]] = defaultdict(list)
        for start, end in self._spans(b"\0".join(each)):
            index = bisect_right(starts, start) - 1
            while index < len(each) and starts[index] < end:
                spans[index].append((max(start - starts[index], 0), min(end - starts[index], len(each[index]))))
                index += 1
        shown = {index: _masked(each[index], found) for index, found in spans.items()}
        if self._whole:
            told = {text: self._without_whole(text) for text in set(meant)}
            shown |= {index: told[text] for index, text in enumerate(meant) if index not in shown and told[text] != text}
        return shown

    def _found(self, text: str) -> str:
        data = _bytes(text)
        return _masked(data, self._spans(data))

    def _without_whole(self, text: str) -> str:
        scheme, blank, rest = text.partition(" ")
        if self._is_whole(text):
            return MASK
        return f"{scheme}{blank}{MASK}" if blank and self._is_whole(rest) else text

    def _is_whole(self, text: str) -> bool:
        if not self._whole or len(text) > _LONGEST_WHOLE:
            return False
        self._spend(_HIT)
        seen = [(view, view.of(layer.data)) for layer in layers(_bytes(text)) for view in View]
        return any((view, data.rstrip(b"=") if view is View.BASE64 else data) in self._whole for view, data in seen)

    def _spans(self, data: bytes) -> list[Span]:
        """Where secrets are, in order; those that overlap as one, so that no end of one is left by the mask of another."""
        if self.blind:
            raise _TooMuch
        marks = bytearray(len(data))
        for start, end in self._all(data):
            marks[start:end] = b"\1" * (end - start)
        return [match.span() for match in _MARKED.finditer(marks)]

    def _all(self, data: bytes) -> Iterator[Span]:
        for layer in layers(data) if any(self._forms.values()) else ():
            for view, forms in self._forms.items():
                seen = Seen(layer, view)
                for form in forms:
                    for start, end in self._occurrences(seen.data, form.data):
                        if whole := seen.whole(form, start, end):
                            yield _of_characters(data, *seen.origin(*whole))

    def _occurrences(self, data: bytes, wanted: bytes) -> Iterator[Span]:
        """Every one; those that overlap at the same distance as one. As a search costs what is wanted is long, the next one
        begins behind them, not within: then the next occurrence lies half of that further on at least."""
        size = len(wanted)
        self._spend(len(data) + _FIND)
        at = data.find(wanted)
        while at >= 0:
            end = at + size
            after = data.find(wanted, at + 1)
            if 0 <= after < end:
                repeated = wanted[at - after :]
                end = after + size
                while data.startswith(repeated, end):
                    end += len(repeated)
                after = data.find(wanted, end - size + 1)
                self._spend(_STEP * ((end - at) // len(repeated)))
            self._spend(_HIT + size)
            yield at, end
            at = after

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise _TooMuch


def _forms(text: str) -> Iterator[Form]:
    yield from chain(plain_forms(text), encoded_forms(text), nested_forms(text))
    for line in lines(text):
        yield from chain(plain_forms(line), encoded_forms(line))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _of_characters(data: bytes, start: int, end: int) -> Span:
    """No half of a character is left (RFC 3629)."""
    while start and data[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return start, end


def _masked(data: bytes, spans: Iterable[Span]) -> str:
    pieces, at = [], 0
    for start, end in spans:
        pieces += [data[at:start], MASK.encode()]
        at = end
    return b"".join([*pieces, data[at:]]).decode("utf-8", "surrogatepass")


def _meant(token: str) -> str:
    if not token.startswith('"'):
        return token
    if "\\" not in token:
        return token[1:-1]
    try:
        return str(msgspec.json.decode(token, type=str))
    except (msgspec.DecodeError, UnicodeError):  # half a surrogate pair: JSON's grammar takes it, no text does
        return token
