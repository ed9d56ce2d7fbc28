"""What one process knows of all data sources: found by name without waiting, and replaced in one step.

flow/registry.py fills it. Nothing here awaits, so that no request ever sees half a change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from broker_edge.core.exchange import SecretRef
from broker_edge.core.lifecycle import compiled
from broker_edge.core.record import SourceRecord
from broker_edge.core.source import DataSource
from broker_edge.core.template import RESERVED

Scoped = tuple[str | None, str]  # project and name
_NONE: Final[frozenset[str]] = frozenset()


class Named(msgspec.Struct, frozen=True):
    """A data source that serves, compiled; `env` names every secret of it that is set, none of them by value."""

    record: SourceRecord
    source: DataSource
    generation: int
    project: str | None
    env: Mapping[str, SecretRef]


class Loaded(NamedTuple):
    """A record with every secret of it that is set, by name, a variable before a credential; `named` where it can be compiled."""

    record: SourceRecord
    refs: Mapping[str, SecretRef]
    named: Named | None


def loaded(record: SourceRecord, named: Named | None) -> Loaded:
    by_name: dict[str, SecretRef] = {}
    for ref in _refs(record):
        by_name.setdefault(ref.name, ref)
    return Loaded(record, by_name, named)


def named_of(record: SourceRecord, known: Named | None = None) -> Named:
    """The record compiled; what is `known` of it is used again where its spec is the same. Raises `CallerError`."""
    same = known is not None and known.record.spec() == record.spec()
    source = known.source if known is not None and same else compiled(record)
    return Named(record, source, record.generation, project_of(record), dict(_env(record, source)))


def project_of(record: SourceRecord) -> str | None:
    return None if record.project_id is None else str(record.project_id)


def _refs(record: SourceRecord) -> Iterator[SecretRef]:
    """Every secret that is set, variables before credentials."""
    for kind in ("variable", "credential"):
        for secret in record.secrets:
            if secret.kind == kind and secret.is_set:
                yield SecretRef(record.data_source_id, secret.kind, secret.name, secret.version)


def _env(record: SourceRecord, source: DataSource) -> Iterator[tuple[str, SecretRef]]:
    """No template can name a credential: those that a variable might be named as are there only where `auth` uses them, and
    then `core.lifecycle.compiled` lets no template name them.
    """
    used = RESERVED | (_NONE.union(*source.auth.alternatives) if source.auth else _NONE)
    for ref in _refs(record):
        if ref.kind == "variable" or ref.name in used:
            yield ref.name, ref


class Snapshot:
    """`revisions` are those of all sources that are stored, archived ones included, of which nothing else is kept."""

    def __init__(self) -> None:
        self.revisions: dict[UUID, int] = {}
        self.records: dict[UUID, SourceRecord] = {}
        self.refs: dict[UUID, Mapping[str, SecretRef]] = {}
        self.names: dict[Scoped, Named] = {}
        self.unusable: dict[Scoped, UUID] = {}

    def __len__(self) -> int:
        return len(self.records)

    def of(self, data_source_id: UUID) -> Named | None:
        """The compiled form of one source, where there is one."""
        record = self.records.get(data_source_id)
        named = self.names.get(_scoped(record)) if record else None
        return named if named and named.record is record else None

    def replace(self, gone: Iterable[UUID], found: Collection[Loaded]) -> None:
        """All at once: `gone` are no more, `found` are what they are."""
        # First all old names, then all new ones: two sources may have swapped theirs.
        for data_source_id in (*gone, *(each.record.data_source_id for each in found)):
            self._forget(data_source_id)
        for each in found:
            self.revisions[each.record.data_source_id] = each.record.revision
            if each.record.status != "ARCHIVED":
                self._add(*each)

    def _add(self, record: SourceRecord, refs: Mapping[str, SecretRef], named: Named | None) -> None:
        scoped = _scoped(record)
        self.records[record.data_source_id] = record
        self.refs[record.data_source_id] = refs
        # Another source that had this name until a moment ago may not have been heard of yet.
        self.names.pop(scoped, None)
        self.unusable.pop(scoped, None)
        if named is None:
            self.unusable[scoped] = record.data_source_id
        else:
            self.names[scoped] = named

    def _forget(self, data_source_id: UUID) -> None:
        self.revisions.pop(data_source_id, None)
        self.refs.pop(data_source_id, None)
        record = self.records.pop(data_source_id, None)
        if record is None:
            return
        scoped = _scoped(record)
        # Unless another source has taken the name since.
        if (named := self.names.get(scoped)) is not None and named.record is record:
            del self.names[scoped]
        if self.unusable.get(scoped) == data_source_id:
            del self.unusable[scoped]


def _scoped(record: SourceRecord) -> Scoped:
    return project_of(record), record.name
