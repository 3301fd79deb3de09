"""What test_pool.py runs in processes of its own: forks, threads, signals and load around calls that use the pool.

    python pool_scenes.py SCENE RUNS [OPTION...]

Every scene compares bits with those of one thread, computed first. It says "done" at its end; one that hangs says where
each Python thread was, after HOTLOOP_TEST_LIMIT seconds, and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from cases import Case, assert_same_bits, backward_args, forward_args, infer, train

from hotloop._backends import native as _native
from hotloop._core import settings

# Each above the 48 us from which on a call is split. Single rows and few, where threads can share only the units of a
# step; more rows; another cell and type.
CASES = (
    Case("lstm", "float32", 150, 1, 8, 128),
    Case("gru", "float32", 30, 1, 16, 512),
    Case("lstm", "float32", 40, 4, 20, 256),
    Case("gru_reset_before", "float64", 60, 8, 40, 64),
    Case("rnn_tanh", "float32", 60, 16, 40, 128),
)
MANY = 64  # threads


@functools.cache
def serial(case):
    """The results on one thread."""
    return train(case, threads=1)


def compute(threads=2, cases=CASES):
    for case in cases:
        assert_same_bits(train(case, threads=threads), serial(case))


def some(run):
    """One of the cases: another one in each run."""
    return CASES[run % len(CASES) :][:1]


@contextlib.contextmanager
def meanwhile(target):
    """`target` runs again and again in a thread, until the block ends and at least once."""
    stop, failures = threading.Event(), []

    def again():
        try:
            while True:
                target()
                if stop.is_set():
                    break
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures, failures


def in_child(work, *args):
    """Start a fork that does `work`; returns a function that waits for it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(*args)
            status = 0
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
        os._exit(status)

    def wait():
        assert os.waitpid(child, 0)[1] == 0

    return wait


def fork(runs):
    """Parent and child go on computing, whether the pool was never made, sleeps or spins."""

    def both_ways(cases):
        for threads in (2, 1, 2):
            compute(threads, cases)

    for run in range(runs):
        wait = in_child(both_ways, some(run))
        compute(2, some(run + 1))
        wait()
        compute(2, some(run))
        time.sleep((0, 40e-6, 5e-3)[run % 3])


def fork_of_fork(runs):
    """Children of children compute."""

    def generation(number, cases):
        compute(2, cases)
        if number < 3:
            in_child(generation, number + 1, cases)()
            compute(2, cases)

    for run in range(runs):
        in_child(generation, 1, some(run))()
        compute(2, some(run))


def fork_while_computing(runs):
    """A thread forks while the main thread computes, and the main thread while another does."""

    def forks(run):
        in_child(compute, 2, some(run))()

    for run in range(0, runs, 2):
        with meanwhile(lambda run=run: forks(run)):
            compute(2, some(run))
        with meanwhile(lambda run=run: compute(2, some(run))):
            forks(run + 1)


def digest(number):
    """What a process computes, for comparison in another one."""
    sums = []
    for threads in (2, 1, 2):
        results = train(CASES[number % len(CASES)], threads=threads)
        parts = [f"{name} ".encode() + array.tobytes() for name, array in results.items() if array is not None]
        sums.append(hashlib.sha256(b"".join(parts)).hexdigest())
    assert len(set(sums)) == 1
    return sums[0]


def started(runs, method):
    """A process that multiprocessing starts computes what this one does, at the same time."""
    context = multiprocessing.get_context(method)
    for run in range(runs):
        with context.Pool(1) as pool:
            answer = pool.apply_async(digest, (run,))
            compute(2, some(run + 1))
            assert answer.get() == digest(run)
            pool.close()
            pool.join()


def python_threads(runs):
    """Four threads at once, whoever gets the pool."""
    failures = []

    def work(number):
        try:
            for run in range(runs):
                barrier.wait()
                compute((2, 2, 3, 1)[(number + run) % 4], some(number + run))
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


