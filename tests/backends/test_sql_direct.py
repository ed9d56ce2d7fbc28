"""Which way objects and keys go into Postgres: through SQLAlchemy, whose events show them, or past it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.core.exchange import DataObject
from broker_edge.settings import load
from tests import servers


class Heard:
    """A tier, and what SQLAlchemy says for it."""

    def __init__(self, tier: SqlDurable) -> None:
        self.tier = tier
        self.statements: list[str] = []

    def hear(self, _connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        self.statements.append(text.split()[0])


@pytest.fixture
async def heard(postgres_server: servers.Postgres) -> AsyncIterator[Heard]:
    engine = make_engine(load({}, database_url=postgres_server.create()).database)
    await migrate(engine)
    heard = Heard(SqlDurable(engine))
    sa.event.listen(engine.sync_engine, "before_cursor_execute", heard.hear)
    yield heard
    await engine.dispose()


def item() -> DataObject:
    key = uuid.uuid4().hex
    return DataObject(uuid.uuid4(), uuid.uuid4(), key, b"{}", time.time(), "application/json", "JSON", 200, reusable=True)


async def test_a_lone_object_and_a_lone_key_go_through_sqlalchemy(heard: Heard) -> None:
    one = item()
    await heard.tier.store([one])
    [found] = await heard.tier.lookup([one.key])
    assert found is not None
    assert found.object_id == one.object_id
    assert heard.statements == ["INSERT", "INSERT", "SELECT"]


async def test_batches_go_past_it(heard: Heard) -> None:
    items = [item(), item()]
    await heard.tier.store(items)
    found = await heard.tier.lookup([one.key for one in items])
    assert [one and one.object_id for one in found] == [one.object_id for one in items]
    assert heard.statements == []


async def test_a_lone_one_beside_others_that_are_under_way_goes_past_it_too(heard: Heard) -> None:
    items = [item(), item(), item()]
    await asyncio.gather(heard.tier.store(items[:2]), heard.tier.store(items[2:]))
    await asyncio.gather(heard.tier.lookup([one.key for one in items[:2]]), heard.tier.lookup([items[2].key]))
    assert heard.statements == []
    await heard.tier.lookup([items[2].key])
    assert heard.statements == ["SELECT"]


async def test_what_failed_is_under_way_no_more(heard: Heard) -> None:
    with pytest.raises(Exception, match="OverflowError"):
        await heard.tier.store(
            [item(), DataObject(uuid.uuid4(), uuid.uuid4(), "k", b"", 0.0, None, "JSON", 2**40, reusable=False)]
        )
    await heard.tier.lookup(["k"])
    assert heard.statements == ["SELECT"]
