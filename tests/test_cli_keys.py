"""`broker-edge keys`: entries of the ring, what is sealed with which key, and moving it, over either database."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from broker_edge.backends.key_file import NAME, make_keys
from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_durable import make_engine
from broker_edge.backends.sql_secrets import SqlSecrets
from broker_edge.backends.sql_sources import SqlSources
from broker_edge.cli import app
from broker_edge.core.record import Reading, SourceRecord
from broker_edge.flow.background import Background
from broker_edge.flow.secrets import Secrets
from broker_edge.guard.vault import KeyRing, Vault, new_entry
from broker_edge.settings import PREFIX, load
from tests.edges import table
from tests.flow.secret_store import ref, source_record

OLD, NEW = new_entry("old"), new_entry("new")
HOW_MANY = 5


def run(*words: str, **members: str) -> Result:
    environment = {PREFIX + name.upper(): value for name, value in members.items()}
    return CliRunner().invoke(app, ["keys", *words], env={**environment, "COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Settings of a migrated database."""
    members = {"data_dir": str(tmp_path)}
    if request.param == "postgres":
        members["database_url"] = request.getfixturevalue("postgres_server").create()

    async def migrated() -> None:
        engine = make_engine(load({}, **members).database)
        await migrate(engine)
        await engine.dispose()

    asyncio.run(migrated())
    return members


def within(place: dict[str, str], keys: str, work: Any) -> Any:
    async def worked() -> Any:
        engine = make_engine(load({}, **place).database)
        background = Background(lambda _name, _error: None)
        secrets = Secrets(SqlSecrets(engine), Vault(KeyRing.parse(keys)), background, new_id=uuid.uuid4, within=30)
        try:
            return await work(engine, secrets)
        finally:
            await engine.dispose()

    return asyncio.run(worked())


@pytest.fixture
def record(place: dict[str, str]) -> SourceRecord:
    """A source whose secrets are sealed with the old key."""
    record = source_record()

    async def made(engine: Any, secrets: Secrets) -> None:
        await SqlSources(engine).create(record)
        await secrets.set(record, "variable", {f"v{number}": f"value {number}" for number in range(HOW_MANY)}, complete=True)
        await secrets.set(record, "credential", {"CLIENT_ID": "me"}, complete=True)

    within(place, OLD, made)
    return record


def test_a_generated_entry_can_be_used() -> None:
    entries = [run("generate").output.strip() for _ in range(2)]
    assert len(set(KeyRing.parse(",".join(entries)).ids)) == 2
    assert run("generate", "--id", "mine").output.startswith("mine:")
    told = json.loads(run("generate", "--json", "--id", "mine").output)
    assert (told["key"], told["entry"][:5]) == ("mine", "mine:")


@pytest.mark.parametrize("name", ["", "a:b", "a.b", "x" * 33])
def test_an_id_that_can_not_be_one_is_wrong_use(name: str) -> None:
    done = run("generate", "--id", name)
    assert (done.exit_code, "--id" in done.output) == (2, True)


def test_list_says_how_many_secrets_each_key_has_sealed(place: dict[str, str], record: SourceRecord) -> None:
    done = run("list", "--json", **place, encryption_keys=f"{NEW},{OLD}")
    assert json.loads(done.output) == [
        {"key": "new", "secrets": 0, "state": "seals"},
        {"key": "old", "secrets": HOW_MANY + 1, "state": "opens"},
    ]
    done = run("list", **place, encryption_keys=NEW)
    assert [line.split() for line in done.output.splitlines()] == [
        ["key", "secrets", "state"],
        ["new", "0", "seals"],
        ["old", str(HOW_MANY + 1), "missing"],
    ]
    assert NEW.partition(":")[2] not in done.output


def test_rotate_moves_everything_under_the_first_key(place: dict[str, str], record: SourceRecord) -> None:
    done = run("rotate", "--json", **place, encryption_keys=f"{NEW},{OLD}")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"key": "new", "resealed": HOW_MANY + 1, "unreadable": 0})
    assert done.stderr == (
        "running instances need key new in DATA_BROKER_ENCRYPTION_KEYS: those without it can't open what it seals\n"
    )
    assert run("rotate", **place, encryption_keys=f"{NEW},{OLD}").output == "0 sealed anew with new\n"

    async def revealed(engine: Any, secrets: Secrets) -> Any:
        env = {"a": ref(record, "v4"), "b": ref(record, "CLIENT_ID", kind="credential")}
        rows = await table(engine, "secret_access")
        return await secrets.reveal(env, None, Reading("fetch", 1.0)), [row.purpose for row in rows]

    values, purposes = within(place, NEW, revealed)
    assert values == {"a": "value 4", "b": "me"}
    assert "rotation" in purposes


def test_rotate_says_in_which_order_keys_change(place: dict[str, str]) -> None:
    page = " ".join(run("rotate", "--help").output.split())
    steps = [
        "keys generate",
        "behind the others",
        "Put it first",
        "`keys rotate`, with the same keys",
        "shows 0 under the old key",
    ]
    found = [page.find(step) for step in steps]
    assert -1 not in found
    assert found == sorted(found)


def test_rotate_fails_over_what_no_key_opens(place: dict[str, str], record: SourceRecord) -> None:
    done = run("rotate", **place, encryption_keys=NEW)
    assert done.exit_code == 1
    assert f"{HOW_MANY + 1} are sealed with no key in force" in done.output


def test_without_a_key_there_is_nothing_to_do_it_with(tmp_path: Path) -> None:
    for command in ("list", "rotate"):
        done = run(command, data_dir=str(tmp_path))
        assert (done.exit_code, "there is no key yet" in done.output) == (1, True)


def test_the_key_file_of_the_embedded_default_will_do(place: dict[str, str], record: SourceRecord) -> None:
    make_keys(Path(place["data_dir"]), OLD)
    assert json.loads(run("list", "--json", **place).output) == [{"key": "old", "secrets": HOW_MANY + 1, "state": "seals"}]
    (Path(place["data_dir"]) / NAME).chmod(0o644)
    done = run("list", **place)
    assert (done.exit_code, "chmod 600" in done.output, place["data_dir"] in done.output) == (1, True, False)


def test_a_database_that_is_not_migrated_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    done = run("list", data_dir=str(tmp_path), encryption_keys=NEW)
    assert (done.exit_code, "broker-edge migrate" in done.output) == (1, True)


def test_serve_does_not_start_with_a_key_file_that_others_may_read(tmp_path: Path) -> None:
    make_keys(tmp_path, OLD)
    (tmp_path / NAME).chmod(0o640)

    async def migrated() -> None:
        engine = make_engine(load({}, data_dir=tmp_path).database)
        await migrate(engine)
        await engine.dispose()

    asyncio.run(migrated())
    done = CliRunner().invoke(app, ["serve"], env={f"{PREFIX}DATA_DIR": str(tmp_path)})
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "chmod 600" in done.output
