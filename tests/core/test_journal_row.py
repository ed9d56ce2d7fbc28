"""One audit row for each answer, and the frames that carry rows and objects."""

from __future__ import annotations

import random
import struct
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.exchange import DataObject, Entry, Fetched
from broker_edge.core.journal_row import (
    Frame,
    ObjectFrame,
    PackedRows,
    RequestRow,
    frame_of,
    is_packed_row,
    pack_row,
    refill_frame,
    row_of,
    unpack_row,
    upgraded,
)
from broker_edge.core.money import Price
from broker_edge.core.trail import FlightTrail, TraceContext, Trail
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
    fields = list(msgspec.structs.astuple(row_of(made, ROW)))[:-4]
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


ROWS = st.builds(
    RequestRow,
    run_data_request_id=st.uuids(),
    created_at=st.integers(0, 4 * 10**15).map(lambda microseconds: microseconds / 1e6),
    run_id=st.none() | st.uuids(),
    data_object_id=st.none() | st.uuids(),
    data_source_id=st.none() | st.uuids(),
    data_origin=st.sampled_from([None, "REQUEST", "CACHE"]),
    start_time=st.none() | st.floats(0, 4e9),
    end_time=st.none() | st.floats(0, 4e9),
    error=st.none() | st.fixed_dictionaries({"code": st.sampled_from(["TIMEOUT"]), "retryable": st.booleans()}),
    project_id=st.none() | st.uuids(),
    key=st.none() | st.text("0123456789abcdef\u00e9", max_size=40),
    outcome=st.text("abc_\u00e9", max_size=20),
    status_code=st.integers(-(2**31), 2**31 - 1),
    trace_id=st.text("0123456789abcdef", max_size=32),
    calls=st.none() | st.integers(0, 2**31 - 1),
    cost_micros=st.none() | st.integers(0, 2**63 - 1),
    saved_micros=st.none() | st.integers(0, 2**63 - 1),
    currency=st.sampled_from([None, "BRL", "XXX"]),
)


@given(ROWS)
def test_a_row_is_read_as_it_was_packed(row: RequestRow) -> None:
    frame = pack_row(row)
    assert is_packed_row(frame)
    assert unpack_row(frame) == row


@given(ROWS)
def test_a_row_that_was_packed_before_rows_had_money_in_them_gets_none(row: RequestRow) -> None:
    bare = msgspec.structs.replace(row, calls=None, cost_micros=None, saved_micros=None, currency=None)
    frame = pack_row(bare)
    assert frame[:2] == struct.pack(">h", len(RequestRow.__struct_fields__))
    earlier = struct.pack(">h", 14) + frame[2:-16]
    assert not is_packed_row(earlier)
    assert upgraded(earlier) == frame
    assert upgraded(frame) is None
    assert upgraded(msgspec.msgpack.encode(row)) is None


@given(ROWS, st.data())
def test_what_is_cut_short_is_no_row(row: RequestRow, data: st.DataObject) -> None:
    frame = pack_row(row)
    with pytest.raises(ValueError, match=r"\w"):
        unpack_row(frame[: data.draw(st.integers(0, len(frame) - 1))])


@given(ROWS)
def test_the_frames_of_an_earlier_version_are_told_apart(row: RequestRow) -> None:
    assert not is_packed_row(msgspec.msgpack.encode(row))
    item = DataObject(OBJECT, SOURCE, "k", b"", 0.0, None, "XML", 203, reusable=True)
    assert not is_packed_row(msgspec.msgpack.encode(ObjectFrame.of(item)))


def test_frames_sort_by_the_rows_ids() -> None:
    made = trail()
    made.deliver(Fetched(ENTRY, "k" * 32, "CACHE"), 1001.0)
    ids = [UUID(int=random.getrandbits(128)) for _ in range(50)]
    frames = sorted(frame_of(made, one.bytes) for one in ids)
    assert [row.run_data_request_id for row in PackedRows(frames)] == sorted(ids)


