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
from typing import cast

import numpy as np

from .._core import settings
from .._core.environment import quoted, refuse
from .._core.types import Backend

ORDER = ("native", "numba", "numpy")

_COST = {"numba": "slower, and compiles at the first call", "numpy": "much slower"}

_why_not: dict[str, str] = {}  # backend: why it could not be loaded


def load(name: str) -> Backend:
    """The backend of that name, or the ImportError that keeps it from loading."""
    return cast(Backend, import_module(f"hotloop._backends.{name}"))


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


def choose() -> Backend:
    """Choose the backend that runs, unless that has been done."""
    if settings.current.backend is None:
        settings.use_backend(_choose())
    return settings.active()


def use(name: str) -> Callable[[], None]:
    """Switch the process to a backend (for tests and benchmarks). Returns a function that switches back."""
    before = settings.current.backend
    settings.use_backend(load(name))
    return lambda: settings.use_backend(before)


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
    backend = settings.active()
    reasons = dict(_why_not)
    wanted = os.environ.get("HOTLOOP_BACKEND", "")
    if wanted == backend.NAME:
        reasons |= dict.fromkeys(ORDER[: ORDER.index(wanted)], f"HOTLOOP_BACKEND={wanted}")
    return Info(
        version=version(),
        backend=backend.NAME,
        variant=backend.description(),
        isas=backend.isas(),
        threads=settings.get_num_threads(),
        processors=settings.processors(),
        not_in_use=reasons,
        python=sys.version.split()[0],
        numpy=np.__version__,
        processor=_processor_name(),
        platform=platform.platform(),
    )
