"""How many processors this process may use: by its affinity, and by the CPU quota of its control groups.

A container with a share of the processors (docker --cpus, a Kubernetes limit) sees all of them. More threads than the
quota has processors are stopped together in the middle of a call until the next period.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path, PurePosixPath


def affinity() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(proc: Path = Path("/proc/self")) -> float | None:
    """How many processors' time the control groups allow: the least of this group's and of those above it; None where
    there is no limit.

    cpu.max of version 2, cpu.cfs_quota_us and cpu.cfs_period_us of version 1.
    """
    found = []
    try:
        for group in _groups(proc):
            for limit in (_version_2(group), _version_1(group)):
                if limit is not None:
                    found.append(limit)
    except OSError:  # no /proc
        return None
    return min(found, default=None)


def _groups(proc: Path) -> Iterator[Path]:
    """The folders of the control groups that this process is in, and of those above."""
    mounts = list(_mounts(proc))
    for line in (proc / "cgroup").read_bytes().decode(errors="replace").splitlines():
        _, controllers, name = line.split(":", 2)
        for version, root, mounted, options in mounts:
            if (version == 2) != (not controllers) or (version == 1 and "cpu" not in options):
                continue
            if controllers and "cpu" not in controllers.split(","):
                continue
            # In a container the name may be that of the host, of which the mount shows a part.
            path = PurePosixPath(name)
            inside = path.relative_to(root) if path.is_relative_to(root) else path.relative_to("/")
            parts = () if ".." in inside.parts else inside.parts
            for depth in range(len(parts), -1, -1):
                yield mounted.joinpath(*parts[:depth])


def _mounts(proc: Path) -> Iterator[tuple[int, str, Path, list[str]]]:
    """Version, root, place and options of the file systems of control groups."""
    for line in (proc / "mountinfo").read_bytes().decode(errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, *_, options = rest.split(" ")
        if kind in ("cgroup", "cgroup2"):
            root, place = fields.split(" ")[3:5]
            yield 1 + (kind == "cgroup2"), root, Path(place), options.split(",")


def _version_2(group: Path) -> float | None:
    try:
        most, period = (group / "cpu.max").read_bytes().split()
        return None if most == b"max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _version_1(group: Path) -> float | None:
    try:
        most, period = (int((group / f"cpu.cfs_{name}_us").read_bytes()) for name in ("quota", "period"))
        return None if most < 0 else most / period
    except (OSError, ValueError, ZeroDivisionError):
        return None


def usable() -> int:
    """By affinity and quota, rounded up; at least 1."""
    allowed, limit = affinity(), quota()
    return allowed if limit is None else max(1, min(allowed, ceil(limit)))
