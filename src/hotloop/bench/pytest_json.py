"""What pytest-benchmark writes, as the sides of a comparison: every file is a process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import stats
from .compare import Record, conclude, new_record, write_judgements
from .sides import SideError

Benchmarks = dict[str, list[float]]  # seconds by full name


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
        found = list(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    else:
        found = [path]
    if not found:
        raise SideError(f"{name!r}: no file matches")

    def by_number(file: Path) -> list[tuple[int, str]]:
        digits = "".join(sign if sign.isdecimal() else " " for sign in file.name).split()
        return [(int(part), "") for part in digits] + [(0, str(file))]

    return sorted(found, key=by_number)


def read(path: Path) -> Benchmarks:
    """Read the raw samples of a file. Raises SideError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SideError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise SideError(f"{path} is not JSON") from None
    if not isinstance(record, dict) or "benchmarks" not in record or "machine_info" not in record:
        raise SideError(f"{path} was not written by pytest-benchmark (`pytest --benchmark-json=FILE`)")
    found: Benchmarks = {}
    for one in record["benchmarks"]:
        data = one.get("stats", {}).get("data")
        if not data:
            raise SideError(f"{path} has no raw samples: write it by --benchmark-json, or with --benchmark-save-data")
        found[one["fullname"]] = data
    return found


def _times(runs: Sequence[Benchmarks], name: str, blocks: int) -> stats.Array:
    """Return a time for every process; or for every block of its samples, where there are fewer than pairs needed."""
    if blocks == 1:
        return np.array([stats.process_time(run[name]) for run in runs])
    parts = [np.array_split(np.asarray(run[name], np.float64), blocks) for run in runs]
    return np.array([stats.process_time(part) for run in parts for part in run])


def _apart(times: stats.Array) -> stats.Array:
    """Return log ratios of neighbours that were measured on one side."""
    logs = np.log(times[: len(times) // 2 * 2]).reshape(-1, 2)
    return np.asarray(logs[:, 1] - logs[:, 0])


def run(base: str, head: str, command: Sequence[str] = ()) -> Record:
    """Compare the k-th file of BASE with the k-th of HEAD, benchmark by benchmark. Raises SideError."""
    first, second = ([read(path) for path in files(name)] for name in (base, head))
    if len(first) != len(second):
        raise SideError(f"files are compared in pairs, and there are {len(first)} and {len(second)}")
    names = [name for name in first[0] if all(name in one for one in (*first, *second))]
    if not names:
        raise SideError("no benchmark is in all files")
    record = new_record("pytest-benchmark", base, head, command)
    record["base"]["files"], record["head"]["files"] = ([str(path) for path in files(name)] for name in (base, head))
    everything: Mapping[str, None] = dict.fromkeys(name for one in (*first, *second) for name in one)
    if left := [name for name in everything if name not in names]:
        record["remarks"].append(f"left out, since not in all files: {', '.join(left)}")
    pairs = len(first)
    blocks = 1 if pairs >= stats.AT_LEAST else -(-stats.AT_LEAST // pairs)
    if blocks > 1:
        record["remarks"].append(
            f"only {pairs} process{'es' if pairs > 1 else ''} a side, so samples stand for processes: what differs "
            f"from process to process is not seen, or passes for a change. {stats.AT_LEAST} files a side, measured in "
            "turn, are what a gate needs"
        )
    cases, effects, noises = [], [], []
    for name in names:
        case: dict[str, Any] = {"name": name, "status": "ok", "detail": "", "samples": {}}
        case["samples"] = {"base": [one[name] for one in first], "head": [one[name] for one in second]}
        if min(len(data) for side in case["samples"].values() for data in side) < blocks:
            record["remarks"].append(f"{name}: left out, too few samples")
            continue
        ours, theirs = _times(second, name, blocks), _times(first, name, blocks)
        if min(ours.min(), theirs.min()) <= 0:
            record["remarks"].append(f"{name}: left out, a time of zero")
            continue
        cases.append(case)
        effects.append(np.log(ours) - np.log(theirs))
        noises.append(np.concatenate([_apart(theirs), _apart(ours)]))
    if not cases:
        raise SideError("; ".join(record["remarks"]))
    write_judgements(cases, effects, noises)
    record["rounds"].append({"plan": {"pairs": pairs, "blocks": blocks}, "cases": cases})
    conclude(record)
    return record
