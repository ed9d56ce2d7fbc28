"""`make bench-analytics`: a journal of ten million rows in Postgres, what the analytics endpoints take over it, and its growth.

    python -m loadtests.analytics
    python -m loadtests.analytics --rows 1000000 --days 30

The rows are spread over daily partitions and ten sources, of which one has seven rows in ten; half of the requests are priced.
Cold is the first answer after a restart of Postgres, whose own buffers are empty then, while the system may still have the pages.
Exit codes: 0 done, 1 an endpoint took longer than its bar, 2 wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.backends.sql_retention import SqlHousekeeping
from broker_edge.core.ids import uuid7
from broker_edge.core.journal_row import PackedRows, RequestRow, pack_row
from broker_edge.core.record import Draft
from broker_edge.core.retention import partition_of

BAR = 300.0  # ms
WARM = 15  # answers of which the median is told
BATCH = 2000  # rows, as the journal ships them
TABLE = "data_broker.run_data_request"
SOURCES = [uuid.UUID(int=0x5EED << 64 | number) for number in range(10)]

# Of ten requests six are hits, one boards another's call, two are calls and one fails.
FILL = sa.text(
    f"""
    INSERT INTO {TABLE} (run_data_request_id, created_at, run_id, data_object_id, data_source_id, data_origin, start_time,
        end_time, error, key, outcome, status_code, trace_id, calls, cost_micros, saved_micros, currency)
    SELECT gen_random_uuid(), moment, CAST(md5(CAST(:day AS text) || n / 3) AS uuid), gen_random_uuid(),
        (CAST(:sources AS uuid[]))[CASE WHEN n % 10 < 7 THEN 1 ELSE 2 + n % 9 END],
        CASE WHEN kind < 6 THEN 'CACHE' WHEN kind < 9 THEN 'REQUEST' END,
        CASE WHEN kind >= 6 THEN extract(epoch FROM moment) - 0.2 END, CASE WHEN kind >= 6 THEN extract(epoch FROM moment) END,
        CASE WHEN kind = 9 THEN jsonb_build_object('code', 'TIMEOUT', 'source', 'upstream') END, md5(CAST(n AS text)),
        CASE WHEN kind < 6 THEN 'hit' WHEN kind = 6 THEN 'collapsed' WHEN kind < 9 THEN 'fetched' ELSE 'timeout' END,
        CASE WHEN kind = 9 THEN 502 ELSE 200 END, md5(CAST(-n AS text)),
        CASE WHEN kind >= 7 THEN 1 END, CASE WHEN kind >= 7 AND priced THEN 350000 END,
        CASE WHEN kind <= 6 AND priced THEN 350000 END, CASE WHEN priced THEN 'BRL' END
    FROM generate_series(1, CAST(:count AS int)) AS n, LATERAL (
        SELECT CAST(:start AS timestamptz) + interval '86399 s' * random(), n * 7 / 3 % 10, n / 10 % 2 = 0
    ) AS _ (moment, kind, priced)
    """
)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.analytics", description="The analytics endpoints at size.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the journal")
    parser.add_argument("--days", type=int, default=60, help="over which they are spread")
    options = parser.parse_args(words)
    if options.rows < options.days or not 1 <= options.days <= 1800:
        parser.error("a day needs a row, and days are 1 to 1800")
    return options


def say(text: str) -> None:
    print(text, flush=True)


async def fill(engine: AsyncEngine, rows: int, days: Sequence[date]) -> None:
    """By the day, through the table itself: its trigger adds the sums up as it does for the journal."""
    store, started = SqlHousekeeping(engine), time.perf_counter()
    for number, day in enumerate(days):
        partition = partition_of(f"run_data_request_{day:%Y%m%d}")
        assert partition is not None
        await store.make(partition)
        values = {"day": str(day), "start": datetime(day.year, day.month, day.day, tzinfo=UTC), "count": rows // len(days)}
        async with engine.begin() as connection:
            await connection.execute(FILL, {**values, "sources": SOURCES})
        if sys.stderr.isatty():
            print(f"\r\x1b[K{number + 1} of {len(days)} days", end="", file=sys.stderr, flush=True)
    async with engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.execute(sa.text(f"VACUUM ANALYZE {TABLE}"))
        await autocommit.execute(sa.text("CHECKPOINT"))
        size = await connection.scalar(sa.text("SELECT pg_size_pretty(pg_database_size(current_database()))"))
        count = await connection.scalar(sa.text(f"SELECT count(*) FROM {TABLE}"))
    say(f"{count:,} rows in {len(days)} partitions, {size}, made in {time.perf_counter() - started:.0f} s")


def questions(days: Sequence[date], run: uuid.UUID) -> dict[str, str]:
    whole = f"start_date={days[0]}&end_date={days[-1]}"
    month = f"start_date={days[max(0, len(days) - 31)]}&end_date={days[-1]}"
    return {
        "usage, 31 days": f"usage?{month}",
        f"usage, {len(days)} days": f"usage?{whole}",
        "usage of one run": f"usage?{whole}&run_id={run}",
        "metrics, 31 days": f"metrics?{month}",
        f"metrics, {len(days)} days": f"metrics?{whole}",
        "cache-stats, 31 days": f"cache-stats?{month}",
        f"cache-stats, {len(days)} days": f"cache-stats?{whole}",
    }


async def ask(edges: Any, settings: Any, servers: Any, asked: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Milliseconds of an answer, cold and warm, through the application."""
    found = {}
    for name, path in asked.items():
        await asyncio.to_thread(servers.kill)
        await asyncio.to_thread(servers.start)
        async with edges.in_process(settings) as edge:
            times = [await _answered(edge, f"/data-sources/{SOURCES[0]}/{path}") for _ in range(1 + WARM)]
        found[name] = (times[0], statistics.median(times[1:]))
        say(f"  {name:24}{times[0]:10.1f}{found[name][1]:10.1f}")
    return found


