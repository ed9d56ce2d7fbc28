"""The tables, as SQLAlchemy Core metadata: what migrations/ must amount to (held by tests/rules).

In Postgres they live in the schema `data_broker`; SQLite has no schemas, so the name is translated away there.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "data_broker"

metadata = sa.MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "idx_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    },
)


class TextUuid(sa.TypeDecorator[UUID]):
    """A UUID as people write it: in SQLAlchemy's own form for SQLite, without hyphens, no id from a log is ever found."""

    impl = sa.String(36)
    cache_ok = True

    def process_bind_param(self, value: UUID | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> UUID | None:
        return None if value is None else UUID(value)


_UUID = sa.Uuid().with_variant(TextUuid(), "sqlite")
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_TIME = sa.DateTime(timezone=True)

data_object = sa.Table(
    "data_object",
    metadata,
    sa.Column("data_object_id", _UUID, primary_key=True),
    sa.Column("data_source_id", _UUID, nullable=False),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("project_id", _UUID),
    sa.Column("content_type", sa.String),
    sa.Column("response_type", sa.String, nullable=False, server_default="PLAIN_TEXT"),
    sa.Column("status_code", sa.Integer, nullable=False, server_default="200"),
    sa.Column("etag", sa.String),
    sa.Column("last_modified", sa.String),
    sa.Index(None, "data_source_id", "data_object_id"),
)

run_data_cache = sa.Table(
    "run_data_cache",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("data_object_id", _UUID, sa.ForeignKey(data_object.c.data_object_id), nullable=False, index=True),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
)

MONEY = "cost_micros > 0 OR saved_micros > 0"

# In Postgres it is partitioned by day, and `data_object` by month: their ids are UUIDv7, whose order is time. A key of a
# partitioned table holds what it is partitioned by, so that `created_at`, which a row never changes, is part of this one there.
# No foreign keys on purpose: an audit row is kept whatever becomes of what it names, and a row of a refused request
# names nothing.
run_data_request = sa.Table(
    "run_data_request",
    metadata,
    sa.Column("run_data_request_id", _UUID, primary_key=True),
    sa.Column("run_id", _UUID, index=True),
    sa.Column("data_object_id", _UUID),
    sa.Column("data_source_id", _UUID),
    sa.Column("data_origin", sa.String),
    sa.Column("start_time", sa.Float),
    sa.Column("end_time", sa.Float),
    sa.Column("error", _JSON),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now(), index=True),
    sa.Column("project_id", _UUID),
    sa.Column("key", sa.String),
    sa.Column("outcome", sa.String),
    sa.Column("status_code", sa.Integer),
    sa.Column("trace_id", sa.String),
    # Amounts in millionths of `currency`: what this row's calls cost, and what the cache or another's call saved it.
    sa.Column("calls", sa.Integer),
    sa.Column("cost_micros", sa.BigInteger),
    sa.Column("saved_micros", sa.BigInteger),
    sa.Column("currency", sa.String),
    sa.Index(None, "data_source_id", "created_at"),
    sa.Index(
        "idx_run_data_request_money",
        "data_source_id",
        "created_at",
        postgresql_where=sa.text(MONEY),
        sqlite_where=sa.text(MONEY),
    ),
)

