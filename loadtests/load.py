"""`make load`: a bureau and an edge of its own, locust in front of them, a table and a verdict.

    python -m loadtests.load --profile hit --rate 1000 --seconds 30

Exit codes: 0 the bars are met, 1 one is missed or the run could not be made, 2 wrong use.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests import processes
from loadtests.payloads import warm_bodies
from loadtests.processes import LoadError
from loadtests.report import Report, missed, read_lines, table

DEFAULT_RATE = {"hit": 1000.0, "miss": 200.0, "mixed": 300.0}
USER_CLASS = {"hit": "HitUser", "miss": "MissUser", "mixed": "MixedUser"}
PER_USER = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens; the pids are those of servers it started itself."""

    edge_url: str
    bureau_url: str
    pids: dict[str, int]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments, with the defaults that depend on others filled in; exits with 2 where they make no sense together."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load", description="Offers load to an edge and judges the answers."
    )
    parser.add_argument("--profile", choices=sorted(USER_CLASS), default="hit", help="hit, miss, or mixed: 60 hits to 40 misses")
    parser.add_argument("--rate", type=_positive, help="requests a second offered (hit 1000, miss 200, mixed 300)")
    parser.add_argument("--seconds", type=_seconds, default=30.0, help="how long to measure")
    parser.add_argument("--users", type=int, help="connections (one for every ten requests a second, 10 to 400)")
    parser.add_argument("--keys", type=int, default=1000, help="size of the warm set")
    parser.add_argument("--workers", type=int, default=1, help="processes of the edge; more than one needs Redis")
    parser.add_argument("--redis-url", help="Redis for the edge; without one its hot tier is in memory")
    parser.add_argument("--database-url", help="database for the edge; without one SQLite in a temporary directory")
    parser.add_argument("--servers", action="store_true", help="start a real Redis-compatible server and a real Postgres")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a further variable for the edge")
    parser.add_argument("--edge-url", help="measure an edge that is already running; needs --bureau-url")
    parser.add_argument("--bureau-url", help="the bureau as that edge reaches it")
    parser.add_argument("--json", action="store_true", help="print the data instead of the table")
    options = parser.parse_args(words)
    _check(parser, options)
    options.rate = options.rate or DEFAULT_RATE[options.profile]
    options.users = options.users or max(10, min(400, round(options.rate / PER_USER)))
    return options


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1_000_000:
        raise argparse.ArgumentTypeError("must be a number over 0 and at most a million")
    return value


def _seconds(text: str) -> float:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 86_400):
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 86400")
    return float(text)


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    started = (options.servers, options.redis_url, options.database_url, options.env, options.workers != 1)
    if bool(options.edge_url) != bool(options.bureau_url):
        parser.error("--edge-url and --bureau-url go together")
    if options.edge_url and any(started):
        parser.error("--edge-url measures a running edge: it takes no flag that describes one to start")
    if options.servers and (options.redis_url or options.database_url):
        parser.error("--servers starts its own: it takes no --redis-url and no --database-url")
    if options.workers > 1 and not (options.servers or options.redis_url):
        parser.error("--workers over 1 needs --redis-url or --servers")
    if min(options.workers, options.keys, options.users or 1) < 1:
        parser.error("--workers, --keys and --users must be at least 1")
    if not all("=" in pair for pair in options.env):
        parser.error("--env takes NAME=VALUE")


def edge_settings(options: argparse.Namespace, bureau_port: int, data_dir: str) -> dict[str, str]:
    """The environment of the edge under load; the arguments of `--env` come last."""
    settings = {
        "DATA_BROKER_DATA_DIR": data_dir,
        "DATA_BROKER_ALLOWED_PRIVATE_HOSTS": f"127.0.0.1:{bureau_port}",
        "DATA_BROKER_LOG_LEVEL": "WARNING",
        "DATA_BROKER_WORKERS": str(options.workers),
    }
    if options.redis_url:
        settings["DATA_BROKER_REDIS_URL"] = options.redis_url
    if options.database_url:
        settings["DATA_BROKER_DATABASE_URL"] = options.database_url
    return settings | dict(pair.split("=", 1) for pair in options.env)


