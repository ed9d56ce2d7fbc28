"""An open-loop generator: requests are due at even intervals whether or not the server keeps up, and their times count from then.

A closed loop such as wrk's asks again only once it has its answer, so a server that stalls is asked less and its stall is hardly
seen (coordinated omission). `select` waits with microseconds, event loops with milliseconds: hence no asyncio here.

    python -m loadtests.offered PORT RATE SECONDS CONNECTIONS BODY KEYS
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.bodies import filled
from loadtests.wire import PATH

_PATIENCE = 10.0  # seconds for the last answers
_RECEIVE = 262_144


@dataclass(slots=True)
class Connection:
    """One request at a time; `due` is when the one under way was due."""

    socket: socket.socket
    due: float = 0.0
    wanted: int = -1  # bytes of the whole answer, once its head is there
    got: bytes = b""

    def send(self, request: bytes, due: float) -> None:
        self.due, self.wanted, self.got = due, -1, b""
        self.socket.sendall(request)

    def take(self) -> bool | None:
        """Whether the answer is complete; None where it is no 200."""
        data = self.socket.recv(_RECEIVE)
        self.got += data
        if self.wanted < 0 and b"\r\n\r\n" in self.got:
            self.wanted = length(self.got)
        if not data or not self.got.startswith(b"HTTP/1.1 200"[: len(self.got)]):
            return None
        return len(self.got) >= self.wanted >= 0


def length(answer: bytes) -> int:
    """Bytes of an answer, head included, by its Content-Length."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(head) + 4 + int(value)
    raise ValueError("an answer without a Content-Length")


@dataclass(slots=True)
class Counts:
    """Times in seconds from when a request was due: `took` to its answer, `late` to its sending."""

    took: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    errors: int = 0


class Generator:
    """Sends `requests` in turn over `connections`, `rate` a second; those that find no idle connection wait, and it counts."""

    def __init__(self, port: int, rate: float, connections: int, requests: Sequence[bytes]) -> None:
        self._port = port
        self._rate = rate
        self._requests = requests
        self._idle = deque(Connection(_connected(port)) for _ in range(connections))
        self._busy: dict[socket.socket, Connection] = {}
        self.counts = Counts()

    def run(self, seconds: float) -> Counts:
        """Send `rate` times `seconds` requests and hear their answers; what is not answered in time counts as an error."""
        try:
            self._run(int(self._rate * seconds), time.perf_counter(), seconds + _PATIENCE)
        finally:
            for connection in (*self._idle, *self._busy.values()):
                connection.socket.close()
        return self.counts

    def _run(self, total: int, started: float, patience: float) -> None:
        sent = 0
        while sent < total or self._busy:
            now = time.perf_counter()
            if now > started + patience:
                self.counts.errors += total - sent + len(self._busy)
                return
            while sent < total and self._idle and (due := started + sent / self._rate) <= now:
                self._send(sent, due)
                sent += 1
            self._hear(self._pause(started, sent, total))

    def _pause(self, started: float, sent: int, total: int) -> float:
        """Seconds until there is something to send; while all connections are busy only an answer changes anything."""
        if sent >= total or not self._idle:
            return 1.0
        return max(0.0, started + sent / self._rate - time.perf_counter())

    def _send(self, number: int, due: float) -> None:
        connection = self._idle.popleft()
        connection.send(self._requests[number % len(self._requests)], due)
        self._busy[connection.socket] = connection
        self.counts.late.append(time.perf_counter() - due)

    def _hear(self, pause: float) -> None:
        readable, _, _ = select.select(self._busy, [], [], pause)
        for ready in readable:
            connection = self._busy[ready]
            whole = connection.take()
            if whole is False:
                continue
            del self._busy[ready]
            if whole:
                self.counts.took.append(time.perf_counter() - connection.due)
            else:
                self.counts.errors += 1
                ready.close()
                connection = Connection(_connected(self._port))
            self._idle.append(connection)


def _connected(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def request(body: bytes) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def summary(counts: Counts, seconds: float) -> dict[str, float]:
    """As wrk's script prints it; `late_p99` is how late the generator itself was, in milliseconds like the others."""
    cuts = statistics.quantiles(counts.took, n=100) if len(counts.took) > 1 else [float("nan")] * 99
    late = statistics.quantiles(counts.late, n=100)[98] if len(counts.late) > 1 else 0.0
    times = {"p50": cuts[49] * 1e3, "p95": cuts[94] * 1e3, "p99": cuts[98] * 1e3, "late_p99": late * 1e3}
    return {"requests": len(counts.took), "seconds": seconds, "errors": counts.errors, **times}


def main(words: Sequence[str]) -> int:
    port, rate, seconds, connections = int(words[0]), float(words[1]), float(words[2]), int(words[3])
    template, keys = Path(words[4]).read_text(), int(words[5])
    requests = [request(filled(template, number % keys, number)) for number in range(max(keys, 1000))]
    found = summary(Generator(port, rate, connections, requests).run(seconds), seconds)
    print("@json " + json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
