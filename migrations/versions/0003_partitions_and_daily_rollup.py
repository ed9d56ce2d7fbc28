"""Rows by day and objects by month, as partitions (Postgres); what was asked and spent per day, kept up by the rows themselves

What is there already is not copied: the tables of before become the first partitions, which end where the next day and month begin.

Revision ID: 0003
Revises: 0002
"""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = "data_broker"
ID = sa.Uuid().with_variant(sa.String(36), "sqlite")
DAYS_AHEAD = 14
REQUEST_INDEXES = {
    "idx_run_data_request_run_id": "(run_id)",
    "idx_run_data_request_created_at": "(created_at)",
    "idx_run_data_request_data_source_id_created_at": "(data_source_id, created_at)",
}
OBJECT_INDEXES = {"idx_data_object_key": "(key)", "idx_data_object_data_source_id": "(data_source_id)"}
MONEY = "idx_run_data_request_money"
MONEY_COLUMNS = ["data_source_id", "created_at"]
MONEY_WHERE = "cost_micros > 0 OR saved_micros > 0"
KEYS = ("data_source_id", "project", "day", "currency", "shard")
SUMS = (
    "requests", "from_cache", "from_request", "errors", "timed_calls", "call_seconds", "calls", "cost_micros",
    "saved_cache_micros", "saved_collapsed_micros",
)

# The figures of one row, of which a day's are the sums. A refill's and a test's own row are no requests, yet they cost. Whoever
# boarded another's call carries its times: they count once.
REQUEST = "outcome IS NULL OR outcome NOT IN ('refill', 'test')"
TIMED = """start_time IS NOT NULL AND end_time IS NOT NULL AND coalesce(outcome, '') NOT IN ('collapsed', 'test')
    AND (data_origin = 'REQUEST' OR coalesce(calls, 0) > 0)"""
