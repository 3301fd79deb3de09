"""What pytest-benchmark writes, as the sides of a comparison: every file is a process."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import stats
from .compare import Record, conclude, new_record, write_judgements
from .files import DAMAGE, check_times, load, told
from .pairs import name_of
from .sides import SideError

Sides = tuple[str, str]  # BASE and HEAD as the user wrote them


@dataclass(frozen=True)
class Run:
    """One file.

    Attributes
    ----------
    path : Path
        Where it is.
    machine : str
        System and processor. Times of two of them say nothing about two sides.
    node : str
        The computer's name.
    python : str
        Implementation and version.
    benchmarks : dict[str, list[float]]
        Seconds by full name, a number a round.
    """

    path: Path
    machine: str
    node: str
    python: str
    benchmarks: dict[str, list[float]]


def is_json(name: str) -> bool:
    """Whether that stands for files of JSON: one, a folder that has some, or a pattern."""
    path = Path(name)
    return path.suffix == ".json" or (path.is_dir() and any(path.glob("*.json")))


def files(name: str) -> list[Path]:
    """List the files by name: run-2 comes before run-10."""
    path = Path(name)
    if path.is_dir():
        found = list(path.glob("*.json"))
    elif any(sign in name for sign in "*?["):
        try:
            found = list(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        except (ValueError, NotImplementedError) as error:
            raise SideError(f"{name!r} is no pattern: {error}") from None
    else:
        found = [path]
    if not found:
        raise SideError(f"{name!r}: no file matches")

    def by_number(file: Path) -> list[tuple[int, str]]:
        digits = "".join(sign if sign.isdecimal() else " " for sign in file.name).split()
        return [(int(part), "") for part in digits] + [(0, str(file))]

    return sorted(found, key=by_number)


def read(path: Path) -> Run:
    """Read the raw samples of a file. Raises FileError or SideError."""
    record = load(path)
    if not isinstance(record, dict) or not {"benchmarks", "machine_info"} <= record.keys():
        raise SideError(f"{path} was not written by pytest-benchmark (`pytest --benchmark-json=FILE`)")
    try:
        return _run_of(path, record)
    except DAMAGE as error:
        raise SideError(f"{path} was not written by pytest-benchmark, or was damaged ({told(error)})") from None


def _run_of(path: Path, record: Mapping[str, Any]) -> Run:
    found: dict[str, list[float]] = {}
    for one in record["benchmarks"]:
        data = one.get("stats", {}).get("data")
        if not data:
            raise SideError(
                f"{path} has no raw samples of {one.get('fullname', 'a benchmark')}: write it by --benchmark-json, or "
                "with --benchmark-save-data"
            )
        name = one["fullname"].replace("\n", " ")
        name.encode()  # what is no text cannot be printed later
        try:
            check_times(data, name)
        except ValueError as error:
            # A time that is none compares as neither slower nor faster: the gate would pass.
            raise SideError(f"{path}: {error}") from None
        found[name] = data
    facts: dict[str, Any] = record["machine_info"]
    cpu = facts.get("cpu") or {}
    machine = " ".join(filter(None, (facts.get("system"), facts.get("machine"), cpu.get("brand_raw"))))
    python = " ".join(filter(None, (facts.get("python_implementation"), facts.get("python_version"))))
    return Run(path, machine, facts.get("node") or "", python, found)


def read_sides(sides: Sides) -> tuple[list[Run], list[Run]]:
    """Read the files of both sides, which have to be as many and of one machine. Raises FileError or SideError."""
    base, head = ([read(path) for path in files(name)] for name in sides)
    if len(base) != len(head):
        raise SideError(f"files are compared in pairs, and {sides[0]} is {len(base)} and {sides[1]} {len(head)}")
    first = base[0]
    for run in (*base, *head):
        if run.machine != first.machine:
            raise SideError(
                f"{first.path} was measured on {first.machine or 'an unknown machine'} and {run.path} on "
                f"{run.machine or 'an unknown machine'}; both sides have to be measured on one machine, in turn"
            )
    return base, head


def _times(runs: Sequence[Run], name: str, blocks: int) -> stats.Array:
    """Return a time for every process; or for every block of its samples, where there are fewer than pairs needed."""
    if blocks == 1:
        return np.array([stats.process_time(run.benchmarks[name]) for run in runs])
    parts = [np.array_split(np.asarray(run.benchmarks[name], np.float64), blocks) for run in runs]
    return np.array([stats.process_time(part) for run in parts for part in run])


def _apart(times: stats.Array) -> stats.Array:
    """Return log ratios of neighbours that were measured on one side."""
    logs = np.log(times[: len(times) // 2 * 2]).reshape(-1, 2)
    return np.asarray(logs[:, 1] - logs[:, 0])


def judge_files(base: Sequence[Run], head: Sequence[Run], names: Collection[str], remarks: list[str]) -> dict[str, Any]:
    """Judge these benchmarks, the k-th file of BASE with the k-th of HEAD, as a round. Raises SideError."""
    pairs = len(base)
    blocks = 1 if pairs >= stats.AT_LEAST else -(-stats.AT_LEAST // pairs)
    if blocks > 1:
        remarks.append(
            f"only {pairs} process{'es' if pairs > 1 else ''} a side, so samples stand for processes: what differs "
            f"from process to process is not seen, or passes for a change. {stats.AT_LEAST} files a side, measured in "
            "turn, are what a gate needs"
        )
    cases, effects, noises, left = [], [], [], []
    for name in names:
        samples = {"base": [run.benchmarks[name] for run in base], "head": [run.benchmarks[name] for run in head]}
        if (least := min(len(data) for side in samples.values() for data in side)) < blocks:
            left.append(f"{name}: left out, too few samples ({least} in a file, and {blocks} are needed)")
            continue
        ours, theirs = _times(head, name, blocks), _times(base, name, blocks)
        cases.append({"name": name, "status": "ok", "detail": "", "samples": samples})
        effects.append(np.log(ours) - np.log(theirs))
        noises.append(np.concatenate([_apart(theirs), _apart(ours)]))
    if not cases:
        raise SideError("; ".join(left))
    remarks += left
    write_judgements(cases, effects, noises)
    return {"plan": {"pairs": pairs, "blocks": blocks}, "cases": cases}


def run(base: str, head: str, command: Sequence[str] = (), confirm: Sides | None = None) -> Record:
    """Compare files benchmark by benchmark, and hold what seems slower to a second round of files.

    Raises FileError or SideError.
    """
    first, second = read_sides((base, head))
    again = None if confirm is None else read_sides(confirm)
    for one, other in ((first, second), *([again] if again else [])):
        if both := {run.path.resolve() for run in one} & {run.path.resolve() for run in other}:
            raise SideError(f"{min(both)} is on both sides, and a file says nothing against itself")
    known = {run.path.resolve() for run in (*first, *second)}
    for run in () if again is None else (*again[0], *again[1]):
        if run.path.resolve() in known:
            raise SideError(f"{run.path} is in both rounds, and what is measured once cannot confirm itself")
        if run.machine != first[0].machine:
            raise SideError(f"{first[0].path} was measured on {first[0].machine} and {run.path} on {run.machine}")
    names = [name for name in first[0].benchmarks if all(name in run.benchmarks for run in (*first, *second))]
    if not names:
        raise SideError("no benchmark is in all files")
    record = new_record("pytest-benchmark", base, head, command)
    record["base"]["files"], record["head"]["files"] = ([str(run.path) for run in side] for side in (first, second))
    record["confirmed"] = again is not None
    remarks: list[str] = record["remarks"]
    everything: Mapping[str, None] = dict.fromkeys(name for run in (*first, *second) for name in run.benchmarks)
    if left := [name for name in everything if name not in names]:
        remarks.append(f"left out, since not in all files: {', '.join(left)}")
    for what in ("node", "python"):
        values = sorted({getattr(run, what) for run in (*first, *second)})
        if len(values) > 1:
            remarks.append(f"files differ in {what}: {', '.join(values)}")
    record["rounds"].append(judge_files(first, second, names, remarks))
    slower = [name_of(case) for case in record["rounds"][0]["cases"] if case["verdict"] == "slower"]
    if again is not None and slower:
        if missing := [n for n in slower if not all(n in run.benchmarks for run in (*again[0], *again[1]))]:
            raise SideError(f"to be confirmed, and not in all files of the second round: {', '.join(missing)}")
        of_second: list[str] = []
        record["rounds"].append(judge_files(*again, slower, of_second))
        judged = {name_of(case) for case in record["rounds"][1]["cases"]}
        if missing := [name for name in slower if name not in judged]:
            raise SideError(f"the second round cannot confirm {', '.join(missing)}: {'; '.join(of_second)}")
        remarks += [f"second round: {remark}" for remark in of_second]
    elif slower:
        remarks.append("nothing confirms this: measure once more into other files, and give them with --confirm")
    conclude(record)
    return record
