"""The doctor: every finding says what is, and what is wrong has its remedy."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from broker_edge.backends.key_file import NAME, make_keys
from broker_edge.backends.migrations import head, migrate
from broker_edge.backends.sql_durable import make_engine
from broker_edge.backends.sql_secrets import SqlSecrets
from broker_edge.backends.sql_sources import SqlSources
from broker_edge.cli import app
from broker_edge.doctor import Finding, examine
from broker_edge.flow.background import Background
from broker_edge.flow.secrets import Secrets
from broker_edge.guard.vault import KeyRing, Vault, new_entry
from broker_edge.settings import PREFIX, Settings, load
from tests import servers
from tests.flow.secret_store import source_record

SECRET = "s3cr3t-canary"
SUBJECTS = ["data directory", "database", "hot tier", "encryption keys", "address guard"]


async def prepare(settings: Settings) -> None:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = make_engine(settings.database)
    await migrate(engine)
    await engine.dispose()


async def findings(settings: Settings) -> dict[str, Finding]:
    found = await examine(settings)
    assert [finding.subject for finding in found] == SUBJECTS
    for finding in found:
        assert finding.ok == (finding.remedy is None)
        assert finding.line().count("\n") == 0
        assert SECRET not in finding.line()
        assert str(settings.data_dir) not in finding.line()
    return {finding.subject: finding for finding in found}


async def test_an_embedded_set_up_is_well(tmp_path: Path) -> None:
    settings = load({}, data_dir=tmp_path)
    await prepare(settings)
    found = await findings(settings)
    assert all(finding.ok for finding in found.values())
    assert found["database"].message == f"is at revision {head()}"
    assert "in memory" in found["hot tier"].message
    assert found["address guard"].message == "only public addresses are called"


async def test_a_set_up_with_servers_is_well(
    tmp_path: Path, redis_server: servers.Valkey, postgres_server: servers.Postgres
) -> None:
    settings = load(
        {},
        data_dir=tmp_path,
        database_url=postgres_server.create(),
        redis_url=redis_server.url,
        allowed_private_hosts="a:1,b:2",
        encryption_keys=f"{new_entry('b')},{new_entry('a')}",
    )
    await prepare(settings)
    found = await findings(settings)
    assert all(finding.ok for finding in found.values())
    assert found["hot tier"].message == "Redis answers"
    assert found["address guard"].message.startswith("2 private")
    assert found["encryption keys"].message.startswith("2 in force")


async def test_keys_of_one_instance_alone_are_no_keys_for_a_shared_database(
    tmp_path: Path, postgres_server: servers.Postgres
) -> None:
    settings = load({}, data_dir=tmp_path, database_url=postgres_server.create())
    await prepare(settings)
    for message in ("are not set, so that `serve` makes one in DATA_DIR: ", "are in DATA_DIR alone: "):
        keys = (await findings(settings))["encryption keys"]
        assert (keys.ok, keys.message.startswith(message)) == (False, True)
        assert "it serves, but no other instance" in keys.message
        assert f"set {PREFIX}ENCRYPTION_KEYS" in (keys.remedy or "")
        make_keys(tmp_path, new_entry("a"))


async def test_the_embedded_default_has_its_key_in_its_directory(tmp_path: Path) -> None:
    settings = load({}, data_dir=tmp_path)
    await prepare(settings)
    assert (await findings(settings))["encryption keys"].message == "will be made in DATA_DIR at the first start"
    make_keys(tmp_path, new_entry("a"))
    assert (await findings(settings))["encryption keys"].message == "are in DATA_DIR"


async def seal(settings: Settings, *entries: str) -> None:
    engine = make_engine(settings.database)
    background = Background(lambda _name, _error: None)
    for number, entry in enumerate(entries):
        record = msgspec.structs.replace(source_record(), name=f"sample {number}")
        secrets = Secrets(SqlSecrets(engine), Vault(KeyRing.parse(entry)), background, new_id=uuid.uuid4, within=30)
        await SqlSources(engine).create(record)
        await secrets.set(record, "variable", {"a": "x", "b": None}, complete=True)
        await secrets.set(record, "credential", {"CLIENT_ID": "me"}, complete=True)
    await engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_secrets_that_no_key_in_force_opens_are_found_with_the_keys_that_lack(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    members = {"data_dir": tmp_path}
    if kind == "postgres":
        members["database_url"] = request.getfixturevalue("postgres_server").create()
    lost, gone, new = new_entry("lost"), new_entry("gone"), new_entry("new")
    settings = load({}, **members, encryption_keys=new)
    await prepare(settings)
    await seal(settings, lost, gone, gone, new)
    keys = (await findings(settings))["encryption keys"]
    assert not keys.ok
    assert "can't be opened" in keys.message
    assert {"2 with key lost", "4 with key gone"} <= set(keys.message.partition(": ")[2].split(", "))
    assert "put " in (keys.remedy or "")
    assert "set those secrets again" in (keys.remedy or "")
    both = await findings(load({}, **members, encryption_keys=f"{new},{lost},{gone}"))
    assert both["encryption keys"].ok


async def test_a_key_file_made_beside_an_older_database_is_found(tmp_path: Path) -> None:
    settings = load({}, data_dir=tmp_path)
    await prepare(settings)
    await seal(settings, new_entry("old"))
    assert "2 with key old" in (await findings(settings))["encryption keys"].message
    make_keys(tmp_path, new_entry("new"))
    assert "2 with key old" in (await findings(settings))["encryption keys"].message


@pytest.mark.parametrize(("text", "mode", "words"), [("a:key", 0o600, "32 bytes"), ("a:" + "A" * 43 + "=", 0o644, "chmod 600")])
async def test_keys_that_can_not_be_used_are_found(tmp_path: Path, text: str, mode: int, words: str) -> None:
    settings = load({}, data_dir=tmp_path)
    await prepare(settings)
    make_keys(tmp_path, text)
    (tmp_path / NAME).chmod(mode)
    keys = (await findings(settings))["encryption keys"]
    assert (keys.ok, words in keys.message) == (False, True)


async def test_a_fresh_set_up_lacks_its_migration_alone(tmp_path: Path) -> None:
    found = await findings(load({}, data_dir=tmp_path / "new"))
    assert [subject for subject, finding in found.items() if not finding.ok] == ["database"]
    assert found["database"].remedy == "run `broker-edge migrate`"
    assert "revision none" in found["database"].message


async def test_servers_that_are_gone_are_found_each_with_its_remedy(tmp_path: Path) -> None:
    port = servers.free_port()
    settings = load(
        {},
        data_dir=tmp_path,
        database_url=f"postgresql://u:{SECRET}@127.0.0.1:{port}/db",
        redis_url=f"redis://:{SECRET}@127.0.0.1:{port}/0",
        encryption_keys=new_entry("a"),
    )
    found = await findings(settings)
    assert [subject for subject, finding in found.items() if not finding.ok] == ["database", "hot tier"]
    assert "DATA_BROKER_DATABASE_URL" in (found["database"].remedy or "")
    assert "DATA_BROKER_REDIS_URL" in (found["hot tier"].remedy or "")


async def test_a_redis_that_does_not_answer_is_found(tmp_path: Path) -> None:
    with servers.valkey() as server:
        server.pause()
        settings = load({}, data_dir=tmp_path, redis_url=server.url, redis_timeout=0.2)
        found = await findings(settings)
    assert not found["hot tier"].ok


@pytest.mark.parametrize("form", ["redis_cluster", "redis_watched"])
async def test_redis_in_its_other_forms_is_asked(request: pytest.FixtureRequest, tmp_path: Path, form: str) -> None:
    found = await findings(load({}, data_dir=tmp_path, redis_url=request.getfixturevalue(form).url, redis_timeout=5))
    assert found["hot tier"].message == "Redis answers"


@pytest.mark.parametrize("scheme", ["redis+cluster", "redis+sentinel"])
async def test_servers_that_are_all_gone_are_found_in_every_form(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}://u:{SECRET}@127.0.0.1:{servers.free_port()},127.0.0.1:{servers.free_port()}/edge"
    found = await findings(load({}, data_dir=tmp_path, redis_url=url))
    assert not found["hot tier"].ok
    assert SECRET not in found["hot tier"].line()


async def test_a_data_directory_that_is_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = await findings(load({}, data_dir=tmp_path / "file"))
    assert "DATA_BROKER_DATA_DIR" in (found["data directory"].remedy or "")


def doctor(*words: str, data_dir: Path, **members: str) -> tuple[int, str]:
    environment = {f"{PREFIX}DATA_DIR": str(data_dir), **{PREFIX + name.upper(): value for name, value in members.items()}}
    done = CliRunner().invoke(app, ["doctor", *words], env=environment, catch_exceptions=False)
    assert done.stderr == ""
    return done.exit_code, done.stdout


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    done = CliRunner().invoke(app, ["migrate"], env={f"{PREFIX}DATA_DIR": str(tmp_path)}, catch_exceptions=False)
    assert done.exit_code == 0
    return tmp_path


def test_the_command_says_what_is_well(ready: Path) -> None:
    code, said = doctor(data_dir=ready)
    assert code == 0
    assert [line.split(":")[0] for line in said.splitlines()] == [f"ok    {subject}" for subject in SUBJECTS]


def test_the_command_fails_with_a_remedy_on_each_failing_line(ready: Path) -> None:
    code, said = doctor(data_dir=ready, redis_url=f"redis://127.0.0.1:{servers.free_port()}")
    assert code == 1
    failing = [line for line in said.splitlines() if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in failing] == ["FAIL  hot tier"]
    assert all(" -> check DATA_BROKER_REDIS_URL" in line for line in failing)


def test_the_command_prints_json(ready: Path) -> None:
    code, said = doctor("--json", data_dir=ready)
    parsed = json.loads(said)
    assert code == 0
    assert [finding["subject"] for finding in parsed] == SUBJECTS
    assert all(set(finding) == {"subject", "ok", "message", "remedy"} for finding in parsed)
