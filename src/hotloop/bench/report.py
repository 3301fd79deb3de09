"""The HTML report: one file without scripts or links to elsewhere, made from the JSON record alone."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import results
from .peers import CANDIDATES, OURS, label
from .problems import Problem

# Okabe and Ito's palette, which the colour-blind tell apart; markers say the same again, and solid and dashed lines
# tell the threads apart. Its yellow is left out: it vanishes on white.
STYLES = {
    "hotloop": ("#D55E00", "o"),
    "torch": ("#0072B2", "s"),
    "onnxruntime": ("#009E73", "^"),
    "openvino": ("#CC79A7", "D"),
    "jax": ("#56B4E9", "v"),
    "numba": ("#7A4900", "P"),
    "numpy": ("#666666", "x"),
}
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")

LABELS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN (tanh)"}


def write_report(record: Mapping[str, Any], path: Path) -> None:
    """Write the report of a record."""
    path.write_text(render(record), encoding="utf-8")


def render(record: Mapping[str, Any]) -> str:
    """Return the report as a string of HTML."""
    cases = record["cases"]
    about = record["environment"]["hotloop"]
    sections = [
        _summary(record),
        _modules(results.modules(record)),
        _plots(cases),
        '<h2 id="cases">All cases</h2>',
        _case_table(cases),
        _roof(cases),
        _memory(cases),
        '<h2 id="candidates">All candidates</h2>',
        f"<details><summary>Every library on every problem</summary>{_candidate_table(cases)}</details>",
        _environment(record),
    ]
    title = f"hotloop {about['version']} on {about['processor']}"
    rest = "\n".join(sections)
    body = _head(record, re.findall('<h2 id="([a-z]+)">([^<]+)</h2>', rest)) + rest
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


SUMMARY = '<h2 id="summary">Summary</h2>\n'

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 82rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; }
a { color: #00527f; }
code { font-size: .9em; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.tiles div { border: 1px solid #ccc; border-radius: .4rem; padding: .6rem .8rem; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.4; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
details > .scroll { margin-top: .75rem; }
summary { cursor: pointer; padding: .4rem 0; }
.plots img { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; border: 1px solid #ccc; border-radius: .4rem; }
table { border-spacing: 0; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e5e5e5; }
th { background: #f3f3f3; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; }
td:first-child { background: #fff; }
tr.behind td { background: #fff1e6; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
.summary { font-size: .9rem; }
.busy { border-left: .3rem solid #b35900; padding-left: .7rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { td:first-child { white-space: normal; min-width: 8rem; } }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""


def _head(record: Mapping[str, Any], sections: Sequence[tuple[str, str]]) -> str:
    """Title, what was measured, and a link to every section, given as (id, title)."""
    about = record["environment"]["hotloop"]
    where = f"{about['processor']}, {about['backend']} backend ({about['variant']}), "
    where += results.format_date(record["date"])
    links = " &middot; ".join(f'<a href="#{name}">{title}</a>' for name, title in sections)
    return (
        f"<h1>hotloop {escape(about['version'])} against other libraries</h1>\n<p>{escape(where)}</p>\n"
        f"<nav><p>{links}</p></nav>\n<p>What the names and "
        f"columns mean:</p>\n{_list(results.MEANINGS.items(), 'summary')}\n"
    )


def _list(items: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Write terms and what is said of them; lines stay lines."""
    lines = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text).replace(chr(10), '<br>')}</dd>" for term, text in items)
    return f"<dl{f' class={kind}' if kind else ''}>{lines}</dl>"


def _summary(record: Mapping[str, Any]) -> str:
    """How many problems we lead, for each cell and mode."""
    busy = results.busy(record)
    note = f'<p class="busy">{escape(busy)}</p>\n' if busy else ""
    tiles = []
    for kind in _kinds(record["cases"]):
        ratios = [
            row.overall.value
            for case in record["cases"]
            if _kind(case) == kind
            for row in results.rows(case)
            if row.overall is not None and row.problem.is_judged
        ]
        if ratios:
            low, high = (f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}" for ratio in (min(ratios), max(ratios)))
            span = f"{low}x" if len(ratios) == 1 else f"{low} to {high}x"
            led = sum(ratio >= 1 for ratio in ratios)
            problems = f"{led} of {len(ratios)} problem{'s' if len(ratios) > 1 else ''}"
            tiles.append(f"<div>{kind}<b>{span}</b>ahead on {problems}</div>")
    if not tiles:
        return f"{SUMMARY}<p>No peer was measured.</p>\n{note}{_list(results.summary(record), 'summary')}"
    return (
        f"{SUMMARY}<p>How many times as fast as the fastest of the other libraries hotloop is, each at its best number "
        f"of threads, from the worst problem to the best.</p>\n{note}"
        f'<div class="tiles">{"".join(tiles)}</div>\n{_list(results.summary(record), "summary")}'
    )


