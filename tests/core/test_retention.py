"""Which partitions there must be, and which are past their time."""

from __future__ import annotations

import itertools
import time
import uuid
from datetime import UTC, date, datetime, timedelta

import pytest

from broker_edge.core.ids import uuid7
from broker_edge.core.retention import TABLES, ahead, cutoff, partition_of, past

TODAY = date(2026, 12, 30)


def test_there_are_days_and_months_ahead_without_a_gap() -> None:
    days = [one for one in ahead(TODAY) if one.table == "run_data_request"]
    months = [one for one in ahead(TODAY) if one.table == "data_object"]
    assert (days[0].first, days[-1].until) == (TODAY, TODAY + timedelta(days=15))
    assert (months[0].first, months[-1].until) == (date(2026, 12, 1), date(2027, 3, 1))
    for line in (days, months):
        assert all(one.until == other.first for one, other in itertools.pairwise(line))


def test_names_say_what_is_in_a_partition() -> None:
    for one in ahead(TODAY):
        assert partition_of(one.name) == one
    assert {one.name for one in ahead(TODAY)} >= {"run_data_request_20261230", "data_object_202701"}


@pytest.mark.parametrize(
    "name",
    [
        *("run_data_request_default", "data_object_before", "run_data_request_20261301", "run_data_request_202612"),
        *("data_object_20261201", "data_object_202613", "run_data_cache_20261201", "x_run_data_request_20261201", ""),
    ],
)
def test_other_names_say_nothing(name: str) -> None:
    assert partition_of(name) is None


def test_ids_fall_into_the_month_in_which_they_were_made() -> None:
    for moment in (
        time.time(),
        datetime(2026, 12, 1, tzinfo=UTC).timestamp(),
        datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC).timestamp(),
    ):
        day = datetime.fromtimestamp(moment, UTC).date()
        month = partition_of(f"data_object_{day:%Y%m}")
        assert month is not None
        first, until = map(uuid.UUID, month.bounds)
        for bits in (0, 2**74 - 1):
            assert first <= uuid7(moment, bits) < until
        assert uuid7(datetime(month.first.year, month.first.month, 1, tzinfo=UTC).timestamp() - 0.001, 2**74 - 1) < first


def test_a_partition_is_past_its_time_when_its_last_day_is() -> None:
    names = [f"run_data_request_202612{day:02}" for day in range(18, 31)]
    found = past("run_data_request", names, cutoff(10, TODAY))
    assert [one.partition for one in found] == ["run_data_request_20261218", "run_data_request_20261219"]
    assert {one.how for one in found} == {"drop"}


def test_a_month_is_past_its_time_as_a_whole() -> None:
    names = ["data_object_202610", "data_object_202611", "data_object_202612"]
    assert [one.partition for one in past("data_object", names, date(2026, 11, 30))] == ["data_object_202610"]
    assert len(past("data_object", names, date(2026, 12, 1))) == 2


def test_rows_that_no_partition_dates_are_deleted_one_by_one() -> None:
    found = past("data_object", ["data_object_before", "data_object_default", "data_object_202612"], date(2026, 12, 1))
    assert {(one.partition, one.how) for one in found} == {("data_object_before", "delete"), ("data_object_default", "delete")}
    for none in (None, ()):
        (whole,) = past("run_data_cache", none, TODAY)
        assert (whole.how, whole.partition, whole.before) == ("delete", None, TODAY)


def test_what_names_objects_is_looked_at_first_and_the_cache_s_rows_after_them() -> None:
    order = [TABLES.index(table) for table in ("run_data_request", "data_object", "run_data_cache")]
    assert order == sorted(order)
