"""The rules of a data source's life: DRAFT, then PUBLISHED, then ARCHIVED; what may change when, and what follows from its spec.

flow/registry.py keeps what is decided here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from uuid import UUID

import msgspec

from broker_edge.core.bodies import JsonBody
from broker_edge.core.holes import Hole
from broker_edge.core.record import TERMS, Draft, SourceRecord
from broker_edge.core.source import DataSource, parse_source
from broker_edge.core.spec import ROOT, Source
from broker_edge.core.template import invalid, rejected
from broker_edge.errors import CallerError

_CHANGEABLE: Final = ("timeout", "retry")  # members of a published `source` that may change
_KNOWN: Final = frozenset(field.encode_name for field in msgspec.structs.fields(Source))
_LEVELS: Final = 200  # of nesting: what every store and every client can read
_NAME_LIMIT: Final = 255  # characters: an index of Postgres takes no row of more than 2,700 bytes
_PLACES: Final = 6  # of seconds, as databases keep them: what is told first is what is read later
_UNFIT: Final = re.compile(r"[\x00\ud800-\udfff]")  # for a column of text


def new_record(draft: Draft, data_source_id: UUID, project_id: UUID | None, now: float) -> SourceRecord:
    """A draft's first record, under `data_source_id` unless it brings an id of its own.

    Raises `CallerError` INVALID_DATA_SOURCE or TEMPLATE_REJECTED, as all functions here do that take a spec. `generation` and
    `revision` begin with the time in milliseconds: a source that was deleted and made again under its id must not be taken for
    what it was, nor its answers for those of the new one.
    """
    now = round(now, _PLACES)
    chosen, number = draft.data_source_id or data_source_id, max(1, int(now * 1000))
    first = SourceRecord(
        chosen, project_id, draft.name, {}, {}, {}, generation=number, revision=number, created_at=now, last_updated_at=now
    )
    return _with(first, draft)[0]


def revised(record: SourceRecord, draft: Draft, now: float) -> SourceRecord:
    """The record as `draft` wants it: the very same where nothing changes, in whichever words it is said.

    Raises DATA_SOURCE_NOT_FOUND where it is archived, INVALID_DATA_SOURCE naming the member that may not change any more.
    """
    refuse_archived(record)
    if draft.data_source_id not in (None, record.data_source_id):
        raise invalid(f"{ROOT}.data_source_id", "can't change")
    wanted, after = _with(record, draft)
    before: DataSource | None
    if record.status == "PUBLISHED":
        before = compiled(record)
        wanted = _of_published(record, wanted, before, after)
        after = compiled(wanted)  # not as `draft` words it: what is asked stays word for word what it was
    else:
        before = _readable(record)
    same = before == after and _described(record) == _described(wanted)
    return record if same else _changed(wanted, now)


def published(record: SourceRecord, now: float) -> SourceRecord:
    """The record once it is published; one that is already stays the same. Raises DATA_SOURCE_NOT_FOUND for an archived one."""
    refuse_archived(record)
    if record.status == "PUBLISHED":
        return record
    compiled(record)
    return _changed(msgspec.structs.replace(record, status="PUBLISHED"), now)


def archived(record: SourceRecord, now: float) -> SourceRecord:
    """The record once it is archived. Raises DATA_SOURCE_NOT_FOUND where it is already."""
    refuse_archived(record)
    return _changed(msgspec.structs.replace(record, status="ARCHIVED"), now)


def refuse_archived(record: SourceRecord) -> None:
    if record.status == "ARCHIVED":
        raise CallerError("DATA_SOURCE_NOT_FOUND", "the data source is archived")


def compiled(record: SourceRecord) -> DataSource:
    """The record's spec, read as an inline one is; no template of it may name what its `auth` uses."""
    source = parse_source(record.spec())
    used = frozenset[str]().union(*source.auth.alternatives) if source.auth else frozenset[str]()
    for hole in source.request.holes:
        if hole.name in used:
            raise rejected(hole.member, f"names {hole.name}, which source.auth uses and is no template variable then")
    return source


