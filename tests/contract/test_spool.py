"""The contract of `ports.Spool`, over real files: what was appended outlives the process, in order, never half-written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_edge.backends.spool import FileSpool
from broker_edge.errors import TierBroken

Open = Callable[..., FileSpool]
HEAD = 8  # bytes before each frame


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens spools in one directory, closes them at the end."""
    spools: list[FileSpool] = []

    def open_spool(segment_bytes: int = 4096, max_bytes: int = 2**26) -> FileSpool:
        spools.append(FileSpool(tmp_path / "spool", segment_bytes=segment_bytes, max_bytes=max_bytes))
        return spools[-1]

    yield open_spool
    for spool in spools:
        spool.close()


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "spool").iterdir())


def drained(spool: FileSpool, most: int = 7) -> list[bytes]:
    frames: list[bytes] = []
    while batch := spool.read(most):
        frames += batch
        spool.commit()
    return frames


def numbered(count: int, size: int = 0) -> list[bytes]:
    return [b"%06d" % number + b"x" * size for number in range(count)]


def fill(spool: FileSpool, frames: Sequence[bytes]) -> None:
    for frame in frames:
        spool.append(frame)


def test_an_empty_spool_has_nothing_to_read(opened: Open) -> None:
    spool = opened()
    assert list(spool.read(10)) == []
    spool.commit()
    assert (spool.backlog_frames, spool.backlog_bytes) == (0, 0)


def test_frames_are_read_oldest_first_and_at_most_as_many_as_asked(opened: Open) -> None:
    spool = opened()
    fill(spool, numbered(5))
    assert list(spool.read(3)) == numbered(5)[:3]
    spool.commit()
    assert list(spool.read(3)) == numbered(5)[3:]


def test_what_was_not_committed_is_read_again(opened: Open) -> None:
    spool = opened()
    fill(spool, numbered(5))
    assert spool.read(2) == spool.read(2)
    assert list(spool.read(5)) == numbered(5)


def test_a_commit_covers_the_last_read_and_only_once(opened: Open) -> None:
    spool = opened()
    fill(spool, numbered(5))
    spool.read(4)
    spool.read(2)
    spool.append(b"meanwhile")
    spool.commit()
    spool.commit()
    assert drained(spool) == [*numbered(5)[2:], b"meanwhile"]


def test_binary_frames_come_back_as_they_were(opened: Open) -> None:
    spool, frames = opened(), [b"\x00", b"\x00" * 100, bytes(range(256)), b"\xff" * 9]
    fill(spool, frames)
    assert drained(spool) == frames


def test_a_frame_larger_than_the_read_buffer_comes_back_whole(opened: Open) -> None:
    spool, frames = opened(2**26), [b"small", b"a" * (9 * 2**20), b"b" * (4 * 2**20), b"small"]
    fill(spool, frames)
    assert drained(spool) == frames


def test_a_frame_larger_than_the_read_buffer_survives_the_process(opened: Open) -> None:
    spool, frames = opened(2**26), [b"small", b"a" * (9 * 2**20), b"small"]
    fill(spool, frames)
    spool.close()
    assert drained(opened()) == frames


def test_the_backlog_counts_what_is_not_committed(opened: Open) -> None:
    spool = opened()
    fill(spool, numbered(10))
    spool.read(4)
    assert (spool.backlog_frames, spool.backlog_bytes) == (10, 10 * (6 + HEAD))
    spool.commit()
    assert (spool.backlog_frames, spool.backlog_bytes) == (6, 6 * (6 + HEAD))


def test_a_full_spool_refuses_and_takes_again_what_has_room(opened: Open) -> None:
    spool = opened(max_bytes=1000)
    with pytest.raises(TierBroken, match="full"):
        fill(spool, numbered(100, 50))
    kept = numbered(100, 50)[: spool.backlog_frames]
    assert kept
    assert spool.backlog_bytes <= 1000
    assert drained(spool) == kept
    spool.append(b"again")
    assert drained(spool) == [b"again"]


def test_frames_that_are_appended_together_are_kept_together_or_not_at_all(opened: Open) -> None:
    spool = opened(max_bytes=1000)
    spool.append_all([b"a" * 100, b"b" * 100])
    with pytest.raises(TierBroken, match="full"):
        spool.append_all([b"c" * 100] * 8)
    assert (spool.backlog_frames, spool.backlog_bytes) == (2, 2 * (100 + HEAD))
    assert drained(spool) == [b"a" * 100, b"b" * 100]


def test_a_full_spool_says_so_until_there_is_room(opened: Open) -> None:
    spool = opened(max_bytes=100)
    assert not spool.full
    spool.append(b"x" * 80)
    with pytest.raises(TierBroken):
        spool.append(b"x" * 80)
    assert spool.full
    drained(spool)
    # Nobody sends requests to an instance that isn't ready, so the next append can't be what shows it.
    assert not spool.full


