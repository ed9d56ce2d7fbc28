"""Files to documents, each checked as the registry would check it, before anything is changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import UUID

import msgspec

from broker_edge.core.auth import CREDENTIALS
from broker_edge.core.source import parse_source
from broker_edge.core.spec import ROOT
from broker_edge.errors import CallerError
from broker_edge.manifests.members import SPEC, bare, unknown
from broker_edge.manifests.yaml_text import Unreadable, load_documents

STDIN: Final = "-"
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_NO_ID: Final = UUID(int=0)

Scalar = str | int | float | bool | None
Environment = Callable[[str], str | None]


class Refusal(Exception):
    """A document that can't be applied; the message names the file, the document and the member, and holds no value."""


@dataclass(frozen=True, slots=True)
class Document:
    """One data source as somebody wants it. `spec` is the body of POST /data-sources; `ignored` names members nobody reads.

    `named` are variables and credentials without a value, as exports have them: they should be set, from elsewhere.
    """

    place: str
    name: str
    spec: dict[str, Any]
    data_source_id: str | None = None
    published: bool = False
    variables: dict[str, Scalar] | None = None
    credentials: dict[str, Scalar] | None = None
    named: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def read_documents(
    paths: Sequence[str], environment: Environment, project: str | None = None, *, allow_unknown: bool = False
) -> list[Document]:
    """All documents of files and directories, `-` for standard input; raises `Refusal`."""
    found: list[Document] = []
    for path in paths:
        for name, text, folder in _texts(path):
            try:
                values = _flat(load_documents(text))
            except Unreadable as error:
                raise Refusal(f"{name}: {error}") from None
            for index, value in enumerate(values, 1):
                place = name if len(values) == 1 else f"{name}, document {index}"
                found.append(_Reader(place, folder, environment, project, allow_unknown).document(value))
    return _distinct(found)


def _texts(path: str) -> Iterator[tuple[str, str, Path]]:
    """Each text with the name that its reader knows it by, and the folder that it names files from."""
    if path == STDIN:
        yield "standard input", sys.stdin.read(), Path()
        return
    try:
        given = Path(path)
        files = sorted(one for one in given.iterdir() if one.suffix in _SUFFIXES) if given.is_dir() else [given]
        for file in files:
            yield str(file), file.read_text(encoding="utf-8"), file.parent
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refusal(f"{path}: is not UTF-8") from None
    if not files:
        raise Refusal(f"{path}: holds no {', '.join(_SUFFIXES)}")


def _flat(documents: list[Any]) -> list[Any]:
    """A list stands for its items; an empty document for nothing."""
    return [item for one in documents if one is not None for item in (one if isinstance(one, list) else [one])]


def _distinct(documents: list[Document]) -> list[Document]:
    places: dict[str, str] = {}
    for document in documents:
        if document.name in places:
            raise Refusal(f"{document.place}: name: is that of {places[document.name]} too")
        places[document.name] = document.place
    if not documents:
        raise Refusal("there is no document to apply")
    return documents


