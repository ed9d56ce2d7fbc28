"""An inline spec's bytes to a `DataSource`: read strictly, compiled once; the caller memoises on the bytes.

Everything that depends on the spec alone happens here: bounds, templates, the list of variables, the fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

import msgspec

from broker_edge.core.auth import CONNECTION, FRAMING, OutboundAuth, compile_auth
from broker_edge.core.bodies import Body, compile_body
from broker_edge.core.holes import Hole, Template
from broker_edge.core.money import Budget, Price, compile_budget, compile_price
from broker_edge.core.spec import ROOT, Caching, Duration, Retry, Source, Spec, read_spec
from broker_edge.core.template import invalid, parse_scalar, refuse_template_name
from broker_edge.core.urls import UrlTemplate, compile_url

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
RESPONSE_TYPES: Final = ("JSON", "XML", "CSV", "PLAIN_TEXT")
DEFAULT_TIMEOUT: Final = 30.0
MAX_TIMEOUT: Final = 300.0
# Ten years of 366 days: no way of counting ten years exceeds it.
MAX_TTL: Final = 10 * 366 * 86_400.0

_SOURCE: Final = f"{ROOT}.source"
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 section 5.6.2
_HEADER_TEXT: Final = re.compile(r"[\t\x20-\x7e]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_ERROR_STATUS: Final = re.compile(r"[45][0-9]{2}")
_HOLES_LIMIT: Final = 2_000  # each costs tens of microseconds to compile, while nothing else runs


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries after the first attempt; `backoff_factor` and `attempt_timeout` in seconds.

    `billable`: each call may be charged. `keyed`: each carries a key by which the upstream knows it when it comes again.
    """

    max_retries: int = 0
    backoff_factor: float = 0.5
    status_forcelist: frozenset[int] = frozenset({500, 502, 503, 504})
    attempt_timeout: float | None = None
    billable: bool = False
    keyed: bool = False


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """`ttl` in seconds: None never expires, 0 is kept and never reused. `vary_env` names the env variables in the key.

    Past its ttl an entry is served for `stale_while_revalidate` seconds while it is refilled, and for `stale_if_error` seconds
    where the refill fails (RFC 5861). `negative_ttl`: seconds for which an error status is remembered.
    """

    enabled: bool = False
    ttl: float | None = None
    vary_env: tuple[str, ...] = ()
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    negative_ttl: Mapping[int, float] = field(default_factory=dict)

    @property
    def reusable(self) -> bool:
        return self.enabled and self.ttl != 0

    @property
    def grace(self) -> float:
        """Seconds past the ttl for which an entry may still be of use."""
        return max(self.stale_while_revalidate, self.stale_if_error)


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """What is sent, compiled. `names` may be filled by a parameter or an env variable, `env_names` only by the latter."""

    method: str
    url: UrlTemplate
    headers: tuple[tuple[str, Template], ...]
    params: tuple[tuple[str, Template], ...]
    body: Body | None
    response_type: str
    holes: tuple[Hole, ...]
    names: frozenset[str]
    env_names: frozenset[str]


@dataclass(frozen=True, slots=True)
class DataSource:
    """A compiled data source; `timeout` in seconds covers a whole fetch, `fingerprint` what is asked, as templates."""

    data_source_id: UUID
    name: str
    request: RequestTemplate
    timeout: float
    retry: RetryPolicy
    caching: CachePolicy
    fingerprint: bytes
    auth: OutboundAuth | None = None
    price: Price | None = None
    billable: bool = False
    budget: Budget | None = None
    idempotency_header: str | None = None


def parse_source(raw: bytes) -> DataSource:
    """Read and compile the JSON of a `data_source_spec`.

    Raises `CallerError` INVALID_DATA_SOURCE or TEMPLATE_REJECTED; the message names the member and quotes no value.
    """
    if raw.count(b"{{") + raw.lower().count(b"\\u007b") > _HOLES_LIMIT:
        raise invalid(ROOT, f"must hold at most {_HOLES_LIMIT} template variables")
    try:
        return _compile(read_spec(raw))
    except RecursionError:
        raise invalid(ROOT, "is nested too deeply") from None


def _compile(spec: Spec) -> DataSource:
    if not spec.name or _CONTROL.search(spec.name):
        raise invalid(f"{ROOT}.name", "must not be empty or hold control characters")
    source = spec.source
    price = compile_price(spec.cost_per_call)
    timeout = DEFAULT_TIMEOUT if source.timeout is None else source.timeout
    request = _request(source)
    billable, key_header = bool(spec.billable), _idempotency_header(source, request)
    return DataSource(
        data_source_id=spec.data_source_id,
        name=spec.name,
        request=request,
        timeout=_timeout(timeout, f"{_SOURCE}.timeout"),
        retry=_retry(source.retry or Retry(), billable=billable, keyed=key_header is not None),
        caching=_caching(spec.caching or Caching()),
        fingerprint=_fingerprint(spec.data_source_id, source, request),
        auth=None if source.auth is None else compile_auth(source.auth),
        price=price,
        billable=billable,
        budget=compile_budget(spec.budget, price),
        idempotency_header=key_header,
    )


def _idempotency_header(source: Source, request: RequestTemplate) -> str | None:
    """The header by which the upstream knows a repeated call: the one that is asked for, or Idempotency-Key where it is sent."""
    asked = source.idempotency_key_header
    if asked is None:
        return next((name for name, _ in request.headers if name.lower() == "idempotency-key"), None)
    if not _TOKEN.fullmatch(asked) or asked.lower() in FRAMING | CONNECTION:
        raise invalid(f"{_SOURCE}.idempotency_key_header", "must be the name of a header that may be set")
    return asked


