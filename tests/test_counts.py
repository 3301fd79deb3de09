"""The count gate: what it reads of callgrind, how it judges, and that it sees what was planted."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load_tool():
    spec = importlib.util.spec_from_file_location("count_gate", ROOT / "tools" / "count_gate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["count_gate"] = module
    spec.loader.exec_module(module)
    return module


gate = load_tool()
CALLGRIND = """# callgrind format
version: 1
cmd:  ./hotloop_counts lstm-step totals: 7
positions: line
events: Ir
summary: 11994

fn=(1) hotloop_counted
12 11994

totals: 11994
"""
BASE = {f"case{i}": 10_000 * (i + 1) for i in range(20)}
FLAGS = {"abi.cpp": "-O3", "isa_avx2.cpp": "-O3 -mavx2"}


def counts_of(values, compiler="gcc 12.2.0", libc="glibc 2.36", flags=FLAGS):
    return gate.Counts(compiler, libc, dict(flags), dict(values), "3.19.0")


def times(factor, *names):
    return {name: round(value * factor) if name in names or not names else value for name, value in BASE.items()}


def test_instructions():
    assert gate.instructions(CALLGRIND) == 11994
    assert gate.instructions(CALLGRIND.replace("events: Ir", "events: Dr Ir").replace("ls: 11994", "ls: 5 77")) == 77
    assert gate.instructions(CALLGRIND.replace("\ntotals: 11994", "")) == 11994


@pytest.mark.parametrize(
    "text",
    ["", CALLGRIND.replace(" 11994", " 0"), CALLGRIND.replace("events: Ir", "events: Dr")],
    ids=["empty", "zero", "no instructions"],
)
def test_a_file_without_a_count(text):
    with pytest.raises(gate.Failure):
        gate.instructions(text)


def test_flags_of():
    command = "c++ -I/csrc -isystem /x -O3 -std=c++17 -fPIC -Wall -fdiagnostics-color -mavx2 -o a.o -c /a.cpp"
    assert gate.flags_of(command) == "-O3 -std=c++17 -fPIC -mavx2"
    assert gate.flags_of("c++ -MD -MT a.o -MF a.d -DX=1 -O2 -o a.o -c a.cpp") == "-DX=1 -O2"


@pytest.mark.parametrize(
    ("values", "dearer", "mean", "passed"),
    [
        (times(1), [], False, True),
        (times(1.03, "case7"), ["case7"], False, False),
        (times(1.02, "case7"), [], False, True),  # exactly as much as is allowed
        (times(1.0201, "case9"), ["case9"], False, False),
        (times(1.015), [], True, False),  # no case alone
        (times(1.009), [], False, True),
        (times(0.5), [], False, True),
        (times(1.03), list(BASE), True, False),
    ],
)
def test_judge(values, dearer, mean, passed):
    judgement = gate.judge(BASE, values)
    assert sorted(judgement.dearer) == sorted(dearer)
    assert judgement.mean_is_dearer == mean
    assert judgement.passed == passed


def test_a_case_cannot_make_up_for_another():
    judgement = gate.judge(BASE, times(0.5) | {"case3": round(BASE["case3"] * 1.05)})
    assert judgement.dearer == ["case3"]
    assert len(judgement.cheaper) == len(BASE) - 1
    assert not judgement.passed


def test_cases_come_and_go():
    one, rest = next(iter(BASE)), dict(list(BASE.items())[1:])
    assert (gate.judge(rest, BASE).unknown, gate.judge(rest, BASE).passed) == ([one], False)
    assert (gate.judge(BASE, rest).gone, gate.judge(BASE, rest).passed) == ([one], False)


def test_check(capsys):
    known = [counts_of(times(3), compiler="clang 18.1.3"), counts_of(BASE)]
    assert gate.check(counts_of(BASE), known, None) == gate.PASSED
    assert "20 the same to the instruction" in capsys.readouterr().out
    assert gate.check(counts_of(times(1.03, "case7")), known, None) == gate.FAILED
    assert "+3.00 %" in capsys.readouterr().out
    assert gate.check(counts_of(times(0.9)), known, None) == gate.PASSED
    assert "To keep what was won" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"compiler": "gcc 13.3.0"}, {"libc": "glibc 2.39"}])
def test_no_baseline_is_said_loudly(other, capsys):
    assert gate.check(counts_of(times(9), **other), [counts_of(BASE)], None) == gate.SKIPPED
    out = capsys.readouterr().out
    assert out.startswith("SKIPPED: no baseline for ")
    assert "90,000  case0" in out
    assert "count_gate.py update" in out


def test_another_revision_stands_in():
    new = counts_of(BASE | {"new": 5}, compiler="gcc 13.3.0")
    base = counts_of(BASE, compiler="gcc 13.3.0")
    assert gate.check(new, [counts_of(times(0.1))], base) == gate.PASSED
    assert gate.check(new, [], counts_of(times(0.97), compiler="gcc 13.3.0")) == gate.FAILED


def test_other_flags_are_judged(capsys):
    """Or a change of CMakeLists.txt would never be."""
    flags = FLAGS | {"abi.cpp": "-O1"}
    assert gate.check(counts_of(times(1.5), flags=flags), [counts_of(BASE)], None) == gate.FAILED
    assert "abi.cpp: -O3 -> -O1" in capsys.readouterr().out


def test_update(tmp_path):
    path = tmp_path / "counts.json"
    other = counts_of(times(3), compiler="clang 18.1.3")
    gate.update(counts_of(BASE), [other, counts_of(times(2))], path)
    assert gate.load(path) == [other, counts_of(BASE)]
    assert gate.load(tmp_path / "none.json") == []
    path.write_text('{"baselines": [{"compiler": 1}]}')
    with pytest.raises(gate.Failure, match="no file of counts"):
        gate.load(path)


@pytest.mark.parametrize(
    ("counted", "message"),
    [([1000, 1000, 1030], None), ([1000, 1001, 1030], "do not repeat"), ([1000, 1000, 1000], "were not counted")],
)
def test_a_check_proves_itself(counted, message, monkeypatch):
    planted = []
    values = iter(counted)
    monkeypatch.setattr(gate, "count_case", lambda *arguments: planted.append(arguments[3:]) or next(values))
    if message is None:
        gate.prove("valgrind", Path("program"), "case")
        assert planted == [(), (), (30,)]
    else:
        with pytest.raises(gate.Failure, match=message):
            gate.prove("valgrind", Path("program"), "case")


def test_without_valgrind(monkeypatch, capsys):
    monkeypatch.setattr(gate.platform, "system", lambda: "Linux")
    monkeypatch.setattr(gate.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(gate.shutil, "which", lambda name: None)
    assert gate.main(["check"]) == gate.SKIPPED
    assert "SKIPPED: there is no valgrind" in capsys.readouterr().out


def test_the_baseline_is_one():
    entries = gate.load(gate.BASELINE)
    assert entries
    assert len({entry.key for entry in entries}) == len(entries)
    for entry in entries:
        assert all(count > 0 for count in entry.counts.values())


@pytest.mark.long
def test_what_is_planted_is_seen():
    """Three percent more, of real code under valgrind; and two runs count the same."""
    if not (sys.platform == "linux" and shutil.which("valgrind") and shutil.which("cmake")):
        pytest.skip("valgrind or CMake is missing")
    folder, cases = ROOT / "build" / "counts", ["-step-", "lstm-inference-T100", "gru-backward-T100"]
    try:
        first = gate.count(ROOT, folder, only=cases)
        second = gate.count(ROOT, folder, only=cases)
        planted = gate.count(ROOT, folder, plant=3, only=cases)
    except gate.Skipped as reason:
        pytest.skip(str(reason))
    assert first == second
    assert gate.check(second, [first], None) == gate.PASSED
    assert gate.check(planted, [first], None) == gate.FAILED
    judgement = gate.judge(first.counts, planted.counts)
    assert sorted(judgement.dearer) == sorted(first.counts)
    assert all(1.0299 < ratio < 1.031 for ratio in judgement.ratios.values())
    assert json.loads(json.dumps(vars(first)))["counts"] == first.counts