@dataclass(frozen=True, slots=True)
class _Reader:
    place: str
    folder: Path
    environment: Environment
    project: str | None
    allow_unknown: bool

    def document(self, value: Any) -> Document:
        given = self._json(value, "")
        if not isinstance(given, dict):
            self.refuse("", "must be a data source: an object with name and source")
        ignored = tuple(unknown(given))
        if ignored and not self.allow_unknown:  # a typo in a budget would be a published source without that limit
            self.refuse(ignored[0], "is not known: correct it, or pass --allow-unknown if another version reads it")
        spec = bare({name: given[name] for name in SPEC if name in given})
        source_id = self._id(given, "data_source_id")
        if self._id(given, "project_id") not in (None, self.project):
            self.refuse("project_id", "is not the project that --project names")
        self._compiled(spec, source_id)
        return Document(
            place=f"{self.place} ({spec['name']})",
            name=spec["name"],
            spec=spec,
            data_source_id=source_id,
            published=self._published(given.get("status")),
            variables=self._secrets(given, "variables"),
            credentials=self._secrets(given, "credentials"),
            named=tuple(name for kind in ("variables", "credentials") for name in _listed(given.get(kind))),
            ignored=ignored,
        )

    def refuse(self, member: str, what: str) -> NoReturn:
        raise Refusal(": ".join(part for part in (self.place, member, what) if part))

    def _json(self, value: Any, member: str) -> Any:
        """The value as JSON has it: names are text (`404: 60` in YAML has a number), and there is nothing but JSON's types."""
        try:
            if isinstance(value, dict):
                return {
                    self._name(name, member): self._json(item, f"{member}.{name}".lstrip(".")) for name, item in value.items()
                }
            if isinstance(value, list):
                return [self._json(item, f"{member}[{index}]") for index, item in enumerate(value)]
        except RecursionError:
            self.refuse("", "is nested too deeply")
        if value is not None and not isinstance(value, str | int | float):
            self.refuse(member, "is no type that JSON has")
        return value

    def _name(self, name: Any, member: str) -> str:
        if isinstance(name, bool) or not isinstance(name, str | int):
            self.refuse(member, "must have text as its members' names")
        return str(name)

    def _id(self, given: dict[str, Any], member: str) -> str | None:
        value = given.get(member)
        try:
            return None if value is None else str(UUID(value))
        except (ValueError, AttributeError, TypeError):
            self.refuse(member, "must be a UUID")

    def _compiled(self, spec: dict[str, Any], source_id: str | None) -> None:
        try:
            parse_source(msgspec.json.encode({**spec, "data_source_id": source_id or _NO_ID}))
        except CallerError as error:
            self.refuse("", error.message.removeprefix(f"{ROOT}."))

    def _published(self, status: Any) -> bool:
        if status not in (None, "DRAFT", "PUBLISHED"):
            self.refuse("status", "must be DRAFT or PUBLISHED; `broker-edge sources delete` archives")
        return bool(status == "PUBLISHED")

    def _secrets(self, given: dict[str, Any], member: str) -> dict[str, Scalar] | None:
        """The values to set. A list of names, as exports have it, sets nothing."""
        value = given.get(member)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            self._check_names(member, value)
            return None
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(member, 'must be an object: {"NAME": value}, {"NAME": {"env": ...}} or {"NAME": {"file": ...}}')
        self._check_names(member, value)
        found = {name: self._secret(item, f"{member}.{name}") for name, item in value.items()}
        for name, item in found.items():
            if member == "credentials" and (not isinstance(item, str) or not item):
                self.refuse(f"credentials.{name}", "must be text and not empty")
        return found

    def _check_names(self, member: str, names: Iterable[str]) -> None:
        for name in names:
            if member == "credentials" and name not in CREDENTIALS:
                self.refuse(f"credentials.{name}", f"must be one of {', '.join(CREDENTIALS)}")
            if member == "variables" and name in CREDENTIALS:
                self.refuse(f"variables.{name}", "is a credential: it belongs under credentials")

    def _secret(self, value: Any, member: str) -> Scalar:
        if value is None or isinstance(value, str | int | float):
            return value
        if not isinstance(value, dict):
            self.refuse(member, "must be text, a number, true, false or null")
        if len(value) != 1 or not isinstance(next(iter(value.values())), str) or not value.keys() <= {"env", "file"}:
            self.refuse(member, 'must name one place: {"env": "NAME"} or {"file": "path"}')
        if "env" in value:
            if (text := self.environment(value["env"])) is None:
                self.refuse(member, f"names a variable of the environment that is not set: {value['env']}")
            return text
        try:
            return Path(self.folder, str(value["file"])).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError):
            self.refuse(member, "names a file that can't be read")


def _listed(value: Any) -> list[str]:
    """Names without values, where there are no values."""
    return value if isinstance(value, list) else []