class Rows:
    """A dataset of torch whose items are computed by hotloop."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        (case,) = some(index)
        compute(2, [case])
        return float(train(case, threads=2)["h_n"].sum())


def data_loader(runs, method):
    """Workers of a DataLoader compute while the main process does."""
    import torch.utils.data

    rows = Rows()
    want = [float(serial(case)["h_n"].sum()) for case in CASES[: len(rows)]]
    for run in range(runs):
        items = []
        for item in torch.utils.data.DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context=method):
            items.append(float(item))
            compute(2, some(run))
        assert items == want


# 16 MB of weights that every step reads: some ms a step, so seconds for a call.
LONG = Case("lstm", "float32", 8000, 1, 2, 1024, upstream=("grad_h_n",))


def long_call(function, threads):
    """A call of the native backend that takes seconds, forward or backward, and what it would write last."""
    args = forward_args(LONG, LONG_DATA, training=function == "backward")
    backend = settings.active()
    if function == "forward":
        args.output[...] = np.nan
        return lambda: backend.forward((args,), threads), args.output[-1]
    args.output[...] = 0
    args.gates[...] = 0.5
    args.c[...] = 0
    back = backward_args(args, LONG_DATA)
    back.grad_x[...] = np.nan
    return lambda: backend.backward((back,), threads), back.grad_x[0]


LONG_DATA = {}


def ctrl_c(runs, function, threads):
    """SIGINT at any moment of a long call. Prints how long after it the exception was there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    LONG_DATA.update(LONG.data())
    rng = np.random.default_rng(runs)
    waits = []
    for run in range(runs):
        call, last = long_call(function, int(threads))
        sent = []

        def send(after, sent=sent):
            time.sleep(after)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send, args=(rng.uniform(0.02, 0.3),))
        try:
            sender.start()
            call()
            raise AssertionError("the call ended before the signal came, or did not see it")
        except KeyboardInterrupt:
            waits.append(time.monotonic() - sent[0])
        sender.join()
        assert np.isnan(last).all(), "it was at its end"
        compute(2, some(run))
    print("milliseconds:", *(round(1e3 * wait, 1) for wait in sorted(waits)))


class Counting:
    """The native library; counts the calls of its functions that compute for long."""

    def __init__(self):
        self.slices, self.library = 0, _native.lib

    def __getattr__(self, name):
        function = getattr(self.library, name)
        if name not in ("hotloop_forward", "hotloop_backward"):
            return function

        def counted(*args):
            self.slices += 1
            return function(*args)

        return counted


def heartbeat(runs, function, threads):
    """A Python thread goes on during long calls, and not only where they come back to look for signals.

    Prints the longest pause it made in each.
    """
    LONG_DATA.update(LONG.data())
    counting = _native.lib = Counting()
    gaps = []
    for _ in range(runs):
        call, last = long_call(function, int(threads))
        stop, ticks = threading.Event(), []

        def tick(stop=stop, ticks=ticks):
            while not stop.is_set():
                ticks.append(time.monotonic())
                time.sleep(1e-3)

        ticker = threading.Thread(target=tick)
        ticker.start()
        while not ticks:
            time.sleep(1e-3)
        counting.slices, first = 0, len(ticks)
        begin = time.monotonic()
        call()
        end, during = time.monotonic(), len(ticks) - first
        stop.set()
        ticker.join()
        assert not np.isnan(last).any()
        assert counting.slices >= 3, "the call was to be longer"
        # A thread that had to wait for the GIL would tick once between two slices.
        assert during > 2 * counting.slices, (during, counting.slices)
        moments = np.array([begin, *(moment for moment in ticks if begin < moment < end), end])
        gaps.append(np.diff(moments).max())
    print("milliseconds:", *(round(1e3 * gap, 1) for gap in sorted(gaps)))