def _kind(case: results.Case) -> str:
    problem = results.problem_of(case)
    where = {"": "", "layer": "torch ", "cell": "torch cell, "}[problem.module]
    return f"{LABELS[problem.cell]}, {where}{problem.mode}"


def _kinds(cases: Sequence[results.Case]) -> list[str]:
    return list(dict.fromkeys(map(_kind, cases)))


def _modules(cases: Sequence[results.Case]) -> str:
    """Modules of torch, stock and swapped; nothing where there are none."""
    if not cases:
        return ""
    lines = []
    for case in cases:
        found = results.swap(case)
        below = found is not None and found.below_goal
        lines.append(((_label(results.problem_of(case)), *results.swap_cells(case)), below))
    title, note = escape(results.SWAP_TITLE), escape(results.SWAP_MEANING)
    return (
        f'<h2 id="modules">Drop-in modules</h2>\n<p>{title}. {note} Shaded: less than the project\'s own goal.</p>\n'
        + _table(results.SWAP_COLUMNS, lines)
    )


def _plots(cases: Sequence[results.Case]) -> str:
    figures = list(_figures(cases))
    if not figures:
        return ""
    captions = {
        _draw_lines: "Lines over sequence length: throughput of the matrix products (left) and time steps of the whole "
        "batch a second (right), both axes logarithmic; solid for the fewest threads, dashed for more.",
        _draw_bars: "Bars, of one length: throughput of the matrix products on a linear axis, and beside each bar the "
        "time steps of the whole batch a second too; hatched for more than one thread.",
    }
    drawn = {draw for draw, _ in figures}
    text = " ".join(caption for draw, caption in captions.items() if draw in drawn)
    images = "".join(image for _, image in figures)
    return f'<h2 id="plots">Throughput</h2>\n<p>{text}</p>\n<div class="plots">{images}</div>'


Draw = Callable[[Axes, Sequence[results.Case]], None]


def _figures(cases: Sequence[results.Case]) -> Iterator[tuple[Draw, str]]:
    """One plot for each cell, mode and shape but for T: over T where there are several lengths, else bars."""
    groups: dict[tuple[str, ...], list[results.Case]] = {}
    for case in cases:
        p = results.problem_of(case)
        groups.setdefault((p.cell, p.mode, *p.words[1:]), []).append(case)
    for (cell, mode, *words), members in groups.items():
        title = f"{LABELS[cell]}, {mode}, {' '.join(words)}"
        members.sort(key=lambda case: case["problem"]["seq_len"])
        if not any(results.timed(case) for case in members):
            continue
        draw: Draw = _draw_lines if len({case["problem"]["seq_len"] for case in members}) > 1 else _draw_bars
        with mpl.rc_context({"font.size": 10.5, "svg.hashsalt": title, "axes.titlesize": 11}):
            figure = Figure(figsize=(4.6, 4.8 if draw is _draw_lines else 4.2), layout="constrained")
            FigureCanvasSVG(figure)
            axes = figure.add_subplot()
            draw(axes, members)
            if draw is _draw_bars:
                title += f" T{members[0]['problem']['seq_len']}"
            axes.set_title(title)
            yield draw, f'<img alt="{escape(_alternative(title, members))}" src="{_svg(figure)}">'


def _alternative(title: str, members: Sequence[results.Case]) -> str:
    """Say the plot in words."""
    points = []
    for case in members:
        us, peer = results.ours(case), results.best_peer(case)
        if us is not None:
            text = f"T={case['problem']['seq_len']}: hotloop {results.gigaflops(case, us):.3g} GF/s"
            if peer is not None:
                text += f", {results.format_candidate(peer)} {results.gigaflops(case, peer):.3g} GF/s"
            points.append(text)
    return f"{title}. " + "; ".join(points)


