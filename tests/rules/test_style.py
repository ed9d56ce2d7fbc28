"""The sizes and habits that keep the house livable, and the files that installations rest on."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "broker_edge").rglob("*.py"))
LOCKS = ["requirements.lock", "requirements-runtime.lock", "requirements-beam.lock"]


def functions() -> Iterator[tuple[int, str]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield node.end_lineno - node.lineno + 1, f"{path.name}:{node.name}"


def test_functions_are_short() -> None:
    lengths = [length for length, _ in functions()]
    assert statistics.median(lengths) <= 9
    assert statistics.quantiles(lengths, n=10)[-1] <= 30
    assert [name for length, name in functions() if length > 45] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_no_module_is_named_for_nothing() -> None:
    words = re.compile(r"utils?|helpers?|manager|service|common|misc|base")
    assert [path.name for path in FILES if words.fullmatch(path.stem)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_its_place(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)) is not None
    assert "BaseHTTPMiddleware" not in text
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)


def locked(name: str) -> dict[str, set[str]]:
    """Each requirement of a lock with its hashes; its marker belongs to the requirement."""
    found: dict[str, set[str]] = {}
    current = ""
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            current = line.removesuffix(" \\").strip()
            found[current] = set()
        found.setdefault(current, set()).update(re.findall(r"--hash=(sha256:[0-9a-f]{64})", line))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_host(name: str) -> None:
    assert not re.search(r"^-|://| @ |index-url|find-links", (ROOT / name).read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_every_requirement_by_hash(name: str) -> None:
    pins = locked(name)
    assert len(pins) > 20
    assert [pin for pin, hashes in pins.items() if not hashes or "==" not in pin] == []


def test_what_runs_is_what_was_tested() -> None:
    def bare(name: str) -> dict[str, set[str]]:
        return {pin.split(" ;")[0]: hashes for pin, hashes in locked(name).items()}

    assert bare(LOCKS[1]).items() <= bare(LOCKS[0]).items()
