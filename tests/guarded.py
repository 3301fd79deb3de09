"""Kernels on buffers that end, or begin, at a page that nobody may touch: one element too far is a fault.

A program of its own, so that a fault ends it and not the tests: it names each problem before it runs it. Everything
goes through the C ABI; what Python allocates never comes near a kernel.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import resource
import signal
from dataclasses import dataclass, replace

import numpy as np
from cases import BIASES, CELLS, DTYPES, PARAMETERS, UPSTREAM, subsets
from numpy.lib.stride_tricks import as_strided

from hotloop import _ffi
from hotloop._core import types

ffi, lib = _ffi.ffi, _ffi.lib

PAGE = mmap.PAGESIZE
HIDDEN_SIZES = range(1, 41)
INPUT_SIZES = range(1, 21)
PLACES = ("end", "begin")
LAYOUTS = ("time_major", "batch_first", "padded", "negative")
WANTED = ("grad_x", *(f"grad_{name}" for name in PARAMETERS))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Arena:
    """Memory between two pages without access."""

    def __init__(self, size):
        size = -(-size // PAGE) * PAGE
        self._map = mmap.mmap(-1, size + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for guard in (start, start + PAGE + size):
            if _libc.mprotect(guard, PAGE, 0):  # PROT_NONE
                raise OSError(ctypes.get_errno(), "mprotect")
        self.bytes = np.frombuffer(self._map, np.uint8)[PAGE : PAGE + size]

    def take(self, count, dtype, place):
        """`count` elements that end, or begin, at a guard."""
        size = count * np.dtype(dtype).itemsize
        start = 0 if place == "begin" else len(self.bytes) - size
        return self.bytes[start : start + size].view(dtype)


_arenas = {}


def take(role, count, dtype, place, alignment=1):
    """A flat array at the guard of the arena of this role; the size is rounded up to the alignment."""
    size = -(-count * np.dtype(dtype).itemsize // alignment) * alignment
    arena = _arenas.get(role)
    if arena is None or len(arena.bytes) < size:
        arena = _arenas[role] = Arena(max(2 * size, 4 * PAGE))
    return arena.take(size // np.dtype(dtype).itemsize, dtype, place)


@dataclass(frozen=True)
class Problem:
    """One recurrence and how its arrays lie."""

    cell: str
    dtype: str
    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    biases: str = "both"
    states: tuple[str, ...] = ("h0", "c0")
    upstream: tuple[str, ...] = UPSTREAM
    wanted: tuple[str, ...] = WANTED
    reverse: bool = False
    layout: str = "time_major"

    def __str__(self):
        sizes = f"T{self.seq_len}-B{self.batch_size}-I{self.input_size}-H{self.hidden_size}"
        return "-".join((self.cell, self.dtype, sizes, f"bias_{self.biases}", *self.states, *self.upstream,
                         "wanted", *self.wanted, *["reverse"] * self.reverse, self.layout))  # fmt: skip


NOISE = np.random.default_rng(0).uniform(-1, 1, 1 << 16)
NOISES = {dtype: NOISE.astype(dtype) for dtype in DTYPES}


class Recurrence:
    """The arrays of a problem at their guards, and structs that point to them."""

    def __init__(self, problem, number, buffers, gradients, place, shifts):
        self.problem, self.number, self.place, self.shifts = problem, number, place, shifts
        self.buffers, self.gradients, self.weights = buffers, gradients, structs("weights", 1, place, number)
        self.results = {}
        self.noise = 0
        p, cell = problem, types.CELLS[problem.cell]
        T, B, I, H = p.seq_len, p.batch_size, p.input_size, p.hidden_size  # noqa: E741
        rows = cell.gates * H
        self.spec = ffi.new("hotloop_spec *", {"cell": CELLS.index(p.cell), "dtype": DTYPES.index(p.dtype),
                                               "input_size": I, "hidden_size": H, "output_size": H})  # fmt: skip
        f, struct = buffers, gradients
        self.parameters = {"weight_ih": rows * I, "weight_hh": rows * H}
        self.parameters |= {f"bias_{b}": rows for b in ("ih", "hh") if p.biases in ("both", b)}
        f.weights, f.reverse, f.seq_len, f.batch_size = self.weights, p.reverse, T, B
        self.sequence(f, "x", I, read=True)
        for name, count in self.parameters.items():
            self.read(self.weights, name, count, 0.5 * H**-0.5)
        states = ("h", "c") if cell.has_c else ("h",)
        for name in states:
            if f"{name}0" in p.states:
                self.read(f, f"{name}0", B * H)
        self.sequence(f, "output", H)
        for name in states:
            self.write(f, f"{name}_n", B * H)
        if "grad_output" in p.upstream:
            self.sequence(struct, "grad_output", H, read=True)
        for name in states:
            if f"grad_{name}_n" in p.upstream:
                self.read(struct, f"grad_{name}_n", B * H)
            self.write(struct, f"grad_{name}0", B * H)
        if "grad_x" in p.wanted:
            self.sequence(struct, "grad_x", I)
        for name, count in self.parameters.items():
            if f"grad_{name}" in p.wanted:
                self.write(struct, f"grad_{name}", count)

    def train(self):
        """What training saves; without it, the buffers are those of inference."""
        p, cell = self.problem, types.CELLS[self.problem.cell]
        count = p.seq_len * p.batch_size * p.hidden_size
        if cell.saved:
            self.write(self.buffers, "gates", count * len(cell.saved))
        if cell.has_c:
            self.write(self.buffers, "c", count)
            self.buffers.c_stride_t, self.buffers.c_stride_b = p.batch_size * p.hidden_size, p.hidden_size

    def take(self, name, count, alignment=1, dtype=None):
        return take((self.number, name), count, dtype or self.problem.dtype, self.place, alignment)

    def point(self, struct, name, array):
        address = ffi.cast("void *", array.ctypes.data + self.shifts.get(name, 0))
        parameter = name.removeprefix("grad_")
        if parameter in self.parameters:
            table = struct.parameters if parameter == name else struct.grad_parameters
            table[getattr(lib, f"HOTLOOP_{parameter.upper()}")] = address
        else:
            setattr(struct, name, address)

    def read(self, struct, name, count, scale=None):
        array = self.take(name, count)
        self.fill(array, scale)
        self.point(struct, name, array)

    def fill(self, array, scale):
        noise = NOISES[self.problem.dtype]
        self.noise = (self.noise + 4099) % 32749
        whole = len(array) // 32768
        for part in range(whole + 1):
            piece = array[part * 32768 : (part + 1) * 32768]
            piece[...] = noise[self.noise : self.noise + len(piece)]
        if scale is not None:
            array *= scale

    def write(self, struct, name, count):
        array = self.results[name] = self.take(name, count)
        array.fill(np.nan)
        self.point(struct, name, array)

    def sequence(self, struct, name, features, read=False):
        p = self.problem
        steps, rows, pitch = p.seq_len, p.batch_size, features + 3 * (p.layout == "padded")
        stride_t, stride_b = (pitch, steps * pitch) if p.layout == "batch_first" else (rows * pitch, pitch)
        array = self.take(name, (steps - 1) * stride_t + (rows - 1) * stride_b + features)
        size, start = array.itemsize, array
        view = as_strided(array, (steps, rows, features), (stride_t * size, stride_b * size, size))
        if p.layout == "negative":
            view, stride_t, stride_b = view[::-1, ::-1], -stride_t, -stride_b
            start = array[(steps - 1) * -stride_t + (rows - 1) * -stride_b :]
        if read:
            self.fill(array, None)
        else:
            array.fill(np.nan)
            self.results[name] = view
        self.point(struct, name, start)
        setattr(struct, f"{name}_stride_t", stride_t)
        setattr(struct, f"{name}_stride_b", stride_b)

    def pack(self):
        """The weights packed, in the place of the weights."""
        size = lib.hotloop_packed_bytes(self.spec)
        packed = self.take("packed", size, 64, np.uint8)
        packed.fill(0xFF)
        self.point(self.weights, "packed", packed)
        ok(lib.hotloop_pack(self.spec, self.weights, self.weights.packed, size))
        for name in self.parameters:
            self.weights.parameters[getattr(lib, f"HOTLOOP_{name.upper()}")] = ffi.NULL


def ok(status):
    assert status == lib.HOTLOOP_OK, ffi.string(lib.hotloop_status_string(status))


def structs(kind, count, place, number=0):
    size = ffi.sizeof(f"hotloop_{kind}") * count
    memory = take(f"{kind} {number}", size, np.uint8, place)
    memory.fill(0)
    return ffi.cast(f"hotloop_{kind} *", memory.ctypes.data)


def call(recurrences, uses, threads, place, shifts, *structs_of_call):
    """One call with a workspace of exactly the size asked for."""
    first, plan = recurrences[0], structs("plan", 1, place)
    sizes = len(recurrences), first.problem.seq_len, first.problem.batch_size
    ok(lib.hotloop_make_plan(plan, first.spec, uses, *sizes, threads))
    size = lib.hotloop_workspace_bytes(plan)
    assert size >= 0
    memory = take("workspace", size, np.uint8, place)
    memory.fill(0xFF)
    address = ffi.cast("void *", memory.ctypes.data + shifts.get("workspace", 0))
    function = lib.hotloop_backward if uses & lib.HOTLOOP_BACKWARD else lib.hotloop_forward
    for recurrence in recurrences:
        recurrence.buffers.cursor = 0
    while (status := function(plan, *structs_of_call, ffi.NULL, address, size)) == lib.HOTLOOP_AGAIN:
        pass
    ok(status)


def run(problems, threads, place, shifts=()):
    """Inference, inference on packed weights, training forward and backward of some problems in one call each.

    Returns copies of the results.
    """
    shifts, count = dict(shifts), len(problems)
    buffers, gradients = structs("buffers", count, place), structs("gradients", count, place)
    recurrences = [
        Recurrence(problem, n, ffi.addressof(buffers, n), ffi.addressof(gradients, n), place, shifts)
        for n, problem in enumerate(problems)
    ]

    def infer(uses):
        call(recurrences, uses, threads, place, shifts, buffers)
        names = ("output", "h_n", "c_n")
        return [{n: r.results[n].copy() for n in names if n in r.results} for r in recurrences]

    inferred = infer(lib.HOTLOOP_INFERENCE)
    for recurrence in recurrences:
        recurrence.train()
    trained = infer(lib.HOTLOOP_TRAINING)
    wanted = {name for problem in problems for name in problem.wanted}
    uses = lib.HOTLOOP_BACKWARD | ("grad_x" in wanted) * lib.HOTLOOP_GRAD_X
    uses |= bool(wanted & {"grad_weight_ih", "grad_weight_hh"}) * lib.HOTLOOP_GRAD_WEIGHTS
    call(recurrences, uses, threads, place, shifts, buffers, gradients)
    results = [{name: array.copy() for name, array in r.results.items()} for r in recurrences]
    for recurrence in recurrences:
        recurrence.buffers.gates = recurrence.buffers.c = ffi.NULL
        recurrence.pack()
    packed = infer(lib.HOTLOOP_PACKED)
    for first, second, third in zip(inferred, trained, packed, strict=True):
        for name, array in first.items():
            assert array.tobytes() == second[name].tobytes() == third[name].tobytes(), name
    return results


def check(problems, threads):
    """At both guards, with the same results."""
    done = []
    for place in PLACES:
        print(*problems, f"threads={threads}", place, flush=True)
        done.append(run(problems, threads, place))
    for first, second in zip(*done, strict=True):
        for name, array in first.items():
            assert not np.isnan(array).any(), name
            assert array.tobytes() == second[name].tobytes(), name


def options(cell, dtype, seed):
    """Endless sizes and options, every one of them before any comes again; sizes of odd and even tiles of rows."""
    rng = np.random.default_rng(seed)
    has_c = types.CELLS[cell].has_c
    axes = {
        "seq_len": (1, 2, 3, 5),
        "batch_size": (1, 2, 3, 5, 7, 8, 13),
        "biases": BIASES,
        "states": subsets(("h0", "c0") if has_c else ("h0",)),
        "upstream": subsets(UPSTREAM if has_c else UPSTREAM[:2]),
        "wanted": (WANTED, WANTED, *subsets(WANTED)[1:-1]),
        "reverse": (False, True),
        "layout": LAYOUTS,
    }

    def endless(values):
        while True:
            yield from (values[index] for index in rng.permutation(len(values)))

    for row in zip(*map(endless, axes.values()), strict=True):
        yield dict(zip(axes, row, strict=True))


def long_enough(problem):
    """The problem over so many steps that the work is split among threads."""
    G, H, I = types.CELLS[problem.cell].gates, problem.hidden_size, problem.input_size  # noqa: E741
    traits = ffi.new("hotloop_isa_traits *")
    assert lib.hotloop_describe_isa(traits) == lib.HOTLOOP_OK
    lanes = traits.vector_bytes // np.dtype(problem.dtype).itemsize
    flops = problem.batch_size * -(-H // lanes) * lanes * (2 * G * (I + H) + traits.cell_flops)
    step_ns = flops / (traits.lane_flops_ns * lanes)  # as csrc/cost.cpp has it
    return replace(problem, seq_len=int(60e3 / step_ns) + 2)


def check_all(cell, dtype, sizes, split):
    """Every (hidden size, input size) of `sizes`; those whose number is in `split` on three threads, the others on one.

    A tenth of them go two in a call, the second one with other options and no more steps and rows.
    """
    for number, ((hidden, inputs), more) in enumerate(zip(sizes, options(cell, dtype, 1), strict=False)):
        problem = Problem(cell, dtype, input_size=inputs, hidden_size=hidden, **more)
        if number in split:
            problem = replace(problem, batch_size=max(problem.batch_size, 2))
            check([long_enough(problem)], 3)
        else:
            check([problem], 1)
        if number % 10 == 9:
            other = replace(
                problem, reverse=not problem.reverse, seq_len=max(problem.seq_len - 1, 1),
                batch_size=max(problem.batch_size - 1, 1), layout=LAYOUTS[number // 10 % len(LAYOUTS)],
                upstream=problem.upstream[1:], wanted=problem.wanted[1:],
            )  # fmt: skip
            check([problem, other], 1 + 2 * (number % 4 == 1))


def covering():
    """Every cell, type, hidden size and input size in random company."""
    rng = np.random.default_rng(2)
    for cell, dtype in itertools.product(CELLS, DTYPES):
        hidden = np.concatenate([rng.permutation(HIDDEN_SIZES) for _ in range(2)])
        inputs = np.concatenate([rng.permutation(INPUT_SIZES) for _ in range(4)])
        sizes = list(zip(hidden.tolist(), inputs.tolist(), strict=True))
        check_all(cell, dtype, sizes, range(0, len(sizes), 4))
    elementwise()
    assert_threads()


def product(cell, dtype):
    """Every hidden size with every input size, on one thread and on three."""
    sizes = list(itertools.product(HIDDEN_SIZES, INPUT_SIZES))
    check_all(cell, dtype, sizes, ())
    check_all(cell, dtype, sizes, range(len(sizes)))
    assert_threads()


def assert_threads():
    """Some of the work was split."""
    if os.path.isdir("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) >= 3


def elementwise():
    """What takes an array and a count: the activations and the probes."""
    for dtype, place, count in itertools.product(DTYPES, PLACES, range(1, 70)):
        print("activation", dtype, place, count, flush=True)
        x, result = (take(name, count, dtype, place) for name in ("x", "result"))
        x[...] = NOISES[dtype][:count]
        for function in range(2):
            pointers = [ffi.cast("void *", array.ctypes.data) for array in (x, result)]
            ok(lib.hotloop_activation(function, DTYPES.index(dtype), *pointers, count))
    for probe, cell, dtype, place in itertools.product(range(5), range(len(CELLS)), range(len(DTYPES)), PLACES):
        print("probe", probe, cell, dtype, place, flush=True)
        memory = take("probe", 8000 + 64, np.uint8, place)
        memory.fill(0)
        assert lib.hotloop_probe(probe, cell, dtype, ffi.cast("void *", memory.ctypes.data), 8000, 2) > 0


def faults():
    """Print, for each buffer moved one element into its guard, the signal that ended a child process that used it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for cell, dtype in (("lstm", "float32"), ("gru", "float64")):
        problem = Problem(cell, dtype, 5, 3, 4, 60)  # so wide that the workspace is not on the stack
        run([problem], 1, "end")
        roles = [name for number, name in (key for key in _arenas if isinstance(key, tuple)) if number == 0]
        for role in (*roles, "workspace"):
            # Workspace and packed weights have lines that keep them aligned and may stay unused.
            size = {"workspace": 320, "packed": 128}.get(role, np.dtype(dtype).itemsize)
            for place in PLACES:
                child = os.fork()
                if child == 0:
                    try:
                        run([problem], 1, place, {role: size if place == "end" else -size})
                    finally:
                        os._exit(0)
                status = os.waitpid(child, 0)[1]
                ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "nothing"
                print(cell, role, place, ended, flush=True)
        _arenas.clear()
