"""The bytes of a request to a `FetchRequest`: validated by msgspec in the pass that decodes.

Two ways to say what is wanted: a spec that comes along, compiled once per text, or the name of a data source that is registered.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar
from uuid import UUID

import msgspec

from broker_edge.core.exchange import Freshness, SecretRef
from broker_edge.core.source import DataSource, parse_source
from broker_edge.core.trail import Trail
from broker_edge.errors import CallerError
from broker_edge.flow.broker import FetchRequest
from broker_edge.flow.registry import Named

_MEMOISED = 16 * 1024  # bytes of a spec; larger ones are compiled each time, so that memory stays bounded
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_ENUM = re.compile(r"Invalid enum value .*", re.DOTALL)
_LIVE: Final = Freshness()
REFS_LIMIT: Final = 256

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Reads(Protocol):
    """What turns a request's bytes into what is asked."""

    def request(self, data: bytes, trail: Trail) -> FetchRequest: ...


class Sources(Protocol):
    """What is known of registered data sources, without waiting: flow.registry.Registry."""

    def named(self, project: str | None, name: str) -> Named: ...

    def ref(self, project: str | None, data_source_id: UUID, var_name: str) -> SecretRef: ...


class CredentialRef(msgspec.Struct):
    data_source_id: UUID
    var_name: str


class Terms(msgspec.Struct):
    """Members of every request; unknown ones are ignored, null means absent."""

    configured_params: dict[str, Any] | None = None
    project_id: UUID | None = None
    mode: Literal["live", "refresh", "cache_only"] | None = None
    max_age: Seconds | None = None
    max_stale: Seconds | None = None

    @property
    def wants(self) -> Freshness:
        if self.mode is None and self.max_age is None and self.max_stale is None:
            return _LIVE
        return Freshness(self.mode or "live", self.max_age, self.max_stale or 0.0)


class Body(Terms, kw_only=True):
    data_source_spec: msgspec.Raw
    run_id: UUID
    env_variables: dict[str, Any] | None = None
    credential_refs: dict[str, CredentialRef] | None = None


class NamedBody(Terms, kw_only=True):
    data_source_name: str
    run_id: UUID


class _OnlyRun(msgspec.Struct):
    run_id: UUID | None = None


class Intake:
    """Reads requests that bring their spec; keeps at most `spec_entries` compiled specs."""

    def __init__(self, spec_entries: int, sources: Sources) -> None:
        self._decoder = msgspec.json.Decoder(Body)
        self._compiled = lru_cache(spec_entries)(parse_source)
        self._sources = sources

    def request(self, data: bytes, trail: Trail) -> FetchRequest:
        """What is asked, noted in the trail as far as it was read; raises CallerError."""
        body = _decoded(self._decoder, data, trail)
        spec = bytes(body.data_source_spec)
        source: DataSource = self._compiled(spec) if len(spec) <= _MEMOISED else parse_source(spec)
        trail.source_id = source.data_source_id
        wants = body.wants
        trail.mode = wants.mode
        env = body.env_variables or {}
        if body.credential_refs:
            env = self._with_refs(env, body.credential_refs, source, trail.project)
        return FetchRequest(source, body.configured_params or {}, env, wants)

    def _with_refs(
        self, env: dict[str, Any], refs: dict[str, CredentialRef], source: DataSource, project: str | None
    ) -> dict[str, Any]:
        """A credential is for `source.auth` alone: under a name of a template's choice it could be sent anywhere."""
        if len(refs) > REFS_LIMIT:
            raise CallerError("INVALID_REQUEST", f"credential_refs: names at most {REFS_LIMIT} secrets")
        found: dict[str, Any] = {}
        for name, ref in refs.items():
            if name in env:
                raise CallerError("INVALID_REQUEST", f"credential_refs.{name}: is given in env_variables too")
            kept = found[name] = self._sources.ref(project, ref.data_source_id, ref.var_name)
            if kept.kind == "credential" and (name != kept.name or name in source.request.names | source.request.env_names):
                what = "stands for a credential, which goes under its own name and into no template"
                raise CallerError("INVALID_REQUEST", f"credential_refs.{name}: {what}")
        return env | found


class IntakeByName:
    """Reads requests that name a registered data source, as the predecessor's clients do."""

    def __init__(self, sources: Sources) -> None:
        self._decoder = msgspec.json.Decoder(NamedBody)
        self._sources = sources

    def request(self, data: bytes, trail: Trail) -> FetchRequest:
        """As `Intake.request`."""
        body = _decoded(self._decoder, data, trail)
        wants = body.wants
        trail.mode = wants.mode
        named = self._sources.named(trail.project, body.data_source_name)
        trail.source_id, trail.source_name = named.source.data_source_id, named.source.name
        return FetchRequest(named.source, body.configured_params or {}, named.env, wants, named.generation)


B = TypeVar("B", Body, NamedBody)


def _decoded(decoder: msgspec.json.Decoder[B], data: bytes, trail: Trail) -> B:
    try:
        body = decoder.decode(data)
    except msgspec.ValidationError as error:
        trail.run_id = _run_id(data)
        raise CallerError("INVALID_REQUEST", _named(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise CallerError("INVALID_REQUEST", "the request is not JSON in UTF-8") from None
    except RecursionError:
        raise CallerError("INVALID_REQUEST", "the request is nested too deeply") from None
    trail.run_id = body.run_id
    if body.project_id is not None:
        trail.project = str(body.project_id)
    return body


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
