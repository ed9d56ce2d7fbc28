"""What is made ahead and what goes after its time, over real databases; the clock is the test's."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.command import downgrade, upgrade
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner

from broker_edge.backends.migrations import _config, migrate
from broker_edge.backends.sql_analytics import SqlAnalytics
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.backends.sql_retention import SqlHousekeeping
from broker_edge.backends.tables import data_object, run_data_cache, run_data_request, secret_access
from broker_edge.cli import app
from broker_edge.core.analytics import Period
from broker_edge.core.exchange import DataObject
from broker_edge.core.ids import uuid7
from broker_edge.core.journal_row import RequestRow
from broker_edge.core.retention import Limits, ahead, partition_of
from broker_edge.errors import TierBroken
from broker_edge.flow.retention import Retention
from broker_edge.settings import PREFIX, load
from tests import servers

SOURCE = uuid.uuid4()
MOST_BITS = 2**74 - 1


class Clock:
    """Days from today; nobody sleeps by it."""

    def __init__(self) -> None:
        self.start = datetime.now(UTC)
        self.days = 0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return (self.start + timedelta(days=self.days)).timestamp()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Place:
    """A migrated database, with the tier that writes to it and what keeps it in order."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.postgres = engine.dialect.name == "postgresql"
        self.tier = SqlDurable(engine)
        self.store = SqlHousekeeping(engine, self.tier.writer, batch=3)
        self.clock = Clock()
        self.events: list[tuple[str, dict[str, Any]]] = []

    @property
    def today(self) -> date:
        """The day on which the test began."""
        return self.clock.start.date()

    def retention(self, *, force: bool = False, **days: int) -> Retention:
        limits = Limits(days, force)  # type: ignore[arg-type]
        return Retention(self.store, limits, now=self.clock, on_event=self._heard, sleep=self.clock.sleep)

    def _heard(self, what: str, **facts: Any) -> None:
        self.events.append((what, facts))

    def ago(self, days: int) -> float:
        return self.clock() - days * 86_400

    async def ids(self, table: sa.Table) -> set[Any]:
        async with self.engine.connect() as connection:
            return set(await connection.scalars(sa.select(next(iter(table.primary_key)))))

    async def partitions(self, table: Any) -> set[str]:
        return set(await self.store.partitions(table) or ())

    async def run_sql(self, text: str) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(sa.text(text))