@contextmanager
def place(options: argparse.Namespace) -> Iterator[Place]:
    """The edge and the bureau of the run: those named, or its own for as long as the block runs."""
    if options.edge_url:
        yield Place(options.edge_url.rstrip("/"), options.bureau_url.rstrip("/"), {})
        return
    with ExitStack() as stack:
        if options.servers:
            servers = importlib.import_module("tests.servers")
            options.redis_url = stack.enter_context(servers.valkey()).url
            options.database_url = stack.enter_context(servers.postgres()).create()
        data_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-edge-load-"))
        ports = processes.free_port(), processes.free_port()
        bureau_url, edge_url = (f"http://127.0.0.1:{port}" for port in ports)
        bureau = stack.enter_context(processes.served(bureau_command(ports[0]), f"{bureau_url}/calls"))
        settings = edge_settings(options, ports[0], data_dir)
        migrate(settings)
        words = ("-m", "broker_edge", "serve", "--host", "127.0.0.1", "--port", str(ports[1]))
        edge = stack.enter_context(processes.served(words, f"{edge_url}/healthz", settings))
        yield Place(edge_url, bureau_url, {"edge": edge.pid, "bureau": bureau.pid})


def bureau_command(port: int) -> tuple[str, ...]:
    app = "broker_edge.demo.bureau:app"
    return ("-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log")


def migrate(settings: dict[str, str]) -> None:
    child = processes.python("-m", "broker_edge", "migrate", extra=settings)
    if child.wait(120) != 0:
        raise LoadError("`broker-edge migrate` failed; its output is above")


def warm(edge_url: str, bureau_url: str, keys: int) -> None:
    """Ask for every key of the warm set once, so that a hit is a hit from the first request on."""

    def ask(body: bytes) -> None:
        request = urllib.request.Request(f"{edge_url}/v1/fetch-data", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            reply.read()

    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, warm_bodies(bureau_url, keys)))
    except (urllib.error.URLError, OSError):
        raise LoadError("the edge did not answer while its cache was being warmed") from None


def locust_command(options: argparse.Namespace, where: Place, output: Path) -> list[str]:
    """locust without a browser: spawn at once, count from then on, stop after the time, leave its counts in `output`, a .json."""
    return [
        *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), USER_CLASS[options.profile]),
        *("--headless", "--host", where.edge_url, "--bureau", where.bureau_url, "--keys", str(options.keys)),
        *("--rate", f"{options.rate:g}", "--users", str(options.users), "--spawn-rate", str(options.users)),
        # one second goes by until all users are there, and is not counted
        *("--run-time", f"{options.seconds + 1:.0f}s", "--reset-stats", "--stop-timeout", "10"),
        *("--json-file", str(output.with_suffix("")), "--only-summary", "--loglevel", "WARNING", "--exit-code-on-error", "0"),
    ]


def measure(options: argparse.Namespace, where: Place) -> Report:
    """Run locust against `where`; raises `LoadError` where it leaves no counts."""
    with tempfile.TemporaryDirectory(prefix="broker-edge-load-") as folder:
        output = Path(folder) / "counts.json"
        before = {name: processes.cpu_seconds(pid) for name, pid in where.pids.items()}
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = subprocess.Popen(
            locust_command(options, where, output),
            cwd=processes.ROOT,
            env=processes.child_environment({}),
            stdout=subprocess.DEVNULL,
        )
        try:
            _watch(child, options.seconds)
        finally:
            processes.stop(child)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = {name: processes.cpu_seconds(pid) - before[name] for name, pid in where.pids.items()}
        cpu["locust"] = after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
        if child.returncode != 0 or not output.exists():
            raise LoadError(f"locust ended with exit code {child.returncode}; its output is above")
        counts: list[dict[str, Any]] = json.loads(output.read_text())
    return Report(options.profile, options.rate, options.seconds, read_lines(counts), cpu)


def _watch(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for locust; a person who watches sees how far it is."""
    started = time.monotonic()
    while child.poll() is None:
        gone = time.monotonic() - started
        if gone > seconds + 60:
            raise LoadError("locust did not end in time")
        if sys.stderr.isatty():
            done = min(1.0, gone / seconds)
            print(f"\r[{'#' * round(done * 30):<30}] {done:4.0%}", end="", file=sys.stderr, flush=True)
        time.sleep(0.2)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    try:
        with place(options) as where:
            if options.profile != "miss":
                warm(where.edge_url, where.bureau_url, options.keys)
            report = measure(options, where)
    except LoadError as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.as_json()) if options.json else table(report))
    return 1 if missed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
