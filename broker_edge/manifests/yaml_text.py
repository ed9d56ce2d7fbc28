"""YAML that says what JSON can say, and nothing else: `NO` is a country, 2026-01-01 and 0123 are text.

YAML 1.1, which PyYAML reads, would make of them false, a date and the number 83; a tax id must stay what it is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any, Final, NoReturn

import yaml

_SHARED: Final = 100_000  # nodes that aliases may stand for in one text: a few lines could stand for billions
_INT: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_LINE_END: Final = re.compile("[\r\x85\u2028\u2029]")
_RESOLVED: Final = (
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|)\Z"), ["~", "n", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)\Z"), ["t", "f"]),
    ("tag:yaml.org,2002:int", re.compile(f"{_INT.pattern}\\Z"), list("-0123456789")),
    ("tag:yaml.org,2002:float", re.compile(f"{_FLOAT.pattern}\\Z"), list("-0123456789")),
    ("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 PyYAML's own way: a table per class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"))
        if twice := next((name for name, count in names.items() if count > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML takes the other line ends of Unicode for line breaks to fold unless they are escaped.
    style = '"' if _LINE_END.search(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
for _tag, _pattern, _first in _RESOLVED:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


class Unreadable(Exception):
    """The text is neither YAML nor JSON; the message names the line and quotes nothing of it."""


def load_documents(text: str) -> list[Any]:
    """The documents of a YAML stream, or the one of a JSON text."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return [json.loads(text, parse_constant=_no_number)]
        except json.JSONDecodeError:  # YAML has such brackets too
            pass
        except RecursionError:
            raise Unreadable("is nested too deeply") from None
    try:
        return list(_constructed(_Loader(text)))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise Unreadable(f"{line}{error.problem or 'is not YAML'}") from None
    except (yaml.YAMLError, ValueError):
        raise Unreadable("is neither YAML nor JSON") from None
    except RecursionError:
        raise Unreadable("is nested too deeply") from None


def _constructed(loader: _Loader) -> Iterator[Any]:
    """The documents of a stream, each made only once it is known how much its aliases stand for."""
    left = _SHARED
    try:
        while loader.check_node() and (node := loader.get_node()) is not None:
            sizes: dict[int, int] = {}
            left -= _size(node, sizes) - len(sizes)
            if left < 0:
                raise Unreadable(f"its aliases stand for more than {_SHARED} nodes")
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes there are in a tree with every alias written out; `sizes` remembers those that were counted."""
    known = sizes.get(id(node))
    if known is not None:
        if not known:  # it is being counted: it holds itself
            raise Unreadable("is nested too deeply")
        return known
    sizes[id(node)] = 0
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    sizes[id(node)] = found = 1 + sum([_size(part, sizes) for part in parts])
    return found


def dump_document(value: Any) -> str:
    """One document that `load_documents` reads back as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _no_number(name: str) -> NoReturn:
    raise Unreadable(f"{name} is no number in JSON")
