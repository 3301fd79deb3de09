"""What is wrong with a HOTLOOP_* variable: an exception for a program, one line for the command `hotloop`."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from types import TracebackType
from typing import NoReturn

_LONGEST = 18  # digits; Python refuses to read some thousands, and no variable means as many


def natural(text: str) -> int | None:
    """The number that these digits are; None where they are something else, or too many."""
    return int(text) if text.isascii() and text.isdecimal() and len(text.lstrip("0")) <= _LONGEST else None


def quoted(text: str) -> str:
    """A value for an error's message: its beginning."""
    return repr(text) if len(text) <= 80 else f"{text[:40]!r}... ({len(text)} characters)"


def refuse(error: Exception) -> NoReturn:
    """Raise the error. Where the command `hotloop` does not get any further, it is a line, and its exit status 2.

    Variables are read when the package is imported, before the command's own code could catch anything. An exception
    leaves what to do to a program that imports hotloop, whatever it is called.
    """
    if _is_command():
        before = sys.excepthook

        def tell(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
            if value is not error:
                before(kind, value, traceback)
                return
            print(f"hotloop: {error}", file=sys.stderr)
            raise SystemExit(2)

        sys.excepthook = tell
    raise error from None


def _is_command() -> bool:
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return program in ("hotloop", "hotloop.exe") or ("-m", "hotloop.cli") in pairwise(sys.orig_argv)
