"""Count the instructions of a fixed set of calls under valgrind's callgrind, and hold them against a baseline.

    python tools/count_gate.py check               is any call dearer than benchmarks/counts.json has it?
    python tools/count_gate.py check --base main   where that file does not know this compiler: than in that revision?
    python tools/count_gate.py check --plant 3     as if every call took 3 % more: has to fail
    python tools/count_gate.py update              write the counts into benchmarks/counts.json, and say what changed

Each check proves itself first: a call counted twice has one count, and 3 % more are seen.

The calls are those of tests/native/counts.cpp: one thread, AVX2, no Python. Their counts are the same on every run with
the same compiler, flags and C library; a baseline is kept for each of these. A call that takes more than 2 % more
fails, and so does a mean (geometric, over all calls) of more than 1 %. docs/counting.md says what counts do not see.

Needs Linux on x86-64 with AVX2, glibc, valgrind, CMake and a C++ compiler (which one: CXX). The first build takes a
minute; `--build` says where it is kept.

Exit status: 0 if it passed, 1 if it failed or the run itself went wrong, 2 for wrong arguments, 3 if nothing could be
judged here: no valgrind, no AVX2, no baseline. A 3 is no pass, and whoever calls this has to say so loudly.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "benchmarks" / "counts.json"
MOST_OF_A_CASE, MOST_IN_THE_MEAN = 1.02, 1.01
COUNTED = "hotloop_counted"  # the function of tests/native/counts.cpp
PLANTED = 3  # percent, by which every check proves that it sees
PASSED, FAILED, SKIPPED = 0, 1, 3


class Failure(Exception):
    """The run itself went wrong."""


class Skipped(Exception):
    """Nothing can be judged here."""


@dataclass(frozen=True)
class Counts:
    """Instructions of every case, and what they depend on."""

    compiler: str
    libc: str
    flags: dict[str, str]  # by source
    counts: dict[str, int]
    valgrind: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What a baseline is chosen by. Flags are judged too: a change of CMakeLists.txt is a change like any other."""
        return self.compiler, self.libc

    def __str__(self) -> str:
        return f"{self.compiler}, {self.libc}, {self.flags.get('isa_avx2.cpp', 'unknown flags')}"


@dataclass
class Judgement:
    """What a set of counts is, held against another."""

    ratios: dict[str, float]
    mean: float = 1.0
    dearer: list[str] = field(default_factory=list)
    cheaper: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # cases without a baseline
    gone: list[str] = field(default_factory=list)  # those of the baseline that there are no more

    @property
    def mean_is_dearer(self) -> bool:
        """Whether all cases together have become too dear."""
        return self.mean > MOST_IN_THE_MEAN

    @property
    def passed(self) -> bool:
        """Whether nothing is too dear, and every case has a baseline."""
        return not (self.dearer or self.mean_is_dearer or self.unknown or self.gone)


def instructions(text: str) -> int:
    """The instructions in a file that callgrind wrote."""
    events = re.search(r"^events: *(.*)$", text, re.MULTILINE)
    totals = re.search(r"^totals: *(.*)$", text, re.MULTILINE) or re.search(r"^summary: *(.*)$", text, re.MULTILINE)
    if events is None or totals is None or "Ir" not in events[1].split():
        raise Failure("callgrind's file has no count of instructions")
    values = totals[1].split()
    where = events[1].split().index("Ir")
    count = int(values[where]) if where < len(values) else 0  # callgrind leaves out zeros at the end
    if count == 0:
        raise Failure(f"callgrind counted nothing: is {COUNTED} there?")
    return count


def judge(baseline: Mapping[str, int], counts: Mapping[str, int]) -> Judgement:
    """Hold counts against those of a baseline, case by case and in the mean."""
    ratios = {name: count / baseline[name] for name, count in counts.items() if name in baseline}
    # In whole numbers: exactly 2 % more is no more than 2 %.
    dearer = [name for name in ratios if counts[name] * 100 > baseline[name] * round(MOST_OF_A_CASE * 100)]
    return Judgement(
        ratios=ratios,
        mean=math.exp(math.fsum(map(math.log, ratios.values())) / len(ratios)) if ratios else 1.0,
        dearer=sorted(dearer, key=lambda name: -ratios[name]),
        cheaper=sorted((name for name in ratios if ratios[name] < 2 - MOST_OF_A_CASE), key=lambda name: ratios[name]),
        unknown=[name for name in counts if name not in baseline],
        gone=[name for name in baseline if name not in counts],
    )


