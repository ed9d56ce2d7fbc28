"""What is measured: the tables of the report, by name and in order."""

from __future__ import annotations

from dataclasses import replace

from loadtests.bodies import Drive
from loadtests.competitors import Competitor
from loadtests.competitors.edge import NEAR_BYTES, Edge, has_near_tier
from loadtests.competitors.floor import Floor
from loadtests.competitors.idiomatic import Idiomatic
from loadtests.competitors.nginx import NginxLua
from loadtests.competitors.predecessor import Predecessor
from loadtests.competitors.varnish import Varnish
from loadtests.rounds import Entry, Plan

EDGE, FLOOR, NGINX, IDIOMATIC = Edge(), Floor(), NginxLua(), Idiomatic()
NEAR = Edge(label="broker_edge, near tier", near=NEAR_BYTES)
MATCHING = NginxLua(label="nginx + Lua + Redis, pattern for these bytes only", any_order=False)
HIT = Drive()
OFFERED = 4000

ONE_WORKER, TWO_WORKERS = "1 worker", "2 workers on the one core"
TRACES_OFF, TRACES_SOME, TRACES_ALL = "traces off", "traces 10%, OTLP", "traces 100%, OTLP"
FEW_KEYS, MANY_KEYS = "near tier, 1,000 keys", "near tier, 1,000,000 keys"


def _all(who: tuple[Competitor, ...], drive: Drive) -> tuple[Entry, ...]:
    return tuple(Entry(one.label, one, drive) for one in who)


def _hit() -> Plan:
    others = (FLOOR, NGINX, MATCHING, Varnish(), Predecessor(), IDIOMATIC)
    who = (*others, EDGE, Edge(label="broker_edge, LOG_LEVEL=INFO", log_level="INFO"))
    return Plan("hit", "Hits of 1 KB through Redis, 1,000 keys, 64 connections, near tier off", _all(who, HIT))


def _near() -> Plan:
    who = (FLOOR, NGINX, NEAR) if has_near_tier() else (FLOOR, NGINX)
    return Plan("near", f"Hits of 1 KB, 1,000 keys, near tier of {NEAR_BYTES // 2**20} MB", _all(who, HIT))


def _large(name: str, size: str, keys: int) -> Plan:
    who = (Floor(size=size), NGINX, IDIOMATIC, EDGE, *((NEAR,) if has_near_tier() else ()))
    return Plan(name, f"Hits of {size.upper()}B, {keys} keys, 64 connections", _all(who, Drive(value=size, keys=keys)))


def _misses() -> tuple[Plan, Plan]:
    drive = Drive(kind="miss")
    title = "Misses of 1 KB, a new key each, durable before the reply, upstream by"
    return (
        Plan("miss", f"{title} HTTP/1.1", _all((EDGE,), drive)),
        Plan("miss-tls", f"{title} HTTP/2 over TLS", _all((EDGE,), replace(drive, tls=True))),
    )


def _mixed() -> Plan:
    return Plan("mixed", "60 hits to 40 misses of 1 KB, 64 connections", _all((EDGE,), Drive(kind="mixed")))


def _growth() -> Plan:
    counts = (1, 10, 100, 1000)
    pairs = ((who, count) for who in (EDGE, NGINX) for count in counts)
    entries = tuple(Entry(f"{who.label}, {count} connections", who, replace(HIT, connections=count)) for who, count in pairs)
    return Plan("growth", "Hits of 1 KB by connections", entries)


def _workers() -> Plan:
    one, two = Edge(), Edge(workers=2)
    title = "Hits of 1 KB by workers, both on the server's one core: capacity of n workers = n / CPU of a request"
    return Plan("workers", title, (Entry(ONE_WORKER, one, HIT), Entry(TWO_WORKERS, two, HIT)))


def _keys() -> Plan:
    """Each line in a process of its own: what the one has seen is not in the other's memory."""
    lines = [("near tier off", 0, keys) for keys in (1000, 1_000_000)]
    if has_near_tier():
        lines += [("near tier", NEAR_BYTES, keys) for keys in (1000, 10_000, 100_000, 1_000_000)]
    names = [(f"{tier}, {keys:,} keys", near, keys) for tier, near, keys in lines]
    entries = tuple(Entry(name, Edge(label=name, near=near), replace(HIT, keys=keys), cover=True) for name, near, keys in names)
    return Plan("keys", "Hits of 1 KB by distinct keys, all of them asked for, a process each", entries, rounds=1)


def _specs() -> Plan:
    entries = (Entry("one spec", EDGE, HIT), Entry("1,000 distinct specs", EDGE, replace(HIT, specs=True)))
    return Plan("specs", "Hits of 1 KB by distinct specs", entries)


def _traces() -> Plan:
    shares = ((TRACES_OFF, None), (TRACES_SOME, 0.1), (TRACES_ALL, 1.0))
    return Plan("traces", "Hits of 1 KB by traces", tuple(Entry(name, Edge(traces=share), HIT) for name, share in shares))


def _offered() -> Plan:
    title = f"Hits of 1 KB, {OFFERED:,} requests a second offered open loop, times from when a request was due"
    return Plan("offered", title, _all((FLOOR, NGINX, EDGE), replace(HIT, rate=OFFERED)))


def sections() -> dict[str, Plan]:
    """Every table by its name."""
    miss, miss_tls = _misses()
    large = (_large("hit-50k", "50k", 200), _large("hit-1m", "1m", 20))
    plans = (_hit(), _near(), *large, miss, miss_tls, _mixed(), _growth(), _workers(), _keys(), _specs(), _traces(), _offered())
    return {plan.name: plan for plan in plans}


def quick() -> dict[str, Plan]:
    """Hits and misses within two minutes: few rounds, and nobody who takes long to get ready."""
    who = (FLOOR, NGINX, IDIOMATIC, EDGE)
    found = sections()
    plans = (replace(found["hit"], entries=_all(who, HIT)), found["miss"], found["miss-tls"])
    return {plan.name: replace(plan, rounds=3, seconds=2.0) for plan in plans}
