"""A data source's objects in the order of their ids, which is that of time: a page reads no others and sorts nothing

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = "data_broker"
BEFORE = "idx_data_object_data_source_id"
AFTER = "idx_data_object_data_source_id_data_object_id"


def upgrade() -> None:
    op.create_index(AFTER, "data_object", ["data_source_id", "data_object_id"], schema=SCHEMA)
    op.drop_index(BEFORE, "data_object", schema=SCHEMA)


def downgrade() -> None:
    op.create_index(BEFORE, "data_object", ["data_source_id"], schema=SCHEMA)
    op.drop_index(AFTER, "data_object", schema=SCHEMA)
