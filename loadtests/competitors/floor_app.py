"""The floor: a raw ASGI application that reads the body and answers constant bytes. Nothing in Python over uvicorn is cheaper."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def application(answer: bytes) -> Any:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    end = {"type": "http.response.body", "body": answer}

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send(start)
        await send(end)

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(Path(sys.argv[2]).read_bytes()),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        ws="none",
        access_log=False,
        server_header=False,
        date_header=False,
        backlog=4096,
        log_level="warning",
    )
