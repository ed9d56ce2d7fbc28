"""Settings: from the environment alone, strict, and never saying a secret."""

from __future__ import annotations

import base64
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from broker_edge.settings import PREFIX, Settings, SettingsError, load, share_with_children

SECRET = "s3cr3t-canary"


def from_env(**members: str) -> Settings:
    return load({PREFIX + name.upper(): value for name, value in members.items()})


def complaint(**members: str) -> str:
    with pytest.raises(SettingsError) as error:
        from_env(**members)
    assert SECRET not in "".join(traceback.format_exception(error.value))
    return str(error.value)


def test_everything_has_a_default() -> None:
    settings = load({})
    assert (settings.host, settings.port, settings.workers, settings.log_level) == ("0.0.0.0", 6002, 1, "INFO")
    assert settings.redis_url is None
    assert settings.allowed_private_hosts == ()
    assert settings.embedded
    assert settings.database == f"sqlite+aiosqlite:///{Path('.broker-edge').absolute() / 'broker_edge.sqlite3'}"


def test_members_come_from_the_environment() -> None:
    settings = from_env(
        host="127.0.0.1", port="7000", log_level="DEBUG", redis_timeout="0.25", data_dir="/x", http_engine="httpx"
    )
    assert (settings.host, settings.port, settings.log_level, settings.redis_timeout) == ("127.0.0.1", 7000, "DEBUG", 0.25)
    assert (settings.data_dir, settings.http_engine) == (Path("/x"), "httpx")


def test_what_is_handed_over_goes_before_the_environment() -> None:
    assert load({f"{PREFIX}PORT": "7000"}, port=7001, host=None).port == 7001


def test_other_programs_variables_are_left_alone() -> None:
    load({"PORT": "x", "REDIS_URL": "x", "OTEL_SERVICE_NAME": "x", "BROKER_EDGE_PORT": "x", "DATA_BROKERAGE": "x"})


def test_an_empty_variable_is_an_unset_one() -> None:
    settings = from_env(port="", redis_url="", workers="", allowed_private_hosts="")
    assert (settings.port, settings.redis_url, settings.workers, settings.allowed_private_hosts) == (6002, None, 1, ())


@pytest.mark.parametrize("value", ["", "1"])
@pytest.mark.parametrize("name", ["PROT", "REDIS", "MODEL_CONFIG", "DATABASE", "EMBEDDED", "PORT_FILE_FILE", "_FILE", ""])
def test_an_unknown_name_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{PREFIX}{name}: there is no such setting$"):
        load({PREFIX + name: value})


