"""Build the sdist, the wheel from the sdist, and check what a user gets.

    python tools/check_wheel.py [--out FOLDER]

Nothing but Python >= 3.10 with venv and headers, a C++ compiler and pip is used; whatever else is needed is
installed into environments that end with the script. The wheel

- is built from the sdist in an empty environment, with the native module,
- is one for all Python versions from the oldest on (abi3), under 3 MB, and holds the package alone,
- passes `abi3audit --strict`, and on Linux fits a manylinux policy (`auditwheel show`),
- works in an empty environment, and its import brings nothing heavy along.

It ends in FOLDER, and its path is the last line printed. How long `import hotloop` takes over numpy is printed too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("build==1.6.1", "auditwheel==6.8.2", "abi3audit==0.0.26")
MOST_BYTES = 3_000_000

SMOKE = """
import sys
import hotloop
heavy = {"jax", "matplotlib", "numba", "onnx", "onnxruntime", "openvino", "pytest", "rich", "scipy", "torch"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(hotloop.info())
assert hotloop.info().backend == "native", hotloop.info().not_in_use
import numpy as np
import hotloop._backends.choice

def train():
    rng = np.random.default_rng(0)
    x, weight_ih, weight_hh = (rng.uniform(-0.5, 0.5, shape) for shape in ((7, 3, 5), (24, 5), (24, 6)))
    (output, (h_n, c_n)), vjp = hotloop.lstm_vjp(x, weight_ih, weight_hh, threads=2)
    return [output, h_n, c_n, *(g for g in vjp(grad_output=output) if g is not None)]

native = train()
hotloop._backends.choice.use("numpy")
for a, b in zip(native, train(), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
"""

# Import times in milliseconds: numpy, then hotloop after it.
IMPORT = """
import time
start = time.perf_counter()
import numpy
middle = time.perf_counter()
import hotloop
print(1e3 * (middle - start), 1e3 * (time.perf_counter() - middle))
"""


class Environment:
    """A virtual environment with nothing but pip and what is named."""

    def __init__(self, folder: Path, *requirements: str | Path) -> None:
        venv.create(folder, with_pip=True)
        self.folder = folder
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        if requirements:
            self.run("-m", "pip", "install", "--quiet", *requirements)

    def run(self, *arguments: str | Path, capture: bool = False) -> str:
        """Run its Python somewhere else than in the sources, without what the caller's environment says of them."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("HOTLOOP_", "PYTHON"))}
        keep["PATH"] = os.pathsep.join([str(self.python.parent), keep.get("PATH", "")])  # auditwheel calls its tools
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env=keep | {"HOTLOOP_REQUIRE_NATIVE": "1"},
            check=True,
            text=True,
            stdout=subprocess.PIPE if capture else None,
        )
        return done.stdout or ""


def only(paths: list[Path]) -> Path:
    (path,) = paths
    return path


def check_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    info = [top for top in tops if top.endswith(".dist-info")]
    assert tops == {"hotloop", *info}, tops
    assert len(info) == 1, info
    modules = [name for name in names if name.endswith((".so", ".pyd", ".dylib"))]
    assert modules == ["hotloop/_calls.abi3.so", "hotloop/_ffi.abi3.so"], modules
    for name in ("hotloop/py.typed", f"{info[0]}/licenses/LICENSE", f"{info[0]}/entry_points.txt"):
        assert name in names, name
    assert not [name for name in names if "__pycache__" in name]
    unpacked = sum(entry.file_size for entry in zipfile.ZipFile(wheel).infolist())
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {unpacked / 1e6:.2f} MB unpacked, {len(names)} files")
    assert wheel.stat().st_size < MOST_BYTES, f"more than {MOST_BYTES / 1e6} MB"


def check_platform(wheel: Path, tools: Environment) -> None:
    tag = wheel.stem.split("-", 2)[2]
    assert tag.startswith("cp310-abi3-"), tag
    print(tools.run("-m", "abi3audit", "--strict", "--summary", "--verbose", wheel, capture=True).strip())
    if sys.platform == "linux":
        text = tools.run("-m", "auditwheel", "show", wheel, capture=True)
        print(text.strip())
        policy = re.search(r'platform\s+tag:\s+"(\w+)"', text)
        assert policy, "auditwheel names no policy"
        assert policy[1].startswith("manylinux_"), policy[1]


def report_import_time(environment: Environment) -> None:
    environment.run("-c", IMPORT, capture=True)  # files are in memory from here on
    rounds = [[float(word) for word in environment.run("-c", IMPORT, capture=True).split()] for _ in range(9)]
    numpy, hotloop = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"import numpy: {numpy:.0f} ms, then import hotloop: {hotloop:.1f} ms (medians of 9)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the sdist and the wheel go")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("hotloop-*.whl"), *out.glob("hotloop-*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        tools = Environment(work / "tools", *TOOLS)
        tools.run("-m", "build", "--sdist", "--outdir", out, ROOT)
        sdist = only(list(out.glob("hotloop-*.tar.gz")))
        empty = Environment(work / "empty")
        empty.run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "wheels", sdist)
        wheel = Path(shutil.copy(only(list((work / "wheels").iterdir())), out))
        check_contents(wheel)
        check_platform(wheel, tools)
        user = Environment(work / "user", wheel)
        user.run("-c", SMOKE)
        report_import_time(user)
    print(wheel)


if __name__ == "__main__":
    main()
