"""The time gate and the history: statistics on made and stored samples, sides, files. Timing is never asserted."""

import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ruptures", reason="change points need it")

import hotloop
from hotloop import cli
from hotloop.bench import compare, history, joined, pairs, pytest_json, sides, stats
from hotloop.bench.problems import GATE, GATE_SHORT, SMOKE, Problem
from hotloop.bench.run import describe_machine

ROOT = Path(__file__).parents[1]
PACKAGE = Path(hotloop.__file__).parents[1]
FAST = pairs.Plan(pairs=2, turns=2, samples=1, sample_seconds=1e-4)
LINUX = sys.platform.startswith("linux")
native = pytest.mark.skipif(not LINUX or hotloop.info().backend != "native", reason="sides run the native module")


# Statistics


def rounds_of(rng, cases, count, scatter=0.01):
    return list(scatter * rng.standard_normal((cases, count))), list(scatter * rng.standard_normal((cases, count)))


def test_log_ratios_pair_processes_and_take_the_least_sample():
    base, twin, head = ([[1.0, 9.0], [2.0, 2.5]], [[7.0, 1.0], [2.0, 2.0]], [[2.0, 2.0], [8.0, 4.0]])
    effect, noise = stats.log_ratios(base, twin, head)
    np.testing.assert_allclose(np.exp(effect), [2, 2])
    np.testing.assert_allclose(noise, [0, 0])


def test_bootstrap_of_the_median_agrees_with_the_exact_one():
    values = np.arange(11.0)
    medians = stats.bootstrap_medians(values, 200_000)
    # The median of 11 draws is <= 3 if at least six of them are among the first four of eleven values.
    from math import comb

    share = 4 / 11
    exact = sum(comb(11, k) * share**k * (1 - share) ** (11 - k) for k in range(6, 12))
    assert abs((medians <= 3).mean() - exact) < 0.005
    assert (np.diff(medians) >= 0).all()
    assert (stats.bootstrap_medians(values) == stats.bootstrap_medians(values)).all()


def test_a_slowdown_is_slower_and_a_speed_up_faster():
    effects, noises = rounds_of(np.random.default_rng(0), 5, 20)
    effects[1] += np.log(1.08)
    effects[3] -= np.log(1.08)
    found = stats.judge(effects, noises)
    assert [one.verdict for one in found] == ["same", "slower", "same", "faster", "same"]
    assert all(one.low <= one.change <= one.high and one.threshold == stats.FLOOR for one in found)
    assert 0.06 < found[1].low < 0.08 < found[1].high < 0.1


def test_a_change_below_the_floor_is_none_however_sure():
    assert stats.judge([np.full(20, np.log(1.019))], [np.zeros(20)])[0].verdict == "same"
    assert stats.judge([np.full(20, np.log(1.021))], [np.zeros(20)])[0].verdict == "slower"


def test_noise_raises_the_threshold_of_its_case_alone():
    effects, noises = rounds_of(np.random.default_rng(1), 2, 20, 0.002)
    effects = [one + np.log(1.05) for one in effects]
    noises[0] = 0.2 * np.random.default_rng(2).standard_normal(20)
    noisy, quiet = stats.judge(effects, noises)
    assert (noisy.verdict, quiet.verdict) == ("same", "slower")
    assert noisy.threshold == noisy.noise > 0.05
    assert quiet.noise < 0.01
    biased = stats.judge([effects[0]], [np.full(20, 0.07)])[0]  # one place of the pair is unlucky
    assert biased.verdict == "same"


def test_more_cases_need_more_proof():
    effect = np.log(1.02) + np.linspace(-0.012, 0.02, 20)
    alone = stats.judge([effect], [np.zeros(20)])[0]
    among = stats.judge([effect] * 30, [np.zeros(20)] * 30)[0]
    assert among.low < alone.low
    assert (alone.verdict, among.verdict) == ("slower", "same")


def test_processes_come_in_clusters_and_the_median_does_not_mind():
    effect = np.where(np.arange(20) % 4 == 0, 0.3, 0.001)  # every fourth process is 30 % slower
    assert stats.judge([effect], [np.zeros(20)])[0].verdict == "same"


