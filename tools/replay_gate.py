"""Try the gate's statistics on stored runs of one revision against itself, with and without a planted slowdown.

    hotloop compare REV REV --pairs 60 --json run.json             gathers samples; some minutes
    python tools/replay_gate.py pack samples.npz NAME=run.json ... one file of them; a NAME is a state of the machine
    python tools/replay_gate.py samples.npz [RUNS]                 replays

A replayed run takes as many pairs as a real one, one after the other from a random place, so that the machine's phases
are as long as they were. In each pair the three processes, which are equal, get the three roles in a random order. The
second round takes the pairs that follow.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotloop.bench import stats
from hotloop.bench.pairs import ROLES, Plan, name_of

ROOT = Path(__file__).parents[1]
DATA = ROOT / "benchmarks" / "measured" / "2026-11-21-zen5-same-revision.npz"


def pack(out: Path, runs: list[str]) -> None:
    """Write samples [cases, pairs, roles, samples] and names of the cases, by state of the machine."""
    states: dict[str, list[Any]] = {}
    names: list[str] = []
    for run in runs:
        state, _, path = run.partition("=")
        cases = json.loads(Path(path).read_text(encoding="utf-8"))["rounds"][0]["cases"]
        names = [name_of(case) for case in cases]
        states.setdefault(state, []).append(
            np.array([np.stack([case["samples"][role] for role in ROLES], axis=1) for case in cases], np.float32)
        )
    arrays: dict[str, Any] = {state: np.concatenate(parts, axis=1) for state, parts in states.items()}
    np.savez_compressed(out, cases=np.array(names), **arrays)


def load(path: Path = DATA) -> dict[str, stats.Array]:
    """Read log times [cases, pairs, roles] by state."""
    with np.load(path) as file:
        return {key: np.log(stats.process_time(file[key])) for key in file.files if key != "cases"}


def _round(logs: stats.Array, start: Any, pairs: int, rng: Any) -> tuple[stats.Array, stats.Array]:
    """Draw rounds [runs, cases, pairs]: log ratios of the sides, and of equal sides."""
    runs = len(start)
    rows = (start[:, None] + np.arange(pairs)) % logs.shape[1]
    roles = rng.permuted(np.broadcast_to(np.arange(3), (runs, pairs, 3)), axis=-1)
    base, twin, head = (np.moveaxis(logs[:, rows, roles[..., role]], 0, 1) for role in range(3))
    return head - (base + twin) / 2, twin - base


def _in_parts(function: Any, values: stats.Array) -> stats.Array:
    parts = [function(values[at : at + 40]) for at in range(0, len(values), 40)]
    return np.concatenate(parts) if parts else np.zeros(0)


def slower(effects: stats.Array, noises: stats.Array, count: Any) -> Any:
    """Return what `stats.judge` calls slower, of [..., pairs]; `count` is the number of cases judged together.

    A case whose median is below the floor has its lower end there, too: most need no bootstrap.
    """
    found = np.median(effects, axis=-1) > np.log1p(stats.FLOOR)
    share = np.broadcast_to(stats.FAMILY / np.asarray(count), found.shape)[found]
    at = share * (stats.RESAMPLES - 1)
    medians = _in_parts(
        lambda values: stats.bootstrap_medians(values)[:, : int(np.ceil(at.max(initial=0))) + 2], effects[found]
    )
    if len(medians):
        whole = at.astype(int)
        rows = np.arange(len(at))
        low = medians[rows, whole] + (at - whole) * (medians[rows, whole + 1] - medians[rows, whole])
        found[found] = low > np.log1p(np.maximum(stats.FLOOR, np.expm1(_in_parts(stats.noise, noises[found]))))
    return found


@dataclass(frozen=True)
class Replay:
    """What a number of replayed runs gave.

    Attributes
    ----------
    alarms : float
        Share of runs of equal sides that failed.
    first : float
        Share of those that failed in the first round.
    caught : dict
        By planted slowdown, the share of runs that failed on that case, among those whose A/A noise of it was <= 2 %.
    quiet : float
        The share of those runs.
    caught_all : dict
        By planted slowdown, among all runs.
    """

    alarms: float
    first: float
    caught: dict[float, float]
    quiet: float
    caught_all: dict[float, float]


def replay(
    logs: stats.Array, runs: int, pairs: int = Plan().pairs, seed: int = 0, planted: Any = (0.05, 0.1)
) -> Replay:
    """Replay that many runs of one state."""
    rng = np.random.default_rng(seed)
    cases = len(logs)
    start = rng.integers(0, logs.shape[1], runs)
    alarms = first = 0
    caught = {slowdown: np.zeros(runs, bool) for slowdown in planted}
    quiet = np.zeros(runs, bool)
    for at in range(0, runs, 500):
        begin = start[at : at + 500]
        effects, noises = _round(logs, begin, pairs, rng)
        again, noises_again = _round(logs, begin + pairs, pairs, rng)
        one = slower(effects, noises, cases)
        count = one.sum(axis=1)
        two = np.zeros_like(one)
        two[one] = slower(again[one], noises_again[one], np.broadcast_to(count[:, None], one.shape)[one])
        first += int(one.any(axis=1).sum())
        alarms += int(two.any(axis=1).sum())
        rows, case = np.arange(len(begin)), rng.integers(0, cases, len(begin))
        quiet[at : at + 500] = _in_parts(stats.noise, noises[rows, case]) <= np.log1p(0.02)
        for slowdown in planted:
            shift = np.log1p(slowdown)
            seen = slower(effects[rows, case] + shift, noises[rows, case], cases)
            others = count - one[rows, case] + 1
            seen &= slower(again[rows, case] + shift, noises_again[rows, case], others)
            caught[slowdown][at : at + 500] = seen
    return Replay(
        alarms / runs,
        first / runs,
        {slowdown: float(seen[quiet].mean()) if quiet.any() else float("nan") for slowdown, seen in caught.items()},
        float(quiet.mean()),
        {slowdown: float(seen.mean()) for slowdown, seen in caught.items()},
    )


def main(arguments: list[str]) -> None:
    """Pack or replay."""
    if arguments[:1] == ["pack"]:
        pack(Path(arguments[1]), arguments[2:])
        return
    runs = int(arguments[1]) if len(arguments) > 1 else 10_000
    print("state, pairs: false alarms (first round) | 5 % and 10 % caught where noise <= 2 % (share) | caught of all")
    for state, logs in load(Path(arguments[0]) if arguments else DATA).items():
        found = replay(logs, runs)
        quiet, everything = (
            ", ".join(f"{share:.1%}" for share in shares.values()) for shares in (found.caught, found.caught_all)
        )
        print(
            f"{state}, {logs.shape[1]}: {found.alarms:.2%} ({found.first:.2%}) | {quiet} ({found.quiet:.0%}) | "
            f"{everything}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
