"""The time gate: a comparison from its sides to its verdict, and how it is told. Statistics are in stats.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np

from . import stats
from .markdown import literal
from .pairs import ROLES, Plan, measure, name_of, new_case
from .problems import GATE_SHORT, GROUPS, Problem
from .run import describe_machine
from .sides import Side

SCHEMA_VERSION = 1
Record = dict[str, Any]

# Two threads are measured where the work is shared in each of the two ways: by rows, and by units of few rows.
SHARED = (GATE_SHORT[2].name, GATE_SHORT[3].name)


def default_cases(group: str, processors: int) -> list[tuple[Problem, int]]:
    """List the problems of a group on one thread; the gate has some on two as well, where there are two processors."""
    cases = [(problem, 1) for problem in GROUPS[group]]
    if group == "gate" and processors > 1:
        cases += [(problem, 2) for problem in GROUPS[group] if problem.name in SHARED]
    return cases


def new_record(kind: str, base: str, head: str, command: Sequence[str]) -> Record:
    """Make the head of a record."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(command),
        "base": {"name": base},
        "head": {"name": head},
        "statistics": {
            "floor": stats.FLOOR,
            "family": stats.FAMILY,
            "quantile": stats.QUANTILE,
            "resamples": stats.RESAMPLES,
        },
        "remarks": [],
        "confirmed": kind == "hotloop",  # whether it takes a second round to fail
        "rounds": [],
    }


