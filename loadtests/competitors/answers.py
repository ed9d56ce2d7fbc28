"""What a right answer is, and a Redis warmed with values for the competitors that ask it themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from loadtests.bodies import SPEC, Drive, data_source
from loadtests.rig import OBJECT_ID, SIZES, Rig

_BATCH = 500


def value(drive: Drive, key: int) -> str:
    """The value of a key as JSON text: what the upstream answers."""
    tax_id = f"{key:012d}" if drive.value == "1k" else None
    return json.dumps({"tax_id": tax_id, "pad": "x" * SIZES[drive.value]}, separators=(",", ":"))


def envelope(drive: Drive, key: int) -> bytes:
    """A whole reply, of the size that a hit has."""
    digest = hashlib.md5(str(key).encode(), usedforsecurity=False).hexdigest()
    start = f'{{"data_object_id":"{OBJECT_ID}","origin":"CACHE","key":"{digest}","value":'
    return f'{start}{value(drive, key)},"start_time":null,"end_time":null,"duration":null,"error":null}}'.encode()


def fault(drive: Drive, key: int, answer: dict[str, Any]) -> str | None:
    """What is wrong with a reply of the contract's form, or None."""
    origin = "REQUEST" if drive.kind == "miss" else "CACHE"
    if answer.get("origin") != origin:
        return f"the origin of a {drive.kind} is not {origin}"
    if len(str(answer.get("key"))) != 32:
        return "the key is not 32 hex digits"
    return None if answer.get("value") == json.loads(value(drive, key)) else "the value is not the upstream's"


def digest_of(drive: Drive, key: int) -> str:
    """The key that hand-written competitors derive: source and parameter."""
    source = data_source(drive, "")["data_source_id"].replace(SPEC, f"{key:012d}")
    return hashlib.md5(f"{source}:tax_id={key:012d}".encode(), usedforsecurity=False).hexdigest()


def fill_redis(rig: Rig, drive: Drive) -> None:
    """`bench:<digest>` -> object id and value, for nginx with Lua and for FastAPI."""
    keys: Iterator[int] = iter(range(drive.keys))
    client = rig.redis()
    while batch := list(islice(keys, _BATCH)):
        client.mset({f"bench:{digest_of(drive, key)}": OBJECT_ID + value(drive, key) for key in batch})