# Sums of the rows of a day (UTC), kept up by triggers on run_data_request, so that they hold whoever inserts. `shard` is the
# writer's: two that write at once seldom wait for each other. `project` and `currency` are empty where there is none.
run_data_request_daily = sa.Table(
    "run_data_request_daily",
    metadata,
    sa.Column("data_source_id", _UUID, primary_key=True),
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("currency", sa.String, primary_key=True),
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("from_cache", sa.BigInteger, nullable=False),
    sa.Column("from_request", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("timed_calls", sa.BigInteger, nullable=False),
    sa.Column("call_seconds", sa.Float, nullable=False),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("cost_micros", sa.BigInteger, nullable=False),
    sa.Column("saved_cache_micros", sa.BigInteger, nullable=False),
    sa.Column("saved_collapsed_micros", sa.BigInteger, nullable=False),
)

_TEXTS = sa.JSON().with_variant(sa.ARRAY(sa.String), "postgresql")
# JSON as it was given, its order and its numbers included: JSONB would turn 1e5 into 100000 and sort the members.
_AS_GIVEN = sa.JSON(none_as_null=True)

data_source = sa.Table(
    "data_source",
    metadata,
    sa.Column("data_source_id", _UUID, primary_key=True),
    sa.Column("project_id", _UUID),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("description", sa.String),
    sa.Column("source", _AS_GIVEN, nullable=False),
    sa.Column("caching_enabled", sa.Boolean, nullable=False),
    sa.Column("caching_ttl", sa.BigInteger),
    sa.Column("config_metadata", _AS_GIVEN),
    sa.Column("runtime_params", _TEXTS, nullable=False),
    sa.Column("variables", _TEXTS, nullable=False),
    sa.Column("status", sa.String, nullable=False, server_default="DRAFT"),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("last_updated_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("caching", _AS_GIVEN, nullable=False),  # the whole member; the two columns above are for who reads the table
    sa.Column("terms", _AS_GIVEN, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
)
# Unique per project among those not archived; those without a project are among themselves, as SQL's NULLs never are.
for _name, _columns, _where in (
    ("unique_data_source_name", ("project_id", "name"), "status <> 'ARCHIVED'"),
    ("unique_data_source_name_without_project", ("name",), "status <> 'ARCHIVED' AND project_id IS NULL"),
):
    _condition = sa.text(_where)
    sa.Index(
        _name, *(data_source.c[column] for column in _columns), unique=True, postgresql_where=_condition, sqlite_where=_condition
    )


def _secret_columns() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        sa.Column("value_type", sa.String, nullable=False),
        sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("last_updated_at", _TIME, nullable=False, server_default=sa.func.now()),
    )


# `value` holds guard.vault's envelope in both tables, never the secret itself.
data_source_env_var = sa.Table(
    "data_source_env_var",
    metadata,
    sa.Column("data_source_env_var_id", _UUID, primary_key=True),
    sa.Column("data_source_id", _UUID, sa.ForeignKey(data_source.c.data_source_id, ondelete="CASCADE"), nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("value", _JSON),
    sa.Column("nullable", sa.Boolean, nullable=False, server_default=sa.true()),
    *_secret_columns(),
    sa.Index("unique_data_source_env_var_name", "data_source_id", "name", unique=True),
)

data_source_credential = sa.Table(
    "data_source_credential",
    metadata,
    sa.Column("credential_id", _UUID, primary_key=True),
    sa.Column("data_source_id", _UUID, sa.ForeignKey(data_source.c.data_source_id, ondelete="CASCADE"), nullable=False),
    sa.Column("credential_type", sa.String, nullable=False),
    sa.Column("value", sa.String, nullable=False),
    *_secret_columns(),
    sa.Index("unique_data_source_credential_type", "data_source_id", "credential_type", unique=True),
)

# How often each version of a secret was used; kept when the secret is gone.
secret_use = sa.Table(
    "secret_use",
    metadata,
    sa.Column("secret_id", _UUID, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("uses", sa.BigInteger, nullable=False),
    sa.Column("last_used_at", _TIME, nullable=False),
)

# Every read of a sealed secret, written in the transaction that reads it.
secret_access = sa.Table(
    "secret_access",
    metadata,
    sa.Column("secret_access_id", _UUID, primary_key=True),
    sa.Column("secret_id", _UUID, nullable=False, index=True),
    sa.Column("data_source_id", _UUID, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("purpose", sa.String, nullable=False),
    sa.Column("run_id", _UUID),
    sa.Column("trace_id", sa.String),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now(), index=True),
)

# What a source has spent on a day (UTC), reserved before each call. `project` is empty where there is none.
data_source_budget = sa.Table(
    "data_source_budget",
    metadata,
    sa.Column("data_source_id", _UUID, primary_key=True),
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("cost_micros", sa.BigInteger, nullable=False),
)
