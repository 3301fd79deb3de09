"""The thread pool in the company it meets: forks, other threads, signals, load, fewer processors than threads.

Each test is a scene of pool_scenes.py in a process of its own. A few runs of each every time, a hundred of each in the
long form; one hang in them is a failure. What is compared is bits. Only the long form looks at times, with a margin of
what a busy machine adds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys

import pytest

RUNS = pytest.mark.parametrize("runs", [3, pytest.param(100, marks=pytest.mark.long)])
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and sched_setaffinity")


@pytest.fixture
def play(best_isa, pytestconfig):
    """Play a scene to its end, and return what it printed; whoever hangs is killed, with all its children."""

    def play(scene, runs, *options, torch=False):
        limit = 60 + 6 * runs  # seconds, some twenty times what it takes
        env = {name: value for name, value in os.environ.items() if not name.startswith("HOTLOOP_")}
        env["HOTLOOP_TEST_LIMIT"] = str(limit)
        env["HOTLOOP_TEST_TORCH"] = "1" if torch else ""
        script = pytestconfig.rootpath / "tests" / "pool_scenes.py"
        process = subprocess.Popen(
            [sys.executable, script, scene, str(runs), *map(str, options)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True,
        )  # fmt: skip
        hung = ""
        try:
            output, errors = process.communicate(timeout=limit + 10)
        except subprocess.TimeoutExpired:
            hung = f"{scene} hangs; its threads: {states(process.pid)}\n"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if hung:
            output, errors = process.communicate()
        assert not hung, hung + errors
        assert process.returncode == 0, errors
        *lines, last = output.splitlines()
        assert last == "done", output
        return lines, errors

    return play


def states(process):
    """What each thread of a process is doing, where /proc tells."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/stat") as file:
                found.append(file.read().rsplit(")", 1)[1].split()[0])
    return " ".join(found)


@RUNS
@pytest.mark.parametrize("scene", ["fork", "fork_of_fork", "fork_while_computing"])
def test_fork(play, scene, runs):
    """Parent and child compute: with the pool asleep, spinning, at work for another thread; a child of a child too."""
    play(scene, runs)


@RUNS
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_started_processes(play, method, runs):
    play("started", runs, method)


@RUNS
def test_data_loader(play, runs):
    """Workers of torch's DataLoader, which it forks."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    play("data_loader", runs, "fork")


@RUNS
def test_four_python_threads(play, runs):
    play("python_threads", runs)


@RUNS
def test_loaded_processors(play, runs):
    """Calls that share their processors with other processes come to an end."""
    play("loaded", runs)


@RUNS
def test_more_threads_than_processors(play, runs):
    play("more_threads_than_processors", runs)


@LINUX
@RUNS
def test_processors_are_taken_away(play, runs):
    """In the middle of calls, and for good."""
    play("shrinking_affinity", runs)


@RUNS
@pytest.mark.parametrize("how", ["spinning", "asleep", "working"])
def test_exit(play, how, runs):
    """The interpreter ends in peace with the pool asleep, spinning, or at work in a daemon thread."""
    for run in range(runs):
        assert play("leave", run, how) == ([], "")


@RUNS
@pytest.mark.parametrize(
    "scene",
    ["fork", "fork_of_fork", "fork_while_computing", "python_threads", "loaded", "leave spinning", "ctrl_c forward 2"],
)
def test_on_torchs_threads(play, scene, runs):
    """The same where calls run on the threads of torch's OpenMP; in a forked child, on hotloop's own."""
    if importlib.util.find_spec("torch") is None or sys.platform != "linux":
        pytest.skip("torch with OpenMP is not installed")
    name, *options = scene.split()
    play(name, 1 if name == "ctrl_c" else runs, *options, torch=True)


def milliseconds(lines):
    (line,) = lines
    name, *numbers = line.split()
    assert name == "milliseconds:"
    return [float(number) for number in numbers]


@pytest.mark.parametrize(("runs", "threads"), [(1, 2), *(pytest.param(100, n, marks=pytest.mark.long) for n in (1, 2))])
@pytest.mark.parametrize("function", ["forward", "backward"])
def test_ctrl_c_in_a_call_of_seconds(play, function, runs, threads):
    """One row and a wide layer: interrupted at any moment, before its end, and the next calls are right.

    The exception comes within 200 ms. The long form takes that for the median, and a second for the worst of all, which
    a busy machine may delay.
    """
    lines, _ = play("ctrl_c", runs, function, threads)
    waits = milliseconds(lines)
    print(f"{function}, {threads} threads: median {waits[runs // 2]} ms, worst {waits[-1]} ms")
    assert len(waits) == runs
    if runs >= 100:
        assert waits[runs // 2] <= 200
        assert waits[-1] <= 1000


@pytest.mark.parametrize(("runs", "threads"), [(1, 2), *(pytest.param(100, n, marks=pytest.mark.long) for n in (1, 2))])
@pytest.mark.parametrize("function", ["forward", "backward"])
def test_other_python_threads_go_on(play, function, runs, threads):
    """A call that takes seconds does not stop the other threads of the interpreter.

    They never pause for more than 50 ms. The long form takes that for the median of the calls' longest pauses, and
    300 ms for the longest of all, where the processors are all at work for the call and perhaps for others.
    """
    lines, _ = play("heartbeat", runs, function, threads)
    gaps = milliseconds(lines)
    print(f"{function}, {threads} threads: longest pause of a call: median {gaps[runs // 2]} ms, worst {gaps[-1]} ms")
    assert len(gaps) == runs
    if runs >= 100:
        assert gaps[runs // 2] <= 50
        assert gaps[-1] <= 300