def _with(record: SourceRecord, draft: Draft) -> tuple[SourceRecord, DataSource]:
    """The record with all that a draft says and what follows from it, checked; and its compiled form."""
    _check_storable(draft)
    given = msgspec.structs.replace(
        record,
        name=draft.name,
        description=draft.description,
        metadata=draft.metadata,
        source=draft.source,
        caching=draft.caching,
        terms={name: draft.terms[name] for name in TERMS if draft.terms.get(name) is not None},
    )
    source = compiled(given)
    holes = source.request.holes
    return msgspec.structs.replace(
        given,
        runtime_params=_distinct(hole for hole in holes if not hole.env_only),
        variables=_distinct(hole for hole in holes if hole.env_only),
    ), source


def _check_storable(draft: Draft) -> None:
    """JSON that no store turns into something else: no NaN, no half surrogate pairs, no bottomless nesting."""
    if len(draft.name) > _NAME_LIMIT:
        raise invalid(f"{ROOT}.name", f"must be at most {_NAME_LIMIT} characters long")
    if draft.description is not None and _UNFIT.search(draft.description):
        raise invalid(f"{ROOT}.description", "must hold no NUL and no half surrogate pairs")
    for member in ("name", "source", "caching", "terms", "metadata"):
        value = getattr(draft, member)
        if _deeper(value, _LEVELS):
            raise invalid(f"{ROOT}.{member}", "is nested too deeply")
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, TypeError):  # ValueError: not finite, over 4,300 digits, or no character
            raise invalid(f"{ROOT}.{member}", "must be JSON of finite numbers and whole characters") from None


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return False
    return levels == 0 or any(_deeper(item, levels - 1) for item in value)


def _distinct(holes: Iterable[Hole]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hole.name for hole in holes))


def _readable(record: SourceRecord) -> DataSource | None:
    """The compiled form; None where this version can't read what an other one kept: any draft is a change then."""
    try:
        return compiled(record)
    except CallerError:
        return None


def _described(record: SourceRecord) -> str:
    """What is kept and not compiled: members of `source` that the edge does not know are kept for who does."""
    beside = {name: value for name, value in record.source.items() if name not in _KNOWN and value is not None}
    return _canonical([record.description, record.metadata, beside])


def _canonical(value: Any) -> str:
    """JSON with sorted members, where 1, 1.0 and true are three: Python takes them for one. Templates as Python shows them."""
    return json.dumps(value, sort_keys=True, default=repr)


def _of_published(record: SourceRecord, wanted: SourceRecord, before: DataSource, after: DataSource) -> SourceRecord:
    """What of `wanted` a published record takes; its other members keep the words that they were given in."""
    for member, old, new in _fixed(before, after):
        if old != new or _constants(old) != _constants(new):
            raise invalid(f"{ROOT}.{member}", "can't change once the data source is published")
    kept = {name: value for name, value in record.source.items() if name not in _CHANGEABLE}
    given = {name: wanted.source[name] for name in _CHANGEABLE if wanted.source.get(name) is not None}
    return msgspec.structs.replace(
        record,
        description=wanted.description,
        metadata=wanted.metadata,
        caching=wanted.caching,
        source=kept | given,
    )


def _constants(member: Any) -> str:
    """Where a member's constants keep their JSON types: those of headers, parameters and URLs are text by now."""
    return _canonical(member.tree) if isinstance(member, JsonBody) else ""


def _fixed(before: DataSource, after: DataSource) -> Iterator[tuple[str, Any, Any]]:
    """Each member that a published source keeps for ever, as it is and as it is wanted, compiled: null is the default then."""
    yield "name", before.name, after.name
    for member in ("method", "url", "body", "response_type"):
        yield f"source.{member}", getattr(before.request, member), getattr(after.request, member)
    for member in ("headers", "params"):  # neither JSON's members nor these have an order; values of one name do
        old, new = (sorted(getattr(one.request, member), key=lambda pair: str(pair[0])) for one in (before, after))
        yield f"source.{member}", old, new
    yield "source.auth", before.auth, after.auth
    yield "source.idempotency_key_header", before.idempotency_header, after.idempotency_header
    yield "cost_per_call", before.price, after.price
    yield "billable", before.billable, after.billable
    yield "budget", before.budget, after.budget


def _changed(record: SourceRecord, now: float) -> SourceRecord:
    return msgspec.structs.replace(
        record,
        generation=record.generation + 1,
        revision=record.revision + 1,
        last_updated_at=max(round(now, _PLACES), record.last_updated_at),
    )
