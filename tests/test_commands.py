"""Boundaries of the command and of the import: output that cannot be written, odd files and names, variables, the end
of the interpreter, and how many processors a process may use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

import hotloop
from hotloop._core import environment as _environment
from hotloop._core import processors as _processors
from hotloop._core import settings
from hotloop.bench import files, markdown

LINUX = sys.platform.startswith("linux")


def write(path, name, seconds=1.0):
    """A file as pytest-benchmark writes it."""
    data = [seconds * (1 + 0.001 * (i % 7)) for i in range(30)]
    record = {"benchmarks": [{"fullname": name, "stats": {"data": data}}], "machine_info": {"node": "x", "cpu": {}}}
    path.write_text(json.dumps(record))
    return str(path)


def command(*arguments, stdout=subprocess.PIPE, **variables):
    variables = {"PYTHONUNBUFFERED": "", **variables}  # what is lost is mostly in a buffer
    return subprocess.run(
        [sys.executable, "-m", "hotloop.cli", *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True,
        timeout=120, env=os.environ | variables, stdin=subprocess.DEVNULL, encoding="utf-8",
    )  # fmt: skip


@pytest.fixture
def sides(tmp_path):
    return [write(tmp_path / f"{side}.json", "test_größe") for side in ("a", "b")]


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"},
                                       {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])  # fmt: skip
def test_an_encoding_that_has_not_every_sign(sides, variables):
    done = subprocess.run(
        [sys.executable, "-m", "hotloop.cli", "compare", *sides], capture_output=True, timeout=120,
        env=os.environ | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"test_gr" in done.stdout


@pytest.mark.skipif(not LINUX, reason="/dev/full")
@pytest.mark.parametrize("arguments", [("compare",), ("info",), ("--version",), ("bench", "--help")])
@pytest.mark.parametrize("kind", ["full", "closed"])
def test_output_that_cannot_be_written(sides, tmp_path, arguments, kind):
    """A line and status 2; the files are there."""
    target = tmp_path / "out.json"
    if arguments == ("compare",):
        arguments = ("compare", *sides, "--json", str(target))
    if kind == "full":
        with open("/dev/full", "w") as full:
            done = command(*arguments, stdout=full)
        message = "hotloop: error: output: No space left on device\n"
    else:
        reading, writing = os.pipe()
        os.close(reading)
        done = command(*arguments, stdout=writing)
        os.close(writing)
        message = "hotloop: error: output: Broken pipe\n"
    assert done.returncode == 2
    assert done.stderr == message
    assert target.exists() == ("--json" in arguments)


def test_slower_is_1_and_a_lost_output_2(tmp_path):
    slow = [write(tmp_path / "a.json", "t"), write(tmp_path / "b.json", "t", 2.0)]
    again = [write(tmp_path / "c.json", "t"), write(tmp_path / "d.json", "t", 2.0)]
    arguments = ("compare", *slow, "--confirm", *again)
    assert command(*arguments).returncode == 1
    if LINUX:
        with open("/dev/full", "w") as full:
            assert command(*arguments, stdout=full).returncode == 2


@pytest.mark.skipif(not LINUX, reason="devices")
@pytest.mark.parametrize("name", ["pipe.json", "loop.json", "folder", "/dev/zero", "/dev/full", "none.json"])
@pytest.mark.parametrize("arguments", [("report",), ("history",), ("compare",)])
def test_odd_files(tmp_path, sides, name, arguments):
    """None is waited for, or read without an end."""
    path = tmp_path / name
    if name == "pipe.json":
        os.mkfifo(path)
    elif name == "loop.json":
        path.symlink_to(path)
    elif name == "folder":
        path.mkdir()
    if arguments == ("compare",):
        arguments = ("compare", sides[0])
    done = command(*arguments, str(path))
    if arguments == ("history",) and name == "none.json":
        assert done.returncode in (0, 2)
        return
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ['{"a": ' + "1" * 5000 + "}", "[" * 100_000, '{"a": NaN', "\x00", '"\\ud800"'])
def test_odd_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    for arguments in (("report", str(path)), ("history", str(path)), ("compare", str(path), str(path))):
        done = command(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


HOSTILE = "a.py::\x1b[31mred\x1b[0m\x9b2J\u202e<img src=x>|`b`[c](http://d)*e*\nf"


def test_names_from_outside(tmp_path):
    """No name moves the cursor of a terminal, or is markup."""
    paths = [write(tmp_path / f"{side}.json", HOSTILE) for side in ("a", "b")]
    page = tmp_path / "out.md"
    done = command("compare", *paths, "--markdown", str(page))
    assert done.returncode == 0
    for text in (done.stdout, page.read_text(encoding="utf-8")):
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)
        assert "\\x1b[31mred" in text
        assert "<img" not in text
        assert "&lt;img src=x&gt;\\|\\`b\\`[c]\\(http://d)\\*e\\* f" in text
    for arguments in (
        ("report", "\x1b[31m"),
        ("nonsense\x1b[31m",),
        ("info", "--\x1b[31m"),
        ("compare", "\x1b[31m", "b"),
    ):
        done = command(*arguments)
        assert done.returncode == 2
        assert "\x1b" not in done.stdout + done.stderr


def test_text_is_shown_as_it_is():
    assert files.shown("ä\tb\n") == "ä\\x09b\n"
    assert markdown.literal("a_b[2-3]") == "a_b[2-3]"
    assert files.parse('{"\\u001b": ["\\u0007", 1, 2.5, {"a": null}]}') == {"\\x1b": ["\\x07", 1, 2.5, {"a": None}]}


VARIABLES = ("HOTLOOP_NUM_THREADS", "HOTLOOP_RECYCLE_MIB", "HOTLOOP_BACKEND", "HOTLOOP_ISA")


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("value", ["9" * 5000, "x" * 5000, "\x1b[31m"])
def test_variables_of_any_length(run_python, variable, value):
    code = (
        "import sys\n"
        "sys.argv = ['/usr/bin/hotloop']\n"  # whatever the program is called
        "try:\n"
        "    import hotloop\n"
        "    hotloop.get_num_threads()\n"
        "except ValueError as error:\n"
        "    print(len(str(error)) < 200, str(error).isprintable(), str(error))\n"
    )
    if variable == "HOTLOOP_ISA" and hotloop.info().backend != "native":
        pytest.skip("the native module has instruction sets")
    done = run_python(code, **{variable: value})
    assert done.stdout.startswith(f"True True {variable}: expected")
    done = command("info", **{variable: value})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"hotloop: {variable}: expected")
    assert len(done.stderr.splitlines()) == 1


def test_numbers_of_arguments():
    for arguments in (("bench", "--threads", "9" * 5000), ("compare", "a", "b", "--pairs", "9" * 5000)):
        done = command(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert _environment.natural("007") == 7
    for text in ("", "-1", "1.5", "²", "9" * 19, "1_0"):
        assert _environment.natural(text) is None


def test_a_program_called_hotloop_handles_the_error_itself(tmp_path):
    """The package raises no SystemExit; other errors are shown as ever."""
    script = tmp_path / "hotloop"
    package = os.path.dirname(os.path.dirname(hotloop.__file__))
    script.write_text(
        f"import sys\nsys.path.insert(0, {package!r})\n"
        "try:\n    import hotloop\nexcept ValueError:\n    print('handled')\nraise KeyError('mine')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60,
        env=os.environ | {"HOTLOOP_RECYCLE_MIB": "none"},
    )  # fmt: skip
    assert done.stdout == "handled\n"
    assert done.returncode == 1
    assert done.stderr.endswith("KeyError: 'mine'\n")


def test_a_copy_without_its_distribution(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert hotloop.info().version == "unknown"
    assert hotloop.__version__ == "unknown"


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_layer_in_the_last_del(run_python, kind):
    """When modules can no more be imported, and for the first time."""
    code = """
