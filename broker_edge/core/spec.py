"""The wire form of a data source, and its errors in callers' words; `source` compiles what is read here.

Known members are strict, unknown ones are ignored at every level, and null stands for an optional member's default.
"""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

import msgspec

from broker_edge.core.template import invalid

ROOT: Final = "data_source_spec"

_AT: Final = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL)
_REQUIRED: Final = re.compile(r"Object missing required field `(\w+)`")
_EXPECTED: Final = re.compile(r"Expected `([^`]*)`")
_TYPES: Final = {
    "float": "a number",
    "int": "an integer",
    "str": "text",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
    "uuid": "a UUID",
}


class Duration(msgspec.Struct):
    days: float | None = None
    hours: float | None = None
    minutes: float | None = None
    seconds: float | None = None


class Caching(msgspec.Struct):
    enabled: bool | None = None
    ttl: Duration | float | None = None
    vary_env: list[str] | None = None
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    negative_ttl: dict[str, float] | None = None


class Retry(msgspec.Struct):
    max_retries: int | None = None
    backoff_factor: float | None = None
    status_forcelist: list[int] | None = None
    attempt_timeout: float | None = None


class Auth(msgspec.Struct):
    method: str
    token_url: str | None = None
    grant_type: str | None = None
    scope: str | None = None
    client_auth: str | None = None
    location: str | None = msgspec.field(default=None, name="in")
    name: str | None = None
    client_certificate: bool | None = None
    ca_bundle: str | None = None


class Amount(msgspec.Struct):
    amount: float | str | None = None
    currency: str | None = None


class Budget(msgspec.Struct):
    amount: float | str | None = None
    calls: int | None = None
    per: str | None = None


class Source(msgspec.Struct):
    url: str
    method: str | None = None
    headers: dict[str, Any] | None = None
    params: dict[str, Any] | None = None
    body: Any = None
    timeout: float | None = None
    retry: Retry | None = None
    response_type: str | None = None
    auth: Auth | None = None
    idempotency_key_header: str | None = None


class Spec(msgspec.Struct):
    data_source_id: UUID
    name: str
    source: Source
    caching: Caching | None = None
    cost_per_call: Amount | float | str | None = None
    billable: bool | None = None
    budget: Budget | float | str | None = None


_DECODER: Final = msgspec.json.Decoder(Spec)


def read_spec(raw: bytes) -> Spec:
    """Parse and type-check. Raises `CallerError` INVALID_DATA_SOURCE naming the member, never its value."""
    try:
        return _DECODER.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid(*_explained(str(error))) from None
    except RecursionError:
        raise invalid(ROOT, "is nested too deeply") from None
    except (msgspec.DecodeError, ValueError):  # ValueError: bytes that are not UTF-8
        raise invalid(ROOT, "must be valid JSON in UTF-8") from None


def _explained(message: str) -> tuple[str, str]:
    """The parser's words as a member and what it must be."""
    found = _AT.fullmatch(message)
    what, path = (found["what"], found["path"] or "") if found else ("", "")
    if required := _REQUIRED.fullmatch(what):
        return f"{ROOT}{path}.{required[1]}", "is required"
    if expected := _EXPECTED.match(what):
        words = [_TYPES.get(name, "of another type") for name in expected[1].split(" | ")]
        return f"{ROOT}{path}", f"must be {' or '.join(words)}"
    if what.endswith("out of range"):
        return f"{ROOT}{path}", "is out of range"
    return f"{ROOT}{path}", "must be a UUID" if "UUID" in what else "is not valid"
