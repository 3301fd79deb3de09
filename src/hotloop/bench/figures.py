"""Charts as SVG that is part of the page: its colours are the page's, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .layout import Chart, Series

# After Okabe and Ito's palette, which the colour-blind tell apart; markers say the same again. On white and on near
# black every colour has a contrast of 3 or more: that of the first, the second is for the dark.
STYLES = {
    "hotloop": ("#c84b00", "#ff8f4a", "o"),
    "torch": ("#0072b2", "#5ab4f0", "s"),
    "onnxruntime": ("#00835f", "#2bc79a", "^"),
    "openvino": ("#b3528a", "#e29bc4", "D"),
    "jax": ("#8a7400", "#f0e442", "v"),
    "numba": ("#6a3d9a", "#b79af0", "P"),
    "numpy": ("#666666", "#a0a0a1", "x"),
    "swapped": ("#6a3d9b", "#b79af1", "P"),
    "attention": ("#8a7401", "#f0e443", "v"),
    "lstm": ("#c84b01", "#ff8f4b", "o"),
    "gru": ("#0072b3", "#5ab4f1", "s"),
    "rnn": ("#008360", "#2bc79b", "^"),
}
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")

# Stand-ins, which become variables of the page's style sheet.
INK, GRID, PAPER = "#1a1a1a", "#dcdcdd", "#fefefe"
VARIABLES = {
    INK: "currentColor",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{light: f"var(--c-{name})" for name, (light, _, _) in STYLES.items()},
}
_RC: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text that can be read, searched and enlarged
    "hatch.linewidth": 0.8,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "hatch.color"), INK),
}


def palette(dark: bool) -> str:
    """Return the colours as declarations of a style sheet."""
    return " ".join(f"--c-{name}: {colours[dark]};" for name, colours in STYLES.items())


def draw(chart: Chart, prefix: str) -> str:
    """Draw a chart as an SVG element whose ids begin with `prefix`."""
    with mpl.rc_context({**_RC, "svg.hashsalt": chart.title}):
        figure = Figure(figsize=(4.6, 4.2 if chart.kind == "bars" else 4.8), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        _DRAW[chart.kind](axes, chart)
        axes.set_title(chart.title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _clean(buffer.getvalue().decode(), prefix, chart.alternative)


def _clean(text: str, prefix: str, alternative: str) -> str:
    """Make a file of SVG an element of a page: no prologue, ids of its own, the page's colours, and a name."""
    text = text[text.index("<svg") :]
    # Of the whole page, where it stands in a page; the page says the same of drawings alone.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"#[0-9a-f]{6}", lambda m: VARIABLES.get(m[0], m[0]), text)
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(alternative)}"'
    return re.sub(r"<svg[^>]*", lambda _: head, text, count=1).strip()


def _plot(axes: Axes, series: Series, line: str | None, **more: Any) -> None:
    colour, _, marker = STYLES[series.style]
    axes.plot(
        series.x,
        series.y,
        color=colour,
        marker=marker,
        markersize=5,
        markerfacecolor="none" if series.hollow else colour,
        linestyle=line or "none",
        linewidth=2.4 if series.strong else 1.2,
        zorder=3 if series.strong else 2,
        **more,
    )
    if len(series.low) and line:
        low, high = np.asarray(series.low), np.asarray(series.high)
        axes.fill_between(series.x, low, high, color=colour, alpha=0.25, linewidth=0, zorder=1)


def _draw_lines(axes: Axes, chart: Chart) -> None:
    for series in chart.series:
        _plot(axes, series, DASHES[series.dash % len(DASHES)])
    axes.set_xscale("log", base=2)
    _finish(axes, chart)
    ticks, labels = _length_ticks(chart.x_ticks)
    axes.set_xticks(ticks, labels)
    axes.minorticks_off()


def _draw_steps(axes: Axes, chart: Chart) -> None:
    for series in chart.series:
        _plot(axes, series, "-", drawstyle="steps-post", markevery=max(1, len(series.x) // 6))
    axes.set_xscale("log")
    _finish(axes, chart)
    _plain_ticks(axes.xaxis, axes.get_xlim(), chart.x_format, 30)


def _draw_points(axes: Axes, chart: Chart) -> None:
    for series in chart.series:
        _plot(axes, series, None)
    axes.set_xscale("log")
    _finish(axes, chart)
    if not chart.log_y:
        axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], *(level for level, _ in chart.levels)))  # room for its name
    _plain_ticks(axes.xaxis, axes.get_xlim(), chart.x_format, 30)


