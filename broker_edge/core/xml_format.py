"""XML text to plain members, for `formats`: one pass over the parser's events, no tree, nothing recursive.

Attributes and children become members, repeated children a list, text beside either the member `text`, an element with neither
its text, namespaces `{uri}name`. The document's value is the content of its root.
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import ParseError

import orjson
from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]  # no stubs among the dependencies
from defusedxml.ElementTree import DefusedXMLParser  # type: ignore[import-untyped]

from broker_edge.errors import UpstreamError

MAX_DEPTH = 500
# A level is at most an object and a list; orjson writes 254 levels. So subtrees are written out on the way up.
_WRITE_EVERY = 100
_SPACE = " \t\r\n"
_ROOM = 1 << 20
_GROWTH = 32


class _Element:
    """One open element: its members so far, its finished runs of text and the pieces of the run that is being read."""

    __slots__ = ("members", "pieces", "runs", "tag")

    def __init__(self, tag: str, attributes: dict[str, Any]) -> None:
        self.tag = tag
        self.members = attributes
        self.runs: list[str] = []
        self.pieces: list[str] = []

    def end_run(self) -> None:
        run = "".join(self.pieces).strip(_SPACE)
        self.pieces.clear()
        if run:
            self.runs.append(run)

    def add(self, name: str, value: Any) -> None:
        """A name that is taken (by an attribute, a sibling, the text) becomes a list in that order, so that nothing is lost."""
        taken = self.members.get(name)
        if taken is None:
            self.members[name] = value
        elif isinstance(taken, list):
            taken.append(value)
        else:
            self.members[name] = [taken, value]

    def value(self) -> Any:
        text = " ".join(self.runs)
        if not self.members:
            return text
        if text:
            self.add("text", text)
        return self.members


class _Builder:
    """The parser's target: a stack of open elements; `close` gives the value of the root."""

    def __init__(self, room: int) -> None:
        self._open: list[_Element] = []
        self._room = room
        self._root: Any = None

    def start(self, tag: str, attributes: dict[str, Any]) -> None:
        # A long namespace name costs its bytes once in the document and once for each element in the value.
        self._room -= len(tag) + sum(map(len, attributes))
        if self._room < 0:
            raise UpstreamError("UPSTREAM_TOO_LARGE", "The body's names, written out in full, are out of proportion to its size")
        if len(self._open) == MAX_DEPTH:
            raise UpstreamError("PARSE_ERROR", f"The body is XML of more than {MAX_DEPTH} levels")
        if self._open:
            self._open[-1].end_run()
        self._open.append(_Element(tag, attributes))

    def data(self, text: str) -> None:
        self._open[-1].pieces.append(text)

    def end(self, _tag: str) -> None:
        element = self._open.pop()
        element.end_run()
        value = element.value()
        if not self._open:
            self._root = value
            return
        if len(self._open) % _WRITE_EVERY == 0 and isinstance(value, dict):
            value = orjson.Fragment(orjson.dumps(value))
        self._open[-1].add(element.tag, value)

    def close(self) -> Any:
        return self._root


def parse(text: str) -> bytes:
    """The JSON of an XML document's value; `text` is decoded, what its declaration says about encoding is ignored.

    Raises UpstreamError PARSE_ERROR: not well-formed, entities or attribute defaults declared, an external DTD, too deep; and
    UPSTREAM_TOO_LARGE where names in full would outgrow the body beyond all proportion.
    """
    parser = _parser(_Builder(_ROOM + _GROWTH * len(text)))
    try:
        parser.feed(text)
        return orjson.dumps(parser.close())
    except ParseError as error:
        line, column = error.position
        raise UpstreamError("PARSE_ERROR", f"The body is not well-formed XML: line {line}, column {column + 1}") from None
    except DefusedXmlException:
        raise UpstreamError("PARSE_ERROR", "The body is XML that declares entities or refers to external ones") from None
    finally:
        # The parser and its handlers refer to each other, and hold the value so far until the cyclic collector comes.
        vars(parser).clear()


def _parser(builder: _Builder) -> Any:
    parser = DefusedXMLParser(target=builder)
    parser.parser.StartDoctypeDeclHandler = _refuse_external_dtd
    parser.parser.AttlistDeclHandler = _refuse_attribute_defaults
    return parser


def _refuse_external_dtd(_name: str, system: str | None, public: str | None, _internal: bool) -> None:
    # It would never be read, but it lets the parser skip undefined entities in attributes without a word.
    if system is not None or public is not None:
        raise UpstreamError("PARSE_ERROR", "The body is XML that refers to an external document type definition")


def _refuse_attribute_defaults(_element: str, _name: str, _type: str, default: str | None, _required: bool) -> None:
    # One default of a megabyte is repeated by every element: an amplification without a single entity.
    if default is not None:
        raise UpstreamError("PARSE_ERROR", "The body is XML that declares default values of attributes")