FIGURES = (
    f"CASE WHEN {REQUEST} THEN 1 ELSE 0 END",
    f"CASE WHEN ({REQUEST}) AND data_origin = 'CACHE' THEN 1 ELSE 0 END",
    f"CASE WHEN ({REQUEST}) AND data_origin = 'REQUEST' THEN 1 ELSE 0 END",
    f"CASE WHEN ({REQUEST}) AND error IS NOT NULL THEN 1 ELSE 0 END",
    f"CASE WHEN {TIMED} THEN 1 ELSE 0 END",
    f"CASE WHEN {TIMED} THEN end_time - start_time ELSE 0.0 END",
    "coalesce(calls, 0)",
    "coalesce(cost_micros, 0)",
    "CASE WHEN outcome = 'collapsed' THEN 0 ELSE coalesce(saved_micros, 0) END",
    "CASE WHEN outcome = 'collapsed' THEN coalesce(saved_micros, 0) ELSE 0 END",
)
ADDED = ", ".join(f"{name} = kept.{name} + excluded.{name}" for name in SUMS)
COLUMNS = ", ".join((*KEYS, *SUMS))
TARGET = ", ".join(KEYS)
SUMMED = ", ".join(f"sum({figure})" for figure in FIGURES)
POSTGRES_DAY = "(created_at AT TIME ZONE 'UTC')::date"
GROUPED = f"""
    SELECT data_source_id, coalesce(project_id::text, ''), {POSTGRES_DAY}, coalesce(currency, ''), %(shard)s, {SUMMED}
    FROM %(rows)s WHERE data_source_id IS NOT NULL GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""


def upgrade() -> None:
    postgres = op.get_bind().dialect.name == "postgresql"
    _daily_table(fillfactor=postgres)
    if postgres:
        today = datetime.now(UTC).date()
        _partition_requests(today)
        _partition_objects(today)
        _postgres_trigger()
    else:
        op.create_index(MONEY, "run_data_request", MONEY_COLUMNS, sqlite_where=sa.text(MONEY_WHERE))
        _sqlite_trigger()


def _daily_table(*, fillfactor: bool) -> None:
    counters = [sa.Column(name, sa.Float if name == "call_seconds" else sa.BigInteger, nullable=False) for name in SUMS]
    op.create_table(
        "run_data_request_daily",
        sa.Column("data_source_id", ID, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("currency", sa.String, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False, autoincrement=False),
        *counters,
        sa.PrimaryKeyConstraint(*KEYS, name="pk_run_data_request_daily"),
        schema=SCHEMA,
    )
    if fillfactor:  # room on each page for the next version of a row, so that no index changes with it
        op.execute(f"ALTER TABLE {SCHEMA}.run_data_request_daily SET (fillfactor = 40)")


def _partition_requests(today: date) -> None:
    until = f"'{today + timedelta(days=1)} 00:00:00+00'"
    filled = _set_aside("run_data_request", REQUEST_INDEXES)
    op.execute(f"CREATE TABLE {SCHEMA}.run_data_request (LIKE {SCHEMA}.run_data_request_before INCLUDING DEFAULTS)"
               " PARTITION BY RANGE (created_at)")
    op.execute(f"ALTER TABLE {SCHEMA}.run_data_request ADD CONSTRAINT pk_run_data_request"
               " PRIMARY KEY (run_data_request_id, created_at)")
    for name, columns in REQUEST_INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON {SCHEMA}.run_data_request {columns}")
    op.create_index(MONEY, "run_data_request", MONEY_COLUMNS, schema=SCHEMA, postgresql_where=sa.text(MONEY_WHERE))
    op.execute(f"CREATE TABLE {SCHEMA}.run_data_request_default PARTITION OF {SCHEMA}.run_data_request DEFAULT")
    if filled:
        op.execute(f"ALTER TABLE {SCHEMA}.run_data_request_before DROP CONSTRAINT pk_run_data_request_before")
        op.execute(f"ALTER TABLE {SCHEMA}.run_data_request_before ADD CONSTRAINT pk_run_data_request_before"
                   " PRIMARY KEY (run_data_request_id, created_at)")
        op.execute(f"INSERT INTO {SCHEMA}.run_data_request_daily ({COLUMNS}) "
                   + GROUPED % {"shard": "0", "rows": f"{SCHEMA}.run_data_request_before"})
        _take_back("run_data_request", f"created_at >= {until}", until)
    else:
        op.execute(f"DROP TABLE {SCHEMA}.run_data_request_before")
    for ahead in range(1 if filled else 0, DAYS_AHEAD + 1):
        day = today + timedelta(days=ahead)
        _partition("run_data_request", f"{day:%Y%m%d}", f"'{day} 00:00:00+00'", f"'{day + timedelta(days=1)} 00:00:00+00'")


def _partition_objects(today: date) -> None:
    """Ids are UUIDv7 (RFC 9562 section 5.7): their order is time, so that they stay the whole of the primary key."""
    first = today.replace(day=1)
    until = _floor(_next_month(first))
    op.execute(f"ALTER TABLE {SCHEMA}.run_data_cache DROP CONSTRAINT fk_run_data_cache_data_object_id")
    filled = _set_aside("data_object", OBJECT_INDEXES)
    op.execute(f"CREATE TABLE {SCHEMA}.data_object (LIKE {SCHEMA}.data_object_before INCLUDING DEFAULTS)"
               " PARTITION BY RANGE (data_object_id)")
    op.execute(f"ALTER TABLE {SCHEMA}.data_object ADD CONSTRAINT pk_data_object PRIMARY KEY (data_object_id)")
    for name, columns in OBJECT_INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON {SCHEMA}.data_object {columns}")
    op.execute(f"CREATE TABLE {SCHEMA}.data_object_default PARTITION OF {SCHEMA}.data_object DEFAULT")
    if filled:
        _take_back("data_object", f"data_object_id >= {until}", until)
    else:
        op.execute(f"DROP TABLE {SCHEMA}.data_object_before")
    for month in (_next_month(first),) if filled else (first, _next_month(first)):
        _partition("data_object", f"{month:%Y%m}", _floor(month), _floor(_next_month(month)))
    _reference_objects()


def _set_aside(table: str, indexes: dict[str, str]) -> bool:
    """The table and what is named after it, as `_before`; whether there is anything in it."""
    op.execute(f"ALTER TABLE {SCHEMA}.{table} RENAME TO {table}_before")
    op.execute(f"ALTER TABLE {SCHEMA}.{table}_before RENAME CONSTRAINT pk_{table} TO pk_{table}_before")
    for name in indexes:
        op.execute(f"ALTER INDEX {SCHEMA}.{name} RENAME TO {name}_before")
    return bool(op.get_bind().scalar(sa.text(f"SELECT EXISTS (SELECT FROM {SCHEMA}.{table}_before)")))


def _take_back(table: str, later: str, until: str) -> None:
    op.execute(f"WITH later AS (DELETE FROM {SCHEMA}.{table}_before WHERE {later} RETURNING *)"
               f" INSERT INTO {SCHEMA}.{table}_default SELECT * FROM later")
    op.execute(f"ALTER TABLE {SCHEMA}.{table} ATTACH PARTITION {SCHEMA}.{table}_before FOR VALUES FROM (MINVALUE) TO ({until})")


def _partition(table: str, suffix: str, first: str, until: str) -> None:
    """Rows that the default partition holds already are the maintenance's to move: then this partition is left to it."""
    key = "created_at" if table == "run_data_request" else "data_object_id"
    taken = f"SELECT EXISTS (SELECT FROM {SCHEMA}.{table}_default WHERE {key} >= {first} AND {key} < {until})"
    if not op.get_bind().scalar(sa.text(taken)):
        op.execute(f"CREATE TABLE {SCHEMA}.{table}_{suffix} PARTITION OF {SCHEMA}.{table} FOR VALUES FROM ({first}) TO ({until})")