def _draw_lines(axes: Axes, members: Sequence[results.Case]) -> None:
    lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for case in members:
        for candidate in results.timed(case):
            point = (case["problem"]["seq_len"], results.gigaflops(case, candidate))
            lines.setdefault((candidate["name"], candidate["threads"]), []).append(point)
    counts = sorted({threads for _, threads in lines})
    for (name, threads), points in sorted(lines.items(), key=lambda item: (_rank(item[0][0]), item[0][1])):
        colour, marker = STYLES[name]
        us = name == OURS
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            markersize=5,
            linestyle=DASHES[counts.index(threads) % len(DASHES)],
            linewidth=2.4 if us else 1.2,
            zorder=3 if us else 2,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("sequence length T")
    axes.set_ylabel("GF/s")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_xticks(*_length_ticks([case["problem"]["seq_len"] for case in members]))
    axes.minorticks_off()
    # For one shape, flops are proportional to steps, so both scales fit the same lines.
    per_gigaflop = 1e9 * members[0]["problem"]["seq_len"] / members[0]["flops"]
    right = axes.secondary_yaxis(
        "right",
        functions=(lambda rate: rate * per_gigaflop, lambda steps: steps / per_gigaflop),
    )
    right.set_ylabel("time steps a second")
    _plain_ticks(axes.yaxis, axes.get_ylim(), lambda value: f"{value:g}")
    _plain_ticks(right.yaxis, axes.get_ylim(), results.format_count)
    # An entry for every library and one for every number of threads, not for all their pairs: few enough to read.
    names = sorted({name for name, _ in lines}, key=_rank)
    handles = [Line2D([], [], color=STYLES[name][0], marker=STYLES[name][1], label=label(name)) for name in names]
    handles += [
        Line2D([], [], color="#1a1a1a", linestyle=DASHES[number % len(DASHES)], label=_threads(threads))
        for number, threads in enumerate(counts)
    ]
    axes.figure.legend(
        handles=handles, loc="outside lower center", ncols=2, fontsize=10.5, frameon=False, handlelength=3
    )


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _length_ticks(lengths: Sequence[int]) -> tuple[list[int], list[str]]:
    """Every length gets a tick, and a label where the one before leaves room for it."""
    ticks, labels, labelled = sorted(set(lengths)), [], 0.0
    for tick in ticks:
        room = tick >= 1.5 * labelled
        labels.append(str(tick) if room else "")
        labelled = tick if room else labelled
    return ticks, labels


def _draw_bars(axes: Axes, members: Sequence[results.Case]) -> None:
    case = members[0]
    candidates = sorted(results.timed(case), key=results.seconds, reverse=True)
    names = [results.format_candidate(candidate) for candidate in candidates]
    rates = [results.gigaflops(case, candidate) for candidate in candidates]
    bars = axes.barh(
        names, rates, color=[STYLES[candidate["name"]][0] for candidate in candidates], edgecolor="white", height=0.75
    )
    for bar, candidate, rate in zip(bars, candidates, rates, strict=True):
        if candidate["threads"] > 1:
            bar.set_hatch("///")
        text = f" {rate:.3g} GF/s, {results.format_count(results.steps_per_second(case, candidate))} steps/s"
        axes.text(rate, bar.get_y() + bar.get_height() / 2, text, va="center", fontsize=9)
    axes.set_xlim(0, 2.1 * max(rates))  # room for the text beside the longest bar
    axes.set_xlabel("GF/s")
    axes.spines[["top", "right"]].set_visible(False)


def _plain_ticks(axis: Axis, limits: tuple[float, float], label: Callable[[float], str]) -> None:
    """Plain numbers in place of powers of ten; where the data span less than two decades, also 2 and 5 of each."""
    low, high = limits
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_formatter(NullFormatter())


