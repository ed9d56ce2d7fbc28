"""What REDIS_URL says of Sentinels and Clusters, and what of it reaches redis-py."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from broker_edge.backends.redis_connect import connect
from broker_edge.backends.redis_dial import Several


def test_every_server_is_read_and_redis_py_gets_one_of_them() -> None:
    url = "rediss+sentinel://u%40:p%2C@a:1,[::1]:2,c/se%20rvice/3?ssl_ca_certs=%2Fca&sentinel_password=x%26"
    several = Several.read(url, 26379, own="sentinel_")
    assert several == Several(
        [("a", 1), ("::1", 2), ("c", 26379)],
        ["se rvice", "3"],
        "rediss://u%40:p%2C@a:1?ssl_ca_certs=%2Fca",
        {"sentinel_password": "x&"},
    )


def test_a_url_without_a_server_means_this_machine() -> None:
    assert Several.read("redis+cluster://", 6379) == Several([("localhost", 6379)], [""], "redis://?", {})


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_sentinels_have_credentials_of_their_own(scheme: str) -> None:
    own = "sentinel_username=watch&sentinel_password=dog"
    link = connect(f"{scheme}+sentinel://u:p@a:1,b:2/edge/3?{own}", 1)
    pool: Any = link.connection_pool
    server: Any = pool.make_connection()
    assert (server.username, server.password, server.db, pool.service_name) == ("u", "p", 3, "edge")
    sentinels = [_wanted(sentinel) for sentinel in link.sentinels]
    assert sentinels == [("a", 1, "watch", "dog", 0), ("b", 2, "watch", "dog", 0)]
    assert {_is_tls(sentinel.connection_pool.make_connection()) for sentinel in link.sentinels} == {scheme == "rediss"}
    assert _is_tls(server) is (scheme == "rediss")
    await link.aclose()


def _wanted(client: Redis) -> tuple[Any, ...]:
    options = client.connection_pool.connection_kwargs
    return tuple(options.get(name) for name in ("host", "port", "username", "password", "db"))


def _is_tls(connection: Any) -> bool:
    return hasattr(connection, "ssl_context")
