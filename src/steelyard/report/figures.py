"""Figures as inline SVG: small panels that a page lays out in a grid, so that they stay legible on a phone.

Matplotlib draws with stand-in colours that are then replaced by CSS variables: one drawing serves light and
dark.  Text stays text (the reader's font, searchable), one unit is one CSS pixel, and every panel carries
its content in words as an accessible name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
"""Stand-ins for ``--ink``, ``--muted``, ``--rule`` and ``--paper``."""

SERIES = 10
"""Number of arm colours in ``style.css`` (``--arm-0`` ...); further arms repeat them dashed, with other marks."""

MARKERS = "os^DvPX*"
_SIZES = {"o": 44, "s": 40, "^": 52, "D": 36, "v": 52, "P": 58, "X": 58, "*": 92}
"""Areas at which the marks look equally large."""

_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--rule)", PAPER: "var(--paper)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11.0,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How an arm is drawn, everywhere: a stand-in colour, a mark, and dashes once the colours repeat."""

    color: str
    marker: str
    dashed: bool

    @property
    def variable(self) -> str:
        """The CSS variable of the colour."""
        return _variable(self.color)


def looks(arms: Sequence[str], untrained: str) -> dict[str, Look]:
    """A look for every arm in the order of the study; the untrained model is grey."""
    trained = [arm for arm in arms if arm != untrained]
    found = {
        arm: Look(f"#0500{i % SERIES:02x}", MARKERS[(i + i // SERIES) % len(MARKERS)], i >= SERIES)
        for i, arm in enumerate(trained)
    }
    return {arm: found.get(arm, Look(MUTED, "o", False)) for arm in arms}


def _variable(color: str) -> str:
    return _VARIABLES.get(color) or f"var(--arm-{int(color[-2:], 16)})"


# --------------------------------------------------------------------------------------------------
# Panels


@dataclass(frozen=True, slots=True)
class Point:
    """One arm in a :func:`forest`: mean, interval, single runs, letters; in display units."""

    arm: str
    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]
    letters: str


def forest(
    name: str,
    title: str,
    points: Sequence[Point],
    looks: Mapping[str, Look],
    *,
    baseline: str | None,
    limits: tuple[float, float],
    label: str,
    alt: str,
) -> str:
    """Arms from best to worst with intervals and single runs; the baseline's mean is a dashed line."""
    height = 58 + 23 * len(points)
    with rc_context(_STYLE):
        left = _room(point.arm for point in points)
        figure, axes = _panel(352, height, left=left, right=46, top=26, bottom=30, title=title)
        place = {point.arm: -row for row, point in enumerate(points)}
        for point in points:
            look, y = looks[point.arm], place[point.arm]
            if point.low is not None and point.high is not None:
                span = np.clip([point.low, point.high], *limits)
                axes.plot(span, [y, y], color=look.color, lw=2.2, solid_capstyle="butt")
            below = [y - 0.3] * len(point.values)
            axes.scatter(point.values, below, s=8, color=look.color, alpha=0.7, lw=0)
            axes.scatter([point.mean], [y], s=_SIZES[look.marker], marker=look.marker, color=look.color, lw=0, zorder=3)
            axes.text(1.03, y, point.letters, transform=axes.get_yaxis_transform(), va="center", size=11)
        reference = next((point for point in points if point.arm == baseline), None)
        if reference:
            axes.axvline(reference.mean, color=MUTED, lw=1, dashes=(3, 3), zorder=0)
        axes.set_yticks([place[p.arm] for p in points], [p.arm for p in points], size=11)
        for text, point in zip(axes.get_yticklabels(), points, strict=True):
            text.set_color(INK)
            text.set_fontweight("bold" if point.arm == baseline else "normal")
        axes.set_ylim(-len(points) + 0.4, 0.6)
        axes.set_xlim(*limits)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label, size=10, labelpad=2)
        return _svg(figure, name, alt)


@dataclass(frozen=True, slots=True)
class Line:
    """One arm over a :func:`scale` axis; ``None`` where it has no result; in display units."""

    arm: str
    means: tuple[float | None, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]


def scale(
    name: str,
    title: str,
    ticks: Sequence[str],
    positions: Sequence[float],
    lines: Sequence[Line],
    looks: Mapping[str, Look],
    *,
    limits: tuple[float, float],
    label: str,
    alt: str,
) -> str:
    """Mean scores over an ordered axis, with intervals side by side and the arms' names at the line ends.

    Args:
        positions: place of every tick; evenly spaced, or logarithms of the model sizes.
    """
    with rc_context(_STYLE):
        height, right = max(260, 70 + 17 * len(lines)), _room(line.arm for line in lines)
        figure, axes = _panel(352, height, left=40, right=right, top=26, bottom=44, title=title)
        x = np.asarray(positions, dtype=float)
        width = float(np.ptp(x)) or 1.0
        ends: dict[str, float] = {}
        for i, line in enumerate(lines):
            look = looks[line.arm]
            # Side by side, so that overlapping intervals can be told apart.
            here = x + width * 0.018 * (i - (len(lines) - 1) / 2)
            means = np.array([np.nan if mean is None else mean for mean in line.means])
            (drawn,) = axes.plot(here, means, color=look.color, marker=look.marker, ms=5, mew=0)
            if look.dashed:
                drawn.set_dashes((4, 2))
            for at, low, high in zip(here, line.lows, line.highs, strict=True):
                if low is not None and high is not None:
                    axes.plot([at, at], np.clip([low, high], *limits), color=look.color, lw=1, alpha=0.55)
            known = np.flatnonzero(np.isfinite(means))
            if len(known):
                ends[line.arm] = float(means[known[-1]])
        axes.set_ylim(*limits)
        axes.set_xlim(x.min() - 0.1 * width, x.max() + 0.1 * width)
        axes.xaxis.set_major_locator(FixedLocator(list(x)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(x, ticks)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(label, size=10)
        _name_ends(axes, ends, looks, limits)
        return _svg(figure, name, alt)


def _name_ends(axes: Axes, ends: Mapping[str, float], looks: Mapping[str, Look], limits: tuple[float, float]) -> None:
    """Write the arms' names beside the ends of their lines, moved apart where they would overlap."""
    pixels = axes.get_window_extent().height
    step = 14.0 * (limits[1] - limits[0]) / pixels
    order = sorted(ends, key=lambda arm: ends[arm])
    places = spread([ends[arm] for arm in order], step)
    over = max(0.0, max(places, default=limits[1]) - limits[1])
    for arm, y in zip(order, [place - over for place in places], strict=True):
        color = looks[arm].color
        axes.annotate(
            arm,
            xy=(1.0, ends[arm]),
            xytext=(1.09, y),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            size=10.5,
            color=color,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 1, "shrinkB": 0},
        )


def spread(values: Sequence[float], step: float) -> list[float]:
    """Sorted positions moved as little as possible (least squares) so that neighbours are ``step`` apart.

    With ``step`` taken off per rank this is isotonic regression, solved by pooling adjacent violators.
    """
    blocks: list[tuple[float, int]] = []
    for rank, value in enumerate(values):
        mean, size = value - rank * step, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), size + count
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    return [mean + rank * step for rank, mean in enumerate(flat)]


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's curve: steps and values, and which condition it belongs to (first, second, ...)."""

    steps: tuple[float, ...]
    values: tuple[float, ...]
    condition: int


def curves(
    name: str,
    title: str,
    runs: Sequence[Curve],
    look: Look,
    *,
    limits: tuple[float, float] | None,
    alt: str,
) -> str:
    """All runs of one arm on one metric; conditions differ in dashes, seeds are thin lines of one kind.

    ``limits`` of the values are shared by the arms where the metric means the same for all of them.
    """
    with rc_context(_STYLE):
        figure, axes = _panel(236, 132, left=42, right=8, top=22, bottom=22, title=title, size=10.5)
        for run in runs:
            style = [(), (4, 1.6), (1.4, 1.6), (6, 1.6, 1.4, 1.6)][run.condition % 4]
            dashes = {"dashes": style} if style else {}
            axes.plot(run.steps, run.values, color=look.color, lw=1.1, alpha=0.8, **dashes)
        if limits is not None:
            axes.set_ylim(*limits)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(labelsize=9.5, length=2)
        axes.grid(color=GRID, lw=0.7)
        axes.set_axisbelow(True)
        return _svg(figure, name, alt)


def symbol(name: str, look: Look) -> str:
    """The mark of an arm as an SVG ``<symbol>``, for use beside its name in text and tables."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(14 / 72, 14 / 72), dpi=72)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.scatter(
            [0.5],
            [0.5],
            s=1.5 * _SIZES[look.marker],
            marker=look.marker,
            color=look.color,
            lw=0,
            clip_on=False,
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        drawn = _svg(figure, name, "")
    head = f'<symbol id="{name}" viewBox="0 0 14 14">'
    return re.sub(r"<svg[^>]*>", head, drawn, count=1).replace("</svg>", "</symbol>")


# --------------------------------------------------------------------------------------------------
# Matplotlib to inline SVG


def _panel(
    width: float,
    height: float,
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
    title: str,
    size: float = 11.5,
) -> tuple[Figure, Axes]:
    """A figure of ``width`` x ``height`` pixels with one axes inside the given margins."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    figure.text(2 / width, 1 - 4 / height, title, va="top", size=size, weight="bold")
    axes.tick_params(labelsize=10, length=3)
    return figure, axes


def _room(names: Iterable[str]) -> float:
    """Pixels beside the axes for arm names, a mark's distance included."""
    return min(150.0, max(64.0, 24 + 6.7 * max((len(name) for name in names), default=0)))


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an ``<svg>`` element that can stand in an HTML page beside others."""
    out = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _unique_ids(text, name)
    text = re.sub(r"(font:[^;\"]*?[\d.]+px) [^;\"]*", r"\1 var(--sans)", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    text = re.sub(r"#0[1-5]0[0-9a-f]{3}\b", lambda match: _variable(match[0]), text)
    width, height = (float(n) for n in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0])
    text = re.sub(r"<defs>\s*</defs>", "", text)
    # A hundredth of a pixel is enough for shapes; what is written between tags must stay as it is.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    label = f'role="img" aria-label="{_attribute(alt)}"' if alt else 'aria-hidden="true"'
    head = f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" {label}>'
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)).strip()


def _unique_ids(text: str, name: str) -> str:
    """Keep only the ids that something refers to, and make them unique on a page with many figures."""
    prefix = re.sub(r"\W+", "-", name)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(xlink:href="|url\()#', lambda m: m[0].replace("xlink:", "") + prefix + "-", text)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
