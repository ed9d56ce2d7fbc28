"""The bytes of a request to a `FetchRequest`: validated by msgspec in the pass that decodes, a spec compiled once per text."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from broker_edge.core.exchange import Freshness
from broker_edge.core.source import DataSource, parse_source
from broker_edge.core.trail import Trail
from broker_edge.errors import CallerError
from broker_edge.flow.broker import FetchRequest

_MEMOISED = 16 * 1024  # bytes of a spec; larger ones are compiled each time, so that memory stays bounded
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_ENUM = re.compile(r"Invalid enum value .*", re.DOTALL)
_LIVE: Final = Freshness()

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Body(msgspec.Struct):
    """The request's members; unknown ones are ignored, null means absent."""

    data_source_spec: msgspec.Raw
    run_id: UUID
    env_variables: dict[str, Any] | None = None
    configured_params: dict[str, Any] | None = None
    mode: Literal["live", "refresh", "cache_only"] | None = None
    max_age: Seconds | None = None
    max_stale: Seconds | None = None
    credential_refs: dict[str, Any] | None = None

    @property
    def wants(self) -> Freshness:
        if self.mode is None and self.max_age is None and self.max_stale is None:
            return _LIVE
        return Freshness(self.mode or "live", self.max_age, self.max_stale or 0.0)


class _OnlyRun(msgspec.Struct):
    run_id: UUID | None = None


class Intake:
    """Reads requests; keeps at most `spec_entries` compiled specs."""

    def __init__(self, spec_entries: int) -> None:
        self._decoder = msgspec.json.Decoder(Body)
        self._compiled = lru_cache(spec_entries)(parse_source)

    def request(self, data: bytes, trail: Trail) -> FetchRequest:
        """What is asked, noted in the trail as far as it was read; raises CallerError."""
        body = self._decoded(data, trail)
        trail.run_id = body.run_id
        if body.credential_refs:
            raise CallerError("INVALID_REQUEST", "credential_refs is not supported by this version")
        spec = bytes(body.data_source_spec)
        source: DataSource = self._compiled(spec) if len(spec) <= _MEMOISED else parse_source(spec)
        trail.source_id = source.data_source_id
        wants = body.wants
        trail.mode = wants.mode
        return FetchRequest(source, body.configured_params or {}, body.env_variables or {}, wants)

    def _decoded(self, data: bytes, trail: Trail) -> Body:
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            trail.run_id = _run_id(data)
            raise CallerError("INVALID_REQUEST", _named(str(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise CallerError("INVALID_REQUEST", "the request is not JSON in UTF-8") from None
        except RecursionError:
            raise CallerError("INVALID_REQUEST", "the request is nested too deeply") from None


def _named(message: str) -> str:
    """msgspec's message, led by the member as the caller wrote it and without the caller's value."""
    match = _AT.match(message)
    what = _ENUM.sub("not one of the allowed values", match["what"] if match else message)
    where = match["where"] if match else None
    return f"{where}: {what}" if where else what


def _run_id(data: bytes) -> UUID | None:
    """The run of a request that is refused for another member: its audit row should name it all the same."""
    try:
        return msgspec.json.decode(data, type=_OnlyRun).run_id
    except (msgspec.DecodeError, RecursionError):
        return None
