"""Alembic's environment: online only, on the connection that `broker-edge migrate` hands over."""

from alembic import context

from broker_edge.backends.tables import SCHEMA, metadata

connection = context.config.attributes["connection"]
postgres = connection.dialect.name == "postgresql"
if not postgres:
    connection = connection.execution_options(schema_translate_map={SCHEMA: None})
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table_schema=SCHEMA if postgres else None,
    include_schemas=postgres,
    render_as_batch=not postgres,
)
with context.begin_transaction():
    context.run_migrations()
