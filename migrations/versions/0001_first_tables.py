"""data_object, run_data_cache and run_data_request

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "data_broker"
UUID = sa.Uuid().with_variant(sa.String(36), "sqlite")
TIME = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "data_object",
        sa.Column("data_object_id", UUID, nullable=False),
        sa.Column("data_source_id", UUID, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("project_id", UUID),
        sa.Column("content_type", sa.String),
        sa.Column("response_type", sa.String, nullable=False, server_default="PLAIN_TEXT"),
        sa.Column("status_code", sa.Integer, nullable=False, server_default="200"),
        sa.PrimaryKeyConstraint("data_object_id", name="pk_data_object"),
        schema=SCHEMA,
    )
    op.create_index("idx_data_object_key", "data_object", ["key"], schema=SCHEMA)
    op.create_index("idx_data_object_data_source_id", "data_object", ["data_source_id"], schema=SCHEMA)
    op.create_table(
        "run_data_cache",
        sa.Column("key", sa.String, nullable=False),
        sa.Column("data_object_id", UUID, nullable=False),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("key", name="pk_run_data_cache"),
        sa.ForeignKeyConstraint(
            ["data_object_id"], [f"{SCHEMA}.data_object.data_object_id"], name="fk_run_data_cache_data_object_id"
        ),
        schema=SCHEMA,
    )
    op.create_index("idx_run_data_cache_data_object_id", "run_data_cache", ["data_object_id"], schema=SCHEMA)
    op.create_table(
        "run_data_request",
        sa.Column("run_data_request_id", UUID, nullable=False),
        sa.Column("run_id", UUID),
        sa.Column("data_object_id", UUID),
        sa.Column("data_source_id", UUID),
        sa.Column("data_origin", sa.String),
        sa.Column("start_time", sa.Float),
        sa.Column("end_time", sa.Float),
        sa.Column("error", JSON),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("project_id", UUID),
        sa.Column("key", sa.String),
        sa.Column("outcome", sa.String),
        sa.Column("status_code", sa.Integer),
        sa.Column("trace_id", sa.String),
        sa.PrimaryKeyConstraint("run_data_request_id", name="pk_run_data_request"),
        schema=SCHEMA,
    )
    op.create_index("idx_run_data_request_run_id", "run_data_request", ["run_id"], schema=SCHEMA)
    op.create_index("idx_run_data_request_created_at", "run_data_request", ["created_at"], schema=SCHEMA)
    op.create_index(
        "idx_run_data_request_data_source_id_created_at", "run_data_request", ["data_source_id", "created_at"], schema=SCHEMA
    )


def downgrade() -> None:
    for table in ("run_data_request", "run_data_cache", "data_object"):
        op.drop_table(table, schema=SCHEMA)
