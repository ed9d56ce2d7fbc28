"""Logs: one JSON object a line on standard output, with trace_id and run_id; structlog for us, the same shape for libraries.

No line ever carries a traceback, a secret or a path: of an unexpected failure the log has its type and where in this package.
Lines of one loop tick leave in one write; that of an answer goes past structlog's processors, which cost more than its key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
from collections.abc import MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import orjson
import structlog

from broker_edge.core.trail import FlightTrail, Trail

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}
Event = MutableMapping[str, Any]


def _dumps(event: Event, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


class _ByTick:
    """A file whose `flush` waits for the end of the loop tick, where a loop runs.

    A line that can't be written (a disk that is full, a reader that went away) is lost: no answer is lost with it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._due_in: asyncio.AbstractEventLoop | None = None

    def write(self, line: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(line)

    def flush(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._flush()
            return
        if self._due_in is not loop:
            self._due_in = loop
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._due_in = None
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()


_now = structlog.processors.TimeStamper(fmt="iso", utc=True)


def configure(level: str, to: TextIO | None = None) -> structlog.typing.FilteringBoundLogger:
    """Set logging up for this process, to standard output unless told otherwise; answers the product's logger."""
    out = to or sys.stdout
    structlog.configure(
        processors=[structlog.processors.add_log_level, _now, structlog.processors.JSONRenderer(_dumps)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(cast("BinaryIO", _ByTick(out.buffer))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries log what they were handed, URLs included: from them only what is wrong.
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(_LEVELS[level])
    logging.getLogger("uvicorn.access").disabled = True
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


_PACKAGE = f"{Path(__file__).parents[1]}/"


class _Lines(logging.Formatter):
    """Library records in our shape: message without its traceback, the exception by type alone."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {"event": record.getMessage(), "logger": record.name, "level": record.levelname.lower()}
        if "Traceback (most recent call last)" in event["event"]:
            event["event"] = event["event"].rstrip().rpartition("\n")[2]
        if record.exc_info and record.exc_info[0] is not None:
            event["event"] = event["event"].splitlines()[0] if event["event"] else "failure"
            event["error_type"] = record.exc_info[0].__name__
        return _dumps(_now(None, "", event)).decode()


class Log:
    """The log lines of the product."""

    def __init__(self, logger: structlog.typing.FilteringBoundLogger) -> None:
        self._logger = logger
        self._line: structlog.BytesLogger = structlog.get_config()["logger_factory"]()
        self._informs = logger.is_enabled_for(logging.INFO)
        self._warns = logger.is_enabled_for(logging.WARNING)

    def answer(self, trail: Trail) -> None:
        """One line for every answer: INFO, and WARNING where it is a failure that the edge or an upstream caused."""
        error = trail.error
        warning = error is not None and error.kind.source != "caller"
        if not (self._warns if warning else self._informs):
            return
        ended_at = trail.ended_at or 0.0
        fields: dict[str, Any] = {
            "trace_id": f"{trail.context.trace_id:032x}",
            "run_id": trail.run_id,
            "data_source_id": trail.source_id,
            "key": trail.key,
            "outcome": trail.outcome,
            "status": trail.status,
            "duration": round(ended_at - trail.started_at, 6),
        }
        if error is not None:
            fields["error"] = error.code
            if error.upstream_status is not None:
                fields["upstream_status"] = error.upstream_status
        fields |= {
            "event": "answer",
            "level": "warning" if warning else "info",
            "timestamp": datetime.fromtimestamp(ended_at, UTC),
        }
        self._line.msg(orjson.dumps(fields, option=orjson.OPT_UTC_Z))

    def flight(self, trail: FlightTrail) -> None:
        self._logger.debug("flight", trace_id=f"{trail.context.trace_id:032x}", result=trail.result)

    def failure(self, what: str, error: BaseException, trace_id: str | None = None) -> None:
        """Something unexpected: its type, and the innermost place of ours that it passed."""
        self._logger.error("failure", what=what, error_type=type(error).__name__, at=_place(error), trace_id=trace_id)

    def event(self, event: str, **fields: Any) -> None:
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        self._logger.error(event, **fields)


def _place(error: BaseException) -> str | None:
    cause = error.__cause__ or error
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
        if frame.filename.startswith(_PACKAGE):
            return f"broker_edge/{frame.filename.removeprefix(_PACKAGE)}:{frame.lineno}"
    return None
