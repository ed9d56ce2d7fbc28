"""`broker-edge fetch NAME key=value`: one answer by name; the value on standard output, where it came from beside it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
import typer

from broker_edge.api.envelope import problem
from broker_edge.backends.edge_client import EdgeClient
from broker_edge.cli_screen import aside, progress
from broker_edge.cli_start import fail
from broker_edge.errors import EdgeError
from broker_edge.settings import PREFIX

BY_NAME = "/internal/data-broker"
ALLOW = f"if it is meant, name it in the edge's {PREFIX}ALLOWED_PRIVATE_HOSTS, as in bureau.internal:8443"

Params = Annotated[list[str] | None, typer.Argument(help="key=value is text, key:=value is JSON", metavar="[KEY=VALUE]...")]
Url = Annotated[
    str | None, typer.Option(help="Where an edge runs, as in http://127.0.0.1:6002; unset: in this process, over its database")
]
Project = Annotated[UUID | None, typer.Option(help="The project; unset: that of those that have none")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
Name = Annotated[str, typer.Argument(help="The data source's name")]


class _Reply(msgspec.Struct):
    """What is told of a reply; the value stays as it was written, so that every number keeps its digits."""

    value: msgspec.Raw
    data_object_id: str
    origin: str
    key: str


def fetch(
    name: Name,
    params: Params = None,
    url: Url = None,
    project: Project = None,
    run_id: Annotated[UUID | None, typer.Option(help="The run that asks, for the audit; unset: one of its own")] = None,
    mode: Annotated[
        Literal["live", "refresh", "cache_only"], typer.Option(help="live, refresh (skip the cache) or cache_only (never call)")
    ] = "live",
    max_age: Annotated[float | None, typer.Option(help="Seconds that a cached answer may be old", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch data by a data source's name, and say where it came from."""
    body = {
        "data_source_name": name,
        "configured_params": parameters(params or ()),
        "run_id": run_id or uuid.uuid4(),
        "project_id": project,
        "mode": mode,
        "max_age": max_age,
    }
    asyncio.run(_fetch(url, body, as_json))


async def _fetch(url: str | None, body: Mapping[str, Any], as_json: bool) -> None:
    async with edge_at(url, None, as_json) as edge:
        with progress(f"fetching {body['data_source_name']}"):
            answer, headers = await edge.send("POST", BY_NAME, body)
    if as_json:
        typer.echo(answer)
        return
    try:
        reply = msgspec.json.decode(answer, type=_Reply)
    except (msgspec.DecodeError, ValueError):
        fail("what answers there is no edge: its answer is not a reply")
    typer.echo(shown(bytes(reply.value)))
    aside(f"origin        {reply.origin}", "green" if reply.origin == "CACHE" else "yellow")
    age = f"{headers['age']} s" if "age" in headers else "-"
    told = {"key": reply.key, "object": reply.data_object_id, "age": age, "Cache-Status": headers.get("cache-status", "-")}
    for label, text in told.items():
        aside(f"{label:<13} {text}")


def shown(value: bytes) -> str:
    """A value for people and pipes: text as it is, everything else as indented JSON with its numbers untouched."""
    if value.lstrip().startswith(b'"'):
        return msgspec.json.decode(value, type=str)
    return msgspec.json.format(value, indent=2).decode()


def parameters(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; wrong use ends the command with code 2."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        as_json = name.endswith(":")
        name = name.removesuffix(":")
        if not equals or not name:
            fail("parameters are key=value (text) or key:=value (JSON)", 2)
        if name in found:
            fail(f"{name} is given twice", 2)
        try:
            # Raw: what is sent has the digits that were typed.
            found[name] = msgspec.Raw(_valid_json(value)) if as_json else value
        except (msgspec.DecodeError, ValueError):
            fail(f"{name}: what follows := must be JSON", 2)
    return found


def _valid_json(text: str) -> bytes:
    data = text.encode()
    msgspec.json.decode(data)
    return data


@contextlib.asynccontextmanager
async def edge_at(url: str | None, project: UUID | None, as_json: bool = False) -> AsyncIterator[EdgeClient]:
    """The edge that a command asks; its refusals end the command with one line and code 1, for programs with the problem too."""
    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        fail("--url must be that of an edge, as in http://127.0.0.1:6002", 2)
    from broker_edge.cli_edge import reached

    try:
        async with reached(url, str(project) if project else None) as client:
            yield client
    except EdgeError as error:
        if as_json:
            typer.echo(problem(error)[1])
        fail(refusal_line(error))


def refusal_line(error: EdgeError) -> str:
    """What a person reads of a refusal, with the remedy where only who runs the edge has it."""
    remedy = f": {ALLOW}" if error.code == "TARGET_DENIED" else ""
    return f"{error.code}: {error.message}{remedy}"
