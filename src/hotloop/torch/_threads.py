"""torch's threads for hotloop's work.

torch's pip packages compute with OpenMP, whose threads spin for some milliseconds after each operation. Threads of
hotloop's own would take turns with them, and torch's next operation with hotloop's. So shares of calls that are made
through hotloop.torch run on the OpenMP threads that torch uses, in the number that torch is set to. Calls of hotloop's
NumPy functions and layers always run on hotloop's own threads.
"""

from __future__ import annotations

import ctypes
from typing import Any

from .._core import settings
from .._core.checks import check_flag
from .._core.types import Backend
from . import _private

_runtime: Any = None  # keeps it loaded
_shared = True
_executors: dict[str, Any] = {}  # by backend


def executor() -> Any:
    """What calls are given as their executor; None: hotloop's own threads."""
    if not _shared:
        return None
    backend = settings.active()
    if backend.NAME not in _executors:
        _executors[backend.NAME] = _find(backend)
    return _executors[backend.NAME]


def _find(backend: Backend) -> Any:
    """The executor on the threads of the runtime that torch uses, where torch's own calls find it: what the program has
    for all, as with LD_PRELOAD, or what torch is linked with.
    """
    global _runtime
    for library in (None, _private.library_file):
        try:
            _runtime = ctypes.CDLL(library)
            run, most = (
                ctypes.cast(getattr(_runtime, name), ctypes.c_void_p).value or 0
                for name in ("GOMP_parallel", "omp_get_max_threads")
            )
        except (OSError, AttributeError):
            continue
        return backend.openmp_executor(run, most)
    return None


def share_threads(share: bool = True) -> None:
    """Whether calls made through hotloop.torch run on torch's threads where torch has as many as a call is to have.

    They do, from the import of hotloop.torch on, unless they are told otherwise or torch is built without OpenMP (its
    packages for macOS have another kind of it). Elsewhere, and in a forked process, hotloop's own threads do it. The
    results have the same bits.

    Parameters
    ----------
    share : bool

    Raises
    ------
    TypeError
        `share` is neither True nor False.

    Examples
    --------
    >>> import hotloop.torch
    >>> hotloop.torch.share_threads(False)
    >>> hotloop.torch.share_threads()
    """
    global _shared
    _shared = check_flag("share", share)
