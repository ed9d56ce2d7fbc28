"""What goes on the wire, the kept origins and the frames of HTTP/2, without a socket."""

from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, PingFrame
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.backends.http2_stream import FrameSplitter
from broker_edge.backends.origins import Origins
from broker_edge.backends.wire import IDLE_SECONDS, authority, idle_limit, reply_headers, request_headers, request_target
from broker_edge.core.exchange import Outbound, Target
from broker_edge.errors import UpstreamError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", "/"),
        ("http://h/", "/"),
        ("http://h:80?a=/b", "/?a=/b"),
        ("https://h/a/b?c=d?e/f", "/a/b?c=d?e/f"),
        ("https://h/a#frag/x?y", "/a"),
        ("https://[::1]:8/x", "/x"),
    ],
)
def test_the_target_is_path_and_query(url: str, expected: str) -> None:
    assert request_target(url) == expected


@pytest.mark.parametrize(
    ("scheme", "host", "port", "expected"),
    [
        ("http", "h", 80, "h"),
        ("https", "h", 443, "h"),
        ("https", "h", 80, "h:80"),
        ("http", "2606::1", 443, "[2606::1]:443"),
        ("http", "2606::1", 80, "[2606::1]"),
    ],
)
def test_the_authority_names_only_a_port_that_is_not_the_schemes(scheme: str, host: str, port: int, expected: str) -> None:
    assert authority(Target(scheme, host, port, "8.8.8.8")) == expected


def test_headers_given_in_any_case_replace_the_defaults() -> None:
    request = Outbound("GET", "http://h/", (("USER-AGENT", "u"), ("aCCept", "x/y")))
    assert request_headers(request) == [("USER-AGENT", "u"), ("aCCept", "x/y")]


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("timeout=5", 4.0), ("max=9, timeout=2", 1.0), ("timeout=1", 0.5), ("timeout=75", IDLE_SECONDS), ("max=9", IDLE_SECONDS)],
)
def test_an_idle_connection_is_given_up_before_its_server_ends_it(said: str, seconds: float) -> None:
    assert idle_limit(said) == seconds


def test_a_head_is_measured_over_all_its_lines() -> None:
    lines = [(b"x-%d" % number, b"v" * 1000) for number in range(70)]
    assert len(reply_headers(lines[:60])) == 60
    with pytest.raises(UpstreamError) as caught:
        reply_headers(lines)
    assert caught.value.code == "UPSTREAM_TOO_LARGE"


FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=300).map(lambda data: DataFrame(1, data)),
        st.binary(min_size=8, max_size=8).map(lambda data: PingFrame(0, data)),
        st.integers(0, 2**31 - 1).map(lambda last: GoAwayFrame(0, last_stream_id=last, additional_data=b"bye")),
    ),
    max_size=12,
)


@given(FRAMES, st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_frames_come_out_whole_and_goaways_apart_however_they_arrive(frames: list[Frame], sizes: list[int]) -> None:
    data = b"".join(frame.serialize() for frame in frames)
    splitter, kept, last_ids, at, turn = FrameSplitter(), [], [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        whole, last = splitter.split(data[at : at + size])
        kept += whole
        last_ids += last
        at, turn = at + size, turn + 1
    assert kept == [frame.serialize() for frame in frames if not isinstance(frame, GoAwayFrame)]
    assert last_ids == [frame.last_stream_id for frame in frames if isinstance(frame, GoAwayFrame)]


async def test_an_origin_in_use_is_never_given_up() -> None:
    closed: list[str] = []

    async def close(name: str) -> None:
        closed.append(name)

    origins = Origins(lambda target: target.host, close, 1)
    one, two, three = (Target("http", name, 80, "8.8.8.8") for name in ("one", "two", "three"))
    async with origins.lease(one) as first:
        async with origins.lease(two):
            assert (first, closed, len(origins)) == ("one", [], 2)
        async with origins.lease(one):
            pass
        assert closed == ["two"]
    async with origins.lease(three):
        assert closed == ["two", "one"]
    await origins.aclose()
    assert closed == ["two", "one", "three"]
