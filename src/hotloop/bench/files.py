"""Files that a user gives and files to be written: what is wrong with one is told in a line that names it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# What a damaged file causes where it is read or figures are derived from it. A mistake of ours may raise the same, so
# whoever catches these names the exception (`told`).
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


# What would move a terminal's cursor, change its colours or turn the order of text around, and how it is shown.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x0A} | {
    code: f"\\u{code:04x}" for code in (0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def shown(text: str) -> str:
    """`text` without control characters, but for ends of lines."""
    return text.translate(_CONTROLS)


def _shown(value: Any) -> Any:
    """The same of all text in what was read from a file."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list):
        return [one if isinstance(one, (float, int)) else _shown(one) for one in value]
    return {shown(name): _shown(one) for name, one in value.items()} if isinstance(value, dict) else value


class FileError(Exception):
    """A file is not what it should be; the message is for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


def read_text(path: Path) -> str:
    """Read a file of text, with a byte order mark or without. Raises FileError.

    Nothing but a file is read: a pipe may never end, and a device such as /dev/zero does not.
    """
    try:
        if path.exists() and not path.is_file():
            raise FileError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    except UnicodeError:
        raise FileError(f"{path} is not text") from None


def parse(text: str) -> Any:
    """JSON, its text without control characters. Raises ValueError, RecursionError."""
    return _shown(json.loads(text))


def told(error: BaseException) -> str:
    """Write an exception in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:197] + '...'}"


def load(path: Path) -> Any:
    """Read a file of JSON, with a byte order mark or without. Raises FileError."""
    text = read_text(path)
    try:
        return parse(text)
    except RecursionError:
        raise FileError(f"{path} is not JSON that can be read: too many brackets inside each other") from None
    except ValueError as error:
        raise FileError(f"{path} is not JSON ({' '.join(str(error).split())})") from None


def check_times(values: Iterable[Any], what: str) -> None:
    """Raise ValueError unless these are times: at least one, all of them finite and > 0."""
    empty = True
    for value in values:
        empty = False
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and value > 0):
            raise ValueError(f"{what}: a time has to be a finite number > 0, got {repr(value)[:40]}")
    if empty:
        raise ValueError(f"{what}: there are no times")


def moment(text: str) -> datetime:
    """Read a date: text of two zones does not sort, moments do. UTC where no zone is said. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError(f"a date has to be text, got {repr(text)[:40]}")
    # Python 3.10 does not know the Z that newer versions of git write.
    when = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    return when.replace(tzinfo=timezone.utc) if when.tzinfo is None else when


def why_not_writable(path: Path) -> str | None:
    """Say what keeps a file from being written there, before there is something to lose; leave no trace."""
    try:
        if path.is_dir():
            return "it is a folder"
        if not path.absolute().parent.is_dir():
            return f"there is no folder {path.absolute().parent}"
        there = path.exists()
        if there and not path.is_file():
            return "it is no regular file"
        path.open("ab").close()
    except OSError as error:
        return error.strerror
    if not there:
        with suppress(OSError):
            path.unlink()
    return None


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, which need not exist."""
    try:
        if one.exists() and other.exists():
            return one.samefile(other)
        return one.resolve() == other.resolve()
    except (OSError, RuntimeError):  # a loop of links, or a name that is too long, is told where the file is used
        return False
