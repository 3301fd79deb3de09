"""Which backend runs: native, then numba, then numpy, or what HOTLOOP_BACKEND names.

The only place that knows them all.
"""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, cast

import numpy as np

from ._contract import Backend, check_threads
from ._environment import natural, quoted, refuse
from ._processors import usable

ORDER = ("native", "numba", "numpy")

_COST = {"numba": "slower, and compiles at the first call", "numpy": "much slower"}

_active: Backend | None = None
_why_not: dict[str, str] = {}  # backend: why it could not be loaded
_threads: int | None = None


def load(name: str) -> Backend:
    """The backend of that name, or the ImportError that keeps it from loading."""
    return cast(Backend, import_module(f"hotloop._{name}"))


def _choose() -> Backend:
    wanted = os.environ.get("HOTLOOP_BACKEND", "")
    if wanted:
        if wanted not in ORDER:
            refuse(ValueError(f"HOTLOOP_BACKEND: expected one of {', '.join(ORDER)}, got {quoted(wanted)}"))
        try:
            return load(wanted)
        except ImportError as error:
            refuse(ImportError(f"HOTLOOP_BACKEND={wanted}: {error}"))
    for name in ORDER:
        try:
            backend = load(name)
        except ImportError as error:
            _why_not[name] = str(error)
            continue
        if _why_not:
            warnings.warn(
                f"hotloop runs on its {name} backend, which is {_COST[name]}: {_reasons()}",
                RuntimeWarning,
                stacklevel=3,
            )
        return backend
    raise AssertionError("the numpy backend always loads")


def _reasons() -> str:
    return "; ".join(f"{name} is not in use: {why}" for name, why in _why_not.items())


def active() -> Backend:
    """The backend in use; chosen when hotloop is imported."""
    global _active
    if _active is None:
        _active = _choose()
    return _active


def use(name: str) -> Callable[[], None]:
    """Switch the process to a backend (for tests and benchmarks). Returns a function that switches back."""
    global _active
    before, _active = active(), load(name)

    def restore() -> None:
        global _active
        _active = before

    return restore


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
    global _threads
    if _threads is None:
        text = os.environ.get("HOTLOOP_NUM_THREADS", "")
        if not text:
            _threads = _default_threads()
        elif number := natural(text):
            _threads = check_threads(number)
        else:
            refuse(ValueError(f"HOTLOOP_NUM_THREADS: expected an integer >= 1, got {quoted(text)}"))
    return _threads


def _default_threads() -> int:
    """OMP_NUM_THREADS may be a list, by levels of nesting; what it says besides is OpenMP's to complain about."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(processors(), natural(first) or processors())


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
    global _threads
    _threads = check_threads(threads)


def threads_of(threads: Any) -> int:
    """How many threads a call uses that was given `threads=`."""
    if threads is not None:
        return check_threads(threads)
    return get_num_threads() if _threads is None else _threads


@dataclass(frozen=True)
class Info:
    """What `info()` returns; printed, one line a field."""

    version: str
    backend: str
    variant: str
    isas: tuple[str, ...]
    threads: int
    processors: int
    not_in_use: dict[str, str]
    python: str
    numpy: str
    processor: str
    platform: str

    def __str__(self) -> str:
        width = max(len(f.name) for f in fields(self))
        lines = []
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, dict):
                value = "; ".join(f"{name}: {why}" for name, why in value.items()) or "-"
            elif isinstance(value, tuple):
                value = ", ".join(value) or "-"
            lines.append(f"{f.name.replace('_', ' '):<{width}}  {value}")
        return "\n".join(lines)


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def version() -> str:
    """Of the installed distribution."""
    from importlib import metadata  # not at the top: it would be two thirds of the time of `import hotloop`

    try:
        return metadata.version("hotloop")
    except metadata.PackageNotFoundError:  # a copy of the folder alone
        return "unknown"


def info() -> Info:
    """Return what hotloop runs on: backend, instruction set, threads, versions, and why a better backend is not in use.

    Returns
    -------
    Info
        A dataclass with the fields `version`, `backend` ("native", "numba" or "numpy"), `variant` (the instruction
        set, or the version of Numba or NumPy), `isas` (those this processor can run, best first), `threads`,
        `processors`, `not_in_use` (a dict from a better backend to the reason it is not in use), `python`, `numpy`,
        `processor` and `platform`. `print` shows it as a table.

    Examples
    --------
    >>> import hotloop
    >>> hotloop.info().backend in ("native", "numba", "numpy")
    True
    """
    backend = active()
    reasons = dict(_why_not)
    wanted = os.environ.get("HOTLOOP_BACKEND", "")
    if wanted == backend.NAME:
        reasons |= dict.fromkeys(ORDER[: ORDER.index(wanted)], f"HOTLOOP_BACKEND={wanted}")
    return Info(
        version=version(),
        backend=backend.NAME,
        variant=backend.description(),
        isas=tuple(getattr(backend, "isas", tuple)()),
        threads=get_num_threads(),
        processors=processors(),
        not_in_use=reasons,
        python=sys.version.split()[0],
        numpy=np.__version__,
        processor=_processor_name(),
        platform=platform.platform(),
    )
