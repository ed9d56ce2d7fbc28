"""Data sources by name across instances: what one changes the other serves, and what happens when they can't hear each other."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from broker_edge.core.record import Draft, SealedSecret
from broker_edge.errors import CallerError, TierBroken
from broker_edge.settings import Settings
from tests import servers
from tests.edges import Answer, Bureau, InProcess, in_process, settings, table
from tests.scenarios.herds import PATIENCE, until

Pair = tuple[InProcess, InProcess]


@pytest.fixture(params=["postgres", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, redis_server: servers.Valkey) -> dict[str, Any]:
    """What two instances share: Redis with Postgres, or with one SQLite file."""
    if request.param == "redis":
        return {"redis_url": redis_server.url, "database_url": f"sqlite:///{tmp_path / 'shared.sqlite3'}"}
    return {"redis_url": redis_server.url, "database_url": request.getfixturevalue("postgres_server").create()}


@pytest.fixture
async def pair(tmp_path: Path, bureau: Bureau, shared: dict[str, Any]) -> AsyncIterator[Pair]:
    async with (
        in_process(settings(tmp_path / "one", bureau.port, **shared)) as one,
        in_process(settings(tmp_path / "two", bureau.port, **shared), migrated=False) as two,
    ):
        for edge in (one, two):
            await until(lambda edge=edge: edge.edge.registry.hearing)  # type: ignore[misc]
        yield one, two


def draft(bureau: Bureau, path: str = "", name: str = "score", **members: Any) -> Draft:
    source = {"url": f"{bureau.url}/{path}", "params": {"id": "{{ id }}"}, "response_type": "JSON"}
    return Draft(**{"name": name, "source": source, "caching": {"enabled": True, "ttl": 3600}, **members})


async def fetch(edge: InProcess, name: str = "score", project: str | None = None) -> Answer:
    body = {"data_source_name": name, "configured_params": {"id": 1}, "run_id": str(uuid.uuid4()), "project_id": project}
    return await edge.post(body, path="/internal/data-broker")


async def origin(edge: InProcess, name: str = "score") -> str:
    answer = await fetch(edge, name)
    assert answer.status == 200, answer.body
    return str(answer.json()["origin"])


async def refused(edge: InProcess, name: str = "score", project: str | None = None) -> str:
    answer = await fetch(edge, name, project)
    assert answer.status == 404
    return str(answer.json()["error"]["code"])


def serves(edge: InProcess, generation: int, name: str = "score") -> Callable[[], bool]:
    def holds() -> bool:
        with contextlib.suppress(CallerError):
            return edge.edge.registry.named(None, name).generation == generation
        return False

    return holds


async def test_what_one_instance_changes_the_other_serves(pair: Pair, bureau: Bureau) -> None:
    one, two = pair
    record = await one.edge.registry.create(None, draft(bureau))
    await until(serves(two, record.generation))
    assert (await origin(one), await origin(two)) == ("REQUEST", "CACHE")
    await two.edge.registry.update(None, record.data_source_id, draft(bureau, "new"))
    await until(serves(one, record.generation + 1))
    assert (await origin(one), await origin(two)) == ("REQUEST", "CACHE")
    assert [call.line.split()[1] for call in bureau.calls] == ["/?id=1", "/new?id=1"]


async def test_old_answers_are_out_of_reach_at_once_and_none_is_deleted(pair: Pair, bureau: Bureau) -> None:
    one, two = pair
    record = await one.edge.registry.create(None, draft(bureau))
    await until(serves(two, record.generation))
    assert await origin(one) == "REQUEST"
    await one.edge.registry.update(None, record.data_source_id, draft(bureau, description="new"))
    assert await origin(one) == "REQUEST", "any change takes the old answers away"
    await until(serves(two, record.generation + 1))
    assert await origin(two) == "CACHE"
    assert len(await table(one.edge.engine, "data_object")) == 2


async def test_an_archived_source_serves_nothing_while_its_objects_stay(pair: Pair, bureau: Bureau) -> None:
    one, two = pair
    record = await one.edge.registry.create(None, draft(bureau))
    await one.edge.registry.publish(None, record.data_source_id)
    assert await origin(one) == "REQUEST"
    await one.edge.registry.remove(None, record.data_source_id)
    assert await refused(one) == "DATA_SOURCE_NOT_FOUND"
    await until(lambda: not len(two.edge.registry))
    assert await refused(two) == "DATA_SOURCE_NOT_FOUND"
    assert len(await table(one.edge.engine, "data_object")) == 1
    again = await two.edge.registry.create(None, draft(bureau))
    assert again.data_source_id != record.data_source_id
    assert await origin(two) == "REQUEST", "a new source under the name begins with nothing"


async def test_one_of_two_instances_that_create_a_name_at_once_wins(pair: Pair, bureau: Bureau) -> None:
    outcomes = await asyncio.gather(
        *(edge.edge.registry.create(None, draft(bureau, edge.edge.settings.data_dir.name)) for edge in pair * 4),
        return_exceptions=True,
    )
    lost = [each.code for each in outcomes if isinstance(each, CallerError)]
    assert lost == ["DATA_SOURCE_ALREADY_EXISTS"] * 7
    [stored] = await table(pair[0].edge.engine, "data_source")
    for edge in pair:
        await until(serves(edge, stored.generation))
        assert str(edge.edge.registry.named(None, "score").record.data_source_id) == str(stored.data_source_id)


async def test_updates_at_once_on_two_instances_are_all_made(pair: Pair, bureau: Bureau) -> None:
    one, two = pair
    record = await one.edge.registry.create(None, draft(bureau))
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            registry = pair[number % 2].edge.registry
            group.create_task(registry.update(None, record.data_source_id, draft(bureau, description=str(number))))
    for edge in (one, two):
        await until(serves(edge, record.generation + 10))
    [stored] = await table(one.edge.engine, "data_source")
    assert stored.generation == record.generation + 10


async def test_projects_have_sources_of_their_own(pair: Pair, bureau: Bureau) -> None:
    one, two = pair
    project = str(uuid.uuid4())
    await one.edge.registry.create(project, draft(bureau, "theirs"))
    await until(lambda: len(two.edge.registry) == 1)
    assert await refused(two) == "DATA_SOURCE_NOT_FOUND"
    assert await refused(two, project=str(uuid.uuid4())) == "DATA_SOURCE_NOT_FOUND"
    assert (await fetch(two, project=project)).status == 200


async def test_a_changed_secret_is_known_elsewhere_and_leaves_the_answers_usable(pair: Pair, bureau: Bureau) -> None:
    from broker_edge.backends.sql_secrets import SqlSecrets

    one, two = pair
    record = await one.edge.registry.create(None, draft(bureau))
    await until(serves(two, record.generation))
    assert await origin(one) == "REQUEST"
    told: list[uuid.UUID | None] = []
    two.edge.registry.listeners.append(told.append)
    sealed = SealedSecret(uuid.uuid4(), record.data_source_id, None, "variable", "token", 1, "v1.k.x", "string")
    await SqlSecrets(one.edge.engine, one.edge.durable.writer).write(record.data_source_id, "variable", [sealed], complete=True)
    await one.edge.registry.secrets_changed(record.data_source_id)
    await until(lambda: "token" in two.edge.registry.named(None, "score").env)
    assert record.data_source_id in told
    assert await origin(two) == "CACHE"


class Deaf:
    """A bus on which nothing is heard."""

    async def publish(self, data_source_id: uuid.UUID) -> None:
        return None

    async def hear(self, heard: Callable[[uuid.UUID], None], listening: Callable[[], None]) -> None:
        raise TierBroken("nothing is heard")


async def test_without_the_bus_a_change_is_found_by_age(
    tmp_path: Path, bureau: Bureau, shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_process(settings(tmp_path / "one", bureau.port, **shared)) as one:
        await until(lambda: one.edge.registry.hearing)
        monkeypatch.setattr("broker_edge.wiring.stores.make_bus", lambda *_: Deaf())
        async with in_process(settings(tmp_path / "two", bureau.port, **shared), migrated=False) as two:
            two.edge.registry._max_age = 0.1
            record = await one.edge.registry.create(None, draft(bureau))
            await until(serves(two, record.generation))
            assert not two.edge.registry.hearing
            assert await origin(two) == "REQUEST"


async def test_a_connection_that_is_cut_is_made_anew_and_nothing_is_missed(
    tmp_path: Path, bureau: Bureau, postgres_server: servers.Postgres
) -> None:
    chosen = {"database_url": postgres_server.create(migrated=True)}
    async with (
        in_process(settings(tmp_path / "one", bureau.port, **chosen)) as one,
        in_process(settings(tmp_path / "two", bureau.port, **chosen), migrated=False) as two,
    ):
        registry = two.edge.registry
        for edge in (one, two):
            await until(lambda edge=edge: edge.edge.registry.hearing)  # type: ignore[misc]
        registry._max_age = 1000.0  # nothing is found by age here
        deaf = asyncio.Event()
        registry.listeners.append(lambda changed: deaf.set() if changed is None else None)
        async with one.edge.engine.begin() as connection:
            ears = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'broker-edge registry'"
            await connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {ears}"))
        async with asyncio.timeout(PATIENCE):
            await deaf.wait()
        record = await one.edge.registry.create(None, draft(bureau))
        await until(serves(two, record.generation))


@pytest.fixture
def own_postgres() -> Iterator[servers.Postgres]:
    with servers.postgres() as server:
        yield server


async def test_while_the_database_is_down_named_sources_are_served_and_the_gauge_tells_their_age(
    tmp_path: Path, bureau: Bureau, redis_server: servers.Valkey, own_postgres: servers.Postgres
) -> None:
    chosen = settings(tmp_path, bureau.port, redis_url=redis_server.url, database_url=own_postgres.create(migrated=True))
    async with in_process(chosen) as edge:
        record = await edge.edge.registry.create(None, draft(bureau))
        assert await origin(edge) == "REQUEST"
        own_postgres.kill()
        before = await gauge(edge, "broker_edge_registry_age_seconds")
        await until(lambda: edge.edge.registry.age() > before + 0.1)
        assert await gauge(edge, "broker_edge_registry_age_seconds") > before
        assert await gauge(edge, "broker_edge_registry_sources") == 1
        assert await origin(edge) == "CACHE"
        with pytest.raises(TierBroken):
            await edge.edge.registry.update(None, record.data_source_id, draft(bureau, "new"))
        own_postgres.start()
        await until(lambda: edge.edge.registry.age() < 0.1)


async def gauge(edge: InProcess, name: str) -> float:
    lines = (await edge.get("/metrics")).body.decode().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.partition(" ")[2])


async def test_an_instance_that_starts_serves_what_is_there(backends: Settings, bureau: Bureau) -> None:
    async with in_process(backends) as edge:
        record = await edge.edge.registry.create(None, draft(bureau))
        assert await origin(edge) == "REQUEST"
    async with in_process(backends) as edge:
        assert edge.edge.registry.named(None, "score").record == record
        assert await origin(edge) == "CACHE"


async def test_a_hit_by_name_costs_no_statement(backends: Settings, bureau: Bureau) -> None:
    async with in_process(backends) as edge:
        await edge.edge.registry.create(None, draft(bureau))
        assert await origin(edge) == "REQUEST"
        await until(lambda: edge.edge.registry.hearing)
        assert await edge.edge.journal.flush(10)
        edge.edge.registry._max_age = 1000.0  # no comparison comes between
        statements: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements.append(statement)

        sa.event.listen(edge.edge.engine.sync_engine, "before_cursor_execute", note)
        assert await origin(edge) == "CACHE"
        # The journal and the probes go on behind.
        assert [each for each in statements if "run_data_request" not in each and each != "SELECT 1"] == []
