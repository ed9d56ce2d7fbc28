"""`broker-edge demo`: the edge with its embedded default, a sample bureau beside it, and requests to paste."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import socket
import sys
import threading
import time

import uvicorn

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_durable import close_engine, make_engine
from broker_edge.cli_edge import in_this_process
from broker_edge.demo.bureau import create_bureau
from broker_edge.demo.register import register
from broker_edge.demo.requests import commands
from broker_edge.server import run_server
from broker_edge.settings import PREFIX, Settings, SettingsError, load, share_with_children

_LOOPBACK = "127.0.0.1"


def run_demo(port: int | None, bureau_port: int) -> int:
    """Serve until stopped; answers the exit code."""
    listener = _listen(bureau_port)
    bureau = f"{_LOOPBACK}:{listener.getsockname()[1]}"
    try:
        settings = _settings(port, bureau)
    except SettingsError as error:
        listener.close()
        sys.stderr.write(f"{error}\n")
        return 2
    if settings.port == 0:  # whoever pastes needs to know which
        settings = _settings(_free_port(), bureau)
    if _taken(settings):
        print(f"port {settings.port} is taken; take another one: PORT=6003 make run, or broker-edge demo --port 6003")  # noqa: T201
        return 1
    asyncio.run(_prepare(settings, f"http://{bureau}"))
    threading.Thread(target=_serve_bureau, args=(listener,), daemon=True).start()
    threading.Thread(target=_say, args=(settings, f"http://{bureau}"), daemon=True).start()
    return 0 if run_server(settings) else 1


def run_bureau(host: str, port: int) -> bool:
    """The sample bureau alone, until stopped; answers whether it could listen."""
    listener = _socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        return False
    shown = f"[{host}]" if ":" in host else host
    print(f"the sample bureau listens on http://{shown}:{listener.getsockname()[1]}", flush=True)  # noqa: T201
    with contextlib.suppress(KeyboardInterrupt):
        _serve_bureau(listener)
    return True


def _socket(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    # asyncio turns Nagle's algorithm off only on sockets that name their protocol; with it every answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener


def _free_port() -> int:
    with _socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _listen(port: int) -> socket.socket:
    """On `port` if it is free: the same address after a restart finds the entries of the last run."""
    listener = _socket()
    try:
        listener.bind((_LOOPBACK, port))
    except OSError:
        listener.bind((_LOOPBACK, 0))
    listener.listen(128)
    return listener


def _settings(port: int | None, bureau: str) -> Settings:
    allowed = ",".join((*load().allowed_private_hosts, bureau))
    share_with_children(f"{PREFIX}ALLOWED_PRIVATE_HOSTS", allowed)
    share_with_children(f"{PREFIX}HOST", _LOOPBACK)
    if port is not None:
        share_with_children(f"{PREFIX}PORT", str(port))
    settings = load()
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return settings


def _taken(settings: Settings) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError:
            return True
    return False


async def _prepare(settings: Settings, bureau_url: str) -> None:
    """A database with the sample sources in it; what is there already is left alone."""
    engine = make_engine(settings.database)
    try:
        await migrate(engine)
    finally:
        await close_engine(engine)
    async with in_this_process(settings, None) as edge:
        await register(edge, bureau_url)


def _serve_bureau(listener: socket.socket) -> None:
    config = uvicorn.Config(create_bureau(), log_config=None, access_log=False, lifespan="off")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def _program() -> str:
    """What calls this command from the reader's shell, in the same directory: the script may not be on their path."""
    if shutil.which("broker-edge"):
        return "broker-edge"
    return f"{shlex.quote(sys.executable)} -m broker_edge" if sys.argv[0].endswith("__main__.py") else shlex.quote(sys.argv[0])


def _say(settings: Settings, bureau_url: str) -> None:
    """Print what to paste, once the edge listens."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection((settings.host, settings.port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    edge_url = f"http://{settings.host}:{settings.port}"
    lines = ["", f"The edge listens on {edge_url}, the sample bureau on {bureau_url}. Paste into another terminal:", ""]
    for command in commands(edge_url, bureau_url, _program()):
        lines += [f"# {command.title}", command.curl, ""]
    print("\n".join(lines), flush=True)  # noqa: T201