def test_segments_roll_at_their_size_and_go_when_they_are_committed(opened: Open, tmp_path: Path) -> None:
    spool, frames = opened(), numbered(100, 500)
    fill(spool, frames)
    assert len(segments(tmp_path)) > 10
    assert all(path.stat().st_size < 4096 + 600 for path in segments(tmp_path))
    assert drained(spool) == frames
    assert len(segments(tmp_path)) <= 1
    spool.close()
    assert segments(tmp_path) == []


def test_segments_are_for_nobody_else_s_eyes(opened: Open, tmp_path: Path) -> None:
    spool = opened()
    spool.append(b"a")
    assert {path.stat().st_mode & 0o777 for path in segments(tmp_path)} == {0o600}
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


def test_the_next_process_reads_what_was_left_in_order(opened: Open) -> None:
    spool, frames = opened(), numbered(100, 500)
    fill(spool, frames)
    spool.close()
    second = opened()
    second.append(b"newer")
    assert drained(second) == [*frames, b"newer"]


def test_what_was_appended_after_the_last_commit_is_never_lost_to_a_close(opened: Open) -> None:
    spool = opened(segment_bytes=2**20)
    fill(spool, numbered(10))
    spool.read(4)
    spool.commit()
    spool.close()
    # A segment is kept whole until all of it is committed: the database tells rows that come twice apart.
    assert drained(opened()) == numbered(10)


TAILS = [b"\x00", b"\x00\x00\x00\x05\x12\x34\x56", b"\x00\x00\x00\x05\x12\x34\x56\x78abc", b"\xff" * 50, b"\x00" * 64]


@pytest.mark.parametrize("tail", TAILS)
def test_a_torn_tail_is_cut(opened: Open, tmp_path: Path, tail: bytes) -> None:
    spool = opened()
    fill(spool, numbered(3))
    spool.close()
    with segments(tmp_path)[0].open("ab") as file:
        file.write(tail)
    second = opened()
    assert second.torn_bytes == len(tail)
    second.append(b"next")
    assert drained(second) == [*numbered(3), b"next"]


@pytest.mark.parametrize("length", range(1, 6 + HEAD))
def test_a_write_that_was_cut_anywhere_loses_that_frame_alone(opened: Open, tmp_path: Path, length: int) -> None:
    spool = opened()
    fill(spool, numbered(3))
    spool.close()
    os.truncate(segments(tmp_path)[0], 2 * (6 + HEAD) + length)
    assert drained(opened()) == numbered(2)


