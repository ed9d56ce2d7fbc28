"""Databases and values that the contract suites of the registry's stores share."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_durable import make_engine
from broker_edge.core.lifecycle import new_record
from broker_edge.core.record import Draft, SealedSecret, SecretKind, SourceRecord
from broker_edge.settings import load


def database_of(kind: str, request: pytest.FixtureRequest, directory: Path) -> str:
    """The URL of a migrated database."""
    url = f"sqlite:///{directory / 'edge.sqlite3'}" if kind == "sqlite" else request.getfixturevalue("postgres_server").create()
    url = load({}, database_url=url).database

    async def prepare() -> None:
        engine = make_engine(url)
        await migrate(engine)
        await engine.dispose()

    asyncio.run(prepare())
    return url


def record(name: str | None = None, project: uuid.UUID | None = None, **members: Any) -> SourceRecord:
    source = {"url": "https://api.example.com/{{ id }}", "headers": {"X": "{{ env.token }}"}}
    wanted = Draft(**{"name": name or uuid.uuid4().hex, "source": source, **members})
    return new_record(wanted, uuid.uuid4(), project, time.time())


def secret(source: SourceRecord, name: str, sealed: str | None, kind: SecretKind = "variable", **members: Any) -> SealedSecret:
    values: dict[str, Any] = {
        "secret_id": uuid.uuid4(),
        "data_source_id": source.data_source_id,
        "project_id": source.project_id,
        "kind": kind,
        "name": name,
        "version": 1,
        "sealed": sealed,
        "value_type": "null" if sealed is None else "string",
    }
    return SealedSecret(**(values | members))
