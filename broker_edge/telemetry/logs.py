"""Logs: one JSON object a line on standard output, with trace_id and run_id; structlog for us, the same shape for libraries.

No line ever carries a traceback, a secret or a path: of an unexpected failure the log has its type and where in this package.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import orjson
import structlog

from broker_edge.core.trail import FlightTrail, Trail

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}
Event = MutableMapping[str, Any]


def _dumps(event: Event, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


_now = structlog.processors.TimeStamper(fmt="iso", utc=True)


def configure(level: str) -> structlog.typing.FilteringBoundLogger:
    """Set logging up for this process; answers the product's logger."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, _now, structlog.processors.JSONRenderer(_dumps)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
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

    def answer(self, trail: Trail) -> None:
        """One line for every answer: INFO, and WARNING where it is a failure that the edge or an upstream caused."""
        error = trail.error
        fields: dict[str, Any] = {
            "trace_id": f"{trail.context.trace_id:032x}",
            "run_id": str(trail.run_id) if trail.run_id else None,
            "data_source_id": str(trail.source_id) if trail.source_id else None,
            "key": trail.key,
            "outcome": trail.outcome,
            "status": trail.status,
            "duration": round((trail.ended_at or 0) - trail.started_at, 6),
        }
        if error is None:
            self._logger.info("answer", **fields)
            return
        fields["error"] = error.code
        if error.upstream_status is not None:
            fields["upstream_status"] = error.upstream_status
        (self._logger.info if error.kind.source == "caller" else self._logger.warning)("answer", **fields)

    def flight(self, trail: FlightTrail) -> None:
        self._logger.debug("flight", trace_id=f"{trail.context.trace_id:032x}", result=trail.result)

    def failure(self, what: str, error: BaseException, trace_id: str | None = None) -> None:
        """Something unexpected: its type, and the innermost place of ours that it passed."""
        self._logger.error("failure", what=what, error_type=type(error).__name__, at=_place(error), trace_id=trace_id)

    def event(self, event: str, **fields: Any) -> None:
        self._logger.info(event, **fields)


def _place(error: BaseException) -> str | None:
    cause = error.__cause__ or error
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
        if frame.filename.startswith(_PACKAGE):
            return f"broker_edge/{frame.filename.removeprefix(_PACKAGE)}:{frame.lineno}"
    return None
