"""What holds for every call of the process: the backend in use, and how many threads a call may have."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from .checks import check_threads
from .environment import natural, quoted, refuse
from .processors import usable
from .types import Backend


class Settings(NamedTuple):
    """Replaced whole when one of them changes, so a call sees by identity that nothing has."""

    backend: Backend | None  # None before `hotloop` has chosen one
    threads: int | None  # None before somebody asked


current = Settings(None, None)


def active() -> Backend:
    """The backend in use; chosen when hotloop is imported."""
    backend = current.backend
    assert backend is not None
    return backend


def use_backend(backend: Backend | None) -> None:
    global current
    current = current._replace(backend=backend)


def processors() -> int:
    """How many processors this process may use: by its affinity and its CPU quota (cpu.max, cpu.cfs_quota_us)."""
    return usable()


def get_num_threads() -> int:
    """Return how many threads a call uses unless it is given `threads=`.

    At first the value of HOTLOOP_NUM_THREADS; where that is not set, the number of processors that this process may
    use, by its affinity and by the CPU quota of its container, and no more than OMP_NUM_THREADS. Small calls run on one
    thread however many are allowed.

    Examples
    --------
    >>> import hotloop
    >>> hotloop.get_num_threads() >= 1
    True
    """
    if current.threads is None:
        text = os.environ.get("HOTLOOP_NUM_THREADS", "")
        if not text:
            _use_threads(_default_threads())
        elif number := natural(text):
            _use_threads(check_threads(number))
        else:
            refuse(ValueError(f"HOTLOOP_NUM_THREADS: expected an integer >= 1, got {quoted(text)}"))
    threads = current.threads
    assert threads is not None
    return threads


def _default_threads() -> int:
    """OMP_NUM_THREADS may be a list, by levels of nesting; what it says besides is OpenMP's to complain about."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(processors(), natural(first) or processors())


def _use_threads(threads: int | None) -> None:
    global current
    current = current._replace(threads=threads)


def set_num_threads(threads: int) -> None:
    """Set how many threads a call uses unless it is given `threads=`.

    Parameters
    ----------
    threads : int
        At least 1. A call never uses more threads than the process may run on. The results do not depend on it.

    Raises
    ------
    TypeError, ValueError
        If `threads` is not an integer, or below 1.

    Examples
    --------
    >>> import hotloop
    >>> before = hotloop.get_num_threads()
    >>> hotloop.set_num_threads(1)
    >>> hotloop.get_num_threads()
    1
    >>> hotloop.set_num_threads(before)
    """
    _use_threads(check_threads(threads))


def threads_of(threads: Any) -> int:
    """How many threads a call uses that was given `threads=`."""
    return get_num_threads() if threads is None else check_threads(threads)
