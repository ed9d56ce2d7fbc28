"""Colour and progress are for people who watch; pipes, files and NO_COLOR get plain text."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from broker_edge import cli_screen
from broker_edge.cli_screen import progress, say_diff, say_table

DIFF = ["--- a", "+++ b", "@@ -1 +1 @@", "-ttl: 1", "+ttl: 2", " enabled: true"]


def screen(terminal: bool) -> tuple[Console, io.StringIO]:
    seen = io.StringIO()
    return Console(file=seen, force_terminal=terminal, width=80), seen


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing about colour."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


def test_a_diff_in_a_pipe_is_plain(plain: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say_diff(DIFF)
    assert capsys.readouterr().out.splitlines() == DIFF


def test_a_diff_on_a_terminal_has_colour(plain: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain.setenv("FORCE_COLOR", "1")
    say_diff(DIFF)
    assert "\x1b[32m+ttl: 2\x1b[0m" in capsys.readouterr().out


def test_no_color_is_honoured(plain: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain.setenv("FORCE_COLOR", "1")
    plain.setenv("NO_COLOR", "1")
    say_diff(DIFF)
    assert "\x1b[3" not in capsys.readouterr().out


def test_what_looks_like_markup_is_text(plain: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cli_screen.say("[bold]x[/bold] " + "y" * 300)
    assert capsys.readouterr().out == "[bold]x[/bold] " + "y" * 300 + "\n"


def test_a_table_s_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(["NAME", "STATUS"], [["a", "DRAFT"], ["longer", "PUBLISHED"]])
    assert capsys.readouterr().out.splitlines() == ["NAME    STATUS", "a       DRAFT", "longer  PUBLISHED"]


async def test_progress_is_drawn_for_who_watches_once_it_takes_long(plain: pytest.MonkeyPatch) -> None:
    console, seen = screen(terminal=True)
    with progress("applying", 2, console=console, after=0) as advance:
        await asyncio.sleep(0)  # the alarm's turn
        advance()
        await asyncio.sleep(0)
    assert "applying" in seen.getvalue()
    assert "1/2" in seen.getvalue()


async def test_what_is_quick_shows_no_progress(plain: pytest.MonkeyPatch) -> None:
    console, seen = screen(terminal=True)
    with progress("applying", 2, console=console, after=3600) as advance:
        advance()
    assert seen.getvalue() == ""


async def test_nobody_who_does_not_watch_gets_progress(plain: pytest.MonkeyPatch) -> None:
    console, seen = screen(terminal=False)
    with progress("applying", None, console=console, after=0):
        await asyncio.sleep(0)
    assert seen.getvalue() == ""


async def test_data_in_a_pipe_is_not_drawn_into_the_progress(
    plain: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console, seen = screen(terminal=True)
    with progress("applying", 2, console=console, after=0):
        await asyncio.sleep(0)
        cli_screen.say("credit_score: created")
    assert capsys.readouterr().out == "credit_score: created\n"
    assert "credit_score" not in seen.getvalue()
