"""How many secrets are sealed with which key, over SQLite and Postgres: `ports.Seals`. Told by their envelopes, unopened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_errors import translated
from broker_edge.backends.sql_secret_rows import KEPT


class SqlSeals:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._postgres = engine.dialect.name == "postgresql"

    async def counts(self) -> Mapping[str | None, int]:
        found: Counter[str | None] = Counter()
        async with translated(), self._engine.connect() as connection:
            for kept in KEPT.values():
                envelope = kept.envelope(postgres=self._postgres)
                key_id = self._key_id(envelope).label("key_id")
                counted = sa.select(key_id, sa.func.count()).where(envelope.is_not(None)).group_by(key_id)
                for name, count in await connection.execute(counted):
                    found[name or None] += count
        return found

    def _key_id(self, envelope: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """The second part of `v1.<key id>.<sealed>`; null, or nothing, where it is no such thing."""
        if self._postgres:
            name = sa.func.split_part(envelope, ".", 2)
        else:
            rest = sa.func.substr(envelope, 4)
            name = sa.func.substr(rest, 1, sa.func.instr(rest, ".") - 1)
        return sa.case((sa.func.substr(envelope, 1, 3) == "v1.", name))
