"""What people see of a command: colour on a terminal alone (NO_COLOR honoured), progress on what takes over two seconds."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

PATIENCE: Final = 2.0  # seconds without a word
_STYLES: Final = (("---", "bold"), ("+++", "bold"), ("@@", "cyan"), ("+", "green"), ("-", "red"))


def say(text: str, style: str = "") -> None:
    """A line on standard output."""
    Console(highlight=False).print(Text(text, style), soft_wrap=True)


def aside(text: str, style: str = "") -> None:
    """A line beside the data, on standard error."""
    Console(stderr=True, highlight=False).print(Text(text, style), soft_wrap=True)


def say_json(value: object) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def say_diff(lines: Iterable[str]) -> None:
    for line in lines:
        say(line, next((style for start, style in _STYLES if line.startswith(start)), "dim"))


def say_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what is in them: a pipe gets what a screen gets."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for index, row in enumerate((head, *rows)):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say(line.rstrip(), "" if index else "bold")


@contextlib.contextmanager
def progress(
    what: str, total: int | None = None, *, console: Console | None = None, after: float = PATIENCE
) -> Iterator[Callable[[], None]]:
    """A bar on standard error, once `after` seconds have passed, if a person is watching; what it gives counts a step.

    Without a total it only shows that there is life. The loop that runs starts it; it draws itself in a thread of its own.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), *((MofNCompleteColumn(),) if total else ()), TimeElapsedColumn())
    # Lines for the same terminal go above the bar. Those for a file or a pipe stay what they are.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    task = bar.add_task(what, total=total)
    alarm = asyncio.get_running_loop().call_later(after, bar.start) if console.is_terminal else None
    try:
        yield lambda: bar.advance(task)
    finally:
        if alarm is not None:
            alarm.cancel()
        if bar.live.is_started:
            bar.stop()
