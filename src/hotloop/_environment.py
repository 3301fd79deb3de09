"""What is wrong with a HOTLOOP_* variable: an exception for a program, one line for the command `hotloop`."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from typing import NoReturn


def refuse(error: Exception) -> NoReturn:
    """Raise the error; in the command `hotloop`, print it and exit with status 2.

    Variables are read when the package is imported, before the command's own code could catch anything.
    """
    if _is_command():
        print(f"hotloop: {error}", file=sys.stderr)
        raise SystemExit(2)
    raise error from None


def _is_command() -> bool:
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return program in ("hotloop", "hotloop.exe") or ("-m", "hotloop.cli") in pairwise(sys.orig_argv)