def _next_month(first: date) -> date:
    return (first + timedelta(days=31)).replace(day=1)


def _floor(day: date) -> str:
    """The least UUIDv7 of a day (UTC)."""
    milliseconds = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    return f"'{UUID(int=milliseconds << 80)}'"


def _reference_objects() -> None:
    op.execute(f"ALTER TABLE {SCHEMA}.run_data_cache ADD CONSTRAINT fk_run_data_cache_data_object_id"
               f" FOREIGN KEY (data_object_id) REFERENCES {SCHEMA}.data_object (data_object_id)")


def _postgres_trigger() -> None:
    """Once per statement, over the rows that it really inserted. In one order, so that no two can wait for each other; by the
    backend's shard, so that they hardly wait at all. With its owner's rights: who may insert rows needs no others."""
    grouped = GROUPED % {"shard": "mod(pg_backend_pid(), 8)", "rows": "inserted"}
    op.execute(f"""
        CREATE FUNCTION {SCHEMA}.roll_up_requests() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            INSERT INTO {SCHEMA}.run_data_request_daily AS kept ({COLUMNS}) {grouped}
            ON CONFLICT ({TARGET}) DO UPDATE SET {ADDED};
            RETURN NULL;
        END $$
    """)
    op.execute(f"""
        CREATE TRIGGER run_data_request_daily AFTER INSERT ON {SCHEMA}.run_data_request
        REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.roll_up_requests()
    """)


def _sqlite_trigger() -> None:
    """For each row: SQLite knows no others."""
    def of_new(expression: str) -> str:
        for name in (
            "created_at", "data_origin", "start_time", "end_time", "saved_micros", "cost_micros", "outcome", "error", "calls"
        ):
            expression = expression.replace(name, f"new.{name}")
        return expression

    op.execute(f"INSERT INTO run_data_request_daily ({COLUMNS}) SELECT data_source_id, coalesce(project_id, ''), date(created_at),"
               f" coalesce(currency, ''), 0, {SUMMED} FROM run_data_request WHERE data_source_id IS NOT NULL GROUP BY 1, 2, 3, 4")
    figures = ", ".join(map(of_new, FIGURES))
    op.execute(f"""
        CREATE TRIGGER roll_up_requests AFTER INSERT ON run_data_request WHEN new.data_source_id IS NOT NULL
        BEGIN
            INSERT INTO run_data_request_daily ({COLUMNS}) VALUES (
                new.data_source_id, coalesce(new.project_id, ''), date(new.created_at), coalesce(new.currency, ''), 0, {figures}
            )
            ON CONFLICT ({TARGET}) DO UPDATE SET {ADDED.replace("kept.", "")};
        END
    """)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP TRIGGER run_data_request_daily ON {SCHEMA}.run_data_request")
        op.execute(f"DROP FUNCTION {SCHEMA}.roll_up_requests()")
        op.execute(f"DROP INDEX {SCHEMA}.{MONEY}")
        op.execute(f"ALTER TABLE {SCHEMA}.run_data_cache DROP CONSTRAINT fk_run_data_cache_data_object_id")
        _unpartition("run_data_request", "(run_data_request_id)", REQUEST_INDEXES)
        _unpartition("data_object", "(data_object_id)", OBJECT_INDEXES)
        _reference_objects()
    else:
        op.execute("DROP TRIGGER roll_up_requests")
        op.drop_index(MONEY, "run_data_request")
    op.drop_table("run_data_request_daily", schema=SCHEMA)


def _unpartition(table: str, key: str, indexes: dict[str, str]) -> None:
    op.execute(f"CREATE TABLE {SCHEMA}.{table}_whole (LIKE {SCHEMA}.{table} INCLUDING DEFAULTS)")
    op.execute(f"INSERT INTO {SCHEMA}.{table}_whole SELECT * FROM {SCHEMA}.{table}")
    op.execute(f"DROP TABLE {SCHEMA}.{table}")
    op.execute(f"ALTER TABLE {SCHEMA}.{table}_whole RENAME TO {table}")
    op.execute(f"ALTER TABLE {SCHEMA}.{table} ADD CONSTRAINT pk_{table} PRIMARY KEY {key}")
    for name, columns in indexes.items():
        op.execute(f"CREATE INDEX {name} ON {SCHEMA}.{table} {columns}")
