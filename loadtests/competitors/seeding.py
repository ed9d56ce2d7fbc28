"""Large warm sets: entries put into Redis in the edge's own form, under the keys that the edge computes itself."""

from __future__ import annotations

import json
import time
from itertools import islice
from uuid import UUID

import redis

from broker_edge.core.exchange import Entry
from broker_edge.core.packing import pack
from broker_edge.core.plan import make_plan
from broker_edge.core.source import parse_source
from loadtests.bodies import Drive, filled
from loadtests.competitors.answers import value
from loadtests.rig import OBJECT_ID

SEEDED = 5000  # more keys than this are not asked for one by one
_BATCH = 1000


def seed(client: redis.Redis, template: str, drive: Drive) -> None:
    """One entry for each key of `drive`; all of them have one spec."""
    asked = json.loads(filled(template, 0))
    spec = json.dumps(asked["data_source_spec"], separators=(",", ":")).encode()
    source, now = parse_source(spec), time.time()
    keys = iter(range(drive.keys))
    while batch := list(islice(keys, _BATCH)):
        entries = {}
        for key in batch:
            plan = make_plan(source, {"tax_id": f"{key:012d}"}, {})
            entries[f"be:{{{plan.key}}}"] = pack(Entry(UUID(OBJECT_ID), now, value(drive, key).encode()))
        client.mset(entries)
