"""No kernel reads or writes outside its arrays: every buffer that crosses the ABI at a page without access."""

from __future__ import annotations

import signal

import pytest
from cases import CELLS, DTYPES

FAULTS = (-signal.SIGSEGV, -signal.SIGBUS)


@pytest.fixture
def guarded(run_python, pytestconfig):
    """Run a function of guarded.py in a process of its own; a fault fails with the name of the problem."""

    def run(call, isa, timeout=120):
        code = f"import sys; sys.path.insert(0, sys.argv[1]); import guarded; guarded.{call}"
        done = run_python(code, pytestconfig.rootpath / "tests", check=False, timeout=timeout, HOTLOOP_ISA=isa)
        last = done.stdout.strip().rpartition("\n")[2]
        assert done.returncode not in FAULTS, f"fault in {last}"
        assert done.returncode == 0, f"in {last}: {done.stderr}"
        return done.stdout

    return run


def test_guard_pages(guarded, isa):
    """Every hidden size 1..40 and input size 1..20 with every cell and type, at both ends of every array."""
    named = guarded("covering()", isa)
    for cell in CELLS:
        for dtype in DTYPES:
            mine = [line for line in named.splitlines() if line.startswith(f"{cell}-{dtype}")]
            for letter, sizes in (("H", range(1, 41)), ("I", range(1, 21))):
                missing = [size for size in sizes if not any(f"-{letter}{size}-" in line for line in mine)]
                assert not missing, (cell, dtype, letter)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_guard_pages_on_every_shape(cell, dtype, guarded, isa):
    guarded(f"product({cell!r}, {dtype!r})", isa, timeout=3600)


ROLES = {
    "x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "output", "h_n", "gates", "grad_output", "grad_h_n",
    "grad_x", "grad_weight_ih", "grad_weight_hh", "grad_bias_ih", "grad_bias_hh", "grad_h0", "packed", "workspace",
}  # fmt: skip
ROLES_WITH_C = ROLES | {"c0", "c_n", "c", "grad_c_n", "grad_c0"}


def test_one_element_outside_is_a_fault(guarded, isa):
    """The guards are there: each array moved by one element ends the process, at either end."""
    lines = [line.split() for line in guarded("faults()", isa).splitlines()]
    for cell, roles in (("lstm", ROLES_WITH_C), ("gru", ROLES)):
        mine = [line[1:] for line in lines if line[0] == cell]
        assert {(role, place) for role, place, _ in mine} == {(role, p) for role in roles for p in ("end", "begin")}
        survived = [line for line in mine if line[2] not in ("SIGSEGV", "SIGBUS")]
        assert not survived


def test_a_fault_is_a_failure_with_a_name(guarded, best_isa):
    """And not the end of the tests."""
    problem = "guarded.Problem('gru', 'float32', 5, 3, 4, 6)"
    shift = "print(p, flush=True); guarded.run([p], 1, 'end', {'x': 4})"
    with pytest.raises(AssertionError, match="fault in gru-float32-T5-B3-I4-H6-"):
        guarded(f"os; p = {problem}; {shift}", best_isa)
