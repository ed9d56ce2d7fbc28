"""What every request computes, hits included: can every hole be filled, and under which key does the answer lie.

Nothing is rendered and no value is judged here: that is `render`'s, for requests that go upstream.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec
import orjson

from broker_edge.core.exchange import SecretRef, Variables
from broker_edge.core.holes import Hole
from broker_edge.core.source import DataSource
from broker_edge.errors import CallerError

_DOMAIN: Final = b"broker_edge key1"  # sixteen bytes; another form of the key takes another
_DIGEST: Final = blake2b(digest_size=16, person=_DOMAIN)  # a copy costs half of a new one


class Plan(msgspec.Struct, frozen=True):
    """One request, ready to be looked up under `key`; its values hold secrets.

    A `SecretRef` in `env` stands for a secret that the registry keeps: flow/secrets.py puts its value there before the plan is
    rendered.
    """

    key: str
    source: DataSource
    params: Variables
    env: Variables
    project: str | None = None

    def __repr__(self) -> str:
        return f"Plan({self.key!r})"


def make_plan(
    source: DataSource,
    params: Mapping[str, Any],
    env: Mapping[str, Any],
    *,
    project: str | None = None,
    generation: int = 0,
) -> Plan:
    """The plan of one request; `params` and `env` are parsed JSON.

    `key` is 32 hex digits. Raises `CallerError`: MISSING_VARIABLE naming every hole without a value (null is one),
    INVALID_REQUEST where the parameters have no canonical form.
    """
    request = source.request
    if not (request.env_names <= env.keys() and request.names <= params.keys()):
        _refuse_missing(request.holes, params, env)
    if source.auth is not None and (missing := source.auth.missing(env.keys())):
        raise CallerError("MISSING_VARIABLE", f"No value is given for {', '.join(missing)} (in data_source_spec.source.auth)")
    return Plan(_key(source, params, env, project, generation), source, params, env, project)


def _refuse_missing(holes: tuple[Hole, ...], params: Variables, env: Variables) -> None:
    missing: dict[str, dict[str, None]] = {}  # a dict for a set that keeps the order of the spec
    for hole in holes:
        if hole.name not in env and (hole.env_only or hole.name not in params):
            missing.setdefault(hole.label, {})[hole.member] = None
    if missing:
        named = "; ".join(f"{label} (in {', '.join(members)})" for label, members in missing.items())
        raise CallerError("MISSING_VARIABLE", f"No value is given for {named}")


def _key(source: DataSource, params: Variables, env: Variables, project: str | None, generation: int) -> str:
    """Lengths first, so that no part can pass for the end of another."""
    values = _canonical(params, "configured_params")
    names = source.caching.vary_env
    varied = _canonical({name: _told(env[name]) for name in names if name in env}, "env_variables") if names else b""
    owner = b"" if project is None else b"+" + project.encode()
    head = b"%d %d %d %d " % (generation, len(owner), len(values), len(varied))
    digest = _DIGEST.copy()
    digest.update(head + source.fingerprint + owner + values + varied)
    return digest.hexdigest()


def _told(value: Any) -> Any:
    """What the key says of an env variable: of a kept secret which one and which version, so that a hit unseals nothing."""
    return ["secret", str(value.data_source_id), *value[1:]] if isinstance(value, SecretRef) else value


def _canonical(values: Variables, member: str) -> bytes:
    """JSON with sorted keys. Integers over 64 bits and nesting over 254 levels are beyond orjson, not beyond msgspec."""
    try:
        return orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        pass
    try:
        return msgspec.json.encode(values, order="sorted")
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError):
        raise CallerError("INVALID_REQUEST", f"{member} must be JSON that is not nested too deeply") from None
