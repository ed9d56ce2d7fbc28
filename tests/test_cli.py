"""The command line: what it prints, what it refuses, and with which code."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from broker_edge import __version__
from broker_edge.backends.migrations import current, head
from broker_edge.backends.sql_durable import make_engine
from broker_edge.cli import app
from broker_edge.settings import PREFIX, Settings, load
from tests import servers

COMMANDS = ["serve", "migrate", "doctor", "demo", "bureau", "config", "sources", "fetch", "keys"]
SECRET = "s3cr3t-canary"


def run(*words: str, **members: str) -> Result:
    environment = {PREFIX + name.upper(): value for name, value in members.items()}
    return CliRunner().invoke(app, list(words), env={**environment, "COLUMNS": "200", "NO_COLOR": "1"}, catch_exceptions=False)


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.exit_code == 0
    assert all(f" {command} " in done.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"Usage: root {command}" in done.output.replace("broker-edge", "root")
    assert "--help" in done.output


def test_the_version_is_the_package_s() -> None:
    done = run("--version")
    assert (done.exit_code, done.output.strip()) == (0, __version__)


@pytest.mark.parametrize(
    "words",
    [
        ["conjure"],
        ["serve", "--port", "no"],
        ["serve", "--port", "70000"],
        ["serve", "--workers", "0"],
        ["config", "--yaml"],
        ["demo", "--bureau-port", "99999999"],
        ["demo", "--bureau-port", "-1"],
        ["bureau", "--port", "65536"],
        ["serve", "x"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_code_2(words: list[str]) -> None:
    assert run(*words).exit_code == 2


def test_without_a_command_there_is_help() -> None:
    done = run()
    assert done.exit_code == 2
    assert "Usage" in done.output


@pytest.mark.parametrize("command", ["serve", "migrate", "doctor", "config", "demo"])
@pytest.mark.parametrize(("name", "value"), [("prot", "1"), ("port", "no"), ("redis_url", f"http://{SECRET}"), ("workers", "2")])
def test_settings_that_can_not_be_used_are_one_line_and_code_2(command: str, name: str, value: str, tmp_path: Path) -> None:
    done = run(command, data_dir=str(tmp_path), **{name: value})
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{PREFIX}{name.upper()}: ")
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr


def test_the_config_says_every_setting_and_no_secret(tmp_path: Path) -> None:
    given = {
        "database_url": f"postgresql://u:{SECRET}@h/db",
        "redis_url": f"redis://:{SECRET}@h",
        "db_password": SECRET,
        "port": "7000",
    }
    plain, as_json = run("config", **given), run("config", "--json", **given)
    assert (plain.exit_code, as_json.exit_code) == (0, 0)
    values = json.loads(as_json.stdout)
    assert set(values) == set(Settings.model_fields)
    assert values["port"] == 7000
    assert "DATA_BROKER_PORT=7000\n" in plain.stdout
    assert SECRET not in plain.output + as_json.output


def test_the_config_can_be_pasted_back(tmp_path: Path) -> None:
    lines = run(
        "config", data_dir=str(tmp_path), allowed_private_hosts="localhost:7001,10.0.0.0/8", port="7000"
    ).stdout.splitlines()
    again = load(dict(line.split("=", 1) for line in lines))
    assert again.allowed_private_hosts == ("localhost:7001", "10.0.0.0/8")
    assert (again.port, again.data_dir) == (7000, tmp_path)


def revision_of(settings: Settings) -> str | None:
    async def ask() -> str | None:
        engine = make_engine(settings.database)
        try:
            return await current(engine)
        finally:
            await engine.dispose()

    return asyncio.run(ask())


def test_migrate_brings_the_embedded_database_up_to_date_again_and_again(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "on the way"
    for _ in range(2):
        done = run("migrate", data_dir=str(directory))
        assert (done.exit_code, done.stdout) == (0, f"the database is at revision {head()}\n")
    assert revision_of(load({}, data_dir=directory)) == head()


def test_migrate_prints_json(tmp_path: Path) -> None:
    done = run("migrate", "--json", data_dir=str(tmp_path))
    assert json.loads(done.stdout) == {"revision": head()}


def test_migrate_brings_postgres_up_to_date(tmp_path: Path, postgres_server: servers.Postgres) -> None:
    url = postgres_server.create()
    assert run("migrate", data_dir=str(tmp_path), database_url=url).exit_code == 0
    assert revision_of(load({}, database_url=url)) == head()


def test_migrating_a_database_that_is_not_there_fails_in_one_line(tmp_path: Path) -> None:
    url = f"postgresql://u:{SECRET}@127.0.0.1:{servers.free_port()}/db"
    done = run("migrate", data_dir=str(tmp_path), database_url=url)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "DATA_BROKER_DATABASE_URL" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_data_directory_that_can_not_be_made_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(command, data_dir=str(tmp_path / "file"))
    assert done.exit_code == 1
    assert done.stderr.startswith("DATA_BROKER_DATA_DIR: ")
    assert str(tmp_path) not in done.stderr


def test_serving_an_unmigrated_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    done = run("serve", data_dir=str(tmp_path))
    assert done.exit_code == 1
    assert "run `broker-edge migrate`" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["serve"], ["migrate"], ["sources", "list"], ["doctor"], ["fetch", "a"]], ids=" ".join)
def test_a_database_of_a_newer_version_is_said_to_be_one(tmp_path: Path, words: list[str]) -> None:
    assert run("migrate", data_dir=str(tmp_path)).exit_code == 0
    database = sqlite3.connect(tmp_path / "broker_edge.sqlite3")
    with database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    done = run(*words, data_dir=str(tmp_path))
    assert done.exit_code == 1
    assert "the database is newer than this version" in done.output
    assert "install the newer" in done.output
    assert "broker-edge migrate" not in done.output
    assert done.stderr.count("\n") == (0 if words == ["doctor"] else 1)


def test_a_plan_says_where_no_retention_is_set(tmp_path: Path) -> None:
    run("migrate", data_dir=str(tmp_path))
    told = run("retention", "plan", data_dir=str(tmp_path)).stdout
    assert "no retention is set" in told
    assert all(name.upper() in told for name in Settings.model_fields if name.endswith("_days"))
    assert run("retention", "plan", "--json", data_dir=str(tmp_path)).stdout == "[]\n"
    told = run("retention", "plan", data_dir=str(tmp_path), retention_secret_access_days="3").stdout
    assert told == "nothing is past its time\n"


@pytest.mark.parametrize(
    "line", [["-m", "broker_edge"], [str(Path(sys.executable).with_name("broker-edge"))]], ids=["module", "script"]
)
def test_both_ways_to_call_it_are_the_same(line: list[str]) -> None:
    command = [sys.executable, *line] if line[0] == "-m" else line
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, __version__, "")
