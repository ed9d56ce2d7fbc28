"""What is asked: bodies of POST /v1/fetch-data for warm keys and for new ones, cheap to make, and what a right answer is."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from broker_edge.demo.requests import fetch_request, sample_specs

LATENCY_MS = 50
VALUE_BYTES = 1024

_process = uuid.uuid4()
_runs = count()
_misses = count()


def body_template(bureau_url: str) -> bytes:
    """A request body with `%s` for the tax id and then for the run id; the bureau takes 50 ms and answers about 1 KB."""
    spec = sample_specs(bureau_url)["credit_score"]
    spec["source"]["url"] += f"?latency_ms={LATENCY_MS}&size={VALUE_BYTES}"
    text = json.dumps(fetch_request(spec, {"tax_id": "@tax@"}, "@run@"), separators=(",", ":")).replace("%", "%%")
    return text.replace("@tax@", "%s").replace("@run@", "%s").encode()


def render(template: bytes, tax_id: str) -> bytes:
    """A body for `tax_id` in a run of its own: a cache that keys on the whole body never hits."""
    return template % (tax_id.encode(), f"{str(_process)[:24]}{next(_runs) % 16**12:012x}".encode())


def warm_key(index: int) -> str:
    """The tax id of one member of the warm set."""
    return f"9{index:010}"


def new_key() -> str:
    """A tax id that nobody asked for before, in this process or another."""
    return f"8{_process.hex[:12]}{next(_misses)}"


def warm_bodies(bureau_url: str, keys: int) -> Iterator[bytes]:
    """One body for each member of the warm set."""
    template = body_template(bureau_url)
    return (render(template, warm_key(index)) for index in range(keys))


def fault(answer: Mapping[str, Any], tax_id: str, origin: str) -> str | None:
    """What is wrong with a reply to `tax_id` that must be of `origin` (REQUEST or CACHE), or None."""
    if answer["origin"] != origin:
        return f"origin is not {origin}"
    return None if answer["value"]["tax_id"] == tax_id else "the value belongs to another key"
