"""Partitions of the tables that grow, and which of them, or of their rows, are past their time.

`run_data_request` has a partition for each day, `data_object` for each month (both UTC): an object's id is a UUIDv7, whose order
is time (RFC 9562 section 5.7), so that the id alone says where it belongs. Rows of other times and ids are in `_default`, those
from before there were partitions in `_before`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal, get_args
from uuid import UUID

import msgspec

Table = Literal["run_data_request", "data_object", "run_data_cache", "secret_access"]
# Objects before the rows of the cache: a process may still answer from an entry whose row has just gone, and the audit of that
# answer then has until the next round to name the object.
TABLES: Final[tuple[Table, ...]] = get_args(Table)
PARTITIONED: Final[tuple[Table, ...]] = ("run_data_request", "data_object")
DAYS_AHEAD: Final = 14
MONTHS_AHEAD: Final = 2
_NAME: Final = re.compile(r"(run_data_request|data_object)_(\d{4})(\d{2})(\d{2})?", re.ASCII)


class Limits(msgspec.Struct, frozen=True):
    """For how many days the rows of each table are kept, those of others for ever; `force` takes objects that kept rows name."""

    days: Mapping[Table, int]
    force: bool = False


class Partition(msgspec.Struct, frozen=True):
    """The rows from midnight (UTC) of `first` to midnight of `until`."""

    table: Table
    first: date
    until: date

    @property
    def name(self) -> str:
        return f"{self.table}_{self.first:{'%Y%m' if self.table == 'data_object' else '%Y%m%d'}}"

    @property
    def bounds(self) -> tuple[str, str]:
        """The least value of its key, and the least that is too large for it, as text."""
        of = _floor_id if self.table == "data_object" else _midnight
        return of(self.first), of(self.until)


class Removal(msgspec.Struct, frozen=True):
    """What is to go: `rows` of a table, or of its `partition`, all of them (drop) or those from before `before` (delete).

    `kept` are objects that are past their time too and stay, because rows of requests from `named_since` on or the cache's rows
    name them; with `force` they go, and the cache's rows with them.
    """

    table: Table
    how: Literal["drop", "delete"]
    partition: str | None
    before: date
    rows: int = 0
    kept: int = 0
    force: bool = False
    named_since: date = date.min


def ahead(today: date) -> Sequence[Partition]:
    """The partitions that there must be today."""
    days = [_daily(today + timedelta(days=number)) for number in range(DAYS_AHEAD + 1)]
    months = [_monthly(today.replace(day=1))]
    for _ in range(MONTHS_AHEAD):
        months.append(_monthly(months[-1].until))
    return [*days, *months]


def partition_of(name: str) -> Partition | None:
    """The partition of this name; None for `_default`, `_before` and what somebody else has made."""
    found = _NAME.fullmatch(name)
    try:
        if found is None:
            return None
        first = date(int(found[2]), int(found[3]), int(found[4] or 1))
    except ValueError:
        return None
    if (found[1] == "data_object") is not (found[4] is None):
        return None
    return _monthly(first) if found[4] is None else _daily(first)


def cutoff(days: int, today: date) -> date:
    """The first day that is kept."""
    return today - timedelta(days=days)


def past(table: Table, partitions: Sequence[str] | None, before: date) -> Sequence[Removal]:
    """What of a table is past its time, as far as its partitions' names tell; where it has none it is the table's rows."""
    if not partitions:
        return [Removal(table, "delete", None, before)]
    found = []
    for name in sorted(partitions):
        partition = partition_of(name)
        if partition is None:
            found.append(Removal(table, "delete", name, before))
        elif partition.until <= before:
            found.append(Removal(table, "drop", name, before))
    return found


def _daily(day: date) -> Partition:
    return Partition("run_data_request", day, day + timedelta(days=1))


def _monthly(first: date) -> Partition:
    return Partition("data_object", first, (first + timedelta(days=31)).replace(day=1))


def _midnight(day: date) -> str:
    return f"{day} 00:00:00+00"


def _floor_id(day: date) -> str:
    milliseconds = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    return str(UUID(int=milliseconds << 80))