def replay_tool():
    spec = importlib.util.spec_from_file_location("replay_gate", ROOT / "tools" / "replay_gate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["replay_gate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("runs", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_replayed_runs(runs):
    tool = replay_tool()
    slack = 3 * np.sqrt(0.05 * 0.95 / runs) if runs < 10_000 else 0.0
    states = tool.load()
    assert states
    for state, logs in states.items():
        found = tool.replay(logs, runs)
        assert found.alarms <= 0.01 + slack / 2, state
        assert found.quiet > 0.2, state
        assert found.caught[0.05] >= 0.95 - slack, state
        assert found.caught[0.1] >= 0.99 - slack / 2, state


def test_the_replay_decides_as_the_gate_does():
    tool = replay_tool()
    rng = np.random.default_rng(3)
    effects, noises = (rng.standard_normal((60, 6, 20)) * scale for scale in (0.02, 0.01))
    effects += rng.choice([0, 0.03, 0.06], (60, 6, 1))
    fast = tool.slower(effects, noises, 6)
    slow = [
        [one.verdict == "slower" for one in stats.judge(list(e), list(n))] for e, n in zip(effects, noises, strict=True)
    ]
    assert 0 < fast.mean() < 1
    np.testing.assert_array_equal(fast, slow)


def test_changes_of_level_are_found():
    rng = np.random.default_rng(0)
    level = np.repeat([1.0, 1.1, 0.9], 15)
    found = stats.changes(level * np.exp(0.01 * rng.standard_normal(45)))
    assert [one.index for one in found] == [15, 30]
    np.testing.assert_allclose([one.factor for one in found], [1.1, 0.9 / 1.1], rtol=0.02)
    assert stats.changes([1.0] * 30) == []
    assert stats.changes([1.0, 2.0]) == []
    outlier = [1.0] * 20
    outlier[7] = 3.0
    assert stats.changes(outlier) == []


# Cases and pairs


def test_cases_of_the_gate():
    one = compare.default_cases("gate", 1)
    assert [problem for problem, _ in one] == list(GATE)
    assert {(p.cell, p.mode) for p in GATE_SHORT} == {
        (c, m) for c in ("lstm", "gru", "rnn") for m in ("inference", "training")
    }
    two = compare.default_cases("gate", 2)[len(one) :]
    assert [(problem.name, threads) for problem, threads in two] == [(name, 2) for name in compare.SHARED]
    assert compare.default_cases("gate-short", 2) == [(problem, 1) for problem in GATE_SHORT]


def test_orders_are_mirrored_and_rotate():
    for pair in range(6):
        assert pairs.order(pair, 1) == pairs.order(pair, 0)[::-1]
    places = [pairs.order(pair, turn).index("head") for pair in range(6) for turn in range(2)]
    assert [places.count(place) for place in range(3)] == [4, 4, 4]


def side(name="here", prefix=PACKAGE):
    return sides.Side(name, sys.executable, str(prefix))


@native
def test_measure_two_sides():
    cases = [pairs.new_case(problem, 1) for problem in SMOKE[:2]]
    about = pairs.measure(cases, side(), side(), FAST)
    assert about["base"]["versions"]["backend"] == about["head"]["versions"]["backend"] == "native"
    for case in cases:
        assert case["status"] == "ok", case["detail"]
        for role in pairs.ROLES:
            assert np.asarray(case["samples"][role]).shape == (2, 2)
    json.dumps(cases, allow_nan=False)


def copy_of_package(folder, line):
    """A hotloop that is this one and a line more."""
    import shutil

    shutil.copytree(PACKAGE / "hotloop", folder / "hotloop", ignore=shutil.ignore_patterns("__pycache__", "bench"))
    with (folder / "hotloop" / "functional.py").open("a") as file:
        file.write(line)
    return sides.installed(str(folder))


@native
def test_a_head_that_is_wrong_is_broken_and_a_base_that_cannot_is_left_out(tmp_path):
    wrong = copy_of_package(tmp_path, "\n\nlstm_vjp = rnn_vjp\n")
    assert wrong.prefix == str(tmp_path)
    problem = next(p for p in SMOKE if (p.cell, p.mode, p.num_layers) == ("lstm", "training", 1))
    record = compare.run(side(), wrong, [(SMOKE[0], 1), (problem, 1)], FAST)
    assert record["broken"] == [problem.name]
    assert compare.status(record) == 1
    assert "does not work on 1 of 2" in compare.markdown(record)
    # A report finds the runs of the same machine.
    here = {**describe_machine(), "hotloop": vars(hotloop.info())}
    assert joined.machine(json.loads(json.dumps(record))) == history.machine_of({"environment": here})
    cases = [pairs.new_case(problem, 1)]
    pairs.measure(cases, wrong, side(), FAST)
    assert cases[0]["status"] == "base"


# Verdicts


def made_round(rng, slower, names=3, count=20):
    problems = [replace(GATE[0], seq_len=10 + number) for number in range(names)]
    cases = [pairs.new_case(problem, 1) for problem in problems]
    for number, case in enumerate(cases):
        for role in pairs.ROLES:
            times = 1e-4 * np.exp(0.005 * rng.standard_normal((count, 5)))
            case["samples"][role] = (times * (1.08 if role == "head" and number in slower else 1)).tolist()
    compare.judge_round(cases)
    return {"plan": {}, "cases": cases}


@pytest.mark.parametrize(("first", "second", "expected"), [((), None, 0), ((1,), (1,), 1), ((1,), (), 0)])
def test_a_slowdown_counts_if_it_is_confirmed(first, second, expected):
    rng = np.random.default_rng(0)
    record = compare.new_record("hotloop", "main", "HEAD", [])
    record["rounds"] = [made_round(rng, first)]
    if second is not None:
        again = made_round(rng, second)
        again["cases"] = again["cases"][1:2]
        record["rounds"].append(again)
    compare.conclude(record)
    assert compare.status(record) == expected
    text = compare.markdown(record)
    assert ("FAILED: HEAD is slower on 1 of 3 cases" in text) == (expected == 1)
    assert ("not confirmed" in text) == (first != () and expected == 0)
    assert "A/A noise" in text
    assert 0 < record["noise"]["largest"] < 0.02
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(("again", "expected"), [(1.08, 1), (1.0, 0)])
def test_what_seems_slower_is_measured_once_more(again, expected, monkeypatch):
    rng, asked = np.random.default_rng(0), []

    def measure(cases, base, head, plan, isa, progress):
        asked.append([pairs.name_of(case) for case in cases])
        for case in cases:
            factor = 1.0 if pairs.name_of(case) != GATE_SHORT[1].name else 1.08 if len(asked) == 1 else again
            for role in pairs.ROLES:
                times = 1e-4 * np.exp(0.005 * rng.standard_normal((20, 5)))
                case["samples"][role] = (times * (factor if role == "head" else 1)).tolist()
        return {"plan": {}, "base": None, "head": None}

    monkeypatch.setattr(compare, "measure", measure)
    record = compare.run(side(), side(), compare.default_cases("gate-short", 1), FAST)
    assert asked == [[problem.name for problem in GATE_SHORT], [GATE_SHORT[1].name]]
    assert compare.status(record) == expected


# Sides


def git(folder, *arguments):
    names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


@pytest.mark.parametrize("name", ["nosuch", "-x", "HEAD~7", ""])
def test_an_unknown_revision_says_what_was_tried(repository, name, capsys):
    with pytest.raises(sides.SideError, match="has no such revision"):
        sides.resolve(name)


def test_uncommitted_changes_are_refused(repository, capsys):
    (repository / "file").write_text("2")
    assert cli.main(["compare", "HEAD", "HEAD"]) == 2
    assert "changes that are not committed" in capsys.readouterr().err
    with pytest.raises(sides.SideError, match="no src/hotloop"):
        sides.resolve("HEAD", ignore_changes=True)


def test_no_compiler_is_said(repository, monkeypatch):
    import shutil

    tool = shutil.which("git")
    (repository / "bin").mkdir()
    (repository / "bin" / "git").symlink_to(tool)
    monkeypatch.setenv("PATH", str(repository / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(sides.SideError, match=r"no C\+\+ compiler"):
        sides.resolve("HEAD")


def test_a_revision_that_was_built_is_found_again(repository):
    commit = sides.find_commit("HEAD")
    made = sides.cache_folder() / f"{commit[:12]}-{sides._fingerprint(sides._compiler())}"
    made.mkdir(parents=True)
    found = sides.resolve("HEAD")
    assert (found.prefix, found.commit) == (str(made), commit)


def test_built_revisions_are_few(tmp_path):
    """Those used last stay; what a killed build has left goes, and what is being built does not."""
    old = time.time() - 2 * 86400
    for number in range(6):
        (tmp_path / f"rev{number}" / "hotloop").mkdir(parents=True)
        os.utime(tmp_path / f"rev{number}", (old, old - number))
    for name in (".building-left", ".building-now"):
        (tmp_path / name / "source").mkdir(parents=True)
    os.utime(tmp_path / ".building-left", (old, old))
    os.utime(tmp_path / "rev5")
    sides.prune(tmp_path, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".building-now", "rev0", "rev1", "rev5"]


def test_a_revision_in_use_is_the_newest(repository):
    for number in range(sides.KEPT):
        (sides.cache_folder() / f"other{number}").mkdir(parents=True)
    commit = sides.find_commit("HEAD")
    made = sides.cache_folder() / f"{commit[:12]}-{sides._fingerprint(sides._compiler())}"
    made.mkdir(parents=True)
    os.utime(made, (1, 1))
    sides.resolve("HEAD")
    sides.prune(sides.cache_folder())
    assert made.is_dir()
    assert len(list(sides.cache_folder().iterdir())) == sides.KEPT


def test_a_failed_build_shows_why(repository, monkeypatch):
    (repository / "src" / "hotloop").mkdir(parents=True)
    (repository / "src" / "hotloop" / "__init__.py").write_text("")
    (repository / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "nothing_like_it"\n')
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    monkeypatch.setattr(sides.importlib.util, "find_spec", lambda name: object())  # no isolation: nothing is fetched
    with pytest.raises(sides.SideError, match="does not build:"):
        sides.resolve("HEAD")
    assert not list(sides.cache_folder().glob("*"))


def test_installed_sides(tmp_path):
    assert sides.installed(str(tmp_path)) is None
    place = tmp_path / "lib" / "python3.11" / "site-packages"
    (place / "hotloop").mkdir(parents=True)
    (place / "hotloop" / "__init__.py").touch()
    assert sides.installed(str(tmp_path)).prefix == str(place)
    assert sides.installed(str(place)).prefix == str(place)
    (tmp_path / "pyvenv.cfg").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    found = sides.installed(str(tmp_path))
    assert (found.python, found.prefix) == (str(tmp_path / "bin" / "python"), "-")


# pytest-benchmark


def write_runs(folder, rng, factor, count=10, samples=30, names=("a.py::one", "a.py::two")):
    folder.mkdir()
    for number in range(count):
        benchmarks = [
            {"fullname": name, "stats": {"data": (1e-3 * f * np.exp(0.003 * rng.random(samples))).tolist()}}
            for name, f in zip(names, (1.0, factor), strict=False)
        ]
        (folder / f"run-{number}.json").write_text(json.dumps({"machine_info": {}, "benchmarks": benchmarks}))
    return str(folder)


def test_files_of_pytest_benchmark(tmp_path, capsys):
    rng = np.random.default_rng(0)
    base, same, slow = (write_runs(tmp_path / name, rng, f) for name, f in (("b", 1), ("s", 1), ("w", 1.06)))
    assert cli.main(["compare", base, same]) == 0
    capsys.readouterr()
    summary = tmp_path / "summary.md"
    assert cli.main(["compare", base, slow, "--markdown", str(summary), "--json", str(tmp_path / "r.json")]) == 1
    text = capsys.readouterr().out
    assert summary.read_text() == text
    assert "slower on 1 of 2" in text
    assert "a.py::two" in text.split("<details>")[0]
    assert json.loads((tmp_path / "r.json").read_text())["regressions"] == ["a.py::two"]
    assert cli.main(["compare", f"{base}/*.json", f"{slow}/run-*.json"]) == 1
    assert cli.main(["compare", f"{base}/run-0.json", f"{same}/run-0.json"]) == 0
    assert "only 1 process a side" in capsys.readouterr().out


def edit(folder, change):
    for path in Path(folder).glob("*.json"):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))


def test_a_second_round_of_files(tmp_path, capsys):
    """What seems slower in the first has to be slower in the second; the others are not asked again."""
    rng = np.random.default_rng(0)
    base, slow, base2, slow2, same2 = (
        write_runs(tmp_path / name, rng, f) for name, f in (("b", 1), ("w", 1.06), ("b2", 1), ("w2", 1.06), ("s2", 1))
    )
    assert cli.main(["compare", base, slow]) == 1
    text = capsys.readouterr().out
    assert "one round, which nothing confirms" in text
    assert "give them with --confirm" in text
    path = tmp_path / "r.json"
    assert cli.main(["compare", base, slow, "--confirm", base2, slow2, "--json", str(path)]) == 1
    assert "in a second round too" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["regressions"] == ["a.py::two"]
    assert [[case["name"] for case in one["cases"]] for one in record["rounds"]] == [
        ["a.py::one", "a.py::two"], ["a.py::two"],
    ]  # fmt: skip
    assert cli.main(["compare", base, slow, "--confirm", base2, same2]) == 0
    assert "not confirmed" in capsys.readouterr().out
    assert cli.main(["compare", base, same2, "--confirm", base2, slow2]) == 0  # nothing to confirm


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1e-3, True, "1", None])
def test_times_that_are_none_do_not_pass(value, tmp_path, capsys):
    """NaN is not slower than anything: the gate passed it."""
    rng = np.random.default_rng(0)
    base, head = (write_runs(tmp_path / name, rng, 1, count=2) for name in ("b", "h"))
    edit(head, lambda record: record["benchmarks"][1]["stats"]["data"].__setitem__(3, value))
    for sides_of_it in ((base, head), (head, base)):
        assert cli.main(["compare", *sides_of_it]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert "a.py::two: a time has to be a finite number > 0" in err
        assert "run-0.json" in err
        assert len(err.splitlines()) == 1


def test_ratios_that_are_none_are_not_judged():
    with pytest.raises(ValueError, match="finite"):
        stats.judge([np.full(20, np.nan)], [np.zeros(20)])


@pytest.mark.parametrize(("role", "status"), [("head", "head"), ("base", "base")])
def test_a_worker_whose_times_are_none_breaks_its_case(role, status):
    class Worker:
        def __init__(self, seconds):
            self.seconds = seconds

        def awake(self):
            return contextlib.nullcontext()

        def ask(self, request):
            if request["do"] == "time":
                return {"samples": [self.seconds] * request["samples"]}
            return {"status": "ok", "calls_per_sample": 1}

    workers = {name: Worker(float("nan") if name == role else 1e-3) for name in pairs.ROLES}
    case = pairs.new_case(SMOKE[0], 1)
    pairs._measure_case(case, workers, 0, FAST, None)
    assert case["status"] == status
    assert "finite number > 0, got nan" in case["detail"]
    assert not any(case["samples"].values())


def test_a_second_round_that_is_none(tmp_path, capsys):
    rng = np.random.default_rng(0)
    base, slow, other = (write_runs(tmp_path / name, rng, f) for name, f in (("b", 1), ("w", 1.06), ("o", 1)))
    short = write_runs(tmp_path / "short", rng, 1, names=("a.py::one",))
    few = write_runs(tmp_path / "few", rng, 1, count=2, samples=3)
    few2 = write_runs(tmp_path / "few2", rng, 1, count=2, samples=3)
    for sides_of_it, message in (
        ((base, other), "cannot confirm itself"),
        ((other, short), "not in all files of the second round: a.py::two"),
        ((few, few2), "too few samples (3 in a file, and 5 are needed)"),
        ((few, other), "is 2 and"),
    ):
        assert cli.main(["compare", base, slow, "--confirm", *sides_of_it]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", "HEAD", str(PACKAGE), "--confirm", base, slow])
    assert "argument --confirm" in capsys.readouterr().err


def test_files_of_other_machines(tmp_path, capsys):
    rng = np.random.default_rng(0)
    base, head = (write_runs(tmp_path / name, rng, 1) for name in ("b", "h"))
    edit(base, lambda record: record.update(machine_info={"system": "Linux", "node": "a", "cpu": {"brand_raw": "X"}}))
    edit(head, lambda record: record.update(machine_info={"system": "Linux", "node": "b", "cpu": {"brand_raw": "Y"}}))
    assert cli.main(["compare", base, head]) == 2
    assert "was measured on Linux X and" in capsys.readouterr().err
    edit(head, lambda record: record["machine_info"].update(cpu={"brand_raw": "X"}))
    assert cli.main(["compare", base, head]) == 0
    assert "files differ in node: a, b" in capsys.readouterr().out


def test_files_go_by_number(tmp_path):
    for number in (10, 9, 1):
        (tmp_path / f"run-{number}.json").touch()
    assert [path.name for path in pytest_json.files(str(tmp_path))] == ["run-1.json", "run-9.json", "run-10.json"]


def test_a_real_file_of_pytest_benchmark(tmp_path):
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "test_it.py").write_text("def test_it(benchmark):\n    benchmark(sum, range(100))\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=b.json"]
    command += ["--benchmark-min-rounds=20", "--benchmark-max-time=0.01", "test_it.py"]
    alone = {key: value for key, value in os.environ.items() if "XDIST" not in key}  # it turns benchmarks off
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=alone)
    found = pytest_json.read(tmp_path / "b.json")
    assert list(found.benchmarks) == ["test_it.py::test_it"]
    assert found.machine.startswith(platform.system())
    assert found.python == f"{platform.python_implementation()} {platform.python_version()}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "not written by pytest-benchmark"),
        ('{"benchmarks": [{"fullname": "a", "stats": {"min": 1}}], "machine_info": {}}', "no raw samples"),
        ('{"benchmarks": [{"fullname": "z", "stats": {"data": [1]}}], "machine_info": {}}', "no benchmark is in all"),
    ],
)
def test_files_that_cannot_be_compared(tmp_path, content, message, capsys):
    base = write_runs(tmp_path / "b", np.random.default_rng(0), 1, count=1)
    (tmp_path / "x.json").write_text(content)
    assert cli.main(["compare", f"{base}/run-0.json", str(tmp_path / "x.json")]) == 2
    assert message in capsys.readouterr().err


