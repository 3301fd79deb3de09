"""The table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import charts, layout, results

RIGHT = {"threads", "time", "GF/s", "steps/s", "hotloop (numba)", "of roof"}
LEFT_OUT_WHERE_NARROW = {"GF/s", "steps/s", "best over best", "hotloop (numba)"}
NARROWEST = 100  # columns that tables get where the terminal has less


def print_results(record: Mapping[str, Any], console: Console, *, show_roof: bool = False) -> None:
    """Print every case of a record, then its summary and the remarks; the parts of the roof where asked for."""
    about = record["environment"]["hotloop"]
    console.print(
        f"hotloop {about['version']}, {about['backend']} backend ({about['variant']}), {about['processor']}, "
        f"{results.format_date(record['date'])}",
        highlight=False,
        markup=False,
    )
    modules = results.modules(record)
    if modules:
        _print_modules(modules, console)
    if len(modules) < len(record["cases"]):
        _print_cases(record, console)
    if show_roof:
        _print_roof(record, console)
    if any("memory" in case for case in record["cases"]):
        _print_memory(record, console)
    for entry in record.get("latency") or ():
        _print_table(f"single calls, {entry['problem']['name']}", charts.latency_table(entry), console)
    if (cost := charts.cost_of_a_step(record.get("attention"))) is not None:
        _print_table(cost.title, cost.table, console)
    _print_summary(record, console)
    if busy := results.busy(record):
        console.print(busy, highlight=False, markup=False)
    for remark in results.remarks(record):
        console.print(remark, highlight=False, markup=False, soft_wrap=True)


def _print_modules(cases: Sequence[results.Case], console: Console) -> None:
    table = Table(title=results.SWAP_TITLE, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in results.SWAP_COLUMNS:
        table.add_column(name, justify="left" if name == "problem" else "right", no_wrap=True)
    for case in cases:
        table.add_row(case["problem"]["name"], *results.swap_cells(case))
    _print_whole(table, console, _width(table, console))
    console.print(results.SWAP_MEANING, style="dim", highlight=False, markup=False)


def _print_cases(record: Mapping[str, Any], console: Console) -> None:
    # In a narrow terminal some columns are left out and the rest may wrap: no figure is ever cut short.
    shown: Sequence[str] = results.COLUMNS
    table = _case_table(record, shown)
    if _width(table, console) > console.width:
        shown = [name for name in shown if name not in LEFT_OUT_WHERE_NARROW]
        table = _case_table(record, shown)
    _print_whole(table, console, _width(table, console))
    for name in shown:
        if name in results.MEANINGS:
            console.print(f"{name}: {results.MEANINGS[name]}", style="dim", highlight=False, markup=False)


def _case_table(record: Mapping[str, Any], shown: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in shown:
        table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True)

    def add_row(*cells: str) -> None:
        table.add_row(*(cell for name, cell in zip(results.COLUMNS, cells, strict=True) if name in shown))

    for case in record["cases"]:
        if results.problem_of(case).module:
            continue  # in a table of their own
        lines = list(results.rows(case))
        if not lines:
            add_row(case["problem"]["name"], *["-"] * (len(results.COLUMNS) - 1))
        for row in lines:
            add_row(row.problem.name if row is lines[0] else "", *results.cells(row))
    return table


def _width(table: Table, console: Console) -> int:
    """Return the columns a table needs for all of its cells to stay whole."""
    return console.measure(table, options=console.options.update(width=1000)).maximum


def _print_whole(table: Table, console: Console, least: int = NARROWEST) -> None:
    """Print a table that needs some width even where the terminal has less: then lines wrap."""
    width = console.width
    console.width = max(width, least)
    console.print(table, highlight=False, crop=False)
    console.width = width


def _print_roof(record: Mapping[str, Any], console: Console) -> None:
    table = Table(title="roof, its parts", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("problem", no_wrap=True)
    table.add_column("threads", justify="right")
    table.add_column("part")
    table.add_column("least time", justify="right", no_wrap=True)
    for case in record["cases"]:
        if results.problem_of(case).module:
            continue
        for row in results.rows(case):
            parts = results.roof_parts(case, row.threads)
            if parts is None:
                table.add_row(row.problem.name, str(row.threads), "no probes without the native module", "-")
                continue
            for number, (name, seconds) in enumerate(parts.items()):
                head = (row.problem.name, str(row.threads)) if number == 0 else ("", "")
                table.add_row(*head, name, results.format_seconds(seconds))
            total = f"{results.format_seconds(sum(parts.values()))} of {results.format_seconds(row.seconds)}"
            table.add_row("", "", "sum, and our time", f"{total}, {row.of_roof:.0%}")
    console.print(table, highlight=False)
    for case in record["cases"]:
        for key, rate in (results.best_rates(case) or {}).items():
            if key.startswith("cell"):
                console.print(f"{case['problem']['name']}: {key}: {1e9 / rate:.2f} ns a vector", highlight=False)


def _print_memory(record: Mapping[str, Any], console: Console) -> None:
    table = Table(title="memory of a training step", title_justify="left", box=None, pad_edge=False,
                  header_style="bold")  # fmt: skip
    table.add_column("problem", no_wrap=True)
    for head in results.MEMORY_HEADS:
        table.add_column(head, justify="right")
    for case in record["cases"]:
        if "memory" in case:
            for row in results.memory_rows(case):
                table.add_row(row.problem.name, *results.memory_cells(row))
    _print_whole(table, console)
    console.print(
        "computed: what grows with T; gates to between layers are kept until backward. measured: by how much a fresh "
        "process grows.\nrest: the peak without all that is computed (packed weights, their gradients, workspaces); it "
        "may not grow with T.",
        style="dim",
        highlight=False,
    )


def _print_table(title: str, content: layout.Table, console: Console) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(content.heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for line in content.lines:
        table.add_row(*line)
    _print_whole(table, console)


def _print_summary(record: Mapping[str, Any], console: Console) -> None:
    lines = results.summary(record)
    if not lines:
        return
    table = Table(title=results.SUMMARY_TITLE, title_justify="left", box=None, pad_edge=False,
                  show_header=False)  # fmt: skip
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, figures in lines:
        table.add_row(what, escape(figures))
    _print_whole(table, console)
