"""The edge as its users run it: `broker-edge serve` with Redis and Postgres, journal, metrics and traces on."""

from __future__ import annotations

import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bodies import Drive, body, filled
from loadtests.competitors import Running
from loadtests.competitors.answers import fault
from loadtests.competitors.seeding import SEEDED, seed
from loadtests.machine import finished, launched, listens, python
from loadtests.processes import ROOT, LoadError, answers, free_port
from loadtests.rig import Rig
from loadtests.wire import post_all

NEAR_BYTES = 64 * 2**20
SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Edge:
    """`traces` is the sampled share; None means no exporter at all. `near` is the near tier's bound in bytes."""

    label: str = "broker_edge"
    near: int = 0
    traces: float | None = 0.1
    log_level: str = "WARNING"
    workers: int = 1

    @contextmanager
    def start(self, rig: Rig) -> Iterator[Running]:
        port, store, database = free_port(), rig.new_store(), rig.postgres.create()
        with tempfile.TemporaryDirectory(prefix="edge-", dir=rig.directory) as data:
            environment = self.environment(rig, store, database, data)
            finished(python("-m", "broker_edge", "migrate"), "`broker-edge migrate`", environment, rig.checkout)
            words = python("-m", "broker_edge", "serve", "--host", "127.0.0.1", "--port", str(port))
            url, output = f"http://127.0.0.1:{port}", rig.file(f"edge-{port}.log")
            ready = lambda: listens(port)() and answers(f"{url}/healthz")  # noqa: E731 - one use
            with launched(words, ready, cores=rig.cores.server, output=output, extra=environment, cwd=rig.checkout) as process:
                yield Running(
                    port,
                    process,
                    lambda drive: body(drive, rig.upstream(drive)),
                    lambda drive: warm(rig, store, port, drive),
                    fault,
                    lambda: settle(url),
                    lambda: hits(url),
                )
            rig.redis(store).flushdb(asynchronous=True)

    def environment(self, rig: Rig, store: int, database: str, data: str) -> dict[str, str]:
        found = {
            "DATA_BROKER_DATA_DIR": data,
            "DATA_BROKER_REDIS_URL": f"redis://127.0.0.1:{rig.redis_port}/{store}",
            "DATA_BROKER_DATABASE_URL": database,
            "DATA_BROKER_ALLOWED_PRIVATE_HOSTS": f"127.0.0.1:{rig.upstream_port},127.0.0.1:{rig.upstream_tls_port}",
            "DATA_BROKER_UPSTREAM_CA_FILE": str(rig.file("ca.pem")),
            "DATA_BROKER_LOG_LEVEL": self.log_level,
            "DATA_BROKER_WORKERS": str(self.workers),
        }
        if has_near_tier(rig.checkout):
            found["DATA_BROKER_NEAR_TIER_BYTES"] = str(self.near)
        if self.traces is not None:
            found |= {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{rig.upstream_port}",
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": str(self.traces),
            }
        return found


def has_near_tier(checkout: Path = ROOT) -> bool:
    """An unknown setting would stop the start: another checkout may be without this one."""
    return "near_tier_bytes" in (checkout / "broker_edge" / "settings.py").read_text()


def warm(rig: Rig, store: int, port: int, drive: Drive) -> None:
    """Ask for every key once; a large set goes straight into Redis, in the edge's own form."""
    template = body(drive, rig.upstream(drive))
    if drive.keys > SEEDED:
        seed(rig.redis(store), template, drive)
    else:
        post_all(port, (filled(template, key) for key in range(drive.keys)))


def settle(url: str) -> None:
    """Wait until every audit row is in the database: what is shipped behind the answers is part of their cost."""
    limit = time.monotonic() + SETTLE_SECONDS
    while backlog(url) > 0:
        if time.monotonic() > limit:
            raise LoadError("the edge did not ship its journal in time")
        time.sleep(0.2)


def backlog(url: str) -> float:
    return counted(url, "broker_edge_journal_backlog_rows")


def hits(url: str) -> float:
    """Answers from the cache since the start."""
    return counted(url, "broker_edge_requests_total", 'outcome="hit"')


def counted(url: str, name: str, label: str = "") -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and label in line)
