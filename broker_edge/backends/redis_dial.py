"""How a Redis server is dialled for `redis_lane`: address, TLS, credentials and database as redis-py reads them from a URL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from re import match
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError

from broker_edge.backends.redis_wire import GONE, Wire, packed
from broker_edge.errors import TierBroken

Address = tuple[str, int]
Find = Callable[[], Awaitable[Address]]


class Endpoint:
    """One server like `template`, an unconnected connection of redis-py; `find` answers where it is by then."""

    def __init__(self, template: AbstractConnection, find: Find | None = None) -> None:
        self._template = template
        self._find = find

    async def dial(self, deadline: float) -> Wire:
        """A connection that is ready for commands. Raises OSError, or TierBroken where Redis or a Sentinel refuses."""
        wire = await self._open()
        try:
            await self._introduce(wire, list(self._handshake()), deadline)
        except BaseException:
            wire.abort()
            raise
        return wire

    async def _introduce(self, wire: Wire, commands: Sequence[bytes], deadline: float) -> None:
        replies = await wire.send(commands, len(commands), deadline) if commands else []
        if any(isinstance(reply, hiredis.ReplyError) for reply in replies):
            raise TierBroken("Redis refused")

    async def _open(self) -> Wire:
        loop, template = asyncio.get_running_loop(), self._template
        if isinstance(template, UnixDomainSocketConnection):
            return (await loop.create_unix_connection(Wire, template.path))[1]
        assert isinstance(template, Connection)  # noqa: S101 redis-py has no others
        tls = template.ssl_context.get() if isinstance(template, SSLConnection) else None
        try:
            host, port = await self._find() if self._find else (template.host, int(template.port))
        except RedisError:
            raise TierBroken(GONE) from None
        return (await loop.create_connection(Wire, host, port, ssl=tls))[1]

    def _handshake(self) -> Iterator[bytes]:
        template = self._template
        if template.username:
            yield packed("AUTH", template.username, template.password or "")
        elif template.password:
            yield packed("AUTH", template.password)
        if template.client_name:
            yield packed("CLIENT", "SETNAME", template.client_name)
        if template.db:
            yield packed("SELECT", template.db)


@dataclass(frozen=True, slots=True)
class Several:
    """`redis[s]+kind://[user:password@]host[:port][,host[:port]...][/path][?options]`; `single` is a URL that redis-py reads.

    `options` are those of the query that begin with `own`; redis-py gets the others.
    """

    addresses: Sequence[Address]
    path: Sequence[str]
    single: str
    options: dict[str, str]

    @classmethod
    def read(cls, url: str, default_port: int, own: str = "-") -> Several:
        scheme, _, rest = url.partition("://")
        found = match("[^/?#]*", rest)
        authority = found.group() if found else ""
        path, _, query = rest[len(authority) :].partition("?")
        user, at, nodes = authority.rpartition("@")
        asked = parse_qsl(query)
        others = urlencode([(name, value) for name, value in asked if not name.startswith(own)])
        parts = [urlsplit(f"//{node}") for node in nodes.split(",")]
        return cls(
            [(part.hostname or "localhost", part.port or default_port) for part in parts],
            [unquote(part) for part in path.strip("/").split("/")],
            f"{scheme.partition('+')[0]}://{user}{at}{parts[0].netloc}?{others}",
            {name: value for name, value in asked if name.startswith(own)},
        )
