"""One audit row for each answer, and the frames that carry rows and objects."""

from __future__ import annotations

import random
from uuid import UUID

import msgspec
import pytest

from broker_edge.core.exchange import DataObject, Entry, Fetched
from broker_edge.core.journal_row import Frame, ObjectFrame, RequestRow, row_of
from broker_edge.core.trail import TraceContext, Trail
from broker_edge.errors import CallerError, UpstreamError

ROW, RUN, SOURCE, OBJECT, PROJECT = (UUID(int=number) for number in range(1, 6))
ENTRY = Entry(OBJECT, 900.0, b"secret value")


def trail() -> Trail:
    made = Trail(TraceContext(0xABC, 0x12), 1000.0, lambda: random.getrandbits(64))
    made.run_id, made.source_id, made.source_name, made.key = RUN, SOURCE, "sample", "k" * 32
    return made


def test_an_answer_from_upstream_has_the_call_s_times() -> None:
    made = trail()
    made.deliver(Fetched(ENTRY, "k" * 32, "REQUEST", 1000.25, 1000.75, 200), 1001.0)
    row = row_of(made, ROW)
    assert (row.data_origin, row.start_time, row.end_time, row.created_at) == ("REQUEST", 1000.25, 1000.75, 1001.0)
    assert (row.outcome, row.status_code, row.error) == ("fetched", 200, None)
    assert (row.run_data_request_id, row.run_id, row.data_source_id, row.data_object_id) == (ROW, RUN, SOURCE, OBJECT)
    assert (row.key, row.trace_id, row.project_id) == ("k" * 32, f"{0xABC:032x}", None)


@pytest.mark.parametrize("stale", [False, True])
def test_an_answer_from_the_cache_has_no_times(stale: bool) -> None:
    made = trail()
    made.deliver(Fetched(ENTRY, "k" * 32, "CACHE", stale=stale), 1001.0)
    row = row_of(made, ROW)
    assert (row.data_origin, row.start_time, row.end_time) == ("CACHE", None, None)
    assert row.outcome == ("stale" if stale else "hit")
    assert row.data_object_id == OBJECT


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CallerError("MISSING_VARIABLE", "id has no value"), 400),
        (UpstreamError("UPSTREAM_STATUS", "it said no", upstream_status=503), 502),
    ],
)
def test_a_failure_has_its_error_and_no_origin(error: CallerError | UpstreamError, status: int) -> None:
    made = trail()
    made.fail(error, 1001.0)
    row = row_of(made, ROW)
    assert row.error == error.member()
    assert (row.data_origin, row.data_object_id, row.status_code) == (None, None, status)
    assert (row.start_time, row.end_time) == (1000.0, 1001.0)
    assert row.outcome == error.code.lower()


def test_a_request_that_could_not_be_read_has_a_row_all_the_same() -> None:
    made = Trail(TraceContext(1, 2), 1000.0, lambda: 3)
    made.fail(CallerError("INVALID_REQUEST", "the request is not JSON"), 1000.5)
    row = row_of(made, ROW)
    assert (row.run_id, row.data_source_id, row.key, row.project_id) == (None,) * 4


def test_a_project_is_kept() -> None:
    made = trail()
    made.project = str(PROJECT)
    made.deliver(Fetched(ENTRY, "k", "CACHE"), 1001.0)
    assert row_of(made, ROW).project_id == PROJECT


def test_frames_come_back_as_what_they_were() -> None:
    made = trail()
    made.fail(UpstreamError("TIMEOUT", "caf\u00e9"), 1001.0)
    row = row_of(made, ROW)
    item = DataObject(OBJECT, SOURCE, "k" * 32, b"\x00\xff", 900.123456, None, "XML", 203, reusable=False)
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder[Frame](Frame)
    assert decoder.decode(encoder.encode(row)) == row
    back = decoder.decode(encoder.encode(ObjectFrame.of(item)))
    assert isinstance(back, ObjectFrame)
    assert back.restore() == item


def test_no_row_holds_the_value() -> None:
    made = trail()
    made.deliver(Fetched(ENTRY, "k" * 32, "REQUEST", 1000.25, 1000.75, 200), 1001.0)
    assert b"secret" not in msgspec.msgpack.encode(row_of(made, ROW))


def test_a_row_of_an_earlier_version_can_still_be_read() -> None:
    made = trail()
    made.deliver(Fetched(ENTRY, "k" * 32, "CACHE"), 1001.0)
    fields = list(msgspec.structs.astuple(row_of(made, ROW)))
    spooled = msgspec.msgpack.encode(["row", *fields])
    assert msgspec.msgpack.Decoder[Frame](Frame).decode(spooled) == row_of(made, ROW)
    assert RequestRow.__struct_fields__[:10] == (
        "run_data_request_id",
        "created_at",
        "run_id",
        "data_object_id",
        "data_source_id",
        "data_origin",
        "start_time",
        "end_time",
        "error",
        "project_id",
    )