BAD = [
    ("port", "no"),
    ("port", "65536"),
    ("port", "-1"),
    ("port", "6002.5"),
    ("workers", "0"),
    ("workers", "two"),
    ("log_level", "LOUD"),
    ("log_level", "info "),
    ("db_port", "0"),
    ("db_pool_size", "1"),
    ("db_timeout", "0"),
    ("redis_timeout", "0"),
    ("redis_timeout", "nan"),
    ("redis_timeout", "inf"),
    ("redis_timeout", "soon"),
    ("hot_max_value_bytes", "1k"),
    ("near_tier_bytes", "-1"),
    ("memory_tier_bytes", "1"),
    ("http_engine", "requests"),
    ("connect_timeout", "0"),
    ("origin_max_in_flight", "0"),
    ("max_request_bytes", "0"),
    ("max_encoded_bytes", "-1"),
    ("max_decoded_bytes", "1e3x"),
    ("spec_cache_entries", "0"),
    ("flight_lease", "0.1"),
    ("flight_wait", "0"),
    ("spool_max_bytes", "10"),
    ("spool_segment_bytes", "10"),
    ("shutdown_timeout", "0"),
    ("encryption_keys", "key"),
    ("retention_run_data_request_days", "0"),
    ("retention_data_object_days", "-1"),
    ("retention_data_object_force", "perhaps"),
    ("retention_run_data_cache_days", "1.5"),
    ("retention_secret_access_days", "soon"),
    ("upstream_ca_file", "/nowhere/ca.pem"),
    ("allowed_private_hosts", "10.0.0.0/99"),
    ("allowed_private_hosts", "localhost:7001,bad host"),
    ("allowed_private_hosts", "localhost:0"),
    ("database_url", "mysql://u:s3cr3t-canary@h/db"),
    ("database_url", "postgresql+asyncpg://u:s3cr3t-canary@h/db"),
    ("database_url", "postgresql"),
    ("database_url", "postgresql://u:s3cr3t-canary@h:port/db"),
    ("database_url", "postgresql://u:s3cr3t-canary/2@h:5432/db"),
    ("database_url", "postgresql://u:s3cr3t-canary@[::1/db"),
    ("database_url", "sqlite://"),
    ("database_url", "sqlite:///"),
    ("database_url", "sqlite:///:memory:"),
    ("redis_url", "http://s3cr3t-canary@h"),
    ("redis_url", "h:6379"),
    ("redis_url", "redis://:s3cr3t-canary@h:port/0"),
    ("redis_url", "redis://:s3cr3t-canary@h:99999/0"),
    ("redis_url", "redis+sentinel://:s3cr3t-canary@h:1,h:2"),
    ("redis_url", "redis+sentinel://:s3cr3t-canary@h:1/?db=1"),
    ("redis_url", "redis+sentinel://:s3cr3t-canary@h:1,h:two/service"),
    ("redis_url", "redis+cluster://:s3cr3t-canary@h:1,h:99999"),
    ("redis_url", "redis+cluster://h:1,u:s3cr3t-canary/2@h:2"),
    ("redis_url", "redis+ring://s3cr3t-canary@h"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_one_line_that_names_it_and_quotes_no_secret(name: str, value: str) -> None:
    said = complaint(**{name: value})
    assert said.startswith(f"{PREFIX}{name.upper()}: ")
    assert "\n" not in said
    assert SECRET not in said


def test_every_setting_refuses_something_but_those_that_take_any_text() -> None:
    assert set(Settings.model_fields) - {name for name, _ in BAD} == {
        *("host", "data_dir", "db_host", "db_name", "db_user", "db_password")
    }


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://h/service",
        "rediss+sentinel://u:p@h:26379,[::1]:26380/service/2?sentinel_password=x",
        "redis+cluster://h:7000,h:7001",
        "rediss+cluster://:p%2C@[::1]:7000,h",
    ],
)
def test_redis_may_have_many_forms(url: str) -> None:
    settings = from_env(redis_url=url)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url


def test_more_than_one_worker_needs_redis_and_says_so() -> None:
    assert complaint(workers="2") == (
        "DATA_BROKER_WORKERS: more than one worker needs DATA_BROKER_REDIS_URL, so that they share one cache"
    )
    assert from_env(workers="2", redis_url="redis://localhost").workers == 2


# Files.


def test_a_value_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    (tmp_path / "port").write_text(" 7000 ")
    settings = from_env(db_password_file=str(tmp_path / "password"), port_file=str(tmp_path / "port"), db_host="db")
    assert settings.db_password is not None
    assert settings.db_password.get_secret_value() == SECRET
    assert settings.port == 7000


