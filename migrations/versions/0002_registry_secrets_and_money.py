"""Data sources with their secrets and budgets; validators of objects; what a request cost and saved

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "data_broker"
UUID = sa.Uuid().with_variant(sa.String(36), "sqlite")
TIME = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
AS_GIVEN = sa.JSON(none_as_null=True)
TEXTS = sa.JSON().with_variant(sa.ARRAY(sa.String), "postgresql")
MONEY = (("calls", sa.Integer), ("cost_micros", sa.BigInteger), ("saved_micros", sa.BigInteger), ("currency", sa.String))


def _schema() -> str | None:
    """SQLite has no schemas, and ALTER TABLE knows nothing of the translation of their names."""
    return SCHEMA if op.get_bind().dialect.name == "postgresql" else None


def upgrade() -> None:
    for name in ("etag", "last_modified"):
        op.add_column("data_object", sa.Column(name, sa.String), schema=_schema())
    for name, kind in MONEY:
        op.add_column("run_data_request", sa.Column(name, kind), schema=_schema())
    op.create_table(
        "data_source",
        sa.Column("data_source_id", UUID, nullable=False),
        sa.Column("project_id", UUID),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("description", sa.String),
        sa.Column("source", AS_GIVEN, nullable=False),
        sa.Column("caching_enabled", sa.Boolean, nullable=False),
        sa.Column("caching_ttl", sa.BigInteger),
        sa.Column("config_metadata", AS_GIVEN),
        sa.Column("runtime_params", TEXTS, nullable=False),
        sa.Column("variables", TEXTS, nullable=False),
        sa.Column("status", sa.String, nullable=False, server_default="DRAFT"),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("last_updated_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("caching", AS_GIVEN, nullable=False),
        sa.Column("terms", AS_GIVEN, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("data_source_id", name="pk_data_source"),
        schema=SCHEMA,
    )
    for name, columns, where in (
        ("unique_data_source_name", ["project_id", "name"], "status <> 'ARCHIVED'"),
        ("unique_data_source_name_without_project", ["name"], "status <> 'ARCHIVED' AND project_id IS NULL"),
    ):
        condition = sa.text(where)
        op.create_index(
            name,
            "data_source",
            columns,
            unique=True,
            schema=SCHEMA,
            postgresql_where=condition,
            sqlite_where=condition,
        )
    _secrets("data_source_env_var", "data_source_env_var_id", "name", JSON, nullable=True)
    _secrets("data_source_credential", "credential_id", "credential_type", sa.String, nullable=False)
    op.create_table(
        "secret_use",
        sa.Column("secret_id", UUID, nullable=False),
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("uses", sa.BigInteger, nullable=False),
        sa.Column("last_used_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("secret_id", "version", name="pk_secret_use"),
        schema=SCHEMA,
    )
    op.create_table(
        "secret_access",
        sa.Column("secret_access_id", UUID, nullable=False),
        sa.Column("secret_id", UUID, nullable=False),
        sa.Column("data_source_id", UUID, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("run_id", UUID),
        sa.Column("trace_id", sa.String),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("secret_access_id", name="pk_secret_access"),
        schema=SCHEMA,
    )
    for column in ("secret_id", "created_at"):
        op.create_index(f"idx_secret_access_{column}", "secret_access", [column], schema=SCHEMA)
    op.create_table(
        "data_source_budget",
        sa.Column("data_source_id", UUID, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("data_source_id", "project", "day", name="pk_data_source_budget"),
        schema=SCHEMA,
    )


def _secrets(table: str, key: str, named: str, value: object, *, nullable: bool) -> None:
    extra = [sa.Column("nullable", sa.Boolean, nullable=False, server_default=sa.true())] if nullable else []
    op.create_table(
        table,
        sa.Column(key, UUID, nullable=False),
        sa.Column("data_source_id", UUID, nullable=False),
        sa.Column(named, sa.String, nullable=False),
        sa.Column("value", value, nullable=nullable),
        *extra,
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        sa.Column("value_type", sa.String, nullable=False),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("last_updated_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint(key, name=f"pk_{table}"),
        sa.ForeignKeyConstraint(
            ["data_source_id"], [f"{SCHEMA}.data_source.data_source_id"], name=f"fk_{table}_data_source_id", ondelete="CASCADE"
        ),
        schema=SCHEMA,
    )
    op.create_index(f"unique_{table}_{named.removeprefix('credential_')}", table, ["data_source_id", named], unique=True, schema=SCHEMA)


def downgrade() -> None:
    for table in (
        "data_source_budget", "secret_access", "secret_use", "data_source_credential", "data_source_env_var", "data_source"
    ):
        op.drop_table(table, schema=SCHEMA)
    for name, _ in MONEY:
        op.drop_column("run_data_request", name, schema=_schema())
    for name in ("last_modified", "etag"):
        op.drop_column("data_object", name, schema=_schema())
