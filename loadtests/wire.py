"""One request of the benchmark by hand, outside what is measured: warming and checking."""

from __future__ import annotations

import http.client
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from loadtests.processes import LoadError

PATH = "/v1/fetch-data"
_TIMEOUT = 30.0
_THREADS = 16


def post(port: int, data: bytes) -> bytes:
    """The body of a 200. Raises `LoadError` for anything else, with what was said."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request("POST", PATH, data, {"content-type": "application/json"})
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"no reply ({type(error).__name__})") from None
    finally:
        connection.close()
    if reply.status != 200:
        raise LoadError(f"status {reply.status}: {body[:300].decode(errors='replace')}")
    return body


def post_all(port: int, bodies: Iterable[bytes]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda data: post(port, data), bodies):
            pass
