"""Measure which lines of src/hotloop and csrc the tests run, and fail where either is under 95 %.

    python tools/measure_coverage.py [--keep] [pytest arguments ...]

Needs the extras test and dev and a g++. hotloop is built once more, instrumented, into build/coverage, with the native
test driver; what the driver and pytest run of the C++ is counted together. A line of a template counts as run where
any instruction set, cell or type ran it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "coverage"
LEAST = 95.0


def run(*command: str | Path, **environment: str) -> None:
    print("+", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=ROOT, env=os.environ | environment, check=True)


def install() -> None:
    """The package with an instrumented module into FOLDER/site, the driver into FOLDER/cmake."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    options = ("cmake.define.HOTLOOP_COVERAGE=ON", "cmake.define.HOTLOOP_NATIVE_TESTS=ON", f"build-dir={FOLDER}/cmake")
    settings = [f"-C{option}" for option in options]
    target = ("--no-deps", "--target", FOLDER / "site")
    run(sys.executable, "-m", "pip", "install", "--quiet", *target, *settings, ROOT, HOTLOOP_REQUIRE_NATIVE="1")


def measure(arguments: list[str]) -> None:
    """Run the native driver and pytest on what was installed."""
    run(FOLDER / "cmake" / "hotloop_native_tests", "few")
    found = {"PYTHONPATH": str(FOLDER / "site"), "HOTLOOP_REQUIRE_NATIVE": "1", "COVERAGE_FILE": str(FOLDER / "python")}
    where = "import hotloop, sys; assert hotloop.__file__.startswith(sys.argv[1]), hotloop.__file__"
    run(sys.executable, "-c", where, FOLDER, **found)
    # gcov's names are exported beside ours.
    exports = ("-k", "not test_the_module_exports_its_entry_alone")
    run(sys.executable, "-m", "coverage", "run", "-m", "pytest", "-q", *exports, *arguments, **found)


def python_percentage() -> float:
    """Covered lines of src/hotloop, by coverage.py."""
    data = {"COVERAGE_FILE": str(FOLDER / "python")}
    append = ["--append"] if (FOLDER / "python").exists() else []
    run(sys.executable, "-m", "coverage", "combine", "--quiet", *append, **data)
    run(sys.executable, "-m", "coverage", "report", "--skip-covered", "--show-missing", **data)
    run(sys.executable, "-m", "coverage", "json", "--quiet", "-o", FOLDER / "report.json", **data)
    return float(json.loads((FOLDER / "report.json").read_text())["totals"]["percent_covered"])


def native_percentage() -> float:
    """Covered lines of csrc, by gcov, merged by source line."""
    output = ("--txt", "-", "--json-summary", FOLDER / "native.json")
    merge = (
        "--merge-mode-functions=separate",
        "--merge-lines",
        "--gcov-ignore-parse-errors=suspicious_hits.warn_once_per_file",
    )
    run(sys.executable, "-m", "gcovr", "--root", ROOT, "--filter", "csrc/", *merge, *output, FOLDER / "cmake")
    return float(json.loads((FOLDER / "native.json").read_text())["line_percent"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="count on top of the last run, without building again")
    options, arguments = parser.parse_known_args()
    if not options.keep:
        install()
    measure(arguments)
    percentages = {"src/hotloop": python_percentage(), "csrc": native_percentage()}
    for name, percentage in percentages.items():
        print(f"{name}: {percentage:.1f} % of the lines")
    if min(percentages.values()) < LEAST:
        sys.exit(f"less than {LEAST:.0f} %")


if __name__ == "__main__":
    main()