def test_sides_that_do_not_go_together(tmp_path, capsys):
    base = write_runs(tmp_path / "b", np.random.default_rng(0), 1, count=2)
    for head, message in (
        (f"{base}/run-0.json", "is 2 and"),
        (str(PACKAGE), "the other is not"),
        (str(tmp_path / "none.json"), "No such file"),
        (str(tmp_path / "n*.json"), "no file matches"),
        (str(tmp_path / ("x" * 300)), "hotloop compare: error: "),
    ):
        assert cli.main(["compare", base, head]) == 2
        assert message in capsys.readouterr().err
    one = f"{base}/run-0.json"
    assert cli.main(["compare", one, str(Path(base, "..", "b", "run-0.json"))]) == 2
    assert "run-0.json is on both sides" in capsys.readouterr().err
    assert cli.main(["compare", base, str(tmp_path / "**b")]) == 2
    capsys.readouterr()


def test_no_side_at_all(capsys):
    for arguments in (("", "HEAD"), ("HEAD", ""), ("a.json", "b.json", "--confirm", "", "c.json")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["compare", *arguments])
        assert "got ''" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--json", "{}"), "argument --json: cannot write to {}: it is a folder"),
        (("--markdown", "{}"), "argument --markdown: cannot write to {}: it is a folder"),
        (("--json", "{}/none/r.json"), "there is no folder {}/none"),
        (("--json", "{}/r.json/r.json"), "there is no folder {}/r.json"),
        (("--json", "{}/r", "--markdown", "{}/../{name}/r"), "is the file of --markdown, too"),
        (("--json", "{}/h/run-0.json"), "run-0.json is one of the files that are read"),
    ],
)
def test_places_are_tried_before_anything_is_measured(arguments, message, tmp_path, capsys):
    rng = np.random.default_rng(0)
    base, head = (write_runs(tmp_path / name, rng, 1, count=1) for name in ("b", "h"))
    (tmp_path / "r.json").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", base, head, *(text.format(tmp_path, name=tmp_path.name) for text in arguments)])
    out, err = capsys.readouterr()
    assert not out
    assert message.format(tmp_path) in err
    assert len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_summary_that_cannot_be_written_is_printed_first(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    base, head, slow = (write_runs(tmp_path / name, rng, f) for name, f in (("b", 1), ("h", 1), ("w", 1.06)))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for other, status, text in ((head, 2, "passed"), (slow, 1, "FAILED")):
        assert cli.main(["compare", base, other, "--json", str(tmp_path / "r.json")]) == status
        out, err = capsys.readouterr()
        assert text in out
        assert "r.json: No space left on device" in err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.update(benchmarks=1), "TypeError"),
        (lambda r: r.update(machine_info=[]), "AttributeError"),
        (lambda r: r["benchmarks"][0].pop("fullname"), "KeyError: 'fullname'"),
        (lambda r: r["benchmarks"][0].update(fullname="\ud800"), "UnicodeEncodeError"),
        (lambda r: r["benchmarks"][0].update(stats=None), "AttributeError"),
        (lambda r: r["benchmarks"][0]["stats"]["data"].__setitem__(0, 10**400), "OverflowError"),
        (lambda r: r["machine_info"].update(node=1), "TypeError"),
        (lambda r: r["machine_info"].update(system=["x"]), "TypeError"),
    ],
)
def test_damaged_files_of_pytest_benchmark(spoil, message, tmp_path, capsys):
    rng = np.random.default_rng(0)
    base, head = (write_runs(tmp_path / name, rng, 1, count=1) for name in ("b", "h"))
    edit(head, spoil)
    assert cli.main(["compare", base, head]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert head in err
    assert len(err.splitlines()) == 1


def test_a_byte_order_mark_is_no_damage(tmp_path):
    base = write_runs(tmp_path / "b", np.random.default_rng(0), 1, count=1)
    path = Path(base, "run-0.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(pytest_json.read(path).benchmarks) == ["a.py::one", "a.py::two"]


# History

RECORD = json.loads((ROOT / "benchmarks" / "measured" / "2026-11-21-zen5-headline.json").read_text())


def made_history(path, factors, machine=(), reference=()):
    """A run of the headline a commit, with our times, the machine's and everything's multiplied."""
    record = json.loads(json.dumps(RECORD))
    case = record["cases"][0]
    record["cases"] = [case]
    plain = {id(c): c["rounds"] for c in case["candidates"]}
    rng = np.random.default_rng(0)
    for number, factor in enumerate(factors):
        common = machine[number] if machine else 1
        for c in case["candidates"]:
            own = (factor if c["name"] == "hotloop" else 1) * common * np.exp(0.003 * rng.standard_normal())
            c["rounds"] = (own * np.asarray(plain[id(c)])).tolist()
        record["commit"] = {"id": f"{number:040x}", "date": f"2026-01-{number + 1:02}T00:00:00+00:00", "changed": False}
        record["date"] = record["commit"]["date"]
        history.add(path, history.lines_of(record))
    return record


def test_history_holds_samples_machine_and_ratios(tmp_path):
    path = tmp_path / "h.jsonl"
    record = made_history(path, [1.0])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ours = [c for c in record["cases"][0]["candidates"] if c["name"] == "hotloop"]
    assert [line["threads"] for line in lines] == [c["threads"] for c in ours]
    assert lines[0]["samples"] == ours[0]["rounds"]
    assert lines[0]["commit"]["id"] == "0" * 40
    assert set(lines[0]["references"]) >= {"torch"}
    assert lines[0]["references"]["torch"]["ratio"][0] > 0
    assert history.add(path, history.lines_of(record)) == 0  # it is there
    with pytest.raises(history.HistoryError, match="of what commit"):
        history.lines_of(RECORD)
    assert history.lines_of(RECORD, "abc")[0]["commit"]["id"] == "abc"


def test_history_tells_our_changes_from_the_machine(tmp_path, capsys):
    path = tmp_path / "h.jsonl"
    made_history(path, [1.0] * 8 + [1.1] * 16, machine=[1.0] * 16 + [1.3] * 8)
    (first, second), *_ = [trend.steps for trend in history.trends(history.read(path))]
    assert (first.commit, second.commit) == (f"{8:040x}", f"{16:040x}")
    assert (first.is_ours, second.is_ours) == (True, False)
    assert cli.main(["history", str(path)]) == 0
    text = capsys.readouterr().out
    assert "the machine, or its libraries" in text
    assert "in 24 runs" in text


def test_machines_are_series_of_their_own(tmp_path):
    path = tmp_path / "h.jsonl"
    record = made_history(path, [1.0] * 3)
    for key, value in (("processors", 64), ("platform", "macOS-15")):
        record["environment"][key] = value
        history.add(path, history.lines_of(record))
    assert len({trend.machine for trend in history.trends(history.read(path))}) == 3


def test_history_of_files_that_are_none(tmp_path, capsys):
    path = tmp_path / "h.jsonl"
    (tmp_path / "r.json").write_text('{"a": 1}')
    path.write_text("{}\n")
    for arguments, message in (
        ([str(path)], "line 1, is no line of a history"),
        ([str(tmp_path / "none")], "No such file"),
        ([str(path), "--add", str(tmp_path / "r.json")], "is no run of hotloop bench"),
        ([str(path), "--add", str(path)], "is no run of hotloop bench"),
        ([str(path), "--add", __file__], "is not JSON"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["history", *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("times", "total"), [([1, 2], 2), ([1, 9, 2], 2), ([1, 3, 4, 8], 3), ([1, 2, 3, 7, 8, 9], 4)])
def test_the_ends_of_a_trend_share_no_run(times, total):
    """Two or three runs were divided by themselves."""
    assert history.Trend("m", SMOKE[0], 1, tuple(map(float, times)), (), ()).total == total


def test_commits_go_by_the_moment(tmp_path):
    path = tmp_path / "h.jsonl"
    record = made_history(path, [1.0])
    path.unlink()
    # 12:00, 13:00 and 14:00 in UTC; as text they sort the other way round.
    dates = ["2026-01-03T00:00:00+12:00", "2026-01-02T13:00:00Z", "2026-01-02T02:00:00-12:00"]
    for number, date in enumerate(dates):
        record["commit"].update(id=f"{number}", date=date)
        history.add(path, history.lines_of(record))
    assert {trend.commits for trend in history.trends(history.read(path))} == {("0", "1", "2")}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r["cases"][0]["candidates"][0].update(rounds=[[float("nan")]]), "finite number > 0, got nan"),
        (lambda r: r["commit"].update(date=None), "a date has to be text, got None"),
        (lambda r: r["commit"].update(date="yesterday"), "yesterday"),
        (lambda r: r["commit"].pop("id"), "KeyError: 'id'"),
        (lambda r: r["environment"].pop("load"), "KeyError: 'load'"),
        (lambda r: r["cases"][0]["problem"].pop("cell"), "damaged"),
        (lambda r: r["cases"][0]["problem"].update(cell=[]), "damaged"),
        (lambda r: r["cases"][0]["problem"].update(name=1), "the name of problem has to be text, got 1"),
        (lambda r: r["environment"]["lscpu"].update({"Model name": "\ud800"}), "UnicodeEncodeError"),
    ],
)  # fmt: skip
def test_a_bad_run_is_not_added(spoil, message, tmp_path, capsys):
    path, good, bad = (tmp_path / name for name in ("h.jsonl", "good.json", "bad.json"))
    record = made_history(path, [1.0, 1.1])
    before = path.read_bytes()
    record["commit"]["id"] = "f" * 40
    good.write_text(json.dumps(record))
    spoil(record)
    bad.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["history", str(path), "--add", str(good), str(bad)])
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"hotloop history: error: {bad} ")
    assert len(error.splitlines()) == 1
    assert path.read_bytes() == before