def loaded(runs):
    """Calls finish while every processor has two other processes to run."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * settings.processors())]
    try:
        for run in range(runs):
            compute(2, some(run))
            compute(MANY, some(run))
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def more_threads_than_processors(runs):
    """A call takes no more than the process may run on; here it is told that those are many."""
    _native.lib.hotloop_use_processors(MANY)
    for run in range(runs):
        compute((3, 4, 8, MANY)[run % 4], some(run + run // 20))
    if os.path.isdir("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) > 3


def shrinking_affinity(runs):
    """All threads, those of the pool too, come to share one processor in the middle of calls, and get theirs back."""
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}

    def move():
        for processors in (one, everywhere):
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), processors)
            time.sleep(2e-3)

    _native.lib.hotloop_use_processors(max(2, len(everywhere)))  # those there were when a call began
    for run in range(runs):
        with meanwhile(move):
            compute(2, some(run))
            compute(4, some(run))
    _native.lib.hotloop_use_processors(0)
    os.sched_setaffinity(0, one)  # and for good
    compute(2)


def leave(runs, how):
    """One end of the interpreter: with a pool that spins, sleeps, or works for a daemon thread. `runs` is the run."""
    compute(2, some(runs))
    if how == "asleep":
        time.sleep(0.01)
    if how == "working":
        threading.Thread(target=lambda: [infer(CASES[0], threads=2) for _ in range(10**6)], daemon=True).start()
        time.sleep(1e-3 * (runs % 7))


SCENES = {
    function.__name__: function
    for function in (
        fork, fork_of_fork, fork_while_computing, started, python_threads, data_loader, ctrl_c, heartbeat, loaded,
        more_threads_than_processors, shrinking_affinity, leave,
    )
}  # fmt: skip


class OnTorchsThreads:
    """The native backend, with torch's threads as the executor of every call."""

    def __init__(self, executor):
        self._executor = executor

    def __getattr__(self, name):
        return getattr(_native, name)

    def forward(self, recurrences, threads, executor=None):
        _native.forward(recurrences, threads, self._executor())

    def backward(self, recurrences, threads, executor=None):
        _native.backward(recurrences, threads, self._executor())

    def prepare(self, *args, executor=None, **options):
        return _native.prepare(*args, executor=self._executor(), **options)

    def prepare_backward(self, *args, executor=None, **options):
        return _native.prepare_backward(*args, executor=self._executor(), **options)


def on_torchs_threads():
    """From here on; they are awake, as after any operation of torch."""
    import torch

    import hotloop.torch
    from hotloop.torch import _threads

    regions, keep = [], []
    openmp_executor, kind = (
        _native.openmp_executor,
        ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_uint] * 2),
    )

    def counted(run, most):
        def region(task, data, threads, flags):
            regions.append(threads)
            keep[0](task, data, threads, flags)

        keep[:] = kind(run), kind(region)
        return openmp_executor(ctypes.cast(keep[1], ctypes.c_void_p).value, most)

    _native.openmp_executor = counted
    torch.set_num_threads(2)
    torch.ones(1 << 20).add_(1)
    compute()
    assert not regions, "a call of NumPy arrays ran on torch's threads"
    settings.use_backend(OnTorchsThreads(_threads.executor))
    compute()
    borrowed = len(regions)
    assert borrowed, "no call ran on torch's threads"
    time.sleep(1.1)  # for so long at most they are left alone after one came late
    torch.set_num_threads(1)
    compute()  # torch has too few: one of our own
    assert len(regions) == borrowed
    assert len(os.listdir("/proc/self/task")) >= 3, "no thread of hotloop's own"
    _native.openmp_executor = openmp_executor
    _threads._executors.clear()
    torch.set_num_threads(2)
    hotloop.torch.share_threads(False)
    compute()
    assert len(regions) == borrowed
    hotloop.torch.share_threads()
    compute()
    child = os.fork()
    if child == 0:
        compute()  # it cannot have them
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    name, count, *options = sys.argv[1:]
    faulthandler.dump_traceback_later(float(os.environ.get("HOTLOOP_TEST_LIMIT", "100")), exit=True)
    for one in CASES:
        serial(one)
    if os.environ.get("HOTLOOP_TEST_TORCH"):
        on_torchs_threads()
    SCENES[name](int(count), *options)
    print("done", flush=True)
