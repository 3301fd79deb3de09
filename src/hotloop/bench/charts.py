"""The charts of a report, as data: what is drawn is what stands in their tables, and both come from the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import attention, latency, results, stats, verdict
from .layout import Chart, Series, Table
from .peers import CANDIDATES, OURS, label
from .problems import Problem
from .results import Case
from .verdict import LABELS

LENGTH = "sequence length T"


def name_of(problem: Problem) -> str:
    """Name a problem for people."""
    return " ".join((LABELS[problem.cell], problem.mode, *problem.words))


def rank(name: str) -> int:
    """The place of a candidate among the others."""
    return list(CANDIDATES).index(name)


def threads_text(count: int) -> str:
    """Write a number of threads."""
    return f"{count} thread{'' if count == 1 else 's'}"


def _by_shape(cases: Sequence[Case]) -> Iterator[tuple[str, list[Case]]]:
    """One group for each cell, mode and shape but for T, by T."""
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        p = results.problem_of(case)
        groups.setdefault((p.cell, p.mode, *p.words[1:]), []).append(case)
    for (cell, mode, *words), members in groups.items():
        members.sort(key=lambda case: int(case["problem"]["seq_len"]))
        yield f"{LABELS[cell]}, {mode}, {' '.join(words)}", members


def _split(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return x and y apart."""
    return [x for x, _ in points], [y for _, y in points]


# Throughput.


def _rate(case: Case, candidate: results.CandidateRecord) -> stats.Interval:
    """Return GF/s with its interval; a high time is a low rate."""
    time, flops = results.time_interval(candidate), results.problem_of(case).flops / 1e9
    return stats.Interval(flops / time.value, flops / time.high, flops / time.low)


def _rate_table(members: Sequence[Case]) -> Table:
    lines = []
    for case in members:
        for one in sorted(results.timed(case), key=lambda one: (rank(one["name"]), one["threads"])):
            lines.append(
                (
                    str(case["problem"]["seq_len"]),
                    label(one["name"]),
                    str(one["threads"]),
                    format_time(results.time_interval(one)),
                    format_figure(_rate(case, one)),
                    results.format_count(results.steps_per_second(case, one)),
                )
            )
    return Table(("T", "library", "threads", "time (95 %)", "GF/s (95 %)", "steps/s"), lines)


def format_time(time: stats.Interval) -> str:
    """Write a time and its interval."""
    if not np.isfinite(time.low):
        return results.format_seconds(time.value)
    low, high = results.format_seconds(time.low), results.format_seconds(time.high)
    return f"{results.format_seconds(time.value)} ({low} - {high})"


def format_figure(value: stats.Interval) -> str:
    """Write three figures and the interval."""
    if not np.isfinite(value.low):
        return f"{value.value:.3g}"
    return f"{value.value:.3g} ({value.low:.3g}-{value.high:.3g})"


def throughput(cases: Sequence[Case]) -> list[Chart]:
    """Lines over T for every cell, mode and shape that has several lengths."""
    return [
        _lines(title, members)
        for title, members in _by_shape(cases)
        if len({case["problem"]["seq_len"] for case in members if results.timed(case)}) > 1
    ]


def single_lengths(cases: Sequence[Case]) -> list[Chart]:
    """Bars for every problem whose cell, mode and shape has one length."""
    return [
        _bars(f"{title} T{members[0]['problem']['seq_len']}", members[0])
        for title, members in _by_shape(cases)
        if len({case["problem"]["seq_len"] for case in members if results.timed(case)}) == 1
        and results.timed(members[0])
    ]


def _lines(title: str, members: Sequence[Case]) -> Chart:
    found: dict[tuple[str, int], list[tuple[int, stats.Interval]]] = {}
    for case in members:
        for one in results.timed(case):
            point = (case["problem"]["seq_len"], _rate(case, one))
            found.setdefault((one["name"], one["threads"]), []).append(point)
    counts = sorted({threads for _, threads in found})
    series = [
        Series(
            label(name), name,
            [steps for steps, _ in points],
            [rate.value for _, rate in points],
            [rate.low for _, rate in points],
            [rate.high for _, rate in points],
            dash=counts.index(threads),
            dash_name=threads_text(threads),
            strong=name == OURS,
        )
        for (name, threads), points in sorted(found.items(), key=lambda item: (rank(item[0][0]), item[0][1]))
    ]  # fmt: skip
    # For one shape, flops are proportional to steps, so both scales fit the same lines.
    per_gigaflop = 1e9 * members[0]["problem"]["seq_len"] / results.problem_of(members[0]).flops
    return Chart(
        title, "lines", series, LENGTH, "GF/s", _say_rates(title, members), _rate_table(members),
        x_ticks=sorted({case["problem"]["seq_len"] for case in members}),
        right=(per_gigaflop, "time steps a second", results.format_count),
    )  # fmt: skip