def run(
    base: Side,
    head: Side,
    cases: Sequence[tuple[Problem, int]],
    plan: Plan,
    *,
    isa: str | None = None,
    command: Sequence[str] = (),
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> Record:
    """Measure two sides and judge; what seems slower is measured once more, in processes of its own."""
    begin = time.monotonic()
    record = new_record("hotloop", base.name, head.name, command)
    for key, side in (("base", base), ("head", head)):
        record[key] |= {"commit": side.commit, "prefix": side.prefix, "python": side.python}
    record["environment"] = describe_machine()
    wanted = list(cases)
    for number in (1, 2):
        measured = [new_case(problem, threads) for problem, threads in wanted]
        about = measure(measured, base, head, plan, isa, partial(_report, progress, number))
        record["rounds"].append({"plan": about["plan"], "cases": measured})
        if number == 1:
            for key in ("base", "head"):
                record[key] |= {"about": about[key]}
        judge_round(measured)
        wanted = [
            (Problem.from_dict(case["problem"]), case["threads"])
            for case in measured
            if case.get("verdict") == "slower"
        ]
        if not wanted:
            break
    record["seconds"] = round(time.monotonic() - begin, 1)
    conclude(record)
    return record


def _report(progress: Callable[[int, str], None], number: int, done: int, text: str) -> None:
    progress(done, f"round {number}, {text}")


def judge_round(cases: Sequence[dict[str, Any]]) -> None:
    """Judge the cases of a round together: each gets its figures and its verdict."""
    timed = [case for case in cases if case["status"] == "ok"]
    ratios = [stats.log_ratios(*(case["samples"][role] for role in ROLES)) for case in timed]
    write_judgements(timed, [one for one, _ in ratios], [other for _, other in ratios])


def write_judgements(
    cases: Sequence[dict[str, Any]], effects: Sequence[stats.Array], noises: Sequence[stats.Array]
) -> None:
    """Judge these cases, and write the result into them."""
    for case, judgement in zip(cases, stats.judge(effects, noises), strict=True):
        case.update(asdict(judgement))


def conclude(record: Record) -> None:
    """Write what all rounds say together: a case is slower if it is in every round that measured it."""
    first, *later = record["rounds"]
    confirmed = {name_of(case) for case in later[0]["cases"] if case.get("verdict") == "slower"} if later else None
    regressions, broken, noises = [], [], []
    for case in first["cases"]:
        name = name_of(case)
        if case["status"] == "head":
            broken.append(name)
        elif case["status"] == "base":
            record["remarks"].append(f"{name}: left out, BASE cannot do it ({case['detail']})")
        else:
            noises.append(case["noise"])
            if case["verdict"] == "slower" and (confirmed is None or name in confirmed):
                regressions.append(name)
    # A case that breaks when it is measured again is broken.
    broken += [name_of(case) for case in (later[0]["cases"] if later else []) if case["status"] == "head"]
    record["noise"] = {"median": float(np.median(noises)), "largest": max(noises)} if noises else None
    record["regressions"], record["broken"] = regressions, broken
    record["passed"] = bool(noises) and not regressions and not broken


def status(record: Mapping[str, Any]) -> int:
    """Return the exit status: 0 passed, 1 a regression or a broken head, 2 where nothing could be compared."""
    if record["passed"]:
        return 0
    return 1 if record["regressions"] or record["broken"] else 2


# Telling.


def percent(value: float) -> str:
    """Write a relative change with its sign: 0.05 is +5.0 %."""
    return f"{100 * value:+.1f} %"


def _side(side: Mapping[str, Any]) -> str:
    commit = side.get("commit")
    return f"`{side['name']}`" + (f" ({commit[:12]})" if commit and not commit.startswith(side["name"]) else "")


def _outcome(case: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    if case["status"] != "ok":
        return "**broken**" if case["status"] == "head" else "left out"
    if case["verdict"] == "slower":
        return "**slower**" if name_of(dict(case)) in record["regressions"] else "not confirmed"
    return {"same": "", "faster": "faster"}[case["verdict"]]


def headline(record: Mapping[str, Any]) -> str:
    """Say it in a line."""
    count, slower, broken = len(record["rounds"][0]["cases"]), record["regressions"], record["broken"]
    if broken:
        return f"FAILED: HEAD does not work on {len(broken)} of {count} cases"
    if slower:
        return f"FAILED: HEAD is slower on {len(slower)} of {count} cases"
    if not record["passed"]:
        return "NOTHING COMPARED: no case could be measured on both sides"
    return f"passed: no slowdown beyond the thresholds on {count} cases"


def markdown(record: Mapping[str, Any]) -> str:
    """Write the summary for a pull request: the verdict, what changed, and the rest folded away."""
    lines = [f"### hotloop compare: {headline(record)}", ""]
    lines += [f"HEAD {_side(record['head'])} against BASE {_side(record['base'])}.", ""]
    if record["noise"] is not None:
        level = record["noise"]
        lines += [
            f"A/A noise (BASE against BASE, this run): median {100 * level['median']:.1f} %, largest "
            f"{100 * level['largest']:.1f} %. A case is slower if all of its interval is above the larger of "
            f"{100 * record['statistics']['floor']:g} % and its noise"
            + (", in a second round too." if record["confirmed"] else " (one round, which nothing confirms)."),
            "",
        ]
    cases = sorted(record["rounds"][0]["cases"], key=lambda case: -case.get("change", float("inf")))
    shown = [case for case in cases if _outcome(case, record)]
    same = [case for case in cases if not _outcome(case, record)]
    if shown:
        lines += [*_table(shown, record), ""]
    if same:
        lines += [f"<details><summary>{len(same)} cases without a proven change</summary>", ""]
        lines += [*_table(same, record), "", "</details>", ""]
    lines += [f"- {literal(remark)}" for remark in record["remarks"]]
    for case in cases:
        if case["status"] == "head":
            lines.append(f"- {literal(name_of(case))}: {literal(case['detail'])}")
    again = [case for extra in record["rounds"][1:] for case in extra["cases"] if case["status"] == "ok"]
    if again:
        told = (
            f"{literal(name_of(c))} {percent(c['change'])} ({percent(c['low'])} to {percent(c['high'])})" for c in again
        )
        lines.append(f"- second round: {'; '.join(told)}")
    return "\n".join(lines).rstrip() + "\n"


def _table(cases: Sequence[dict[str, Any]], record: Mapping[str, Any]) -> list[str]:
    lines = ["| case | time | interval | threshold | |", "|---|---:|---:|---:|---|"]
    for case in cases:
        figures = ["", "", ""]
        if case["status"] == "ok":
            interval = f"{percent(case['low'])} to {percent(case['high'])}"
            figures = [percent(case["change"]), interval, f"{100 * case['threshold']:.1f} %"]
        lines.append(f"| {literal(name_of(case))} | {' | '.join(figures)} | {_outcome(case, record)} |")
    return lines
