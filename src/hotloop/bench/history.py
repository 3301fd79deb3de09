"""Runs of `hotloop bench` kept over time: a line of JSON for every problem, number of threads and commit.

A line holds the raw samples of ourselves and of every reference that was measured in the same run, so that any figure
can be computed anew. A machine is a series of its own: its fingerprint is the processor, how many there are, the
instruction set in use and the system.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import results, stats
from .files import DAMAGE, FileError, check_times, load, moment, parse, read_text, told
from .peers import OURS
from .problems import Problem

SCHEMA_VERSION = 1
Line = dict[str, Any]


class HistoryError(FileError):
    """A file is not what it should be; the message is for the user."""


def describe_commit() -> dict[str, Any] | None:
    """Return hash and date of the commit checked out around the current folder, if that is a clone of hotloop."""
    try:
        show = ["git", "log", "-1", "--format=%H %cI"]
        top, found, changed = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            for command in (
                ["git", "rev-parse", "--show-toplevel"],
                show,
                ["git", "status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    if not Path(top, "src", "hotloop", "__init__.py").exists():
        return None
    commit, _, date = found.partition(" ")
    return {"id": commit, "date": date, "changed": bool(changed)}


def machine_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a series: the machine, with its fingerprint as `id`."""
    environment = record["environment"]
    ours = environment["hotloop"]
    facts = {
        "processor": environment["lscpu"].get("Model name") or ours.get("processor", ""),
        "flags": hashlib.sha256(environment["lscpu"].get("Flags", "").encode()).hexdigest()[:8],
        "processors": results.processors(record),
        "backend": ours["backend"],
        "variant": ours["variant"],
        "system": environment["platform"].partition("-")[0],
    }
    return {"id": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8], **facts}


def lines_of(record: Mapping[str, Any], commit: str | None = None) -> list[Line]:
    """Make the lines of a run. Raises HistoryError."""
    try:
        about = {"id": commit, "date": record["date"], "changed": False} if commit else record.get("commit")
        machine = machine_of(record)
        if about is None:
            raise HistoryError("does not say of what commit it is, as a run in a clone does: name it by --commit")
        head = {
            "schema_version": SCHEMA_VERSION,
            "commit": about,
            "date": record["date"],
            "machine": machine,
            "versions": record["environment"]["versions"],
            "load": record["environment"]["load"],
        }
        lines = [line for case in record["cases"] for line in _case_lines(head, case)]
        for line in lines:
            check(line)
    except DAMAGE as error:
        raise HistoryError(f"is no run of hotloop bench, or one that was damaged ({told(error)})") from None
    return [_plain(line) for line in lines]


def read_run(path: Path, commit: str | None = None) -> list[Line]:
    """Make the lines of a run from its file. Raises FileError."""
    record = load(path)
    try:
        return lines_of(record, commit)
    except HistoryError as error:
        raise HistoryError(f"{path} {error}") from None


def _case_lines(head: Line, case: Mapping[str, Any]) -> Iterable[Line]:
    for us in results.timed(case):
        if us["name"] != OURS:
            continue
        others = [one for one in results.timed(case) if one["name"] != OURS and one["threads"] == us["threads"]]
        yield {
            **head,
            "problem": case["problem"],
            "threads": us["threads"],
            "seconds": results.seconds(us),
            "samples": us["rounds"],
            "references": {
                one["name"]: {"ratio": list(stats.speedup(us["rounds"], one["rounds"])), "samples": one["rounds"]}
                for one in others
            },
        }


def check(line: Line) -> None:
    """Raise one of DAMAGE unless a line has what trends are made of: one bad line would spoil a file for good."""
    version = line["schema_version"]
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(f"schema_version has to be an integer from 1 to {SCHEMA_VERSION}, got {version!r}")
    for name in ("commit", "machine"):
        if not isinstance(line[name]["id"], str) or not line[name]["id"]:
            raise ValueError(f"the id of {name} has to be text, got {line[name]['id']!r}")
    moment(line["commit"]["date"]), moment(line["date"])
    if not isinstance(line["problem"]["name"], str):
        raise ValueError(f"the name of problem has to be text, got {line['problem']['name']!r}")
    if isinstance(line["threads"], bool) or not isinstance(line["threads"], int) or line["threads"] < 1:
        raise ValueError(f"threads has to be an integer >= 1, got {line['threads']!r}")
    check_times([line["seconds"]], "seconds")
    check_times((time for samples in line["samples"] for time in samples), "samples")
    for name, reference in line["references"].items():
        check_times((time for samples in reference["samples"] for time in samples), f"samples of {name}")
        check_times(reference["ratio"][:1], f"ratio of {name}")
    machine = line["machine"]
    tell([_trend(machine["id"], line["threads"], [line])], {machine["id"]: machine}).encode()  # all the rest


def _identity(line: Line) -> tuple[Any, ...]:
    return line["machine"]["id"], line["problem"]["name"], line["threads"], line["commit"]["id"], line["date"]