async def _answered(edge: Any, path: str) -> float:
    started = time.perf_counter()
    answer = await edge.get(path)
    assert answer.status == 200, answer.body
    return 1000 * (time.perf_counter() - started)


def rows(count: int) -> PackedRows:
    def one() -> RequestRow:
        now, bits = time.time(), random.getrandbits
        members = (uuid7(now, bits(74)), now, uuid.UUID(int=bits(128)), uuid7(now, bits(74)), random.choice(SOURCES), "REQUEST")
        names = (None, None, f"{bits(128):032x}", "fetched", 200, f"{bits(128):032x}")
        return RequestRow(*members, now - 0.2, now, *names, 1, 350_000, None, "BRL")

    return PackedRows([pack_row(one()) for _ in range(count)])


async def ship(url: str, writers: int, batches: int) -> float:
    """Rows a second that so many connections put into the table, packed beforehand."""
    tiers = [SqlDurable(make_engine(url)) for _ in range(writers)]
    packed = [[rows(BATCH) for _ in range(batches)] for _ in tiers]

    async def work(tier: SqlDurable, mine: list[PackedRows]) -> None:
        for batch in mine:
            await tier.append(batch, [])

    await asyncio.gather(*(tier.ping() for tier in tiers))
    started = time.perf_counter()
    await asyncio.gather(*(work(tier, mine) for tier, mine in zip(tiers, packed, strict=True)))
    spent = time.perf_counter() - started
    for tier in tiers:
        await tier.aclose()
    return writers * batches * BATCH / spent


async def ingestion(engine: AsyncEngine, url: str) -> None:
    """With and without the sums, in turn; medians."""
    for writers in (1, 2):
        found: dict[str, list[float]] = {"ENABLE": [], "DISABLE": []}
        for _ in range(5):
            for state, rates in found.items():
                async with engine.begin() as connection:
                    await connection.execute(sa.text(f"ALTER TABLE {TABLE} {state} TRIGGER run_data_request_daily"))
                rates.append(await ship(url, writers, 10))
        kept, bare = (statistics.median(rates) for rates in found.values())
        say(f"  {writers} connection(s): {kept:,.0f} rows/s, {bare:,.0f} without the sums ({kept / bare:.2f})")


async def bench(options: argparse.Namespace) -> int:
    servers, edges = importlib.import_module("tests.servers"), importlib.import_module("tests.edges")
    with servers.postgres(fsync="on") as server, tempfile.TemporaryDirectory(prefix="broker-edge-analytics-") as directory:
        url = server.create()
        settings = edges.settings(Path(directory), database_url=url)
        engine = make_engine(settings.database)
        await migrate(engine)
        today = datetime.now(UTC).date()
        days = [today - timedelta(days=back) for back in reversed(range(options.days))]
        await fill(engine, options.rows, days)
        async with edges.in_process(settings) as edge:
            source = {"url": "http://127.0.0.1/", "response_type": "JSON"}
            await edge.edge.registry.create(None, Draft("sample", source, {}, {}, data_source_id=SOURCES[0]))
        async with engine.connect() as connection:
            run = await connection.scalar(sa.text(f"SELECT run_id FROM {TABLE} WHERE cost_micros > 0 LIMIT 1"))
        await engine.dispose()
        say(f"{'ms':26}{'cold':>10}{'warm':>10}")
        found = await ask(edges, settings, server, questions(days, run))
        say(f"appended in batches of {BATCH}:")
        await ingestion(engine, settings.database)
        await engine.dispose()
    slow = [name for name, times in found.items() if max(times) > BAR]
    say(f"FAILED: over {BAR:.0f} ms: {', '.join(slow)}" if slow else f"all within {BAR:.0f} ms")
    return 1 if slow else 0


def main(words: Sequence[str] | None = None) -> int:
    return asyncio.run(bench(parse(words)))


if __name__ == "__main__":
    sys.exit(main())