def test_packed_rows_are_a_sequence_of_rows() -> None:
    made = trail()
    made.deliver(Fetched(ENTRY, "k" * 32, "CACHE"), 1001.0)
    wanted = [row_of(made, UUID(int=number)) for number in range(5)]
    rows = PackedRows([pack_row(row) for row in wanted])
    assert (len(rows), list(rows), rows[2], list(rows[1:3])) == (5, wanted, wanted[2], wanted[1:3])


@pytest.mark.parametrize("text", ["\x00", "\ud800", "a\x00b\ud800c"])
def test_text_that_no_database_takes_is_replaced_in_an_error(text: str) -> None:
    made = trail()
    made.fail(CallerError("INVALID_REQUEST", text), 1001.0)
    error = row_of(made, ROW).error
    assert error is not None
    assert error["message"] == text.replace("\x00", "\ufffd").replace("\ud800", "?")


@pytest.mark.parametrize("members", [{"status_code": 2**31}, {"status_code": 2**80}, {"outcome": "a\ud800"}])
def test_a_row_that_no_column_can_hold_is_not_packed(members: dict[str, object]) -> None:
    made = trail()
    made.deliver(Fetched(ENTRY, "k" * 32, "CACHE"), 1001.0)
    with pytest.raises(ValueError, match=r"too large|surrogates"):
        pack_row(msgspec.structs.replace(row_of(made, ROW), **members))


# Money

BRL = Price(2_500_000, "BRL")


def money(row: RequestRow) -> tuple[int | None, int | None, int | None, str | None]:
    return row.calls, row.cost_micros, row.saved_micros, row.currency


def priced(price: Price | None = BRL) -> Trail:
    made = trail()
    made.price = price
    return made


def test_a_row_without_a_price_says_nothing_of_money() -> None:
    made = trail()
    made.deliver(Fetched(ENTRY, "k" * 32, "REQUEST", 1000.25, 1000.75, 200), 1001.0)
    assert money(row_of(made, ROW)) == (None, None, None, None)


def test_a_bought_answer_has_its_calls_and_cost() -> None:
    made = priced()
    made.charge(2_500_000)
    made.charge(2_500_000)
    made.deliver(Fetched(ENTRY, "k" * 32, "REQUEST", 1000.25, 1000.75, 200), 1001.0)
    assert money(row_of(made, ROW)) == (2, 5_000_000, None, "BRL")


def test_a_call_that_was_given_back_costs_nothing() -> None:
    made = priced()
    made.charge(2_500_000)
    made.refund(2_500_000)
    made.fail(UpstreamError("CONNECT_ERROR", "no", sent=False), 1001.0)
    assert money(row_of(made, ROW)) == (None, None, None, "BRL")


@pytest.mark.parametrize("stale", [False, True])
def test_an_answer_from_the_cache_saved_a_call(stale: bool) -> None:
    made = priced()
    made.deliver(Fetched(ENTRY, "k" * 32, "CACHE", stale=stale), 1001.0)
    assert money(row_of(made, ROW)) == (None, None, 2_500_000, "BRL")


def test_a_collapsed_answer_saved_a_call() -> None:
    made = priced()
    made.collapsed = True
    made.deliver(Fetched(ENTRY, "k" * 32, "REQUEST", 1000.25, 1000.75, 200), 1001.0)
    row = row_of(made, ROW)
    assert (row.outcome, *money(row)) == ("collapsed", None, None, 2_500_000, "BRL")


def test_a_stale_answer_after_a_call_that_failed_saved_nothing() -> None:
    made = priced()
    made.charge(2_500_000)
    made.deliver(Fetched(ENTRY, "k" * 32, "CACHE", stale=True), 1001.0)
    assert money(row_of(made, ROW)) == (1, 2_500_000, None, "BRL")


