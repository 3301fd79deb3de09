"""What two sides of a comparison can be: a revision of this repository, which is built, or something installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from .processes import WorkerProcess, candidate_environment

OVERLAY = Path(__file__).with_name("overlay.py")
KEPT = 8  # built revisions, some 2 MB each: the sides of a few comparisons that run at the same time
WORTH_A_BUILD = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "CMAKE_GENERATOR", "SKBUILD_CMAKE_ARGS")


class SideError(Exception):
    """What was given is neither of the two, or cannot be built; the message is for the user."""


@dataclass(frozen=True)
class Side:
    """A hotloop that can be run.

    Attributes
    ----------
    name : str
        As the user wrote it.
    python : str
        The interpreter.
    prefix : str
        The folder that holds the package; "-" is for wherever the interpreter finds it.
    commit : str or None
        The whole hash, of a revision.
    """

    name: str
    python: str
    prefix: str
    commit: str | None = None

    def start(self, threads: int, isa: str | None = None) -> WorkerProcess:
        """Start a worker of the native backend; `greet` waits for it."""
        variables = candidate_environment("hotloop", threads, isa) | {"HOTLOOP_BACKEND": "native"}
        if self.prefix == "-":
            variables["PYTHONPATH"] = None
        return WorkerProcess(["hotloop", str(threads)], variables, [self.python, str(OVERLAY), self.prefix])


def installed(name: str) -> Side | None:
    """Find the hotloop in a folder: an environment, an installed prefix, or the folder of the package itself."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    for python in (folder / "bin" / "python", folder / "Scripts" / "python.exe"):
        if (folder / "pyvenv.cfg").exists() and python.exists():
            return Side(name, str(python.absolute()), "-")
    for place in (folder, *sorted(folder.glob("lib*/python*/*-packages"))):
        if (place / "hotloop" / "__init__.py").exists():
            return Side(name, sys.executable, str(place.resolve()))
    return None


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise SideError("there is no git on PATH, and a revision needs it") from None
    except subprocess.CalledProcessError as error:
        raise SideError(error.stderr.decode(errors="replace").strip() or f"git {arguments[0]} failed") from None


def find_commit(name: str) -> str:
    """Return the whole hash of a revision of the repository around the current folder."""
    place = "this folder is in no git repository"
    with suppress(SideError):
        place = f"the repository {_git('rev-parse', '--show-toplevel').decode().strip()} has no such revision"
        if not name.startswith("-"):
            return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode().strip()
    what = "it is a folder without hotloop in it" if Path(name).is_dir() else "there is no such folder"
    raise SideError(f"{name!r}: {place}, and {what} (a revision, an environment or an installed prefix was expected)")


def uncommitted(commit: str) -> bool:
    """Whether the commit is the one checked out, and tracked files differ from it."""
    if _git("rev-parse", "HEAD").decode().strip() != commit:
        return False
    return bool(_git("status", "--porcelain", "--untracked-files=no").strip())


def cache_folder() -> Path:
    """Return where built revisions are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or (
        Path.home() / "Library" / "Caches" if sys.platform == "darwin" else Path.home() / ".cache"
    )
    return Path(home) / "hotloop" / "revisions"


def _compiler() -> str:
    """Name the C++ compiler and its version. Raises where there is none."""
    wanted = shlex.split(os.environ.get("CXX", ""))[:1]
    for name in (*wanted, "c++", "g++", "clang++"):
        if path := shutil.which(name):
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return shown.partition("\n")[0]
    raise SideError("no C++ compiler was found, and a revision has to be built (g++ or clang++ on PATH, or CXX)")


def _fingerprint(compiler: str) -> str:
    """Tell builds apart that differ in more than the commit."""
    facts = [compiler, sysconfig.get_config_var("EXT_SUFFIX"), sys.version.split()[0], platform.machine()]
    facts += [os.environ.get(name, "") for name in WORTH_A_BUILD]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def build(commit: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """Build a revision into a prefix of its own, or find the one built before. The native module has to come out."""
    target = cache_folder() / f"{commit[:12]}-{_fingerprint(_compiler())}"
    if target.is_dir():
        with suppress(OSError):
            os.utime(target)  # used just now
        return target
    say(f"building {commit[:12]}")
    archive = _git("archive", "--format=tar", commit)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as work:
        source, made = Path(work, "source"), Path(work, "prefix")
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            if hasattr(tarfile, "data_filter"):
                files.extractall(source, filter="data")
            else:
                files.extractall(source)
        if not (source / "src" / "hotloop" / "__init__.py").exists():
            raise SideError(f"{commit[:12]} holds no src/hotloop: is this a clone of hotloop?")
        here = all(map(importlib.util.find_spec, ("scikit_build_core", "cffi")))
        here = here and shutil.which("cmake") is not None and shutil.which("ninja") is not None
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--quiet"]
        command += ["--target", str(made), *(["--no-build-isolation"] if here else []), str(source)]
        variables = {**os.environ, "HOTLOOP_REQUIRE_NATIVE": "1"}
        variables.pop("PYTHONPATH", None)
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise SideError("\n".join((f"{commit[:12]} does not build:", *lines[-15:])))
        if not list(made.glob("hotloop/_ffi*")):
            raise SideError(f"{commit[:12]} was built without the native module")
        os.utime(made)
        with suppress(OSError):  # somebody else has built it meanwhile
            made.rename(target)
    prune(target.parent)
    return target


def prune(folder: Path, keep: int = KEPT) -> None:
    """Remove built revisions but for those used last, and what a build that was killed has left more than a day ago."""

    def used(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:  # somebody else removes it
            return 0.0

    everything = sorted(folder.iterdir(), key=used, reverse=True)
    whole = [path for path in everything if not path.name.startswith(".")]
    parts = [path for path in everything if path.name.startswith(".") and used(path) < time.time() - 86400]
    for path in whole[keep:]:
        # Under another name at once: half of a revision must not be found as one that was built.
        aside = path.with_name(f".removing-{path.name}-{os.getpid()}")
        with suppress(OSError):
            parts.append(path.rename(aside))
    for path in parts:
        shutil.rmtree(path, ignore_errors=True)


def resolve(name: str, *, ignore_changes: bool = False, say: Callable[[str], None] = lambda _: None) -> Side:
    """Make what the user wrote into something that runs. Raises SideError."""
    if (side := installed(name)) is not None:
        return side
    commit = find_commit(name)
    if not ignore_changes and uncommitted(commit):
        raise SideError(
            f"{name!r} is checked out with changes that are not committed, and a revision is measured without them: "
            "commit them, or compare an installed prefix (--ignore-changes measures the revision as it is committed)"
        )
    return Side(name, sys.executable, str(build(commit, say)), commit)
