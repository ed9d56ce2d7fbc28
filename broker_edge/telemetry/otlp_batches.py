"""Encoded spans wait here, bounded, until a thread of its own exports them in batches; nothing here blocks who adds them.

A span processor, so that the SDK's own spans (those of the other routes) share queue, connection, flush and end. Set by
OTEL_BSP_*, with the SDK's defaults and meaning. Where the queue is full new trails are dropped before they are encoded, and
their spans counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from broker_edge.telemetry.otlp_wire import Envelope

_log = logging.getLogger(__name__)
_REPORT = 10.0  # seconds between log lines about dropped spans
_END = 30.0  # seconds that `shutdown` gives what waits, as the SDK does


class Limits(NamedTuple):
    """`delay` in seconds; `queue` and `batch` in spans."""

    delay: float
    queue: int
    batch: int


def limits(environment: Mapping[str, str]) -> Limits:
    """OTEL_BSP_*; what isn't a number gives way to the default, with a warning; ValueError where one isn't positive."""
    queue = _positive(environment, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
    batch = _positive(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)
    return Limits(_positive(environment, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000, queue, min(batch, queue))


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    try:
        number = int(text)
    except ValueError:
        _log.warning("%s is not a number: %d is used", name, default)
        return default
    if number <= 0:
        raise ValueError(f"{name} must be positive")
    return number


class Batches(SpanProcessor):
    """`send` exports one encoded request, blocks, and logs its own failures; `stop` makes it give up and closes it."""

    def __init__(self, send: Callable[[bytes], object], stop: Callable[[], object], envelope: Envelope, limits: Limits) -> None:
        self._send, self._stop, self._envelope, self._limits = send, stop, envelope, limits
        self._queue: deque[bytes | ReadableSpan] = deque()
        self._due = threading.Event()  # a full batch waits, or the end has come
        self._exporting = threading.Lock()
        self._ended = self._given_up = False
        self.dropped = self._reported = 0
        self._reported_at = -_REPORT
        self._thread = threading.Thread(target=self._work, name="otlp-export", daemon=True)
        self._thread.start()

    def room(self, count: int) -> bool:
        """Whether `count` spans that belong together are taken, if need be above the limit; where not they count as dropped."""
        if len(self._queue) < self._limits.queue and not self._ended:
            return True
        self.dropped += count
        return False

    def add(self, span: bytes | ReadableSpan) -> None:
        queue = self._queue
        queue.append(span)
        if len(queue) >= self._limits.batch and not self._due.is_set():
            self._due.set()

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled and self.room(1):
            self.add(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what waits, in the caller's thread; each request has the exporter's own time-out."""
        self._export(least=1)
        return True

    def shutdown(self) -> None:
        """Export what waits, bounded in time, and close the exporter; blocks."""
        if self._ended:
            return
        self._ended = True
        self._due.set()
        self._thread.join(_END)
        self._given_up = True
        self._stop()

    def _work(self) -> None:
        while not self._ended:
            full = self._due.wait(self._limits.delay)
            self._due.clear()  # before the export: what fills the queue meanwhile sets it again
            self._export(least=self._limits.batch if full else 1)
            self._report()
        self._export(least=1)
        self._report()

    def _export(self, least: int) -> None:
        """Export batch after batch while at least `least` spans wait; a flush and the thread take turns."""
        with self._exporting, suppress_instrumentation():
            while len(self._queue) >= least and not self._given_up:
                batch = [self._queue.popleft() for _ in range(min(self._limits.batch, len(self._queue)))]
                try:
                    self._send(self._encoded(batch))
                except Exception as error:  # noqa: BLE001 the thread must outlive any batch
                    _log.warning("%d spans could not be exported: %s", len(batch), type(error).__name__)

    def _encoded(self, batch: list[bytes | ReadableSpan]) -> bytes:
        ready = [span for span in batch if isinstance(span, bytes)]
        request = self._envelope.request(ready) if ready else b""
        if len(ready) < len(batch):
            request += encode_spans([span for span in batch if not isinstance(span, bytes)]).SerializeToString()
        return request

    def _report(self) -> None:
        if self.dropped > self._reported and (self._ended or time.monotonic() - self._reported_at > _REPORT):
            _log.warning("%d spans were dropped: the queue of the exporter was full", self.dropped - self._reported)
            self._reported, self._reported_at = self.dropped, time.monotonic()
