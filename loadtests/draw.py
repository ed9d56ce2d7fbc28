"""The tables of a report as one picture: requests a second, medians as bars, minimum and maximum as whiskers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.figures import Line, Section

COLUMNS = 2
_ROOM = 4  # lines that a panel has room for at least, so that one line is no wall
_OURS, _OTHERS = "#1f6f8b", "#b8bfc6"


def draw(sections: Sequence[Section], path: Path) -> None:
    """A PNG with a panel for each section that has figures; none at all where there is nothing to draw."""
    shown = [(section, lines) for section in sections if (lines := [line for line in section.lines if line.samples])]
    if not shown:
        return
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    rows = -(-len(shown) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(16, 0.8 + 3.2 * rows), squeeze=False, layout="constrained")
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    for panel, (section, lines) in zip(axes.flat, shown, strict=False):
        _panel(panel, section, lines)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(panel: Any, section: Section, lines: Sequence[Line]) -> None:
    figures = [line.as_json()["median"] for line in lines]
    at_a_rate = any(sample.late_ms for line in lines for sample in line.samples)
    values = [found["p99_ms" if at_a_rate else "rate"] for found in figures]
    places = range(len(lines))
    colours = [_OURS if _ours(line.name) else _OTHERS for line in lines]
    panel.barh(places, values, color=colours, xerr=None if at_a_rate else _reach(figures), ecolor="#444444", capsize=2)
    panel.set_yticks(places, [line.name for line in lines], fontsize=8)
    panel.set_ylim(max(len(lines), _ROOM) - 0.5, -0.5)
    panel.set_title(section.title, fontsize=9, loc="left", wrap=True)
    panel.set_xlabel("P99, ms" if at_a_rate else "requests a second", fontsize=8)
    ends = values if at_a_rate else [found["rate_max"] for found in figures]
    panel.set_xlim(0, max(ends) * 1.3 or 1)
    for place, end, value, found in zip(places, ends, values, figures, strict=True):
        shown = f"{value:.2f} ms" if at_a_rate else f"{value:,.0f}/s"
        panel.text(end, place, f"  {shown}, {found['cpu_us']:.0f} us CPU", va="center", fontsize=7)
    panel.spines[["top", "right"]].set_visible(False)


def _reach(figures: Sequence[dict[str, float]]) -> list[list[float]]:
    """Whiskers: from the median down to the least and up to the most."""
    return [[f["rate"] - f["rate_min"] for f in figures], [f["rate_max"] - f["rate"] for f in figures]]


def _ours(name: str) -> bool:
    return not name.startswith(("floor", "nginx", "Varnish", "predecessor", "FastAPI"))