@pytest.mark.parametrize("charged", [False, True])
def test_a_failure_saved_nothing(charged: bool) -> None:
    made = priced()
    if charged:
        made.charge(2_500_000)
    made.fail(UpstreamError("TIMEOUT", "no"), 1001.0)
    assert money(row_of(made, ROW)) == ((1, 2_500_000, None, "BRL") if charged else (None, None, None, "BRL"))


def test_calls_are_counted_where_only_a_budget_asks_for_them() -> None:
    made = priced(None)
    made.charge(0)
    made.deliver(Fetched(ENTRY, "k" * 32, "REQUEST", 1000.25, 1000.75, 200), 1001.0)
    assert money(row_of(made, ROW)) == (1, None, None, None)


def flight_of(opener: Trail) -> FlightTrail:
    flight = FlightTrail(opener.context.child(9), 1000.1, lambda: 3, opener)
    flight.charge(2_500_000)
    return flight


def test_a_refill_of_its_own_has_what_the_request_that_began_it_had() -> None:
    opener = priced()
    opener.project = str(PROJECT)
    opener.deliver(Fetched(ENTRY, "k" * 32, "CACHE", stale=True), 1000.2)
    flight = flight_of(opener)
    flight.end(Fetched(ENTRY, "k" * 32, "REQUEST", 1000.25, 1000.75, 200), 1001.0)
    row = unpack_row(refill_frame(flight, opener, ROW.bytes))
    assert (row.outcome, row.data_origin, row.status_code, row.error) == ("refill", "REQUEST", 200, None)
    assert (row.start_time, row.end_time, row.created_at) == (1000.25, 1000.75, 1001.0)
    assert (row.run_data_request_id, row.run_id, row.data_source_id, row.data_object_id) == (ROW, RUN, SOURCE, OBJECT)
    assert (row.key, row.trace_id, row.project_id) == ("k" * 32, f"{0xABC:032x}", PROJECT)
    assert money(row) == (1, 2_500_000, None, "BRL")
    assert money(row_of(opener, ROW)) == (None, None, 2_500_000, "BRL")


def test_a_refill_of_its_own_that_failed_says_how() -> None:
    opener, error = priced(), UpstreamError("UPSTREAM_STATUS", "it said no", upstream_status=503)
    flight = flight_of(opener)
    flight.end(error, 1001.0)
    row = unpack_row(refill_frame(flight, opener, ROW.bytes))
    assert (row.outcome, row.data_origin, row.status_code, row.error) == ("refill", None, 502, error.member())
    assert (row.start_time, row.end_time, row.data_object_id) == (1000.1, 1001.0, None)
    assert money(row) == (1, 2_500_000, None, "BRL")


def test_an_object_s_frame_carries_its_validators_and_its_renewal() -> None:
    item = DataObject(
        *(UUID(int=1), UUID(int=2), "key", b"{}", 1.5, None, "JSON", 200),
        reusable=True,
        project_id=UUID(int=3),
        etag='"v1"',
        last_modified="Wed, 21 Oct 2015 07:28:00 GMT",
        validated_at=2.5,
    )
    decoder = msgspec.msgpack.Decoder(Frame)
    back = decoder.decode(msgspec.msgpack.encode(ObjectFrame.of(item)))
    assert isinstance(back, ObjectFrame)
    assert back.restore() == item


def test_a_frame_of_an_object_that_an_earlier_version_spooled_is_still_read() -> None:
    item = DataObject(UUID(int=1), UUID(int=2), "key", b"{}", 1.5, "text/csv", "CSV", 203, reusable=True)
    earlier = ["object", item.object_id, item.data_source_id, "key", b"{}", 1.5, "text/csv", "CSV", 203, True]
    back = msgspec.msgpack.Decoder(Frame).decode(msgspec.msgpack.encode(earlier))
    assert isinstance(back, ObjectFrame)
    assert back.restore() == item
