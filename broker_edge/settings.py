"""Frozen settings from the environment; the only reader of it in the package.

Every member is `DATA_BROKER_` plus its upper-case name, or the same with `_FILE` holding a path to the value. The README's
table is checked against this class.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from broker_edge.guard.addresses import parse_allowed
from broker_edge.guard.vault import KeyRing

PREFIX = "DATA_BROKER_"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_REDIS = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
SERVER_SHARE = 0.8  # of the shutdown time-out is for running requests, the rest for flushing


class SettingsError(Exception):
    """The environment can't be used; the message is one line that names the variable."""


class Settings(BaseSettings):
    """All settings of one process; times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("0.0.0.0", description="Address to listen on")  # noqa: S104 a service listens everywhere unless told
    port: int = Field(6002, ge=0, le=65535, description="Port to listen on")
    workers: int = Field(1, ge=1, le=256, description="Processes that serve; more than one needs `REDIS_URL`")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe log line written")
    data_dir: Path = Field(Path(".broker-edge"), description="Spool of the journal and embedded database")
    database_url: SecretStr | None = Field(
        None, description="`postgresql://...` or `sqlite:///path`; unset: SQLite in `DATA_DIR`"
    )
    db_host: str | None = Field(None, description="Postgres by parts, instead of `DATABASE_URL`")
    db_port: int = Field(5432, ge=1, le=65535, description="Postgres port")
    db_name: str = Field("data_broker", description="Postgres database")
    db_user: str = Field("data_broker", description="Postgres user")
    db_password: SecretStr | None = Field(None, description="Postgres password")
    db_pool_size: int = Field(8, ge=2, le=200, description="Postgres connections a process may open")
    db_timeout: float = Field(
        5.0, gt=0, le=300, description="Longest wait for one Postgres transaction; the tier then counts as broken"
    )
    redis_url: SecretStr | None = Field(
        None,
        description="`redis://`, `rediss://`, `unix://`, `redis+sentinel://host,host/service` or `redis+cluster://host,host`; "
        "unset: hot tier in memory",
    )
    redis_timeout: float = Field(
        1.0, gt=0, le=30, description="Longest wait for one Redis answer; the tier then counts as broken"
    )
    hot_max_value_bytes: int = Field(4 * 2**20, ge=1024, description="Larger values are kept in the durable tier only")
    near_tier_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Bound of the near tier of each process, which Redis keeps right (not in a Cluster); 0 turns it off",
    )
    memory_tier_bytes: int = Field(256 * 2**20, ge=2**20, description="Bound of the in-memory hot tier")
    allowed_private_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated `host:port`, `host` or CIDR entries that the address guard lets through"
    )
    http_engine: Literal["pyreqwest", "httpx"] = Field("pyreqwest", description="Which HTTP client calls upstreams")
    connect_timeout: float = Field(5.0, gt=0, le=60, description="Longest wait for a connection to an upstream")
    origin_max_in_flight: int = Field(
        1024,
        ge=1,
        le=100_000,
        description="Calls under way to one upstream address from a process; more wait, within their time-out",
    )
    upstream_ca_file: Path | None = Field(None, description="PEM bundle trusted beside the public certificate authorities")
    max_request_bytes: int = Field(10 * 2**20, ge=1024, description="Largest request body (413 above it)")
    max_encoded_bytes: int = Field(10 * 2**20, ge=1024, description="Largest upstream body before decompression")
    max_decoded_bytes: int = Field(32 * 2**20, ge=1024, description="Largest upstream body after decompression")
    encryption_keys: SecretStr | None = Field(
        None,
        description="Keys of the secrets at rest, `id:base64 of 32 bytes`, comma-separated: the first seals, all open; "
        "unset: one is made in `DATA_DIR`",
    )
    spec_cache_entries: int = Field(2048, ge=1, description="Compiled data source specs kept in memory")
    flight_lease: float = Field(
        5.0, ge=0.3, le=60, description="Leadership of a fetch in the fleet lapses after this without a renewal"
    )
    flight_wait: float = Field(15.0, gt=0, le=300, description="Longest wait for another instance's fetch, then fetch alone")
    spool_max_bytes: int = Field(2 * 2**30, ge=2**20, description="Journal rows waiting for the database; full means 503")
    spool_segment_bytes: int = Field(4 * 2**20, ge=4096, description="Size at which a spool segment is closed")
    retention_run_data_request_days: int | None = Field(
        None, ge=1, le=36_500, description="Days that audit rows are kept; unset: for ever"
    )
    retention_data_object_days: int | None = Field(
        None, ge=1, le=36_500, description="Days that data objects are kept which no kept row names; unset: for ever"
    )
    retention_data_object_force: bool = Field(
        False, description="Data objects go after their days even where kept rows name them"
    )
    retention_run_data_cache_days: int | None = Field(
        None, ge=1, le=36_500, description="Days after its answer that the durable tier forgets a key; unset: never"
    )
    retention_secret_access_days: int | None = Field(
        None, ge=1, le=36_500, description="Days that the audit of secrets is kept; unset: for ever"
    )
    shutdown_timeout: float = Field(30.0, gt=0, le=600, description="Longest wait for running requests at SIGTERM")

    @field_validator("allowed_private_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` hands over: the environment is read there, once, `_FILE` forms included."""
        return (init_settings,)

    @property
    def database(self) -> str:
        """SQLAlchemy URL, driver included; holds the password."""
        if self.database_url is not None:
            return _with_driver(self.database_url.get_secret_value())
        if self.db_host is None:
            return f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'broker_edge.sqlite3'}"
        password = f":{quote(self.db_password.get_secret_value(), safe='')}" if self.db_password else ""
        user, name = quote(self.db_user, safe=""), quote(self.db_name, safe="")
        host = f"[{self.db_host}]" if ":" in self.db_host else self.db_host
        return f"postgresql+psycopg://{user}{password}@{host}:{self.db_port}/{name}"

    @property
    def embedded(self) -> bool:
        return self.database.startswith("sqlite")


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from `environ` (default: the process's own), `overrides` first; raises SettingsError."""
    values = _read(os.environ if environ is None else environ)  # noqa: TID251 the one place that reads it
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise SettingsError(f"{PREFIX}{str(first['loc'][0]).upper()}: {first['msg']}") from None
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    for name, wrong in _complaints(settings):
        raise SettingsError(f"{PREFIX}{name}: {wrong}")


def _complaints(settings: Settings) -> Iterator[tuple[str, str]]:
    """What no single member's type can tell."""
    if settings.database_url is not None:
        yield from _about(
            "DATABASE_URL", settings.database, {"postgresql+psycopg": "postgresql://", "sqlite+aiosqlite": "sqlite:///"}
        )
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
        yield from _about("REDIS_URL", url, {scheme: f"{scheme}://" for scheme in _REDIS})
        scheme, _, rest = url.partition("://")
        if scheme.endswith("+sentinel") and not rest.partition("?")[0].partition("/")[2].strip("/"):
            yield "REDIS_URL", "must name the service that the Sentinels watch, as in redis+sentinel://host:port/service"
    if settings.embedded and settings.database.partition("///")[2] in ("", ":memory:"):
        yield "DATABASE_URL", "must name a file, as in sqlite:///path"
    if settings.upstream_ca_file is not None and not os.access(settings.upstream_ca_file, os.R_OK):
        yield "UPSTREAM_CA_FILE", "the file can't be read"
    if settings.workers > 1 and settings.redis_url is None:
        yield "WORKERS", f"more than one worker needs {PREFIX}REDIS_URL, so that they share one cache"
    try:
        parse_allowed(settings.allowed_private_hosts)
    except ValueError as error:
        yield "ALLOWED_PRIVATE_HOSTS", str(error)
    if settings.encryption_keys is not None:
        try:
            KeyRing.parse(settings.encryption_keys.get_secret_value())
        except ValueError as error:
            yield "ENCRYPTION_KEYS", str(error)


def _about(name: str, url: str, schemes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a URL; it holds a password, so nothing of it is quoted."""
    if url.partition("://")[0] not in schemes:
        yield name, f"must start with {' or '.join(schemes.values())}"
        return
    try:
        for node in _nodes(url):
            _ = urlsplit(node).port
    except ValueError:
        yield name, "host or port can't be read; is the password percent-encoded?"


def _nodes(url: str) -> Sequence[str]:
    """The URL as one for each server that it names, where its scheme has several."""
    scheme, _, rest = url.partition("://")
    if "+" not in scheme or scheme not in _REDIS:
        return [url]
    return [f"//{node}" for node in re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[2].split(",")]


def _read(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX):
            continue
        member, is_file = _member(name)
        if text == "":
            continue
        if member in values:
            raise SettingsError(f"{name}: given twice, as itself and as {PREFIX}{member.upper()}_FILE")
        values[member] = _file_text(name, text) if is_file else text
    return values


def _member(name: str) -> tuple[str, bool]:
    member = name.removeprefix(PREFIX).lower()
    if member in Settings.model_fields:
        return member, False
    if member.endswith("_file") and member.removesuffix("_file") in Settings.model_fields:
        return member.removesuffix("_file"), True
    raise SettingsError(f"{name}: there is no such setting")


def _file_text(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{name}: the file can't be read") from None


def _with_driver(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    drivers = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "sqlite": "sqlite+aiosqlite"}
    return f"{drivers.get(scheme, scheme)}://{rest}"


def otel_environment() -> dict[str, str]:
    """OpenTelemetry's own variables, honoured as they are."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}  # noqa: TID251


def metrics_directory() -> Path | None:
    """Where several workers share their metrics: prometheus-client's own variable, set by the process that starts them."""
    given = os.environ.get(MULTIPROCESS)  # noqa: TID251
    return Path(given) if given else None


def share_with_children(name: str, value: str) -> None:
    """Set a variable that worker processes inherit, in place of the file that may have held its value."""
    os.environ.pop(f"{name}_FILE", None)  # noqa: TID251
    os.environ[name] = value  # noqa: TID251


def environment_value(name: str) -> str | None:
    """A variable of the environment that a document names as the place of a secret; None where it is not set."""
    return os.environ.get(name)  # noqa: TID251
