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
    sa.Column("data_source_id", _UUID, nullable=False, index=True),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("project_id", _UUID),
    sa.Column("content_type", sa.String),
    sa.Column("response_type", sa.String, nullable=False, server_default="PLAIN_TEXT"),
    sa.Column("status_code", sa.Integer, nullable=False, server_default="200"),
)

run_data_cache = sa.Table(
    "run_data_cache",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("data_object_id", _UUID, sa.ForeignKey(data_object.c.data_object_id), nullable=False, index=True),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
)

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
    sa.Index(None, "data_source_id", "created_at"),
)
