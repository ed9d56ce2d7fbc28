"""What the benchmark asks for: one request body with marks for the key, the run id and the spec, which generators fill in."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["hit", "miss", "mixed"]

KEY, RUN, SPEC = "@key@", "@run@", "@spec@"
DIGITS = 12
_SOURCE_ID = "6b1f0c52-77aa-4b1e-9d63-"
_RUN_ID = "7d1c2b3a-0000-4000-8000-"
FIRST_NEW = 10**11  # keys of misses start here, those of the warm set at 0


@dataclass(frozen=True, slots=True)
class Drive:
    """What one line of a table is driven with. `rate` requests a second are offered open loop; 0 means as many as are taken."""

    kind: Kind = "hit"
    value: str = "1k"  # path of the upstream's answer: 1k, 50k, 1m
    keys: int = 1000
    specs: bool = False  # a spec of its own for each key
    tls: bool = False  # the upstream by HTTP/2 over TLS
    connections: int = 64
    rate: int = 0

    def warm(self) -> Drive:
        """The keys that must be there before; two drives with the same ones share the warming."""
        return replace(self, kind="hit", connections=0, rate=0)


def data_source(drive: Drive, upstream: str) -> dict[str, Any]:
    """The spec sent with every request, against an upstream at the URL `upstream`."""
    return {
        "data_source_id": _SOURCE_ID + (SPEC if drive.specs else "0" * DIGITS),
        "name": "bureau",
        "source": {
            "url": f"{upstream}/v/{drive.value}",
            "method": "GET",
            "headers": {"Accept": "application/json"},
            "params": {"tax_id": "{{ tax_id }}"},
            "timeout": 30,
            "retry": {"max_retries": 1, "backoff_factor": 0.5, "status_forcelist": [502, 503]},
            "response_type": "JSON",
        },
        "caching": {"enabled": True, "ttl": 86400},
    }


def body(drive: Drive, upstream: str) -> str:
    """The body of POST /v1/fetch-data, marks and all."""
    asked = {
        "data_source_spec": data_source(drive, upstream),
        "env_variables": {},
        "configured_params": {"tax_id": KEY},
        "run_id": _RUN_ID + RUN,
    }
    return json.dumps(asked, separators=(",", ":"))


def filled(template: str, key: int, run: int = 0) -> bytes:
    """A template as one request sends it."""
    text = template.replace(SPEC, f"{key:012d}").replace(KEY, f"{key:012d}").replace(RUN, f"{run:012d}")
    return text.encode()
