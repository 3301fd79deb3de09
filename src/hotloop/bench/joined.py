"""Runs read from files and put together for one report: those of a machine are joined, different machines kept apart.

Samples are never pooled over runs. Rounds of one run share their processes, and with them where memory lies and what
else ran: pooled, they would look like more evidence than they are, and runs may be of different versions. Of a problem
that several runs have, the newest run's figures count, whatever they are, and all of them are shown side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import results
from .files import DAMAGE, FileError, check_times, load, moment, told
from .history import machine_of
from .run import SCHEMA_VERSION

Record = Mapping[str, Any]


class RunError(FileError):
    """A file is no run that can be reported; the message is for the user."""


@dataclass(frozen=True)
class Repeat:
    """A problem that several runs have: our best time and our ratio to the best peer in each, by the run's number."""

    name: str
    seconds: Mapping[int, float]
    ratios: Mapping[int, str]

    @property
    def spread(self) -> float:
        """The slowest run's time over the fastest one's, less one."""
        return max(self.seconds.values()) / min(self.seconds.values()) - 1


@dataclass(frozen=True)
class Part:
    """All that is known of one machine.

    Attributes
    ----------
    machine : dict
        As `history.machine_of` tells it.
    runs : tuple of records
        Oldest first.
    record : record
        The runs as one: of every problem, and of latencies and the cost of attention, the newest.
    gates : tuple of dict
        Records of `hotloop compare` of the same machine: their A/A noise.
    """

    machine: Mapping[str, Any]
    runs: tuple[Record, ...]
    record: Record
    gates: tuple[Record, ...] = ()

    @property
    def repeats(self) -> list[Repeat]:
        """The problems that were measured more than once."""
        found: dict[str, list[tuple[int, results.Case]]] = {}
        for number, run in enumerate(self.runs, 1):
            for case in run["cases"]:
                if results.ours(case) is not None:
                    found.setdefault(case["problem"]["name"], []).append((number, case))
        return [_repeat(name, cases) for name, cases in found.items() if len(cases) > 1]

    @property
    def differences(self) -> list[str]:
        """What differs between the runs: commits and versions."""
        lines = []
        commits = dict.fromkeys((run.get("commit") or {}).get("id", "unknown") for run in self.runs)
        if len(commits) > 1:
            lines.append("commits: " + ", ".join(name[:12] for name in commits))
        versions: dict[tuple[str, str], dict[str, None]] = {}
        for run in self.runs:
            for candidate, used in run["environment"]["versions"].items():
                for name, version in used.items():
                    versions.setdefault((candidate, name), {})[version] = None
        found = {name: ", ".join(used) for (_, name), used in versions.items() if len(used) > 1}
        return lines + [f"{name}: {used}" for name, used in found.items()]


def _repeat(name: str, cases: Sequence[tuple[int, results.Case]]) -> Repeat:
    seconds, ratios = {}, {}
    for number, case in cases:
        us = results.ours(case)
        assert us is not None
        seconds[number] = results.seconds(us)
        compared = results.compare([case])
        ratios[number] = results.format_interval(compared[0].ratio if compared else None)
    return Repeat(name, seconds, ratios)


def read(path: Path) -> Record:
    """Read a record of `hotloop bench`, or of `hotloop compare --json`. Raises FileError."""
    record = load(path)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version is None:
        raise RunError(f"{path} is no run of hotloop bench: it has no schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise RunError(f"{path} is no run of hotloop bench: schema_version has to be an integer >= 1, got {version!r}")
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{path} has schema_version {version}, and this hotloop reads up to {SCHEMA_VERSION}: a newer one wrote it"
        )
    try:
        if is_gate(record):
            machine(record), record["noise"]
        else:
            machine(record)
            _check_samples(record)
            results.remarks(record), results.summary(record), results.busy(record)
            if not record["cases"] and not record.get("latency") and not record.get("attention"):
                raise RunError(f"{path} has no cases: nothing was measured")
        moment(record["date"])
    except DAMAGE as error:
        raise RunError(f"{path} is no run of hotloop bench, or one that was damaged ({told(error)})") from None
    return dict(record)


def _check_samples(record: Record) -> None:
    """Raise one of DAMAGE where a time is none: medians would hide it, or take it for a figure."""
    for case in record["cases"]:
        for candidate in case["candidates"]:
            for samples in candidate["rounds"]:
                check_times(samples, f"{candidate['name']}, {case['problem']['name']}")
    for step in (record.get("attention") or {}).get("steps", ()):
        for samples in step["rounds"]:
            check_times(samples, f"{step['name']}, a step of attention")


def is_gate(record: Record) -> bool:
    """Whether this is a record of `hotloop compare`."""
    return "kind" in record and "rounds" in record


def machine(record: Record) -> dict[str, Any]:
    """Return what machine a record is of, whichever of the two commands made it."""
    if not is_gate(record):
        return machine_of(record)
    if record["kind"] != "hotloop":
        raise KeyError("of benchmarks of another project")
    return machine_of({"environment": {**record["environment"], "hotloop": record["base"]["about"]["info"]}})


def join(records: Iterable[Record]) -> list[Part]:
    """Sort records by machine, in the order in which these come first. Raises RunError."""
    runs: dict[str, list[Record]] = {}
    gates: dict[str, list[Record]] = {}
    machines: dict[str, dict[str, Any]] = {}
    for record in records:
        found = machine(record)
        machines[found["id"]] = found
        (gates if is_gate(record) else runs).setdefault(found["id"], []).append(record)
    for name in gates:
        if name not in runs:
            raise RunError(
                f"a record of hotloop compare is of machine {name} ({machines[name]['processor']}, "
                f"{machines[name]['variant']}), and no run of hotloop bench is: its noise belongs to none of them"
            )
    return [
        _part(machines[name], sorted(members, key=lambda run: moment(run["date"])), gates.get(name, []))
        for name, members in runs.items()
    ]


def _part(machine: Mapping[str, Any], runs: Sequence[Record], gates: Sequence[Record]) -> Part:
    if len(runs) == 1:
        return Part(machine, tuple(runs), runs[0], tuple(gates))
    newest, missing = runs[-1], set[str]()
    cases: dict[str, results.Case] = {}
    versions: dict[str, Any] = {}
    for run in runs:
        cases |= {case["problem"]["name"]: case for case in run["cases"]}
        versions |= run["environment"]["versions"]
        missing |= set(run["environment"]["not_installed"])
    environment = {
        **newest["environment"],
        "versions": versions,
        "not_installed": sorted(missing - set(versions)),
        "load": max(run["environment"]["load"] for run in runs),
    }
    latency = {one["problem"]["name"]: one for run in runs for one in run.get("latency") or ()}
    record = {
        **newest,
        "environment": environment,
        "cases": list(cases.values()),
        "interrupted": any(run.get("interrupted") for run in runs),
        "latency": list(latency.values()),
        "attention": next((run["attention"] for run in reversed(runs) if run.get("attention")), None),
    }
    return Part(machine, tuple(runs), record, tuple(gates))


def shared_problems(parts: Sequence[Part]) -> list[str]:
    """List the problems that were measured on several machines."""
    counts: dict[str, int] = {}
    for part in parts:
        for case in part.record["cases"]:
            counts[case["problem"]["name"]] = counts.get(case["problem"]["name"], 0) + 1
    return [name for name, count in counts.items() if count > 1]


def between_runs(part: Part) -> tuple[float, float] | None:
    """Return the median and the largest spread of our times over repeated runs; None where nothing was repeated."""
    spreads = [one.spread for one in part.repeats]
    return (float(np.median(spreads)), max(spreads)) if spreads else None