def test_a_corrupt_frame_is_never_handed_out(opened: Open, tmp_path: Path) -> None:
    spool = opened(segment_bytes=4096)
    fill(spool, numbered(3))
    spool.close()
    path = segments(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[2 * HEAD + 6] ^= 1
    path.write_bytes(data)
    second = opened()
    second.append(b"next")
    assert drained(second) == [*numbered(3)[:1], b"next"]


def test_empty_segments_and_files_of_others_do_no_harm(opened: Open, tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    directory.mkdir()
    (directory / "0-1-1.segment").touch()
    (directory / "0-1-2.new").write_bytes(b"half")
    (directory / "README").write_text("not ours")
    spool = opened()
    spool.append(b"a")
    assert drained(spool) == [b"a"]
    assert (directory / "README").exists()


# Several processes.

_HOLDER = """
import sys
from pathlib import Path
from broker_edge.backends.spool import FileSpool
spool = FileSpool(Path(sys.argv[1]), segment_bytes=4096, max_bytes=2**26)
for number in range(int(sys.argv[2])):
    spool.append(b"theirs%06d" % number)
print("ready", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process with a spool in the same directory."""

    def __init__(self, directory: Path, count: int) -> None:
        line = [sys.executable, "-c", _HOLDER, str(directory / "spool"), str(count)]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path, 300)
    yield holder
    holder.kill()


def test_the_frames_of_a_process_that_lives_are_its_own(opened: Open, holder: Holder) -> None:
    spool = opened()
    assert spool.adopt() == 0
    assert drained(spool) == []


def test_the_frames_of_a_process_that_was_killed_come_first(opened: Open, holder: Holder) -> None:
    spool = opened()
    spool.append(b"ours")
    holder.kill()
    assert spool.adopt() == 300
    assert spool.adopt() == 0
    assert drained(spool) == [*(b"theirs%06d" % number for number in range(300)), b"ours"]


def test_an_adoption_between_read_and_commit_forgets_nothing(opened: Open, holder: Holder) -> None:
    spool = opened()
    fill(spool, numbered(5))
    assert list(spool.read(3)) == numbered(5)[:3]
    holder.kill()
    spool.adopt()
    spool.commit()
    assert drained(spool) == [*(b"theirs%06d" % number for number in range(300)), *numbered(5)[3:]]


def test_two_spools_of_one_directory_do_not_share_frames(opened: Open) -> None:
    one, two = opened(), opened()
    one.append(b"one")
    two.append(b"two")
    assert (one.adopt(), two.adopt()) == (0, 0)
    assert (list(one.read(9)), drained(two)) == ([b"one"], [b"two"])
    one.close()
    assert two.adopt() == 1
    assert drained(two) == [b"one"]


def test_of_two_that_adopt_at_once_one_gets_each_segment(opened: Open) -> None:
    first = opened()
    fill(first, numbered(100, 500))
    first.close()
    one, two = opened(), opened()
    assert sorted(drained(one) + drained(two)) == numbered(100, 500)


# Disks.

_LIMITED = """
import resource, sys
from pathlib import Path
from broker_edge.backends.spool import FileSpool
from broker_edge.errors import TierBroken
spool = FileSpool(Path(sys.argv[1]), segment_bytes=2**20, max_bytes=2**26)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
kept = refused = 0
for number in range(20):
    try:
        spool.append(b"%06d" % number + b"x" * 100)
        kept += 1
    except TierBroken as error:
        assert str(error) == "the journal's spool can't be written", error
        assert spool.full
        refused += 1
print(kept, refused, Path(spool._segments[0].path).stat().st_size, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
spool.append(b"after")
assert not spool.full
print(b" ".join(frame[:6] for frame in spool.read(100)).decode(), flush=True)
"""


def test_a_disk_that_refuses_leaves_nothing_half_written(opened: Open, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path / "spool")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    counts, frames = done.stdout.splitlines()
    kept, refused, size = map(int, counts.split())
    assert (kept, refused, size) == (8, 12, 8 * (106 + HEAD))
    assert frames.split() == [*(f"{number:06d}" for number in range(8)), "after"]
    spool = opened()
    assert [frame[:6].decode() for frame in drained(spool)] == frames.split()
    assert spool.torn_bytes == 0


def test_a_directory_that_went_away_is_broken_and_names_no_path(opened: Open, tmp_path: Path) -> None:
    spool = opened()
    (tmp_path / "spool").rmdir()
    with pytest.raises(TierBroken) as broken:
        spool.append(b"a")
    assert str(tmp_path) not in str(broken.value)
    assert broken.value.__suppress_context__
    (tmp_path / "spool").mkdir()
    spool.append(b"b")
    assert drained(spool) == [b"b"]


# All of it, against a list.


class Checked:
    """A spool beside the list that it stands for: `history` is all that was taken, `done` how much of it is committed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.history: list[bytes] = []
        self.done = 0
        self._open()

    def _open(self) -> None:
        self.spool = FileSpool(self._directory, segment_bytes=64, max_bytes=600)
        self.pending = 0

    def append(self, size: int) -> None:
        frame = b"%d:" % len(self.history) + b"x" * size
        try:
            self.spool.append(frame)
            self.history.append(frame)
        except TierBroken:
            assert self.spool.backlog_bytes + len(frame) + HEAD > 600

    def read(self, most: int) -> None:
        frames = list(self.spool.read(most))
        left = self.history[self.done :]
        assert frames == left[: len(frames)]
        assert len(frames) <= most
        assert frames or not left
        self.pending = len(frames)

    def commit(self, _: int) -> None:
        self.spool.commit()
        self.done, self.pending = self.done + self.pending, 0

    def reopen(self, gently: int) -> None:
        if gently:
            self.spool.close()
        else:
            for segment in self.spool._segments:
                os.close(segment.fd)
        self._open()
        start = len(self.history) - self.spool.backlog_frames
        assert 0 <= start <= self.done
        self.done = start

    def check(self) -> None:
        left = self.history[self.done :]
        assert self.spool.backlog_frames == len(left)
        assert self.spool.backlog_bytes == sum(len(frame) + HEAD for frame in left)
        assert self.spool.torn_bytes == 0


STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 200)),
    st.tuples(st.just("read"), st.integers(1, 6)),
    st.tuples(st.just("commit"), st.just(0)),
    st.tuples(st.just("reopen"), st.integers(0, 1)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_any_sequence_of_calls_keeps_what_a_list_would(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        checked = Checked(Path(directory) / "spool")
        for name, argument in steps:
            getattr(checked, name)(argument)
            checked.check()
        assert drained(checked.spool) == checked.history[checked.done :]
        checked.spool.close()
        assert list((Path(directory) / "spool").iterdir()) == []