def flags_of(command: str) -> str:
    """What of a compiler's command line decides about the code: no paths, warnings, or colours."""
    words, kept = shlex.split(command)[1:], []
    skip = False
    for word in words:
        if skip or word in ("-o", "-c", "-I", "-isystem", "-MF", "-MT"):
            skip = not skip
        elif word.startswith("-") and not word.startswith(("-I", "-W", "-fdiagnostics", "-fcolor", "-M", "-isystem")):
            kept.append(word)
    return " ".join(kept)


def load(path: Path) -> list[Counts]:
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["baselines"]
        return [Counts(**entry) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path} is no file of counts: {error!r}") from error


def save(path: Path, entries: Sequence[Counts]) -> None:
    ordered: list[dict[str, Any]] = [vars(entry) for entry in sorted(entries, key=lambda entry: entry.key)]
    path.write_text(json.dumps({"baselines": ordered}, indent=1) + "\n", encoding="utf-8")


def run(command: Sequence[str | Path], **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    if done.returncode == SKIPPED and Path(command[0]).name == "hotloop_counts":
        raise Skipped(done.stderr.strip())
    if done.returncode:
        raise Failure(f"{shlex.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def build(tree: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """Compile the program of a tree, with that tree's flags and no others. Returns it, and the flags by source."""
    cmake = shutil.which("cmake")
    if cmake is None:
        raise Failure("CMake is missing: pip install cmake ninja")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS") and not name.startswith(("CMAKE_", "HOTLOOP_"))
    }
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = ["-DHOTLOOP_COUNTS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    run([cmake, "--fresh", "-S", tree, "-B", folder, *generator, *options], env=environment)
    run([cmake, "--build", folder, "--parallel", "--target", "hotloop_counts"], env=environment)
    commands = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
    by_source = {Path(entry["file"]).name: flags_of(entry["command"]) for entry in commands}
    return folder / "hotloop_counts", {name: by_source[name] for name in ("abi.cpp", "isa_avx2.cpp")}


def count_case(valgrind: str, program: Path, name: str, more: int = 0) -> int:
    """Instructions of one case, in a process, a folder and an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        options = ["--tool=callgrind", "--quiet", f"--toggle-collect={COUNTED}", f"--callgrind-out-file={out}"]
        environment = {"PATH": os.defpath, "LC_ALL": "C", "LD_BIND_NOW": "1"}
        run([valgrind, *options, program, name, *([str(more)] if more else [])], cwd=folder, env=environment)
        return instructions(out.read_text(encoding="utf-8"))


def prove(valgrind: str, program: Path, name: str) -> None:
    """Raise unless counts repeat here and show what is planted; or else everything would pass."""
    first, second = (count_case(valgrind, program, name) for _ in range(2))
    planted = count_case(valgrind, program, name, round(first * PLANTED / 100))
    print(f"{name}: {first:,} instructions, then {second:,}; with {PLANTED} % planted {planted:,}", flush=True)
    if first != second:
        raise Failure(f"{name} took {first} instructions and then {second}: counts do not repeat here")
    if not 1 + 0.9 * PLANTED / 100 < planted / first < 1 + 1.1 * PLANTED / 100:
        raise Failure(f"{name} took {first} instructions, and {planted} with {PLANTED} % more: these were not counted")


def count(tree: Path, folder: Path, plant: float = 0, only: Sequence[str] = ()) -> Counts:
    """Build the program of a tree in a folder and count its cases; `plant` adds so many percent to each."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Skipped("counts are taken on Linux on x86-64")
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Skipped("there is no valgrind: apt-get install valgrind")
    if not (tree / "tests" / "native" / "counts.cpp").is_file():
        raise Skipped("that revision has no tests/native/counts.cpp yet")
    program, flags = build(tree, folder.resolve())
    compiler, libc = run([program, "about"]).splitlines()
    names = [name for name in run([program, "list"]).split() if not only or any(part in name for part in only)]

    def of_case(name: str) -> int:
        counted = count_case(valgrind, program, name)
        return count_case(valgrind, program, name, round(counted * plant / 100)) if plant else counted

    if not names:
        raise Failure("there is no such case")
    run([program, names[0]])  # whether there is AVX2
    if not plant:
        prove(valgrind, program, names[0])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        counts = dict(zip(names, executor.map(of_case, names), strict=True))
    version = run([valgrind, "--version"]).strip().removeprefix("valgrind-")
    return Counts(compiler, libc, flags, counts, version)


def count_revision(revision: str, only: Sequence[str]) -> Counts:
    """Count a revision of this repository, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        archive, tree = Path(folder) / "tree.tar", Path(folder) / "tree"
        command = ["git", "archive", "--output", str(archive), revision]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Skipped(f"there is no revision {revision} to compare with: {done.stderr.strip()}")
        with tarfile.open(archive) as packed:
            packed.extractall(tree)
        return count(tree, Path(folder) / "build", only=only)


def report(judgement: Judgement, baseline: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Say what is dearer, what cheaper, and the mean."""

    def lines(title: str, names: Sequence[str]) -> None:
        if names:
            print(title)
        for name in names:
            change = 100 * (judgement.ratios[name] - 1)
            print(f"  {change:+7.2f} %  {baseline[name]:>12,} -> {counts[name]:>12,}  {name}")

    lines("dearer by more than 2 %:", judgement.dearer)
    lines("cheaper by more than 2 %:", judgement.cheaper)
    same = sum(ratio == 1 for ratio in judgement.ratios.values())
    most = max(judgement.ratios.values(), default=1.0)
    print(
        f"{len(judgement.ratios)} cases, {same} the same to the instruction; mean {100 * (judgement.mean - 1):+.3f} %"
        f" (at most +1), the dearest {100 * (most - 1):+.3f} % (at most +2)"
    )
    if judgement.unknown:
        print("cases without a baseline: " + ", ".join(judgement.unknown))
    if judgement.gone:
        print("cases of the baseline that are gone: " + ", ".join(judgement.gone))


def check(counted: Counts, known: Sequence[Counts], base: Counts | None, only: Sequence[str] = ()) -> int:
    """Judge counts by the baseline of their compiler and C library, or by those of another revision."""
    found = next((entry for entry in known if entry.key == counted.key), base)
    if found is None:
        print(f"SKIPPED: no baseline for {counted}. There are some for:")
        print("".join(f"  {entry}\n" for entry in known) or "  nothing", end="" if known else "\n")
        print("The counts here:")
        for name, value in counted.counts.items():
            print(f"  {value:>12,}  {name}")
        print("To add them, on a tree whose counts are right: python tools/count_gate.py update")
        print("To judge by another revision instead: python tools/count_gate.py check --base REVISION")
        return SKIPPED
    wanted = {name: value for name, value in found.counts.items() if not only or any(part in name for part in only)}
    judgement = judge(wanted, counted.counts)
    if found is base:  # a change may bring cases of its own
        judgement.unknown, judgement.gone = [], []
    report(judgement, wanted, counted.counts)
    if found.flags != counted.flags:
        print("The baseline was counted with other flags; it is held against these all the same:")
        for name in sorted(found.flags.keys() | counted.flags.keys()):
            print(f"  {name}: {found.flags.get(name)} -> {counted.flags.get(name)}")
    if found.valgrind != counted.valgrind:
        print(f"The baseline was counted by valgrind {found.valgrind}, not {counted.valgrind}.")
    if judgement.passed:
        if judgement.cheaper:
            print("To keep what was won: python tools/count_gate.py update")
        print("PASSED")
        return PASSED
    print("FAILED: if the change is worth it, python tools/count_gate.py update, and say why in the commit")
    return FAILED


def update(counted: Counts, known: Sequence[Counts], path: Path) -> int:
    """Write counts as the baseline of their compiler and C library."""
    old = next((entry for entry in known if entry.key == counted.key), None)
    if old is not None:
        report(judge(old.counts, counted.counts), old.counts, counted.counts)
    save(path, [*(entry for entry in known if entry.key != counted.key), counted])
    others = [f"  {entry.compiler}, {entry.libc}\n" for entry in known if entry.key != counted.key]
    print(f"{path.name} has the counts of {counted}")
    if others:
        print("Baselines of other compilers are as they were; those who have these have to update them:")
        print("".join(others), end="")
    return PASSED


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "update"))
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="file of counts (default: %(default)s)")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "counts", help="where the program is built")
    parser.add_argument("--base", metavar="REV", help="check: judge by that revision, where there is no baseline")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="check: cases whose names have such a part"
    )
    parser.add_argument(
        "--plant", type=float, default=0, metavar="PERCENT", help="check: add instructions to every case"
    )
    options = parser.parse_args(arguments)
    if options.plant < 0:
        parser.error("--plant is a percentage, not below 0")
    if options.command == "update" and (options.base or options.only or options.plant):
        parser.error("update counts every case of this tree as it is")
    try:
        known = load(options.baseline)
        counted = count(ROOT, options.build, options.plant, options.only)
        if options.command == "update":
            return update(counted, known, options.baseline)
        base = None
        if options.base and all(entry.key != counted.key for entry in known):
            print(f"There is no baseline for {counted}; {options.base} is counted in its place.")
            print("To have one, on a tree whose counts are right: python tools/count_gate.py update", flush=True)
            base = count_revision(options.base, options.only)
        return check(counted, known, base, options.only)
    except Skipped as reason:
        print(f"SKIPPED: {reason}")
        return SKIPPED
    except Failure as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