def _finish(axes: Axes, chart: Chart) -> None:
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(True, which="major", color=GRID, linewidth=0.7)
    if chart.log_y:
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, axes.get_ylim(), chart.y_format, base=chart.y_base)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: chart.y_format(value)))
    if chart.right is not None:
        factor, name, write = chart.right
        right = axes.secondary_yaxis("right", functions=(partial(_times, factor), partial(_times, 1 / factor)))
        right.patch.set_visible(False)
        right.set_ylabel(name)
        _plain_ticks(right.yaxis, axes.get_ylim(), write)
    for level, name in chart.levels:
        axes.axhline(level, color=INK, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), xytext=(-3, 2),
                      textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    _legend(axes, chart)


def _times(factor: float, values: Any) -> Any:
    return factor * values


def _legend(axes: Axes, chart: Chart) -> None:
    # An entry for every name and one for every kind of line, not for all their pairs: few enough to read.
    first = {series.name: series for series in reversed(chart.series)}
    handles = []
    for name in dict.fromkeys(series.name for series in chart.series):
        series = first[name]
        colour, _, marker = STYLES[series.style]
        line = "none" if chart.kind == "points" else "-" if series.dash_name else DASHES[series.dash % len(DASHES)]
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle=line, label=name,
                              markerfacecolor="none" if series.hollow else colour))  # fmt: skip
    names = {series.dash_name: series.dash for series in chart.series if series.dash_name}
    for name, dash in sorted(names.items(), key=lambda item: item[1]):
        handles.append(Line2D([], [], color=INK, linestyle=DASHES[dash % len(DASHES)], label=name))
    columns = 1 if max(len(series.name) for series in chart.series) > 24 else 2
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=10.5, frameon=False,
                       handlelength=3)  # fmt: skip


def _length_ticks(lengths: Sequence[float]) -> tuple[list[float], list[str]]:
    """Every length gets a tick, and a label where the one before leaves room for it."""
    ticks, labels, labelled = sorted(set(lengths)), [], 0.0
    step = 1.5 if len(ticks) < 8 else 3  # of nine in a row, from 64 to 16384, every second has room
    for tick in ticks:
        room = tick >= step * labelled
        labels.append(f"{tick:g}" if room else "")
        labelled = tick if room else labelled
    return ticks, labels


def _draw_bars(axes: Axes, chart: Chart) -> None:
    rates = [series.y[0] for series in chart.series]
    colours = [STYLES[series.style][0] for series in chart.series]
    names = [series.name for series in chart.series]
    bars = axes.barh(names, rates, color=colours, edgecolor=PAPER, height=0.75)
    for bar, series in zip(bars, chart.series, strict=True):
        if series.dash:
            bar.set_hatch("///")
        middle, end = bar.get_y() + bar.get_height() / 2, series.y[0]
        if len(series.low) and np.isfinite(series.low[0]):
            axes.plot([series.low[0], series.high[0]], [middle, middle], color=INK, linewidth=1.2)
            end = max(end, series.high[0])
        axes.annotate(series.text, (end, middle), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xlim(0, 2.1 * max(rates))  # room for the text beside the longest bar
    axes.set_xlabel(chart.x_label)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_ticks(
    axis: Axis, limits: tuple[float, float], label: Callable[[float], str], few: float = 100, base: float = 10
) -> None:
    """Plain numbers in place of powers; of ten where the data span little, also 2 and 5 of each."""
    low, high = limits
    if base == 2:  # some eight of them
        base = 2.0 ** max(1, round(np.log2(high / low) / 8))
    axis.set_major_locator(LogLocator(base, (1, 2, 5) if base == 10 and high / low < few else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


_DRAW: dict[str, Callable[[Axes, Chart], None]] = {
    "lines": _draw_lines,
    "steps": _draw_steps,
    "points": _draw_points,
    "bars": _draw_bars,
}
