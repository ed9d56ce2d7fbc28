"""Dependencies point one way: `errors <- core <- ports <- flow <- api, cli`. Read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "broker_edge"
NAME = PACKAGE.name

ROOM_OF_ALL = "itself"  # the package, that is its version

# What each room may import beside its own files.
ALLOWED: dict[str, set[str]] = {
    ROOM_OF_ALL: set(),
    "errors": set(),
    "settings": {"guard"},
    "core": {ROOM_OF_ALL, "errors"},
    "ports": {"core", "errors"},
    "guard": {"core", "errors", "ports"},
    "backends": {"core", "errors", "ports"},
    "flow": {"core", "errors", "ports", "guard"},
    "telemetry": {"core"},
    "api": {ROOM_OF_ALL, "core", "errors", "flow", "ports", "telemetry"},
    "api.app": {ROOM_OF_ALL, "errors", "settings", "telemetry", "wiring"},
    "wiring": {ROOM_OF_ALL, "api", "backends", "core", "errors", "flow", "guard", "ports", "settings", "telemetry"},
    "doctor": {"backends", "guard", "settings", "errors"},
    "manifests": {"core", "errors"},
    # The command line may use what it talks about; `cli_edge` runs an edge in its process, hence the application.
    "cli": {
        *(ROOM_OF_ALL, "api", "backends", "core", "demo", "doctor", "errors"),
        *("flow", "guard", "manifests", "ports", "server", "settings", "telemetry", "wiring"),
    },
    "server": {"api", "settings", "telemetry"},  # the parent of workers logs what becomes of them
    "protocol": {"refusal", "shortcut"},
    "refusal": {"api", "errors"},
    "shortcut": {"api"},
    "demo": {"backends", "cli", "errors", "manifests", "server", "settings"},
    "__main__": {"cli"},
}
# Whose presence would mean I/O, waiting, a clock or chance.
IMPURE = {
    *("asyncio", "anyio", "threading", "concurrent", "multiprocessing", "subprocess", "signal", "selectors"),
    *("socket", "ssl", "http", "httpx", "httpcore", "pyreqwest", "redis", "sqlalchemy", "psycopg", "aiosqlite", "aiocache"),
    *("os", "sys", "pathlib", "shutil", "tempfile", "fcntl", "time", "random", "secrets", "logging", "structlog"),
    *("opentelemetry", "prometheus_client", "fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "typer"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def room_of(module: str) -> str:
    parts = module.split(".")
    if parts[1:] == ["api", "app"]:
        return "api.app"
    if len(parts) > 1 and parts[1].startswith("cli_"):
        return "cli"
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else ROOM_OF_ALL


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def own_imports(path: Path) -> set[str]:
    return {name for name in imports(parsed(path)) if name.split(".")[0] == NAME}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_import_points_the_right_way(path: Path) -> None:
    room = room_of(module_of(path))
    allowed = ALLOWED[room] | {room.split(".")[0]}
    assert {name for name in own_imports(path) if room_of(name).split(".")[0] not in allowed} == set()


def test_only_the_application_and_the_command_line_import_the_wiring() -> None:
    importers = {module_of(path) for path in FILES if f"{NAME}.wiring" in own_imports(path)}
    assert {room_of(importer) for importer in importers} == {"api.app", "cli"}


def test_only_the_server_and_an_edge_within_a_command_import_the_application() -> None:
    importers = {module_of(path) for path in FILES if f"{NAME}.api.app" in own_imports(path)}
    assert importers == {f"{NAME}.server", f"{NAME}.cli_edge"}


def test_technology_is_named_in_the_backends_and_the_wiring_alone() -> None:
    technology = {"redis", "sqlalchemy", "psycopg", "aiosqlite", "alembic", "pyreqwest", "httpx", "httpcore", "h2", "fcntl"}
    named = {room_of(module_of(path)) for path in FILES if technology & {name.split(".")[0] for name in imports(parsed(path))}}
    assert named == {"backends", "wiring"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=name_of)
def test_the_core_neither_waits_nor_looks_at_a_clock_nor_does_anything(path: Path) -> None:
    tree = parsed(path)
    assert {name for name in imports(tree) if name.split(".")[0] in IMPURE} == set()
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncWith)] == []
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called & {"open", "print", "input", "datetime.now", "datetime.utcnow", "date.today", "uuid4", "uuid1"} == set()


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "settings.py"], ids=name_of)
def test_nothing_but_the_settings_reads_the_environment(path: Path) -> None:
    tree = parsed(path)
    read = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert read & {"os.environ", "os.getenv", "os.environb", "os.putenv"} == set()
    named = {(node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name for module, name in named if module == "os"} & {"environ", "getenv", "environb"} == set()


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "background.py"], ids=name_of)
def test_tasks_have_one_home(path: Path) -> None:
    called = {node.attr for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)}
    assert called & {"create_task", "ensure_future"} == set()


def test_every_room_has_its_rule() -> None:
    assert {room_of(module_of(path)) for path in FILES} == set(ALLOWED)