@pytest.fixture(params=["sqlite", "postgres"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    sqlite = f"sqlite:///{tmp_path / 'edge.sqlite3'}"
    url = sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_server").create()
    async for one in _place(url):
        yield one


@pytest.fixture
async def partitioned(postgres_server: servers.Postgres) -> AsyncIterator[Place]:
    async for one in _place(postgres_server.create()):
        yield one


async def _place(url: str) -> AsyncIterator[Place]:
    engine = make_engine(load({}, database_url=url).database)
    await migrate(engine)
    yield Place(engine)
    await engine.dispose()


def row(created_at: float, names: uuid.UUID | None = None) -> RequestRow:
    return RequestRow(
        *(uuid.uuid4(), created_at, uuid.uuid4(), names, SOURCE, "REQUEST", created_at - 1, created_at, None, None),
        *("0" * 32, "fetched", 200, "0" * 32),
    )


def item(created_at: float, *, reusable: bool = False, object_id: uuid.UUID | None = None) -> DataObject:
    made = object_id or uuid7(created_at, uuid.uuid4().int & MOST_BITS)
    return DataObject(made, SOURCE, uuid.uuid4().hex, b"{}", created_at, None, "JSON", 200, reusable=reusable)


def done(removed: Any) -> dict[Any, Any]:
    return {(one.removal.partition or one.removal.table): (one.removal.how, one.gone, one.removal.kept) for one in removed}


# Partitions are there before their rows are.


async def test_the_partitions_of_the_time_to_come_are_made_as_time_goes_on(partitioned: Place) -> None:
    retention = partitioned.retention()
    await retention.prepare()
    assert await retention.prepare() == []
    partitioned.clock.days = 3
    made = set(await retention.prepare())
    assert {name for name in made if name.startswith("run_data_request")} == {
        f"run_data_request_{partitioned.today + timedelta(days=number):%Y%m%d}" for number in (15, 16, 17)
    }
    wanted = {one.name for one in ahead(partitioned.today + timedelta(days=3))}
    assert wanted <= await partitioned.partitions("run_data_request") | await partitioned.partitions("data_object")
    assert partitioned.events[-1][0] == "partitions made"


async def test_rows_and_objects_go_to_the_partition_of_their_time(partitioned: Place) -> None:
    now = partitioned.clock()
    await partitioned.tier.append([row(now)], [item(now)])
    for table, name in (
        (run_data_request, f"run_data_request_{partitioned.today:%Y%m%d}"),
        (data_object, f"data_object_{partitioned.today:%Y%m}"),
    ):
        async with partitioned.engine.connect() as connection:
            (found,) = await connection.scalars(sa.text(f"SELECT tableoid::regclass::text FROM data_broker.{table.name}"))
        assert found == f"data_broker.{name}"


async def test_rows_that_came_before_their_partition_move_into_it(partitioned: Place) -> None:
    partitioned.clock.days = 40  # nobody was there to make partitions in the meantime
    rows = [row(partitioned.clock()) for _ in range(5)]
    await partitioned.tier.append(rows, [])
    other = row(0.0)
    await partitioned.tier.append([other], [])
    await partitioned.retention().prepare()
    name = f"run_data_request_{partitioned.today + timedelta(days=40):%Y%m%d}"
    async with partitioned.engine.connect() as connection:
        there = set(await connection.scalars(sa.text(f"SELECT run_data_request_id FROM data_broker.{name}")))
        left = set(await connection.scalars(sa.text("SELECT run_data_request_id FROM data_broker.run_data_request_default")))
    assert there == {one.run_data_request_id for one in rows}
    assert left == {other.run_data_request_id}
    days = await SqlAnalytics(partitioned.engine).by_day(
        SOURCE, None, Period(partitioned.today, partitioned.today + timedelta(days=60))
    )
    assert [day.requests for day in days] == [5]  # moved, not counted again


async def test_a_partition_that_can_not_be_made_keeps_no_other_away(partitioned: Place) -> None:
    partitioned.clock.days = 200
    await partitioned.tier.store([item(partitioned.clock())])
    made = await partitioned.retention().prepare()
    month = f"data_object_{partitioned.today + timedelta(days=200):%Y%m}"
    assert month not in made
    assert len(made) == len(ahead(partitioned.today)) - 1
    reason = "the default partition holds what belongs there"
    assert ("a partition could not be made", {"partition": month, "reason": reason}) in partitioned.events


async def test_a_role_that_owns_no_table_says_so_and_its_rows_are_taken_all_the_same(partitioned: Place) -> None:
    name = f"edge_{uuid.uuid4().hex}"
    await partitioned.run_sql(f"CREATE ROLE {name} LOGIN")
    await partitioned.run_sql(f"GRANT USAGE ON SCHEMA data_broker TO {name}")
    await partitioned.run_sql(f"GRANT SELECT, INSERT ON data_broker.run_data_request TO {name}")
    other = Place(make_engine(partitioned.engine.url.set(username=name).render_as_string(hide_password=False)))
    other.clock.days = 40
    assert await other.retention().prepare() == []
    assert {facts["reason"] for _, facts in other.events} == {"the role does not own the table"}
    await other.tier.append([row(other.clock())], [])
    await other.engine.dispose()
    days = await SqlAnalytics(partitioned.engine).by_day(
        SOURCE, None, Period(partitioned.today, partitioned.today + timedelta(60))
    )
    assert [day.requests for day in days] == [1]
    await partitioned.run_sql(f"DROP OWNED BY {name}")
    await partitioned.run_sql(f"DROP ROLE {name}")


async def test_processes_that_prepare_at_once_make_each_partition_once(partitioned: Place) -> None:
    partitioned.clock.days = 100
    others = [Place(partitioned.engine) for _ in range(4)]
    for other in others:
        other.clock.days = 100
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(other.retention().prepare()) for other in others]
    made = [name for task in tasks for name in task.result()]
    assert len(made) == len(set(made))
    await partitioned.retention().prepare()
    wanted = {one.name for one in ahead(partitioned.today + timedelta(days=100))}
    assert wanted <= await partitioned.partitions("run_data_request") | await partitioned.partitions("data_object")


async def test_a_table_in_use_is_left_for_another_time_and_traffic_goes_on(partitioned: Place) -> None:
    partitioned.clock.days = 7
    retention = partitioned.retention(run_data_request=5)
    async with partitioned.engine.begin() as busy:
        await busy.execute(sa.text("LOCK TABLE data_broker.run_data_request IN ACCESS SHARE MODE"))
        removed = await retention.run()
        assert removed
        assert {one.gone for one in removed if one.removal.how == "drop"} == {None}
        await partitioned.tier.append([row(partitioned.clock())], [])
    assert {one.gone for one in await retention.run() or () if one.removal.how == "drop"} == {0}
    assert partitioned.clock.slept


# What goes.


async def test_rows_past_their_days_go_and_the_sums_stay(place: Place) -> None:
    await place.retention().prepare()
    old, new = [row(place.ago(0)) for _ in range(7)], []
    await place.tier.append(old, [])
    place.clock.days = 12
    new = [row(place.ago(2)), row(place.ago(0))]
    await place.tier.append(new, [])
    retention = place.retention(run_data_request=10)
    assert done(await retention.run()) == (
        {
            f"run_data_request_{place.today:%Y%m%d}": ("drop", 7, 0),
            f"run_data_request_{place.today + timedelta(days=1):%Y%m%d}": ("drop", 0, 0),
        }
        if place.postgres
        else {"run_data_request": ("delete", 7, 0)}
    )
    assert await place.ids(run_data_request) == {one.run_data_request_id for one in new}
    assert f"run_data_request_{place.today:%Y%m%d}" not in await place.partitions("run_data_request")
    days = await SqlAnalytics(place.engine).by_day(SOURCE, None, Period(place.today, place.today + timedelta(days=20)))
    assert sum(day.requests for day in days) == 9
    assert list(await retention.run() or ()) == []


async def test_a_row_of_the_first_day_that_is_kept_stays(place: Place) -> None:
    midnight = datetime.combine(place.today - timedelta(days=10), datetime.min.time(), UTC).timestamp()
    kept, gone = row(midnight), row(midnight - 0.000001)
    await place.tier.append([kept, gone], [])
    await place.retention(run_data_request=10).run()
    assert await place.ids(run_data_request) == {kept.run_data_request_id}


async def test_nothing_goes_where_no_days_are_set(place: Place) -> None:
    await place.tier.append([row(0.0)], [item(0.0), item(1.0, reusable=True)])
    assert list(await place.retention().run() or ()) == []
    assert [len(await place.ids(table)) for table in (run_data_request, data_object, run_data_cache)] == [1, 2, 1]


async def test_rows_in_no_partition_of_their_own_are_deleted_in_batches(place: Place) -> None:
    rows = [row(1000.0 + number) for number in range(20)]
    await place.tier.append(rows, [])
    (one,) = [one for one in await place.retention(run_data_request=10).run() or () if one.gone]
    assert (one.removal.how, one.gone) == ("delete", 20)
    assert await place.ids(run_data_request) == set()


async def test_the_cache_forgets_a_key_after_its_days(place: Place) -> None:
    old, new = [item(place.ago(30), reusable=True) for _ in range(7)], item(place.ago(1), reusable=True)
    await place.tier.store([*old, new])
    await place.retention(run_data_cache=10).run()
    assert await place.ids(run_data_cache) == {new.key}
    assert await place.tier.lookup([old[0].key]) == [None]
    assert len(await place.ids(data_object)) == 8


async def test_the_audit_of_secrets_goes_after_its_days(place: Place) -> None:
    def read(days: int) -> dict[str, Any]:
        names = {"kind": "variable", "name": "token", "purpose": "fetch", "version": 1}
        ids = {"secret_access_id": uuid.uuid4(), "secret_id": uuid.uuid4(), "data_source_id": SOURCE}
        return {**names, **ids, "created_at": datetime.fromtimestamp(place.ago(days), UTC)}

    reads = [*(read(20) for _ in range(8)), read(1)]
    async with place.engine.begin() as connection:
        await connection.execute(secret_access.insert(), reads)
    assert done(await place.retention(secret_access=10).run()) == {"secret_access": ("delete", 8, 0)}
    assert await place.ids(secret_access) == {reads[-1]["secret_access_id"]}


# Objects.


async def test_a_month_of_objects_that_nobody_names_is_dropped(place: Place) -> None:
    await place.tier.store([item(place.ago(0)) for _ in range(7)])
    place.clock.days = 70
    await place.retention().prepare()
    kept = item(place.ago(1))
    await place.tier.store([kept])
    removed = done(await place.retention(data_object=30).run())
    how = "drop" if place.postgres else "delete"
    assert removed[f"data_object_{place.today:%Y%m}" if place.postgres else "data_object"] == (how, 7, 0)
    assert await place.ids(data_object) == {kept.object_id}


@pytest.mark.parametrize("by", ["request", "cache"])
async def test_an_object_that_a_kept_row_names_stays_and_the_others_of_its_month_go(place: Place, by: str) -> None:
    named = item(place.ago(0), reusable=by == "cache")
    others = [item(place.ago(0)) for _ in range(7)]
    await place.tier.store([named, *others])
    place.clock.days = 70
    await place.tier.append([row(place.ago(1), named.object_id if by == "request" else None)], [])
    removed = done(await place.retention(data_object=30, run_data_request=20).run())
    assert removed[f"data_object_{place.today:%Y%m}" if place.postgres else "data_object"] == ("delete", 7, 1)
    assert await place.ids(data_object) == {named.object_id}
    kept = [facts["kept"] for what, facts in place.events if what == "retention" and facts["table"] == "data_object"]
    assert 1 in kept


async def test_a_row_that_goes_itself_keeps_no_object(place: Place) -> None:
    named = item(place.ago(0))
    await place.tier.store([named])
    await place.tier.append([row(place.ago(0), named.object_id)], [])
    place.clock.days = 70
    retention = place.retention(data_object=30, run_data_request=30)
    foretold = {one.table: (one.rows, one.kept) for one in await retention.plan() if one.rows}
    assert foretold == {"run_data_request": (1, 0), "data_object": (1, 0)}
    await retention.run()
    assert await place.ids(data_object) == await place.ids(run_data_request) == set()


async def test_by_force_named_objects_go_and_the_cache_s_rows_with_them(place: Place) -> None:
    cached, named, young = item(place.ago(0), reusable=True), item(place.ago(0)), None
    await place.tier.store([cached, named])
    place.clock.days = 70
    young = item(place.ago(0), reusable=True)
    await place.tier.append([row(place.ago(1), named.object_id)], [young])
    await place.retention(data_object=30, force=True).run()
    assert await place.ids(data_object) == {young.object_id}
    assert await place.ids(run_data_cache) == {young.key}
    assert len(await place.ids(run_data_request)) == 1


async def test_a_young_object_whose_id_says_an_old_month_stays(place: Place) -> None:
    """An id that another system has drawn: it is not its time."""
    odd = item(place.ago(0), object_id=uuid7(place.ago(0), 1))
    await place.tier.store([odd, item(place.ago(0))])
    place.clock.days = 70
    young = item(place.ago(1), object_id=uuid7(place.clock.start.timestamp(), 2))
    await place.tier.store([young])
    await place.retention(data_object=30).run()
    assert await place.ids(data_object) == {young.object_id}


async def test_an_object_outlives_its_key_by_a_round(place: Place) -> None:
    """Somebody may have answered from it a moment ago, and the audit row that says so is still on its way."""
    await place.tier.store([item(place.ago(0), reusable=True)])
    place.clock.days = 70
    retention = place.retention(data_object=30, run_data_cache=30)
    await retention.run()
    assert (len(await place.ids(run_data_cache)), len(await place.ids(data_object))) == (0, 1)
    await retention.run()
    assert await place.ids(data_object) == set()


# Who does it, and when.


async def test_a_plan_changes_nothing_and_counts_what_a_run_takes(place: Place) -> None:
    await place.tier.append([row(1000.0 + number) for number in range(5)], [item(1000.0), item(1001.0, reusable=True)])
    retention = place.retention(run_data_request=10, data_object=10)
    planned = [(one.table, one.how, one.rows, one.kept) for one in await retention.plan()]
    assert [len(await place.ids(table)) for table in (run_data_request, data_object)] == [5, 2]
    removed = await retention.run() or ()
    assert [(one.removal.table, one.removal.how, one.gone, one.removal.kept) for one in removed] == planned
    assert sorted(planned) == [("data_object", "delete", 1, 1), ("run_data_request", "delete", 5, 0)]


async def test_one_process_removes_at_a_time(partitioned: Place) -> None:
    async with partitioned.store.alone() as first, partitioned.store.alone() as second:
        assert (first, second) == (True, False)
        assert await partitioned.retention(run_data_request=10).run() is None
    assert await partitioned.retention(run_data_request=10).run() is not None


async def test_the_loop_looks_each_hour_and_at_objects_once_a_day(place: Place) -> None:
    asked: list[str] = []

    class Listening(SqlHousekeeping):
        async def partitions(self, table: Any) -> Any:
            asked.append(table)
            return await super().partitions(table)

    class Enough(Exception):
        pass

    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise Enough
        place.clock.days = len(slept) - 1  # the second round is of the first day, the third of the next

    limits = Limits({"run_data_request": 10, "data_object": 10})
    retention = Retention(Listening(place.engine), limits, now=place.clock, on_event=place._heard, sleep=sleep)
    with pytest.raises(Enough):
        await retention.keep()
    assert slept == [3600.0] * 3
    # Each round asks once to prepare, and once more to remove: of objects in the first and the third alone.
    assert asked.count("run_data_request") == 6
    assert asked.count("data_object") == 5


async def test_a_database_that_is_away_is_broken(postgres_server: servers.Postgres) -> None:
    engine = make_engine(load({}, database_url=postgres_server.create()).database)
    store = SqlHousekeeping(engine)
    retention = Retention(store, Limits({"run_data_request": 1}), now=Clock(), on_event=lambda *_, **__: None)
    with pytest.raises(TierBroken):
        await retention.run()
    assert await store.partitions("run_data_request") == []
    await engine.dispose()


# A database that was there before.


async def test_rows_and_objects_of_before_become_the_first_partitions(partitioned: Place) -> None:
    engine, moment = partitioned.engine, partitioned.clock()

    def to(revision: str, step: Any) -> Any:
        def work(connection: sa.Connection) -> None:
            config = _config()
            config.attributes["connection"] = connection
            step(config, revision)

        return work

    async with engine.begin() as connection:
        await connection.run_sync(to("0002", downgrade))
    old, new = item(moment - 90 * 86_400, reusable=True), item(moment, reusable=True)
    far = item(moment, object_id=uuid.UUID(int=2**128 - 1), reusable=True)
    rows = [row(moment - 90 * 86_400, old.object_id), row(moment, new.object_id), row(moment + 40 * 86_400)]
    await partitioned.tier.append(rows, [old, new, far])
    async with engine.begin() as connection:
        await connection.run_sync(to("0003", upgrade))
    assert await partitioned.ids(run_data_request) == {one.run_data_request_id for one in rows}
    found = await partitioned.tier.lookup([old.key, new.key, far.key])
    assert [one and one.object_id for one in found] == [old.object_id, new.object_id, far.object_id]
    days = await SqlAnalytics(engine).by_day(SOURCE, None, Period(date(2020, 1, 1), date(2999, 1, 1)))
    assert [day.requests for day in days] == [1, 1, 1]
    await partitioned.tier.append([*rows, row(moment)], [])
    assert len(await partitioned.ids(run_data_request)) == 4
    assert {partition_of(name) is None for name in await partitioned.partitions("data_object")} == {True, False}
    await partitioned.retention().prepare()
    refused = [facts["partition"] for what, facts in partitioned.events if what == "a partition could not be made"]
    assert refused == []
    removed = done(await partitioned.retention(run_data_request=30, data_object=30).run())
    assert removed["run_data_request_before"] == ("delete", 1, 0)
    assert await partitioned.ids(data_object) == {old.object_id, new.object_id, far.object_id}  # the cache names them


# The command.


def command(*words: str, **members: str) -> Any:
    environment = {PREFIX + name.upper(): value for name, value in members.items()}
    return CliRunner().invoke(app, ["retention", *words], env={**environment, "COLUMNS": "200", "NO_COLOR": "1"})


def test_the_command_plans_and_runs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'edge.sqlite3'}"

    async def fill() -> None:
        async for one in _place(url):
            await one.tier.append([row(1000.0 + number) for number in range(3)], [])

    asyncio.run(fill())
    values = {"database_url": url, "data_dir": str(tmp_path), "retention_run_data_request_days": "30"}
    for words in (["plan", "--json"], ["run", "--dry-run", "--json"], ["run", "--json"]):
        seen = command(*words, **values)
        assert seen.exit_code == 0, seen.output
        (one,) = json.loads(seen.stdout)
        assert (one["table"], one["how"], one["rows"], one["kept"]) == ("run_data_request", "delete", 3, 0)
    seen = command("plan", **values)
    assert (seen.exit_code, seen.stdout.strip()) == (0, "nothing is past its time")


def test_the_command_refuses_a_database_that_is_behind(tmp_path: Path) -> None:
    seen = command("plan", database_url=f"sqlite:///{tmp_path / 'empty.sqlite3'}", data_dir=str(tmp_path))
    assert seen.exit_code == 1
    assert "broker-edge migrate" in seen.stderr


@pytest.mark.parametrize("days", ["0", "-1", "x", "99999"])
def test_days_that_can_not_be_are_refused_by_name(tmp_path: Path, days: str) -> None:
    seen = command("plan", data_dir=str(tmp_path), retention_data_object_days=days)
    assert seen.exit_code == 2
    assert seen.stderr.startswith(f"{PREFIX}RETENTION_DATA_OBJECT_DAYS: ")