def _say_rates(title: str, members: Sequence[Case]) -> str:
    points = []
    for case in members:
        us, peer = results.ours(case), results.best_peer(case)
        if us is not None:
            text = f"T={case['problem']['seq_len']}: hotloop {results.gigaflops(case, us):.3g} GF/s"
            if peer is not None:
                text += f", {results.format_candidate(peer)} {results.gigaflops(case, peer):.3g} GF/s"
            points.append(text)
    return f"{title}. " + "; ".join(points)


def _bars(title: str, case: Case) -> Chart:
    series = []
    for one in sorted(results.timed(case), key=results.seconds, reverse=True):
        rate = _rate(case, one)
        steps = results.format_count(results.steps_per_second(case, one))
        text = f"{rate.value:.3g} GF/s, {steps} steps/s"
        series.append(Series(results.format_candidate(one), one["name"], [0], [rate.value], [rate.low], [rate.high],
                             dash=int(one["threads"] > 1), text=text))  # fmt: skip
    return Chart(title, "bars", series, "GF/s", "", _say_rates(title, [case]), _rate_table([case]), log_y=False)


# Fraction of the roof.


def roof(cases: Sequence[Case]) -> Chart | None:
    """Points: the share of the roof on one thread over the time of a call."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    lines = []
    for case in cases:
        for row in results.rows(case):
            if row.threads == 1 and row.of_roof is not None:
                points.setdefault((row.problem.cell, row.problem.mode), []).append((row.seconds, row.of_roof))
                lines.append((name_of(row.problem), results.format_seconds(row.seconds), f"{row.of_roof:.0%}"))
    if not points:
        return None
    series = [
        Series(f"{LABELS[cell]}, {mode}", cell, *_split(both), hollow=mode == "training")
        for (cell, mode), both in points.items()
    ]
    shares = [share for both in points.values() for _, share in both]
    said = f"Fraction of the roof on one thread: {len(shares)} problems, median {np.median(shares):.0%}, "
    said += f"from {min(shares):.0%} to {max(shares):.0%}"
    return Chart(
        "Fraction of the roof, one thread", "points", series, "time of a call", "of the roof", said,
        Table(("problem", "time", "of roof"), lines),
        x_format=results.format_seconds, y_format="{:.0%}".format, log_y=False, levels=[(1.0, "the roof")],
    )  # fmt: skip


# Latency of single calls.


def latencies(entries: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """For every problem, the share of calls that took longer."""
    charts = []
    for entry in entries:
        timed = sorted(latency.timed(entry), key=lambda one: rank(one["name"]))
        if not timed:
            continue
        problem = Problem.from_dict(entry["problem"])
        series = []
        for one in timed:
            times, shares = latency.slower(one)
            # The last share is zero, which has no place on a logarithmic axis.
            series.append(Series(label(one["name"]), one["name"], times[:-1] or times, shares[:-1] or [1e-4],
                                 strong=one["name"] == OURS))  # fmt: skip
        title = name_of(problem)
        said = [f"{label(one['name'])} median {results.format_seconds(one['quantiles']['p50'])}, 99.9 % within "
                f"{results.format_seconds(one['quantiles']['p99.9'])}" for one in timed]  # fmt: skip
        charts.append(
            Chart(
                title,
                "steps",
                series,
                "time of one call",
                "share of calls that took longer",
                f"{title}, single calls: {'; '.join(said)}",
                latency_table(entry),
                x_format=results.format_seconds,
                y_format=_share,
            )
        )
    return charts


def _share(value: float) -> str:
    return f"{100 * value:g} %"


def latency_table(entry: Mapping[str, Any]) -> Table:
    """Return the quantiles of a problem's single calls."""
    ordered = sorted(latency.timed(entry), key=lambda one: float(one["quantiles"]["p50"]))
    lines = [
        (label(one["name"]), *(results.format_seconds(one["quantiles"][name]) for name in latency.QUANTILES),
         str(one["calls"]))
        for one in ordered
    ]  # fmt: skip
    return Table(("library", *latency.QUANTILES, "calls"), lines)


# Memory of training.


def memory(cases: Sequence[Case]) -> list[Chart]:
    """Lines over T of what a training step holds, where there are several lengths."""
    charts = []
    for title, members in _by_shape(cases):
        rows = {row.problem.seq_len: row for case in members for row in results.memory_rows(case)}
        if len(rows) < 2 or not any(row.peak for row in rows.values()):
            continue
        ordered = [rows[steps] for steps in sorted(rows)]
        kinds = (
            ("hotloop, peak", OURS, 0, [row.peak for row in ordered]),
            ("torch, peak", "torch", 0, [row.stock_peak for row in ordered]),
            ("hotloop, kept until backward (computed)", "numpy", 1, [row.kept for row in ordered]),
        )
        lengths = [row.problem.seq_len for row in ordered]
        series = []
        for name, style, dash, values in kinds:
            points = [(steps, value) for steps, value in zip(lengths, values, strict=True) if value and value > 0]
            if points:
                series.append(Series(name, style, *_split(points), dash=dash, strong=style == OURS))
        lines = [(str(row.problem.seq_len), *map(results.format_bytes, (row.kept, row.peak, row.stock_peak)))
                 for row in ordered]  # fmt: skip
        said = "; ".join(f"T={line[0]}: kept {line[1]}, peak {line[2]}, torch's peak {line[3]}" for line in lines)
        heads = ("T", "kept, computed", "peak, measured", "torch's peak, measured")
        charts.append(Chart(title, "lines", series, LENGTH, "memory", f"{title}. {said}", Table(heads, lines),
                            y_format=results.format_bytes, y_base=2, x_ticks=lengths))  # fmt: skip
    return charts