def test_a_setting_whose_own_name_ends_in_file_is_a_path_of_its_own(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text("PEM")
    (tmp_path / "path").write_text(str(pem))
    assert from_env(upstream_ca_file=str(pem)).upstream_ca_file == pem
    assert from_env(upstream_ca_file_file=str(tmp_path / "path")).upstream_ca_file == pem


@pytest.mark.parametrize("reverse", [False, True])
def test_both_forms_at_once_are_refused(tmp_path: Path, reverse: bool) -> None:
    (tmp_path / "url").write_text("redis://h")
    both = [(f"{PREFIX}REDIS_URL", "redis://h"), (f"{PREFIX}REDIS_URL_FILE", str(tmp_path / "url"))]
    with pytest.raises(SettingsError, match=r"^DATA_BROKER_REDIS_URL(_FILE)?: given twice"):
        load(dict(reversed(both) if reverse else both))


def test_an_empty_form_beside_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://h")
    assert from_env(redis_url="", redis_url_file=str(tmp_path / "url")).redis_url is not None


@pytest.mark.parametrize("kind", ["missing", "directory", "binary"])
def test_a_file_that_can_not_be_read_names_the_variable_and_no_path(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    assert complaint(db_password_file=str(path)) == "DATA_BROKER_DB_PASSWORD_FILE: the file can't be read"


def test_a_bad_value_in_a_file_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "port").write_text(SECRET)
    assert SECRET not in complaint(port_file=str(tmp_path / "port"))


def test_what_is_shared_with_workers_takes_the_place_of_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("7000")
    monkeypatch.setenv(f"{PREFIX}PORT_FILE", str(tmp_path / "port"))
    monkeypatch.setenv(f"{PREFIX}PORT", "")
    share_with_children(f"{PREFIX}PORT", "7001")
    assert load().port == 7001


# Databases.


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_postgres_url_gets_its_driver(scheme: str) -> None:
    settings = from_env(database_url=f"{scheme}://u:p@h:5433/db?sslmode=require")
    assert settings.database == "postgresql+psycopg://u:p@h:5433/db?sslmode=require"
    assert not settings.embedded


def test_a_sqlite_url_gets_its_driver() -> None:
    settings = from_env(database_url="sqlite:////var/lib/edge.sqlite3")
    assert settings.database == "sqlite+aiosqlite:////var/lib/edge.sqlite3"
    assert settings.embedded


def test_postgres_by_parts() -> None:
    settings = from_env(db_host="db", db_user="u@x", db_password="p@ss/w:rd#?%", db_name="na me")
    assert settings.database == "postgresql+psycopg://u%40x:p%40ss%2Fw%3Ard%23%3F%25@db:5432/na%20me"
    assert not settings.embedded


def test_postgres_by_parts_reaches_its_driver_as_it_was_given() -> None:
    from sqlalchemy import make_url

    settings = from_env(db_host="::1", db_port="5433", db_user="u@x", db_password="p@ss/w:rd#?%", db_name="edge")
    url = make_url(settings.database)
    assert (url.host, url.port, url.username, url.password, url.database) == ("::1", 5433, "u@x", "p@ss/w:rd#?%", "edge")


def test_postgres_without_a_password_has_none() -> None:
    assert from_env(db_host="db").database == "postgresql+psycopg://data_broker@db:5432/data_broker"


def test_a_url_stands_instead_of_the_parts() -> None:
    assert from_env(database_url="postgresql://h/db", db_host="other").database == "postgresql+psycopg://h/db"


def test_the_embedded_database_lives_in_the_data_directory(tmp_path: Path) -> None:
    assert from_env(data_dir=str(tmp_path)).database == f"sqlite+aiosqlite:///{tmp_path}/broker_edge.sqlite3"


# Hosts.


@pytest.mark.parametrize("text", ["localhost:7001,10.0.0.0/8", " localhost:7001 , 10.0.0.0/8 ,", "localhost:7001,,10.0.0.0/8"])
def test_private_hosts_are_a_list(text: str) -> None:
    assert from_env(allowed_private_hosts=text).allowed_private_hosts == ("localhost:7001", "10.0.0.0/8")


# Secrets.


def test_no_form_of_the_settings_shows_a_secret() -> None:
    settings = from_env(
        database_url=f"postgresql://u:{SECRET}@h/db", redis_url=f"redis://:{SECRET}@h", db_password=SECRET, db_host="h"
    )
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump(mode="json"))):
        assert SECRET not in shown


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load({}).port = 1  # type: ignore[misc]


KEY = base64.b64encode(bytes(32)).decode()


def test_encryption_keys_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"a:{KEY}\n")
    for settings in (from_env(encryption_keys=f"a:{KEY}"), from_env(encryption_keys_file=str(tmp_path / "keys"))):
        assert settings.encryption_keys is not None
        assert settings.encryption_keys.get_secret_value() == f"a:{KEY}"
        assert KEY not in repr(settings)
        assert KEY not in settings.model_dump_json()


@pytest.mark.parametrize("keys", [SECRET, f"a:{SECRET}", f"a:{KEY},a:{KEY}", f"{SECRET}!:{KEY}"])
def test_encryption_keys_that_can_not_be_read_stop_the_start(keys: str) -> None:
    assert complaint(encryption_keys=keys).startswith(f"{PREFIX}ENCRYPTION_KEYS: ")
