"""torch's threads for hotloop's work.

torch's pip packages compute with OpenMP, whose threads spin for some milliseconds after each operation. Threads of
hotloop's own would take turns with them, and torch's next operation with hotloop's. So while hotloop.torch is imported,
shares of calls run on the OpenMP threads that torch uses, in the number that torch is set to.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from .. import _backend
from .._contract import check_flag

_runtime: Any = None  # keeps it loaded


def share_threads(share: bool = True) -> None:
    """Whether calls of all of hotloop run on torch's threads where torch has as many as a call is to have.

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
    global _runtime
    shared, borrow = check_flag("share", share), getattr(_backend.active(), "borrow_threads", None)
    if borrow is None:
        return
    if not shared:
        borrow(0, 0)
        return
    # Where torch's own calls find it: what the program has for all, as with LD_PRELOAD, or what torch is linked with.
    for library in (None, torch._C.__file__):
        try:
            _runtime = ctypes.CDLL(library)
            run, most = (
                ctypes.cast(getattr(_runtime, name), ctypes.c_void_p).value or 0
                for name in ("GOMP_parallel", "omp_get_max_threads")
            )
        except (OSError, AttributeError):
            continue
        borrow(run, most)
        return