# Threads.


def threads(cases: Sequence[Case]) -> Chart | None:
    """Points: how many times as fast the most threads are as one, over the time on one."""
    points: dict[str, list[tuple[float, float]]] = {}
    found = []
    for case in cases:
        scaled = verdict.scaling(case)
        if OURS not in scaled:
            continue
        found.append((results.problem_of(case), scaled))
        for name, ratio in scaled.items():
            (one,) = [c for c in results.timed(case) if (c["name"], c["threads"]) == (name, 1)]
            points.setdefault(name, []).append((results.seconds(one), ratio.value))
    if not points:
        return None
    names = sorted(points, key=rank)
    most = max(c["threads"] for case in cases for c in case["candidates"])
    lines = [
        (name_of(problem), *(results.format_interval(scaled.get(name)) for name in names)) for problem, scaled in found
    ]
    series = [Series(label(name), name, *_split(points[name]), hollow=name != OURS) for name in names]
    said = f"{threads_text(most)} over one: " + "; ".join(
        f"{label(name)} median {np.median([ratio for _, ratio in points[name]]):.2f} times as fast" for name in names
    )
    return Chart(
        f"{threads_text(most).capitalize()} over one", "points", series, "time of a call on one thread",
        "times as fast", said, Table(("problem", *map(label, names)), lines),
        x_format=results.format_seconds, log_y=False, levels=[(1.0, "no gain"), (float(most), f"{most} times")],
    )  # fmt: skip


# Cost of a step against attention.


def cost_of_a_step(record: Mapping[str, Any] | None) -> Chart | None:
    """Lines over the context: attention grows with it, cells do not."""
    steps = attention.steps(record)
    contexts = sorted(one["context"] for one in steps if one["context"] is not None)
    if record is None or not contexts:
        return None
    shown: dict[str, list[tuple[int, stats.Interval]]] = {}
    styles: dict[str, tuple[str, int]] = {}
    lines = []
    for one in sorted(steps, key=lambda one: (one["context"] is not None, one["context"] or 0)):
        name, time = attention.label(one), results.time_interval(one)
        places = contexts[:: max(1, len(contexts) - 1)] if one["context"] is None else [one["context"]]
        shown.setdefault(name, []).extend((place, time) for place in places)
        # Attention is torch's too, so it has a colour of its own.
        style = "attention" if one["context"] is not None else one["name"]
        style = "swapped" if one["name"] == OURS and one["module"] else style
        styles[name] = (style, 0 if one["context"] is not None else attention.CELLS.index(one["step"]))
        lines.append((name, "any" if one["context"] is None else str(one["context"]), format_time(time)))
    series = [
        Series(
            name, styles[name][0], [place for place, _ in points], [time.value for _, time in points],
            [time.low for _, time in points], [time.high for _, time in points], dash=styles[name][1],
            strong=styles[name][0] == OURS,
        )
        for name, points in shown.items()
    ]  # fmt: skip
    said = "; ".join(f"{name}, context {context}: {time}" for name, context, time in lines)
    title = f"One step at width {record['width']}, batch 1, one thread"
    return Chart(title, "lines", series, "tokens in the cache", "time of a step", f"{title}. {said}",
                 Table(("step", "context", "time (95 %)"), lines),
                 y_format=results.format_seconds, x_ticks=contexts)  # fmt: skip


def crossings(record: Mapping[str, Any] | None) -> list[str]:
    """Say for every cell from which context on attention costs more."""
    steps = attention.steps(record)
    grown = sorted((one["context"], results.seconds(one)) for one in steps if one["context"] is not None)
    lines = []
    for one in steps:
        if one["context"] is not None or not grown:
            continue
        name, time = attention.label(one), results.seconds(one)
        cheaper = [number for number, (_, seconds) in enumerate(grown) if seconds <= time]
        dearer = [context for context, _ in grown[cheaper[-1] + 1 if cheaper else 0 :]]
        if not dearer:
            where = f"attention costs less up to {grown[-1][0]} tokens, the most measured"
        elif len(dearer) == len(grown):
            where = f"attention costs more from {grown[0][0]} tokens on, the fewest measured"
        else:
            where = f"attention costs more from {dearer[0]} tokens on"
        last = grown[-1][1] / time
        lines.append(
            f"{name} {results.format_seconds(time)}: {where}; at {grown[-1][0]} tokens {last:.3g} times as much"
        )
    return lines