def test_a_bad_line_is_told_by_its_number(tmp_path, capsys):
    path = tmp_path / "h.jsonl"
    made_history(path, [1.0, 1.1])
    first, *others = path.read_text().splitlines()
    for text in (
        "{",
        "[" * 100_000,
        first.replace('"seconds":', '"seconds":-'),
        first.replace('"commit"', '"c"'),
        "[]",
    ):
        path.write_text("\n".join((first, text, *others)))
        with pytest.raises(SystemExit, match="2"):
            cli.main(["history", str(path)])
        error = capsys.readouterr().err
        assert error.startswith(f"hotloop history: error: {path}, line 2, is no line of a history (")
        assert len(error.splitlines()) == 1
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["history", str(path)])
    assert "is not text" in capsys.readouterr().err


def test_a_last_line_without_an_end_stays_a_line(tmp_path):
    path = tmp_path / "h.jsonl"
    record = made_history(path, [1.0])
    count = len(history.read(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip())
    record["commit"]["id"] = "f" * 40
    history.add(path, history.lines_of(record))
    assert len(history.read(path)) == 2 * count


def test_sparkline():
    assert history.sparkline([1.0, 1.0]) == "▁▁"
    assert history.sparkline([1.0, 2.0])[-1] == "█"
    assert len(history.sparkline(range(1, 100))) == 24


def test_problem_names_of_the_gate_are_read_back():
    for problem in GATE:
        assert Problem.from_dict(json.loads(json.dumps(problem.as_dict()))) == problem