def _request(source: Source) -> RequestTemplate:
    url = compile_url(source.url, f"{_SOURCE}.url")
    headers = tuple(_headers(source.headers or {}, f"{_SOURCE}.headers"))
    params = tuple(_params(source.params or {}, f"{_SOURCE}.params"))
    content_type = next((value for name, value in headers if name.lower() == "content-type"), None)
    body = compile_body(source.body, content_type, f"{_SOURCE}.body")
    holes = (*url.holes, *_holes(headers), *_holes(params), *(body.holes if body else ()))
    return RequestTemplate(
        method=_one_of(METHODS, source.method, "GET", f"{_SOURCE}.method"),
        url=url,
        headers=headers,
        params=params,
        body=body,
        response_type=_one_of(RESPONSE_TYPES, source.response_type, "PLAIN_TEXT", f"{_SOURCE}.response_type"),
        holes=holes,
        names=frozenset(hole.name for hole in holes if not hole.env_only),
        env_names=frozenset(hole.name for hole in holes if hole.env_only),
    )


def _holes(named: Iterable[tuple[str, Template]]) -> Iterator[Hole]:
    for _, template in named:
        yield from template.holes


def _headers(raw: dict[str, Any], member: str) -> Iterator[tuple[str, Template]]:
    seen: set[str] = set()
    for name, value in raw.items():
        lowered = name.lower()
        if not _TOKEN.fullmatch(name):
            raise invalid(member, "has a name that is no HTTP header name")
        if lowered in FRAMING | CONNECTION or lowered.startswith("proxy-"):
            raise invalid(f"{member}.{name}", "is set by the edge and can't be asked for")
        if lowered in seen:
            raise invalid(f"{member}.{name}", "stands there twice; the case of header names makes no difference")
        seen.add(lowered)
        if value is not None:
            template = parse_scalar(value, f"{member}.{name}")
            if not all(_HEADER_TEXT.fullmatch(literal) for literal in template.literals):
                raise invalid(f"{member}.{name}", "must hold nothing but visible ASCII, spaces and tabs")
            yield name, template


def _params(raw: dict[str, Any], member: str) -> Iterator[tuple[str, Template]]:
    """One pair for each value: an array repeats its parameter."""
    for name, value in raw.items():
        refuse_template_name(name, member)
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            path = f"{member}.{name}[{index}]" if isinstance(value, list) else f"{member}.{name}"
            if item is not None:
                yield name, parse_scalar(item, path)


def _one_of(allowed: tuple[str, ...], value: str | None, default: str, member: str) -> str:
    if value is None:
        return default
    if value not in allowed:
        raise invalid(member, f"must be one of {', '.join(allowed)}")
    return value


def _within(value: float, low: float, high: float, member: str) -> None:
    if not low <= value <= high:
        raise invalid(member, f"must be from {low:g} to {high:.0f}")


def _timeout(seconds: float, member: str) -> float:
    if not 0 < seconds <= MAX_TIMEOUT:
        raise invalid(member, f"must be over 0 and at most {MAX_TIMEOUT:g}")
    return seconds


def _retry(wire: Retry, *, billable: bool, keyed: bool) -> RetryPolicy:
    member = f"{_SOURCE}.retry"
    given = {name: value for name, value in msgspec.structs.asdict(wire).items() if value is not None}
    if "status_forcelist" in given:
        given["status_forcelist"] = frozenset(given["status_forcelist"])
    policy = RetryPolicy(**given, billable=billable, keyed=keyed)
    _within(policy.max_retries, 0, 10, f"{member}.max_retries")
    _within(policy.backoff_factor, 0, 60, f"{member}.backoff_factor")
    for status in policy.status_forcelist:
        _within(status, 100, 599, f"{member}.status_forcelist")
    if policy.attempt_timeout is not None:
        _timeout(policy.attempt_timeout, f"{member}.attempt_timeout")
    return policy


def _caching(wire: Caching) -> CachePolicy:
    ttl = wire.ttl
    if isinstance(ttl, Duration):
        ttl = sum(
            _ttl(getattr(ttl, unit) or 0, f"{ROOT}.caching.ttl.{unit}", scale)
            for unit, scale in (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
        )
    if ttl is not None:
        ttl = _ttl(ttl, f"{ROOT}.caching.ttl")
    return CachePolicy(
        bool(wire.enabled),
        ttl,
        tuple(sorted(set(wire.vary_env or ()))),
        _ttl(wire.stale_while_revalidate or 0, f"{ROOT}.caching.stale_while_revalidate"),
        _ttl(wire.stale_if_error or 0, f"{ROOT}.caching.stale_if_error"),
        dict(_negative(wire.negative_ttl or {}, f"{ROOT}.caching.negative_ttl")),
    )


def _negative(wire: dict[str, float], member: str) -> Iterator[tuple[int, float]]:
    for status, seconds in wire.items():
        if not _ERROR_STATUS.fullmatch(status):
            raise invalid(member, "must have statuses from 400 to 599 as its members' names")
        yield int(status), _ttl(seconds, f"{member}.{status}")


def _ttl(value: float, member: str, scale: int = 1) -> float:
    _within(value, 0, MAX_TTL / scale, member)
    return value * scale


def _fingerprint(data_source_id: UUID, source: Source, request: RequestTemplate) -> bytes:
    """A digest of what is asked, from the spec's own JSON: absent, null and default members are the same."""
    asked = [
        data_source_id.hex,
        source.url,
        request.method,
        {name.lower(): value for name, value in (source.headers or {}).items() if value is not None},
        {name: value for name, value in (source.params or {}).items() if value is not None},
        None if request.body is None else source.body,
        request.response_type,
    ]
    return blake2b(msgspec.json.encode(asked, order="sorted"), digest_size=16).digest()
