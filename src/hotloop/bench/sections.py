"""What a report says, in order: first whether hotloop is faster, where it is not, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, joined, results, verdict
from .charts import name_of
from .joined import Part
from .layout import Section, Table
from .peers import label
from .problems import CELL_NAMES, MODES, Problem
from .verdict import LABELS


def sections(part: Part) -> list[Section]:
    """Return the sections of one machine; those with nothing to say, not even how to measure it, are left out."""
    found = [
        _summary(part),
        _grid(part.record),
        _modules(part.record),
        _throughput(part.record),
        _roof(part.record),
        _latency(part.record),
        _memory(part.record),
        _threads(part.record),
        _attention(part.record),
        _noise(part),
        _runs(part),
        _cases(part.record),
        _candidates(part.record),
        Section("words", "What the words mean", terms=list(results.MEANINGS.items())),
        _environment(part),
        _remarks(part),
        Section("method", "How it was measured", text=METHOD),
    ]
    return [section for section in found if section is not None]


def title(part: Part) -> str:
    """Name the machine and the version."""
    about = part.record["environment"]["hotloop"]
    return f"hotloop {about['version']} on {about['processor']}"


def where(part: Part) -> str:
    """Say on what it was measured, and when."""
    about = part.record["environment"]["hotloop"]
    dates = list(dict.fromkeys(results.format_date(run["date"]) for run in part.runs))
    when = dates[0] if len(dates) == 1 else f"{len(part.runs)} runs from {dates[0]} to {dates[-1]}"
    return f"{about['processor']}, {about['backend']} backend ({about['variant']}), {when}"


def apart(parts: Sequence[Part]) -> list[str]:
    """Say that there are several machines, where there are."""
    if len(parts) < 2:
        return []
    shared = joined.shared_problems(parts)
    text = f"Runs of {len(parts)} machines (or instruction sets), kept apart: their figures do not compare."
    if shared:
        text += f" {len(shared)} problems were measured on more than one of them, {shared[0]} among them."
    return [text]


# Summary.

LIBRARIES = "the fastest of the other libraries"


def _summary(part: Part) -> Section:
    record = part.record
    libraries, modules = verdict.of_libraries(record), verdict.of_modules(record)
    lead: list[str] = []
    if libraries.comparisons:
        lead += verdict.sentences(libraries, LIBRARIES)
    if modules.comparisons:
        lead += ["Modules of torch.nn, swapped. " + " ".join(verdict.sentences(modules, "the stock module"))]
    groups = verdict.groups(record)
    tables = []
    if groups and len(groups[0].comparisons) > 1:
        tables.append((f"How many times as fast as {LIBRARIES} (of torch.nn's modules: as the stock one), each at its "
                       "best number of threads:", _group_table(groups)))  # fmt: skip
    behind = sorted((*libraries.behind, *modules.behind), key=lambda one: one.ratio.value)
    if behind:
        tables.append(("Where it is not faster:", _behind_table(behind)))
    told = ("against the best peer", "behind the best peer", results.MEANS[0][0])
    terms = [(what, text) for what, text in results.summary(record) if what not in told]
    if noise := _noise_line(part):
        terms.append(("noise", noise))
    if not lead:
        lead = ["No peer was measured: nothing to compare with."]
    return Section("summary", "Summary", lead, _busy(part), terms=terms, tables=tables)


def _busy(part: Part) -> list[str]:
    """Say that the machine was not quiet; of several runs, of the worst."""
    told = [(run["environment"]["load"], text) for run in part.runs if (text := results.busy(run))]
    if not told:
        return []
    _, worst = max(told)
    return [worst if len(part.runs) == 1 else f"{len(told)} of {len(part.runs)} runs, the worst being this: {worst}"]


def _group_table(groups: Sequence[verdict.Group]) -> Table:
    lines = []
    for group in groups:
        worst, best = group.comparisons[0].ratio.value, group.comparisons[-1].ratio.value
        lines.append(
            (
                group.name, results.format_interval(group.mean), f"{group.ahead} of {len(group.comparisons)}",
                f"{worst:.2f}", f"{best:.2f}",
            )
        )  # fmt: skip
    return Table(("problems", "geometric mean (95 %)", "faster on", "least", "most"), lines,
                 frozenset(number for number, group in enumerate(groups) if group.mean.value < 1))  # fmt: skip


def _behind_table(behind: Sequence[results.Comparison]) -> Table:
    lines = []
    for one in behind:
        sure = "" if verdict.is_proven(one.ratio) else ", not proven"
        lines.append(
            (
                name_of(one.problem),
                results.format_interval(one.ratio),
                verdict.more_time(one.ratio.value) + sure,
                f"{results.format_seconds(results.seconds(one.us))} {one.us['threads']}t",
                f"{results.format_seconds(results.seconds(one.peer))} {results.format_candidate(one.peer)}",
            )
        )
    heads = ("problem", "times as fast (95 %)", "hotloop takes", "hotloop", "the fastest other")
    return Table(heads, lines)


# Heat map.

TONES = (1.05, 1.5, 2.5, 5.0)  # from where on a ratio, or one over it, has the next colour


def tone(ratio: float) -> int:
    """Return the colour of a ratio: 0 within 5 % of one, up to 4 for faster, down to -4 for slower."""
    size = sum(max(ratio, 1 / ratio) >= edge for edge in TONES)
    return size if ratio > 1 else -size


def _grid(record: Mapping[str, Any]) -> Section | None:
    found = {(one.problem.words, one.problem.cell, one.problem.mode): one
             for one in results.compare(results.judged(record))}  # fmt: skip
    if len(found) < 2:
        return None
    shapes = sorted({one.problem.words: one.problem for one in found.values()}.values(), key=_place)
    columns = [(cell, mode) for cell in CELL_NAMES for mode in MODES
               if any(key[1:] == (cell, mode) for key in found)]  # fmt: skip
    lines, tones = [], {}
    for number, problem in enumerate(shapes):
        cells = [" ".join(problem.words)]
        for column, kind in enumerate(columns, 1):
            one = found.get((problem.words, *kind))
            cells.append(
                "" if one is None else f"{one.ratio.value:.2f}" + ("" if verdict.is_proven(one.ratio) else "?")
            )
            if one is not None:
                tones[number, column] = tone(one.ratio.value)
        lines.append(cells)
    text = [
        f"How many times as fast as {LIBRARIES}, each at its best number of threads: above 1 (blue) hotloop is faster, "
        "below 1 (orange) the other. A question mark: the interval leaves open who is faster. Empty: not measured, or "
        "not judged (training on one step)."
    ]
    table = Table(("shape", *(f"{LABELS[cell]}, {mode}" for cell, mode in columns)), lines, tones=tones)
    return Section("grid", "Speed-up over the grid", text=text, tables=[("", table)])


def _proven(one: results.Comparison) -> str:
    return f"{one.ratio.value:.2f}" + ("" if verdict.is_proven(one.ratio) else "?")


def _place(problem: Problem) -> tuple[Any, ...]:
    return (problem.words[4:], problem.batch_size, problem.hidden_size, problem.input_size, problem.seq_len)


# The other figures.


def _modules(record: Mapping[str, Any]) -> Section | None:
    cases = results.modules(record)
    if not cases:
        return None
    lines = [(name_of(results.problem_of(case)), *results.swap_cells(case)) for case in cases]
    swaps = [results.swap(case) for case in cases]
    marked = frozenset(number for number, one in enumerate(swaps) if one is not None and one.below_goal)
    text = [f"{results.SWAP_TITLE}. {results.SWAP_MEANING} Shaded: less than the project's own goal."]
    return Section("modules", "Drop-in modules", text=text,
                   tables=[("", Table(results.SWAP_COLUMNS, lines, marked))])  # fmt: skip


def _throughput(record: Mapping[str, Any]) -> Section | None:
    lines, found = charts.throughput(record["cases"]), charts.single_lengths(record["cases"])
    bars = found if len(found) <= FEW_BARS else []
    if not lines and not found:
        return None
    text = []
    if lines:
        text.append(
            "Lines over sequence length: throughput of the matrix products (left) and time steps of the whole batch a "
            "second (right), both axes logarithmic; solid for the fewest threads, dashed for more. Bands: 95 % of the "
            "median over rounds, often narrower than the line."
        )
    if bars:
        text.append(
            "Bars, of one length: throughput of the matrix products on a linear axis, with its 95 % interval, and "
            "beside each bar the time steps of the whole batch a second too; hatched for more than one thread."
        )
    if len(bars) < len(found):
        text.append(
            f"{len(found)} problems have one length each: too many to draw, they are in the grid above and under all "
            "candidates below."
        )
    return Section("throughput", "Throughput", text=text, charts=[*lines, *bars])


FEW_BARS = 8  # more drawings of one problem each would bury the lines, and take a quarter of a second each


def _roof(record: Mapping[str, Any]) -> Section | None:
    cases = record["cases"]
    chart = charts.roof(cases)
    names = list(dict.fromkeys(name for case in cases for name in results.roof_parts(case, 1) or ()))
    if not names:
        return None
    lines = []
    for case in cases:
        for row in results.rows(case):
            parts = results.roof_parts(case, row.threads)
            if parts is not None and row.of_roof is not None:
                shown = [results.format_seconds(parts[name]) if name in parts else "" for name in names]
                total = results.format_seconds(sum(parts.values()))
                time, share = results.format_seconds(row.seconds), f"{row.of_roof:.0%}"
                lines.append((name_of(row.problem), str(row.threads), *shown, total, time, share))
    table = Table(("problem", "threads", *names, "sum", "our time", "of roof"), lines,
                  folded="Its parts, problem by problem")  # fmt: skip
    text = [
        results.MEANINGS["of roof"][0].upper() + results.MEANINGS["of roof"][1:] + ". Over 100 %: a probe was too slow."
    ]
    return Section("roof", "The roof", text=text, tables=[("", table)], charts=[chart] if chart else [])


def _latency(record: Mapping[str, Any]) -> Section:
    found = charts.latencies(record.get("latency") or ())
    if not found:
        return Section("latency", "Latency of one step", text=[
            "Not measured: `hotloop bench --quick --latency` measures single calls of one step."])  # fmt: skip
    text = [
        "One step at batch 1 on one thread, every call timed by itself. The curves say which share of the calls took "
        "longer than a time; where they end on the right is the longest. What other processes did to a call is in "
        "here, to all candidates alike. p99.9: one call in a thousand took longer."
    ]
    return Section("latency", "Latency of one step", text=text, charts=found)


def _memory(record: Mapping[str, Any]) -> Section | None:
    """What training steps hold, computed for all and measured where the record has it."""
    lines = [(name_of(row.problem), *results.memory_cells(row))
             for case in record["cases"] for row in results.memory_rows(case)]  # fmt: skip
    if not lines:
        return None
    text = (
        "Gates, c, output and the sequences between layers are kept until backward. Measured: by how much a fresh "
        "process grows, ours and one with torch.nn's layer. The rest is our peak without all that is computed (packed "
        "weights, their gradients, workspaces); it may not grow with T."
    )
    if any("-" in line for line in lines):
        text += " A dash: not measured; `hotloop bench --memory` measures it."
    table = Table(("problem", *results.MEMORY_HEADS), lines, folded="What a training step holds")
    return Section("memory", "Memory of training", text=[text], tables=[("", table)],
                   charts=charts.memory(record["cases"]))  # fmt: skip


def _threads(record: Mapping[str, Any]) -> Section:
    chart = charts.threads(record["cases"])
    if chart is None:
        return Section("threads", "Threads", text=["Not measured: `hotloop bench --threads 1 2` measures both."])
    text = ["How many times as fast the most threads are as one, for every library by itself."]
    return Section("threads", "Threads", text=text, charts=[chart])


def _attention(record: Mapping[str, Any]) -> Section:
    name = "A step against attention with a cache"
    chart = charts.cost_of_a_step(record.get("attention"))
    if chart is None:
        return Section("attention", name, text=[
            "Not measured: `hotloop bench --quick --attention` measures it where torch is installed."])  # fmt: skip
    about = record["attention"]
    text = [
        "What one more step costs at batch 1, on one thread: a cell, always the same (hotloop.LSTM and GRU called from "
        "NumPy without a state, torch.nn's cells, stock and swapped, from a given state), and one layer of attention "
        f"of the same width ({about['width']}, {about['heads']} heads) whose cache of keys and values grows: "
        "projections, torch's scaled_dot_product_attention over the cache, projection. No feed-forward layer on either "
        "side."
    ]
    return Section("attention", name, text=text, charts=[chart],
                   bullets=charts.crossings(about))  # fmt: skip


# How sure it is.


def _noise_line(part: Part) -> str:
    noise = verdict.noise(part.record)
    if noise is None:
        return ""
    text = f"rounds of ours scatter by {_share(noise.scatter)} (median over problems"
    text += f"; at worst {_share(noise.worst_scatter)})"
    if not math.isnan(noise.precision):
        text += f"; a ratio is known to {_share(noise.precision)} (at worst {_share(noise.worst_precision)})"
    levels = [gate["noise"] for gate in part.gates if gate["noise"]]
    if levels:
        text += f"; equal sides in turn (A/A) differ by {_share(max(level['median'] for level in levels))}"
        text += f", at most {_share(max(level['largest'] for level in levels))}"
    return text


def _share(value: float) -> str:
    if not math.isfinite(value):
        return "an unknown share"
    return f"{100 * value:.2g} %" if value < 1 else f"{100 * value:.0f} %"


def _noise(part: Part) -> Section | None:
    noise = verdict.noise(part.record)
    if noise is None:
        return None
    lines = [
        (
            "rounds of ours: half the interquartile range",
            _share(noise.scatter),
            _share(noise.worst_scatter),
            noise.worst,
        )
    ]
    if not math.isnan(noise.precision):
        lines.append(("ratios: how far the 95 % interval reaches", _share(noise.precision),
                      _share(noise.worst_precision), noise.least_precise))  # fmt: skip
    for gate in part.gates:
        if gate["noise"]:
            level = gate["noise"]
            lines.append((f"A/A of hotloop compare, {results.format_date(gate['date'])}", _share(level["median"]),
                          _share(level["largest"]), ""))  # fmt: skip
    if between := joined.between_runs(part):
        worst = max(part.repeats, key=lambda one: one.spread)
        what = "between runs" + (", which differ (see there)" if part.differences else "")
        lines.append((f"{what}: slowest over fastest, less one", _share(between[0]), _share(between[1]), worst.name))
    text = ["All are shares of a time or a ratio. A difference that is not larger than these is none."]
    if not part.gates:
        text.append(
            "A/A noise (equal sides, in turn, in fresh processes) was not measured: `hotloop compare HEAD HEAD --json "
            "aa.json` measures it, and `hotloop report RUN aa.json` shows it here."
        )
    return Section("noise", "Noise", text=text, tables=[("", Table(("what", "median", "largest", "where"), lines))])


def _runs(part: Part) -> Section | None:
    if len(part.runs) < 2:
        return None
    lines = []
    for number, run in enumerate(part.runs, 1):
        commit = run.get("commit") or {}
        lines.append(
            (
                str(number), results.format_date(run["date"]), run["environment"]["hotloop"]["version"],
                commit.get("id", "-")[:12] + (", changed" if commit.get("changed") else ""), str(len(run["cases"])),
                str(run["environment"]["load"]), " ".join(run["command"]),
            )
        )  # fmt: skip
    tables = [("", Table(("run", "date", "hotloop", "commit", "problems", "load before", "command"), lines))]
    text = [
        "Runs of one machine are joined: every problem has the figures of the newest run that has it. Samples are not "
        "pooled: those of a run share their processes, and would look like more evidence than they are."
    ]
    repeats = part.repeats
    if repeats:
        numbers = [str(number) for number in range(1, len(part.runs) + 1)]
        rows = [
            (
                one.name,
                *(f"{results.format_seconds(one.seconds[int(number)])}, {one.ratios[int(number)]}"
                  if int(number) in one.seconds else "" for number in numbers),
                _share(one.spread),
            )
            for one in repeats
        ]  # fmt: skip
        heads = (
            "problem",
            *(f"run {number}: time, times as fast" for number in numbers),
            "slowest over fastest, less one",
        )
        tables.append(("Problems that several runs have, side by side:", Table(heads, rows)))
    return Section(
        "runs", "Runs", text=text, tables=tables, bullets=[f"they differ in {one}" for one in part.differences]
    )


# Everything.


def _cases(record: Mapping[str, Any]) -> Section | None:
    lines: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for case in record["cases"]:
        for row in results.rows(case):
            if row.overall is not None and row.overall.value < 1 and row.problem.is_judged:
                marked.add(len(lines))
            lines.append((name_of(row.problem), *results.cells(row)))
    if not lines:
        return None
    text = [
        "Shaded: the best peer at its best number of threads is faster than hotloop at its best (training on one step "
        "is shown, but not judged). A dash: not measured."
    ]
    return Section("cases", "All cases", text=text,
                   tables=[("", Table(results.COLUMNS, lines, frozenset(marked)))])  # fmt: skip


def _candidates(record: Mapping[str, Any]) -> Section | None:
    heads = ("problem", "candidate", "time", "hotloop is how many times as fast", "GF/s", "rounds",
             "largest relative error", "status")  # fmt: skip
    lines: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for case in record["cases"]:
        for candidate in case["candidates"]:
            good = candidate["status"] == "ok" and bool(candidate["rounds"])
            errors = [error for error in candidate.get("errors", {}).values() if error is not None]
            detail = candidate["detail"].strip().splitlines()
            if candidate["status"] in ("failed", "wrong"):
                marked.add(len(lines))
            lines.append(
                (
                    name_of(results.problem_of(case)),
                    results.format_candidate(candidate),
                    results.format_seconds(results.seconds(candidate)) if good else "-",
                    results.format_interval(results.speedup_over(case, candidate)),
                    f"{results.gigaflops(case, candidate):.3g}" if good else "-",
                    str(len(candidate["rounds"])),
                    f"{max(errors):.1e}" if errors else "-",
                    candidate["status"] + (f": {detail[-1][:80]}" if detail else ""),
                )
            )
    if not lines:
        return None
    table = Table(heads, lines, frozenset(marked), folded="Every library on every problem")
    return Section("candidates", "All candidates", tables=[("", table)])


def _environment(part: Part) -> Section:
    record = part.record
    environment, lscpu = record["environment"], record["environment"]["lscpu"]
    facts = {
        "command": "\n".join(" ".join(run["command"]) for run in part.runs),
        "date": results.format_date(record["date"]),
        "processor": environment["hotloop"]["processor"],
        "processors": str(results.processors(record)),
        **{key: lscpu[key] for key in ("L1d cache", "L2 cache", "L3 cache", "Hypervisor vendor") if key in lscpu},
        "load average at start": ", ".join(str(run["environment"]["load"]) for run in part.runs),
        "system": environment["platform"],
        "Python": environment["python"],
        "machine": part.machine["id"],
    }
    if commit := record.get("commit"):
        facts["commit"] = commit["id"] + (", with changes" if commit["changed"] else "")
    for name, versions in environment["versions"].items():
        facts[label(name)] = ", ".join(f"{key} {value}" for key, value in versions.items())
    return Section("environment", "Environment", terms=list(facts.items()))


def _remarks(part: Part) -> Section | None:
    remarks = results.remarks(part.record)
    return Section("remarks", "Remarks", bullets=remarks) if remarks else None


METHOD = (
    "Every library runs in processes of its own, one for each number of threads; all but one are stopped. They take "
    "turns, round after round in rotated order; a ratio is the median of the ratios of the rounds, its interval a "
    "bootstrap over rounds. A geometric mean has the interval that the rounds of its problems leave; with other "
    "problems it would be another mean. The fastest library is the one that was the fastest in this run.",
    "Answers are compared with a float64 specification before anything is timed. Inference runs with weights prepared "
    "beforehand; training is forward and backward with all gradients, of a module of torch the update too: there the "
    "answer that is compared is what a step of SGD did to the parameters.",
    "Floating-point operations are those of the matrix products: 2 T B G H (I + H) forward for every layer and "
    "direction, three times that in training; padding does not count. The roof is what the machine's peak and "
    "bandwidths allow, measured in the same run; that of several layers and directions is the sum of theirs.",
)
