"""An edge by way of its HTTP interface, as the command line talks to it: over a socket, or to an application in this process."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import msgspec

from broker_edge.errors import CODES, EdgeError, UpstreamError

# A fetch takes its source's time-out, 300 s at most, and the edge's own work.
_PATIENCE = httpx.Timeout(330.0, connect=5.0)


class EdgeClient:
    """Requests in the name of one project; None is the project of those that have none."""

    def __init__(self, http: httpx.AsyncClient, project: str | None) -> None:
        self._http = http
        self.project = project

    async def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON of the answer; raises as `send` does."""
        answer, _ = await self.send(method, path, body, **query)
        try:
            return msgspec.json.decode(answer) if answer else None
        except (msgspec.DecodeError, ValueError):
            raise UpstreamError("PARSE_ERROR", "what answers there is no edge: its answer is not JSON") from None

    async def send(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[bytes, Mapping[str, str]]:
        """The bytes and headers of a good answer.

        Raises `EdgeError` with the edge's own code where it refuses, `UpstreamError` CONNECT_ERROR or TIMEOUT where none answers.
        """
        asked = {name: value for name, value in {**query, "project_id": self.project}.items() if value is not None}
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            answer = await self._http.request(method, path, content=content, params=asked, headers=headers)
        except httpx.TimeoutException:
            raise UpstreamError("TIMEOUT", "the edge does not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise UpstreamError("CONNECT_ERROR", f"the edge can't be reached ({type(error).__name__})") from None
        if answer.is_success:
            return answer.content, answer.headers
        raise _refusal(answer)


def _refusal(answer: httpx.Response) -> EdgeError:
    try:
        problem = msgspec.json.decode(answer.content)
        member = problem["error"]
        code, message = member["code"], member["message"]
    except (msgspec.DecodeError, ValueError, TypeError, KeyError):
        return EdgeError("INTERNAL", f"what answers there is no edge: status {answer.status_code}")
    if code not in CODES:  # an edge of another version
        return EdgeError("INTERNAL", f"{code}: {message}")
    return EdgeError(code, str(message), retryable=bool(member.get("retryable")), upstream_status=member.get("upstream_status"))


@contextlib.asynccontextmanager
async def over_network(url: str, project: str | None) -> AsyncIterator[EdgeClient]:
    # Proxies of the environment are for the way out of a network; an edge is inside.
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE, trust_env=False, verify=ssl.create_default_context()) as http:
        yield EdgeClient(http, project)


@contextlib.asynccontextmanager
async def over_application(application: Any, project: str | None) -> AsyncIterator[EdgeClient]:
    """To an ASGI application in this event loop; whoever calls starts and stops it."""
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(base_url="http://edge", timeout=_PATIENCE, trust_env=False, transport=transport) as http:
        yield EdgeClient(http, project)
