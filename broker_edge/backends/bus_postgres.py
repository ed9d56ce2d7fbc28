"""The registry's bus over Postgres: NOTIFY in the transaction that changes something, LISTEN on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final
from uuid import UUID, uuid4

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker_edge.backends.sql_direct import Connection
from broker_edge.errors import TierBroken

_CHANNEL: Final = "broker_edge_registry"
_SILENCE: Final = 1.0  # seconds without a word before the connection is tried


async def announce(connection: AsyncConnection, data_source_id: UUID) -> None:
    """Tell all who listen of the change that `connection` commits, if it commits; nothing on other databases."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_notify(_CHANNEL, str(data_source_id))))


class _Ear(Connection):
    """Nothing that runs here is worth asking the server to stop: who is silent is hung up on at once."""

    async def cancel_safe(self, *, timeout: float = 0.0) -> None:
        self.pgconn.finish()


class PostgresBus:
    """`ports.Bus`. A connection that is dead without a word is found out within `_SILENCE` plus `patience` seconds."""

    def __init__(self, engine: AsyncEngine, patience: float) -> None:
        self._engine = engine
        self._patience = patience

    async def publish(self, data_source_id: UUID) -> None:
        """Nothing: the stores announce their changes themselves, with the commit and never without it."""

    async def hear(self, heard: Callable[[UUID], None], listening: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(self._patience):
                connection = await self._connected()
            try:
                await self._listen(connection)
                listening()
                while True:
                    async for notice in connection.notifies(timeout=_SILENCE):
                        _tell(heard, notice.payload)
                    async with asyncio.timeout(self._patience):
                        await connection.execute("SELECT 1")
            finally:
                await connection.close()
        except (psycopg.Error, SQLAlchemyError, OSError, TimeoutError):
            raise TierBroken("the database can't be listened to") from None

    async def _connected(self) -> _Ear:
        _, options = self._engine.dialect.create_connect_args(self._engine.url)
        own = {"application_name": "broker-edge registry", "client_encoding": "utf8"}
        return await _Ear.connect(**{**options, **own}, autocommit=True)

    async def _listen(self, connection: _Ear) -> None:
        """A pooler that lends sessions by the transaction takes LISTEN and passes nothing on: an echo must come back."""
        echo = f"broker_edge_{uuid4().hex}"
        async with asyncio.timeout(self._patience):
            for channel in (_CHANNEL, echo):
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            async with self._engine.begin() as other:
                await other.execute(sa.select(sa.func.pg_notify(echo, "")))
            await _heard_on(connection, echo)
            await connection.execute(sql.SQL("UNLISTEN {}").format(sql.Identifier(echo)))


async def _heard_on(connection: _Ear, channel: str) -> None:
    # What else is heard meanwhile is covered by `listening`: the caller takes it for "anything may have changed".
    async with contextlib.aclosing(connection.notifies()) as notices:
        async for notice in notices:
            if notice.channel == channel:
                return


def _tell(heard: Callable[[UUID], None], payload: str) -> None:
    with contextlib.suppress(ValueError):  # somebody else's word
        heard(UUID(payload))
