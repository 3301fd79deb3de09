"""The seeded faults: the list stays true as the code moves, and a sample of it is caught."""

from __future__ import annotations

import datetime
import difflib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_applies(mutant):
    """Its text occurs once, one line changes, Python still parses, and the tests it names exist."""
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    changed = text.replace(mutant.old, mutant.new)
    lines = list(difflib.ndiff(text.splitlines(), changed.splitlines()))
    removed, added = (sum(line.startswith(mark) for line in lines) for mark in ("- ", "+ "))
    assert (removed, added) in [(1, 1), (1, 0), (2, 1)]  # changed, deleted, or two lines exchanged in one
    if mutant.file.endswith(".py"):
        compile(changed, mutant.file, "exec")
    files = [word for word in shlex.split(mutant.tests) if word.startswith("tests/")]
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_the_list():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(names) >= 60


@pytest.mark.long
def test_a_sample_is_caught():
    """Ten mutants, others every week; the whole list is `python tools/run_mutants.py`."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("there is no C++ compiler")
    seed = datetime.date.today().toordinal() // 7
    command = [sys.executable, ROOT / "tools" / "run_mutants.py", "--sample", "10", "--seed", str(seed)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"--seed {seed}\n{done.stdout}\n{done.stderr}"
