"""Failures of the ordinary routes as problem+json, and the bodies of their requests, read within a bound and in one way.

FastAPI's own refusals never show: its 422 would quote what the caller sent.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from broker_edge.api.asgi import Gone, check_size, read
from broker_edge.api.envelope import problem
from broker_edge.api.schemas import Problem
from broker_edge.core.spec import ROOT
from broker_edge.errors import CallerError, EdgeError

T = TypeVar("T")

_AT: Final = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?", re.DOTALL)
_WORDS: Final = {
    "uuid": "must be a UUID",
    "int": "must be an integer",
    "bool": "must be true or false",
    "missing": "is required",
    "date": "must be a date as in 2026-01-31",
}
_BOUNDS: Final = (("ge", "least"), ("le", "most"))


def add_problem_handlers(app: FastAPI) -> None:
    app.add_exception_handler(EdgeError, _edge_error)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(Gone, _gone)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may fail in these ways, beside those in which every one may."""
    return {status: {"model": Problem} for status in sorted({400, *statuses, 500, 503})}


def refusal(error: EdgeError) -> Response:
    headers, body = problem(error)
    return Response(body, error.kind.status, {name.decode(): value.decode() for name, value in headers})


async def body_of(request: Request, kind: type[T], most: int) -> T:
    """The request's JSON, at most `most` bytes. Raises `CallerError` INVALID_REQUEST naming the member, PAYLOAD_TOO_LARGE."""
    data = await read(request.receive, most)  # type: ignore[arg-type]
    check_size(len(data), most)
    try:
        return msgspec.json.decode(data or b"null", type=kind)
    except msgspec.ValidationError as error:
        raise CallerError("INVALID_REQUEST", _named(str(error))) from None
    except RecursionError:
        raise CallerError("INVALID_REQUEST", "the request is nested too deeply") from None
    except (msgspec.DecodeError, ValueError):  # ValueError: not UTF-8
        raise CallerError("INVALID_REQUEST", "the request is not JSON in UTF-8") from None


def of_resource(error: CallerError) -> CallerError:
    """A refused spec in the words of a resource, of whose body the spec's members are the members."""
    return CallerError(error.code, error.message.replace(f"{ROOT}.", "").replace(ROOT, "the data source"))


def _named(message: str) -> str:
    """msgspec's message, led by the member as the caller wrote it and without the caller's value."""
    found = _AT.fullmatch(message)
    what, where = (found["what"], found["where"]) if found else (message, None)
    if what.startswith("Invalid enum"):
        what = "not one of the allowed values"
    return f"{where}: {what}" if where else what


async def _edge_error(_request: Request, error: Exception) -> Response:
    return refusal(error if isinstance(error, EdgeError) else EdgeError("INTERNAL", "the edge failed"))


async def _not_valid(_request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    member = ".".join(str(part) for part in first.get("loc", ())[1:]) or "the request"
    words = next((words for kind, words in _WORDS.items() if str(first.get("type", "")).startswith(kind)), "is not valid")
    if bound := next((f"must be at {end} {first['ctx'][name]}" for name, end in _BOUNDS if name in first.get("ctx", {})), None):
        words = bound
    return refusal(CallerError("INVALID_REQUEST", f"{member} {words}"))


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody hears it
