"""The key that an edge makes for itself: once, for its owner alone, whole or not at all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker_edge.backends.key_file import NAME, KeyFileError, make_keys, read_keys


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert read_keys(tmp_path) is None


def test_it_is_for_its_owner_alone_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    assert make_keys(tmp_path, "a:key") == "a:key"
    assert read_keys(tmp_path) == "a:key"
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_of_many_that_make_one_at_once_all_get_the_same(tmp_path: Path) -> None:
    together = threading.Barrier(16)

    def make(number: int) -> str:
        together.wait(30)
        return make_keys(tmp_path, f"k{number}:key")

    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(make, range(16)))
    assert len(found) == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
def test_one_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    make_keys(tmp_path, "a:key")
    (tmp_path / NAME).chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600") as caught:
        read_keys(tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_a_directory_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="can't be written") as caught:
        make_keys(tmp_path / "nowhere", "a:key")
    assert str(tmp_path) not in str(caught.value)
