"""The outside of the workers: starting them, keeping all but one stopped, asking them, and ending them for certain."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

# The longest honest request is compiling or checking a large problem, some 20 s.
REPLY_SECONDS = 300.0


class WorkerError(Exception):
    """A worker refused a request, died or did not answer."""


class WorkerDied(WorkerError):
    """A worker is gone; the message holds the end of its standard error."""


class WorkerProcess:
    """One worker. It sleeps (SIGSTOP) except inside `awake()`, because thread pools spin while they wait for work.

    Parameters
    ----------
    arguments : list of str
        What follows `python -m` on its command line: a module and its arguments.
    environment : mapping, optional
        Variables to set; None as a value removes one.
    python : list of str, optional
        What stands in the place of this interpreter and its `-m`.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str | None] | None = None,
        python: list[str] | None = None,
    ) -> None:
        variables = dict(os.environ)
        for key, value in (environment or {}).items():
            if value is None:
                variables.pop(key, None)
            else:
                variables[key] = value
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe nobody reads would block the worker)
        # A session of its own: Ctrl-C reaches the parent alone, which then ends its workers itself.
        self._process = subprocess.Popen(
            [*(python or [sys.executable, "-m"]), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=variables,
            start_new_session=True,
        )
        self._unread = b""
        self.hello: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def greet(self) -> dict[str, Any]:
        """Wait until the worker has started, and stop it. Returns what it says of itself."""
        self.hello = self._receive(time.monotonic() + REPLY_SECONDS)
        self._stop()
        return self.hello

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let the worker run inside the block."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._stop()

    def ask(self, request: Mapping[str, Any], *, seconds: float = REPLY_SECONDS) -> dict[str, Any]:
        """Send a request and wait for its reply. The worker must be awake."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._receive(time.monotonic() + seconds)

    def close(self) -> None:
        """End the process, stopped or not, and wait until it is gone."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._signal(signal.SIGCONT)  # it ends when it finds its input closed
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._process.kill()  # SIGKILL ends a stopped process too
        self._process.wait()
        self._stderr.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _stop(self) -> None:
        """Stop the process and return when it has stopped (or ended)."""
        self._signal(signal.SIGSTOP)
        if self._process.returncode is not None:
            return
        # WNOWAIT leaves an exit status to Popen; a stop is then taken from the queue.
        state = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state is not None and state.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._process.kill()
                raise WorkerDied("no answer in time")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise self._died()
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        message = json.loads(line)
        if "error" in message:
            raise WorkerError(message["error"])
        ok: dict[str, Any] = message["ok"]
        return ok

    def _died(self) -> WorkerDied:
        self._process.kill()
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        return WorkerDied(f"{how}: " + "\n".join(lines[-5:]) if lines else how)


def candidate_environment(name: str, threads: int, isa: str | None) -> dict[str, str | None]:
    """Return the variables that set a library's threads, and our backend and instruction set."""
    count = str(threads)
    variables: dict[str, str | None] = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HOTLOOP_NUM_THREADS"), count
    )
    if name == "jax":
        variables["JAX_PLATFORMS"] = "cpu"
        eigen = "--xla_cpu_multi_thread_eigen=" + ("false" if threads == 1 else "true")
        variables["XLA_FLAGS"] = f"{eigen} intra_op_parallelism_threads={count}"
    if name in ("numba", "numpy"):
        variables["HOTLOOP_BACKEND"] = name
    if isa is not None:
        variables["HOTLOOP_ISA"] = isa
    return variables


def start_candidate(name: str, threads: int, isa: str | None = None) -> WorkerProcess:
    """Start the worker of a candidate; `greet` waits for it."""
    arguments = ["hotloop.bench.worker", name, str(threads)]
    return WorkerProcess(arguments, candidate_environment(name, threads, isa))
