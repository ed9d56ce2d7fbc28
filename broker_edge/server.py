"""uvicorn as the service needs it: one process, or several behind one socket; a clean stop is a success."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from broker_edge.settings import SERVER_SHARE, Settings
from broker_edge.telemetry.logs import Log, configure

if TYPE_CHECKING:
    from broker_edge.api.app import Front


def application() -> Front:
    """The application of a process that serves; where it can't be built, one line says so."""
    from broker_edge.api.app import create_app  # a parent of workers has no use for it

    try:
        return create_app(started=_settle_in)
    except Exception as error:  # noqa: BLE001 whatever it is may hold a path or a URL; its name is what can be told
        sys.stderr.write(f"the edge can't start ({type(error).__name__}): see `broker-edge doctor`\n")
        raise SystemExit(1) from None


def _settle_in() -> None:
    tame_interpreter()
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A supervisor that was killed says nothing: a worker without one would serve, unwatched, until the machine stops.
        loop = asyncio.get_running_loop()
        loop.add_reader(parent.sentinel, _stop_once, loop, parent.sentinel)


def _stop_once(loop: asyncio.AbstractEventLoop, sentinel: int) -> None:
    loop.remove_reader(sentinel)
    os.kill(os.getpid(), signal.SIGTERM)


def tame_interpreter() -> None:
    """What was made for good is never collected again, and new garbage in larger portions; threads take shorter turns.

    Else the collector walks all modules, routes and compiled templates every few thousand requests, and a thread that exports
    spans keeps the loop waiting for 5 ms: both are the P99.
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def run_server(settings: Settings) -> bool:
    """Serve until SIGTERM or SIGINT: stop accepting, finish what runs, flush. Answers whether it could start."""
    config = uvicorn.Config(
        "broker_edge.server:application",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http="broker_edge.protocol:EdgeProtocol",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks who or where the client is
        date_header=False,
        backlog=4096,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, int(settings.shutdown_timeout * SERVER_SHARE)),
    )
    if settings.workers == 1:
        return _Server(config).serve_until_told()
    log = Log(configure(settings.log_level))
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # what its workers do is told here
    supervisor = _Supervisor(config, [config.bind_socket()], log)
    supervisor.run()
    return not supervisor.failed


class _Server(uvicorn.Server):
    """uvicorn raises a caught signal again when it is done, so that SIGTERM ends in 143; here a clean stop is a success."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def serve_until_told(self) -> bool:
        """Whether it had started."""
        with contextlib.suppress(SystemExit):  # a port that is taken, an application that can't be built
            self.run()
        return self.started


class _Supervisor(Multiprocess):
    """uvicorn replaces workers that die; one that dies before it ever served would be replaced for ever."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], log: Log) -> None:
        super().__init__(config, sockets)
        self.failed = False
        self._log = log

    def init_processes(self) -> None:
        super().init_processes()
        while not self.should_exit.is_set() and not all(process.is_ready(timeout=1) for process in self.processes):
            self.handle_signals()
            if not all(process.process.is_alive() for process in self.processes):
                self.failed = True
                self.should_exit.set()
            time.sleep(0.05)

    def keep_subprocess_alive(self) -> None:
        if not self.should_exit.is_set():
            before = {process: process.process.is_alive() for process in self.processes}
            super().keep_subprocess_alive()
            self.failed = self.should_exit.is_set()  # a replacement could not start
            for process in before.keys() - set(self.processes):
                self._tell(process.pid, process.exitcode, hung=before[process] and process.exitcode == -signal.SIGKILL)

    def _tell(self, pid: int | None, exitcode: int | None, *, hung: bool) -> None:
        """One line for a worker that is replaced: how it ended, or that it was ended because it answered no more."""
        code = exitcode or 0
        how = {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
        self._log.warning("a worker hung and was replaced" if hung else "a worker died and was replaced", pid=pid, **how)

    def terminate_all(self) -> None:
        # While anybody holds the socket the kernel takes connections that no worker will ever accept.
        for sock in self.sockets:
            sock.close()
        super().terminate_all()