import builtins, numpy as np, sys
import hotloop
kind = sys.argv[1]
if kind == "torch":
    import torch, hotloop.torch
    torch.set_grad_enabled(False)
    layer, x = hotloop.torch.LSTM(40, 128), torch.ones(300, 16, 40)
else:
    layer, x = hotloop.LSTM(40, 128, rng=0), np.ones((300, 16, 40), np.float32)

class Last:
    def __del__(self):
        print(tuple(layer(x)[0].shape), tuple(layer(x[:1, :1])[0].shape), flush=True)
        if kind == "numpy":
            (output, _), vjp = layer.vjp(x)
            print(vjp(np.ones_like(output)).x.shape, flush=True)

builtins.last = Last()
"""
    if kind == "torch":
        pytest.importorskip("torch")
    done = run_python(code, kind, check=False)
    if kind == "numpy":  # torch 2.13 aborts when it lets its tensors go so late, whatever the layer
        assert done.stderr == ""
        assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "(300, 16, 128) (1, 1, 128)"


# How many processors


MOUNT_2 = "30 24 0:26 {root} {place} rw,nosuid - cgroup2 cgroup2 rw\n"
MOUNT_1 = "32 31 0:29 {root} {place} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


def control_groups(folder, version, name, limits, root="/"):
    """Files as in /proc/self and /sys/fs/cgroup: `limits` by group, (quota, period) in microseconds."""
    proc, place = folder / "proc", folder / "groups"
    proc.mkdir()
    (proc / "cgroup").write_text(f"0::{name}\n" if version == 2 else f"4:memory:/x\n2:cpu,cpuacct:{name}\n")
    (proc / "mountinfo").write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + (MOUNT_2 if version == 2 else MOUNT_1).format(root=root, place=place)
    )
    for group, (quota, period) in limits.items():
        path = place / group
        path.mkdir(parents=True, exist_ok=True)
        if version == 2:
            (path / "cpu.max").write_text(f"{quota} {period}\n")
        else:
            (path / "cpu.cfs_quota_us").write_text(f"{-1 if quota == 'max' else quota}\n")
            (path / "cpu.cfs_period_us").write_text(f"{period}\n")
    return proc


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("name", "limits", "want"),
    [
        ("/", {"": ("max", 100_000)}, None),
        ("/a/b", {"a/b": (50_000, 100_000)}, 0.5),
        ("/a/b", {"a": (150_000, 100_000), "a/b": ("max", 100_000)}, 1.5),  # of the group above
        ("/a/b", {"a": (150_000, 100_000), "a/b": (300_000, 100_000)}, 1.5),
        ("/a/b", {"": (250_000, 100_000)}, 2.5),
        ("/../x", {"": (250_000, 100_000)}, 2.5),  # a container in a name space of its own
        ("/a", {"a": ("nonsense", 100_000)}, None),
        ("/a", {"a": (100_000, 0)}, None),
    ],
)
def test_quota(tmp_path, version, name, limits, want):
    assert _processors.quota(control_groups(tmp_path, version, name, limits)) == want


@pytest.mark.parametrize("version", [1, 2])
def test_quota_in_a_container(tmp_path, version):
    """The mount shows the container's part of the host's groups alone."""
    proc = control_groups(tmp_path, version, "/docker/abc/x", {"x": (50_000, 100_000)}, root="/docker/abc")
    assert _processors.quota(proc) == 0.5


def test_quota_without_control_groups(tmp_path):
    assert _processors.quota(tmp_path) is None
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert _processors.quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "affinity", "want"), [(None, 4, 4), (0.5, 4, 1), (1.2, 4, 2), (8.0, 4, 4), (0.0, 4, 1)]
)
def test_usable_processors(monkeypatch, quota, affinity, want):
    monkeypatch.setattr(_processors, "quota", lambda: quota)
    monkeypatch.setattr(_processors, "affinity", lambda: affinity)
    assert _processors.usable() == want
    assert settings.processors() == want


@pytest.mark.parametrize(
    ("ours", "openmp", "want"),
    [("", "1", 1), ("3", "1", 3), ("", "2,1", 2), ("", " 3 ", 3), ("", "100", 4), ("", "none", 4), ("", "0", 4),
     ("", "9" * 5000, 4), ("", "", 4)],
)  # fmt: skip
def test_variables_for_the_number_of_threads(monkeypatch, ours, openmp, want):
    """Ours goes before OpenMP's, and that before all processors."""
    monkeypatch.setattr(settings, "processors", lambda: 4)
    monkeypatch.setattr(settings, "current", settings.current._replace(threads=None))
    monkeypatch.setenv("HOTLOOP_NUM_THREADS", ours)
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert hotloop.get_num_threads() == want