def _rank(name: str) -> int:
    return list(CANDIDATES).index(name)


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(heads: Sequence[str], lines: Sequence[tuple[Sequence[str], bool]]) -> str:
    """Write a table; a line is its cells and whether to mark it."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(
        f"<tr{' class=behind' if marked else ''}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells, marked in lines
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _label(problem: Problem) -> str:
    return " ".join((LABELS[problem.cell], problem.mode, *problem.words))


def _case_table(cases: Sequence[results.Case]) -> str:
    lines = []
    for case in cases:
        for row in results.rows(case):
            cells = (_label(row.problem), *results.cells(row))
            behind = row.overall is not None and row.overall.value < 1 and row.problem.is_judged
            lines.append((cells, behind))
    note = (
        "<p>Shaded: the best peer at its best number of threads is faster than hotloop at its best "
        "(training on one step is shown, but not judged). "
        "A dash: not measured.</p>"
    )
    return note + _table(results.COLUMNS, lines)


def _roof(cases: Sequence[results.Case]) -> str:
    """The parts of every roof beside our time; nothing where no roof was measured."""
    names = list(dict.fromkeys(name for case in cases for name in results.roof_parts(case, 1) or ()))
    if not names:
        return ""
    lines = []
    for case in cases:
        for row in results.rows(case):
            parts = results.roof_parts(case, row.threads)
            if parts is not None and row.of_roof is not None:
                shown = [results.format_seconds(parts[name]) if name in parts else "" for name in names]
                total = results.format_seconds(sum(parts.values()))
                time, share = results.format_seconds(row.seconds), f"{row.of_roof:.0%}"
                lines.append(((_label(row.problem), str(row.threads), *shown, total, time, share), False))
    table = _table(("problem", "threads", *names, "sum", "our time", "of roof"), lines)
    return f'<h2 id="roof">The roof</h2>\n<details><summary>Its parts, problem by problem</summary>{table}</details>'


def _memory(cases: Sequence[results.Case]) -> str:
    """What training steps hold, computed for all and measured where the record has it."""
    lines = [
        ((_label(row.problem), *results.memory_cells(row)), False)
        for case in cases
        for row in results.memory_rows(case)
    ]
    if not lines:
        return ""
    note = (
        "<p>Gates, c, output and the sequences between layers are kept until backward. Measured: by how much a fresh "
        "process grows. The rest is its peak without all that is computed (packed weights, their gradients, "
        "workspaces); it may not grow with T."
    )
    if any("-" in cells for cells, _ in lines):
        note += " A dash: not measured; <code>hotloop bench --memory</code> measures it."
    note += "</p>"
    table = _table(("problem", *results.MEMORY_HEADS), lines)
    return (
        '<h2 id="memory">Memory of training</h2>\n'
        f"<details><summary>What a training step holds</summary>{note}{table}</details>"
    )


def _candidate_table(cases: Sequence[results.Case]) -> str:
    heads = ("problem", "candidate", "time", "hotloop is how many times as fast", "GF/s", "rounds",
             "largest relative error", "status")  # fmt: skip
    lines = []
    for case in cases:
        for candidate in case["candidates"]:
            good = candidate["status"] == "ok" and bool(candidate["rounds"])
            errors = [error for error in candidate.get("errors", {}).values() if error is not None]
            detail = candidate["detail"].strip().splitlines()
            cells = (
                _label(results.problem_of(case)),
                results.format_candidate(candidate),
                results.format_seconds(results.seconds(candidate)) if good else "-",
                results.format_interval(results.speedup_over(case, candidate)),
                f"{results.gigaflops(case, candidate):.3g}" if good else "-",
                str(len(candidate["rounds"])),
                f"{max(errors):.1e}" if errors else "-",
                candidate["status"] + (f": {detail[-1][:80]}" if detail else ""),
            )
            lines.append((cells, candidate["status"] in ("failed", "wrong")))
    return _table(heads, lines)


def _environment(record: Mapping[str, Any]) -> str:
    environment = record["environment"]
    lscpu = environment["lscpu"]
    facts = {
        "command": " ".join(record["command"]),
        "date": results.format_date(record["date"]),
        "processor": environment["hotloop"]["processor"],
        "processors": str(results.processors(record)),
        **{key: lscpu[key] for key in ("L1d cache", "L2 cache", "L3 cache", "Hypervisor vendor") if key in lscpu},
        "load average at start": str(environment["load"]),
        "system": environment["platform"],
        "Python": environment["python"],
    }
    for name, versions in environment["versions"].items():
        facts[label(name)] = ", ".join(f"{key} {value}" for key, value in versions.items())
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in results.remarks(record))
    return (
        f'<h2 id="environment">Environment</h2>\n{_list(facts.items())}\n'
        + (f'<h2 id="remarks">Remarks</h2>\n<ul>{remarks}</ul>\n' if remarks else "")
        + f'<h2 id="method">How it was measured</h2>\n<p>{METHOD}</p>'
    )


METHOD = """Every library runs in processes of its own, one for each number of threads; all but one are stopped. They
take turns, round after round in rotated order; a ratio is the median of the ratios of the rounds, its interval a
bootstrap over rounds. Answers are compared with a float64 specification before anything is timed. Inference runs with
weights prepared beforehand; training is forward and backward with all gradients, of a module of torch the update too:
there the answer that is compared is what a step of SGD did to the parameters. Floating-point operations are those
of the matrix products: 2 T B G H (I + H) forward for every layer and direction, three times that in training; padding
does not count. The roof is what the machine's peak and bandwidths allow, measured in the same run; that of several
layers and directions is the sum of theirs."""