def read(path: Path) -> list[Line]:
    """Read the lines of a file. Raises FileError."""
    content = read_text(path)
    lines: list[Line] = []
    for number, text in enumerate(content.splitlines(), 1):
        try:
            line = parse(text)
            check(line)
        except DAMAGE as error:
            raise HistoryError(f"{path}, line {number}, is no line of a history ({told(error)})") from None
        lines.append(line)
    return lines


def add(path: Path, lines: Sequence[Line]) -> int:
    """Append lines that are not there yet, and return how many. Raises FileError; then nothing is written."""
    there = {_identity(line) for line in read(path)} if path.exists() else set()
    new = [line for line in lines if _identity(line) not in there]
    text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in new)
    try:
        if there and not path.read_bytes().endswith(b"\n"):
            text = "\n" + text  # an editor may have taken the last line's end
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror}") from None
    return len(new)


def _plain(value: Any) -> Any:
    """JSON has no NaN: the interval of a single round has none to show, nor has a load that is not known."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Step:
    """A change of level in a series.

    `references` is how the same runs' references changed there, None where there is none in all runs: where they
    changed alike it was the machine.
    """

    commit: str
    factor: float
    references: float | None

    @property
    def is_ours(self) -> bool:
        """Whether the references do not explain it: not half of it, or nothing is known."""
        if self.references is None:
            return True
        return abs(np.log(self.references)) < abs(np.log(self.factor)) / 2 or (self.references > 1) != (self.factor > 1)


@dataclass(frozen=True)
class Trend:
    """One series: a problem and number of threads on one machine."""

    machine: str
    problem: Problem
    threads: int
    seconds: tuple[float, ...]
    commits: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def total(self) -> float:
        """The last time over the first, from medians of up to three at each end, which share no run."""
        count = max(1, min(3, len(self.seconds) // 2))
        return float(np.median(self.seconds[-count:]) / np.median(self.seconds[:count]))


def trends(lines: Sequence[Line]) -> list[Trend]:
    """Sort lines into series, by the commit's date, and find the changes of each."""
    series: dict[tuple[str, str, int], list[Line]] = {}
    # As moments: git writes a commit's date in the zone of whoever made it.
    for line in sorted(lines, key=lambda line: (moment(line["commit"]["date"]), moment(line["date"]))):
        series.setdefault((line["machine"]["id"], line["problem"]["name"], line["threads"]), []).append(line)
    return [_trend(machine, threads, one) for (machine, _, threads), one in sorted(series.items())]


def _trend(machine: str, threads: int, lines: Sequence[Line]) -> Trend:
    seconds = [line["seconds"] for line in lines]
    common = set.intersection(*(set(line["references"]) for line in lines))
    # A reference's own time: ours times how many times faster we are.
    others = [
        float(np.exp(np.mean([np.log(line["seconds"] * line["references"][name]["ratio"][0]) for name in common])))
        for line in lines
        if common
    ]
    found = stats.changes(seconds)
    ends = [*(change.index for change in found), len(lines)]
    steps = []
    for number, change in enumerate(found):
        start = found[number - 1].index if number else 0
        moved = None
        if others:
            before, after = others[start : change.index], others[change.index : ends[number + 1]]
            moved = float(np.median(after) / np.median(before))
        steps.append(Step(lines[change.index]["commit"]["id"], change.factor, moved))
    commits = tuple(line["commit"]["id"] for line in lines)
    return Trend(machine, Problem.from_dict(lines[0]["problem"]), threads, tuple(seconds), commits, tuple(steps))


BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw the last values as blocks, over a range of at least 10 %: noise is not to look like mountains."""
    logs = np.log(np.asarray(values[-width:], np.float64))
    low = float(logs.min())
    span = max(float(logs.max()) - low, 0.1)
    return "".join(BARS[min(len(BARS) - 1, int((value - low) / span * len(BARS)))] for value in logs)


def tell(found: Sequence[Trend], machines: Mapping[str, Mapping[str, Any]]) -> str:
    """Write trends for people, a machine after the other."""
    lines: list[str] = []
    machine = ""
    for trend in found:
        if trend.machine != machine:
            machine = trend.machine
            about = machines[machine]
            lines += ["" for _ in lines[:1]]
            lines.append(
                f"machine {machine}: {about['processor']}, {about['processors']} processors, {about['variant']}"
            )
        name = trend.problem.name + (f" ({trend.threads} threads)" if trend.threads > 1 else "")
        count = len(trend.seconds)
        text = f"  {name:<48} {results.format_seconds(trend.seconds[-1]):>8}  {sparkline(trend.seconds)}  "
        lines.append(text + (f"{100 * (trend.total - 1):+.1f} % in {count} runs" if count > 1 else "one run"))
        for step in trend.steps:
            text = f"    {100 * (step.factor - 1):+.1f} % from {step.commit[:12]} on"
            if step.references is not None:
                text += f"; the references {100 * (step.references - 1):+.1f} %"
            lines.append(text + ("" if step.is_ours else ": the machine, or its libraries"))
    return "\n".join(lines)
