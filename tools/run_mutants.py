"""Run the test suite against seeded faults: every mutant of tests/mutants.py must make it fail.

    python tools/run_mutants.py                        all of them
    python tools/run_mutants.py --sample 10 --seed 7   ten
    python tools/run_mutants.py --only NAME NAME       some, by name or by a part of it
    python tools/run_mutants.py --list                 names, places and faults
    python tools/run_mutants.py --check                those that do not apply to the sources; takes seconds
    python tools/run_mutants.py --own                  all, and none gets a second chance by the whole suite

Works on a copy of the tree, in a temporary folder, with the tests and tools of the environment it runs in: the extra
`test` (with tree-sitter, by which tools/anchors.py finds the places), cffi >= 2.1, CMake (with Ninja or make) and a C++
compiler. The unmutated copy has to pass first. For each mutant a few tokens are changed, what that touches is compiled
again (-O1, one instruction set), and its own selection of the tests is run; where that passes, all instruction sets are
compiled and the whole suite is run before it counts as survived. A crash and a test that does not end count as caught.
A mutant that does not compile counts as neither.

Exit status: 0 if every mutant was caught or needs an instruction set that this processor lacks, else 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from anchors import AnchorError, Tree

ROOT = Path(__file__).resolve().parents[1]
SUITE = ("tests", "--ignore=tests/test_mutants.py")  # that one sees every mutant, since it reads the source
# An editable installation would import the package from where it was installed from. `site` runs this file after it has
# installed such redirections, in every interpreter that the tests start.
SITECUSTOMIZE = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
"""


class Outcome(NamedTuple):
    """What became of a mutant; only `caught` and `not here` are good."""

    verdict: str  # caught, SURVIVED, did not compile, not here, BROKEN (the entry's tests, or the run)
    detail: str
    seconds: float


class Seeded(NamedTuple):
    """A mutant and where it was found."""

    name: str
    fault: str
    tests: str
    isa: str
    file: str
    line: int
    text: str  # of the file
    changed: str


class Failure(Exception):
    """The run itself went wrong."""


def load_mutants() -> list[Any]:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tests" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.MUTANTS)


def seed(mutants: list[Any]) -> tuple[list[Seeded], list[str]]:
    """Look for the places of mutants in the sources. Returns those that apply, and what is wrong with the others."""
    tree = Tree(ROOT)
    seeded, wrong = [], []
    for mutant in mutants:
        try:
            place = tree.find(mutant.within, mutant.old)
        except AnchorError as error:
            wrong.append(f"{mutant.name}: {error}")
            continue
        text, changed = tree.sources[place.file].text, tree.changed(place, mutant.new)
        seeded.append(
            Seeded(mutant.name, mutant.fault, mutant.tests, mutant.isa, place.file, place.line, text, changed)
        )
    return seeded, wrong


def copy_tree(target: Path) -> None:
    """The files of the working tree that git knows or would add; in an unpacked source distribution all of them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        names = ("build", "dist", ".venv", "__pycache__", ".*_cache", "*.so")
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*names))
        return
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def environment(tree: Path, site: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOTLOOP_")}
    path = os.pathsep.join([str(tree / "src"), str(site)])
    return kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HOTLOOP_REQUIRE_NATIVE": "1"}


class Build:
    """How CMake would compile and link the two modules; done by hand, so that the clean objects stay as they are."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree, self.folder = tree, folder
        scripts = sysconfig.get_path("scripts")
        search = os.pathsep.join([scripts, os.environ.get("PATH", "")])
        cmake = shutil.which("cmake", path=search)
        if cmake is None:
            raise Failure("CMake is missing: pip install cmake ninja")
        command = [cmake, "-S", tree, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=search) else []
        run_or_fail(
            [*command, *generator, f"-DPython_EXECUTABLE={sys.executable}"],
            env=os.environ | {"PATH": search, "HOTLOOP_REQUIRE_NATIVE": "1"},
        )
        source = folder / "_ffi.c"
        declarations = [tree / "csrc" / "hotloop_decls.h", tree / "csrc" / "ffi_prelude.c"]
        run_or_fail([sys.executable, "-m", "cffi.gen_src", "read-sources", "hotloop._ffi", *declarations, source])
        self.commands: dict[str, list[str]] = {}  # by the source's path in the tree
        for entry in json.loads((folder / "compile_commands.json").read_text()):
            file = Path(entry["file"])
            if file == source or tree / "csrc" in file.parents:
                name = file.name if file == source else file.relative_to(tree).as_posix()
                arguments = shlex.split(entry["command"])
                del arguments[arguments.index("-o") : arguments.index("-o") + 2]
                self.commands[name] = ["-O1" if a == "-O3" else a for a in arguments]
        self.objects = folder / "objects"
        self.objects.mkdir()
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        alone = "csrc/python/calls.c"
        self.modules = {  # with what each is linked from
            f"src/hotloop/_ffi{suffix}": [name for name in self.commands if name != alone],
            f"src/hotloop/_calls{suffix}": [alone],
        }

    def sources_of(self, file: str, isas: list[str]) -> list[str]:
        """What a change of a file makes necessary to compile, of the kernels those instruction sets."""
        if file in self.commands:
            return [file]
        if not file.startswith("csrc/"):
            return []
        kernels = [name for name in self.commands if Path(name).stem.startswith("isa_")]
        if file.startswith("csrc/kernels/"):
            return [name for name in kernels if Path(name).stem.removeprefix("isa_") in isas]
        return [name for name in self.commands if self._includes(name, file)]

    def _includes(self, name: str, header: str) -> bool:
        names = run_or_fail([*self.commands[name], "-MM"], cwd=self.folder).split()
        return any(os.path.normpath(included) == str(self.tree / header) for included in names)

    def compile(self, name: str, tree: Path, folder: Path) -> Path:
        """Compile a source of a tree, this one or a copy of it."""
        target = folder / (Path(name).stem + ".o")
        command = [a.replace(str(self.tree), str(tree)) if name.startswith("csrc/") else a for a in self.commands[name]]
        run_or_fail([*command, "-o", target], cwd=self.folder)
        return target

    def link(self, replaced: dict[str, Path], tree: Path) -> None:
        """Put the modules into a tree, with clean objects but for those replaced; those of clean ones alone stay."""
        for module, names in self.modules.items():
            if replaced and not set(names).intersection(replaced):
                continue
            objects = [replaced.get(name, self.objects / (Path(name).stem + ".o")) for name in names]
            linker = self.commands["csrc/abi.cpp"][0]
            target = tree / module
            temporary = target.with_name("new.so")
            run_or_fail([linker, "-shared", "-pthread", "-o", temporary, *objects])
            temporary.replace(target)


def run_or_fail(command: list[Any], **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, **options
    )
    if done.returncode:
        raise Failure(f"{shlex.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


_running: set[subprocess.Popen[str]] = set()  # leaders of sessions of their own, which Ctrl-C does not reach


def end_all() -> None:
    for process in list(_running):
        os.killpg(process.pid, signal.SIGKILL)


def pytest(selection: tuple[str, ...], tree: Path, site: Path, timeout: float) -> tuple[str, str]:
    """Run a selection of the tests. Returns what came of it, `passed`, `failed` or `no tests`, and by which test."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", *selection]
    process = subprocess.Popen(
        command, cwd=tree, env=environment(tree, site), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, errors="replace",
    )  # fmt: skip
    _running.add(process)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the interpreters it started
        process.communicate()
        return "failed", f"no end within {timeout:.0f} s"
    finally:
        _running.discard(process)
    if process.returncode == 0:
        return "passed", ""
    if process.returncode == 5:
        return "no tests", output[-500:]
    if process.returncode < 0:
        return "failed", f"signal {signal.Signals(-process.returncode).name}"
    found = re.findall(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE)
    return "failed", found[0] if found else output[-500:]


def selection_of(mutant: Seeded) -> tuple[str, ...]:
    """The mutant's own selection; of a kernel, where only one instruction set is compiled, the tests on that one."""
    words = shlex.split(mutant.tests)
    if not mutant.file.startswith("csrc/kernels/"):
        return tuple(words)
    if "-k" not in words:
        return (*words, "-k", mutant.isa)
    where = words.index("-k") + 1
    return (*words[:where], f"({words[where]}) and {mutant.isa}", *words[where + 1 :])


class Runner:
    """A clean tree and its objects, and as many copies to change as there are jobs."""

    def __init__(self, folder: Path, jobs: int, own: bool) -> None:
        self.folder, self.own = folder, own
        self.tree, self.site = folder / "tree", folder / "site"
        self.site.mkdir()
        (self.site / "sitecustomize.py").write_text(SITECUSTOMIZE)
        copy_tree(self.tree)
        self.build = Build(self.tree, folder / "build")
        with ThreadPoolExecutor(jobs) as executor:
            compile_clean = executor.map(
                lambda name: self.build.compile(name, self.tree, self.build.objects), self.build.commands
            )
            list(compile_clean)
        self.build.link({}, self.tree)
        code = "import hotloop, hotloop._backends.native as n; print(hotloop.__file__, *n.isas(), sep='\\n')"
        where, *self.isas = run_or_fail([sys.executable, "-c", code], env=environment(self.tree, self.site)).split()
        if self.tree not in Path(where).parents:
            raise Failure(f"hotloop is imported from {where} and not from {self.tree}")
        self.timeout = 300.0
        self.trees: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            copy = folder / f"tree{number}"
            shutil.copytree(self.tree, copy)
            self.trees.put(copy)

    def check_clean(self, mutants: list[Seeded]) -> float:
        """What the mutants select passes without them; takes that as the measure of what hangs."""
        selections = {selection_of(mutant) for mutant in mutants if mutant.isa in self.isas}
        # One run of all files that are wanted whole, and one of the others with any of the expressions: more than was
        # asked for, and each test about once.
        whole = {file for selection in selections if "-k" not in selection for file in selection}
        parts = [(s[: s.index("-k")], s[s.index("-k") + 1]) for s in selections if "-k" in s]
        some = {file for files, _ in parts for file in files} - whole
        expressions = " or ".join(sorted(f"({words})" for files, words in parts if some.intersection(files)))
        start = time.monotonic()
        for files, options in [(whole, ()), (some, ("-k", expressions))]:
            if files:
                verdict, detail = pytest((*sorted(files), *options), self.tree, self.site, 3 * 3600)
                if verdict != "passed":
                    raise Failure(f"the unmutated tree: {verdict}, {detail}")
        seconds = time.monotonic() - start
        self.timeout = min(max(120, 2 * seconds), 600)
        return seconds

    def run(self, mutant: Seeded) -> Outcome:
        """Try a mutant in a tree that no other job has."""
        start = time.monotonic()
        tree = self.trees.get()
        try:
            verdict, detail = self._run(mutant, tree)
        except Failure as failure:
            verdict, detail = "BROKEN", str(failure)
        finally:
            self.trees.put(tree)
        return Outcome(verdict, detail, time.monotonic() - start)

    def _run(self, mutant: Seeded, tree: Path) -> tuple[str, str]:
        if mutant.isa not in self.isas:
            return "not here", f"needs {mutant.isa}"
        file = tree / mutant.file
        if file.read_text(encoding="utf-8") != mutant.text:
            raise Failure(f"{mutant.file} was changed while this started")
        file.write_text(mutant.changed, encoding="utf-8")
        objects = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            try:
                self._compile(mutant, tree, objects, [mutant.isa])
            except (Failure, SyntaxError) as error:
                return "did not compile", str(error)
            verdict, detail = pytest(selection_of(mutant), tree, self.site, self.timeout)
            if verdict == "no tests":
                raise Failure(f"{mutant.tests} selects no tests: {detail}")
            if verdict == "failed":
                return "caught", detail
            if self.own:
                return "SURVIVED", f"{mutant.tests} pass: {mutant.fault}"
            self._compile(mutant, tree, objects, self.isas)
            verdict, detail = pytest(SUITE, tree, self.site, 3600)
            return ("caught", f"not by its own tests: {detail}") if verdict == "failed" else ("SURVIVED", mutant.fault)
        finally:
            file.write_text(mutant.text, encoding="utf-8")
            for module in self.build.modules:
                shutil.copy(self.tree / module, tree / module)
            shutil.rmtree(objects)

    def _compile(self, mutant: Seeded, tree: Path, objects: Path, isas: list[str]) -> None:
        if mutant.file.endswith(".py"):
            compile((tree / mutant.file).read_text(encoding="utf-8"), mutant.file, "exec")
        elif sources := self.build.sources_of(mutant.file, isas):
            self.build.link({name: self.build.compile(name, tree, objects) for name in sources}, tree)


def choose(mutants: list[Any], arguments: argparse.Namespace) -> list[Any]:
    if arguments.only:
        for name in arguments.only:
            if not any(name in mutant.name for mutant in mutants):
                raise Failure(f"no mutant is named {name}")
        mutants = [mutant for mutant in mutants if any(name in mutant.name for name in arguments.only)]
    if arguments.sample is not None:
        mutants = random.Random(arguments.seed).sample(mutants, min(arguments.sample, len(mutants)))
    return mutants


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests against seeded faults; every one has to be caught.")
    parser.add_argument("--list", action="store_true", help="print names, places and faults, and run nothing")
    parser.add_argument("--check", action="store_true", help="print those that do not apply to the sources")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="those whose name contains one of these")
    parser.add_argument("--sample", type=int, metavar="N", help="so many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once (default 1)")
    parser.add_argument("--own", action="store_true", help="run each mutant's own tests and never the whole suite")
    parser.add_argument("--unchecked", action="store_true", help="take it for granted that the unmutated tree passes")
    arguments = parser.parse_args()
    try:
        mutants, wrong = seed(choose(load_mutants(), arguments))
        if arguments.check:
            print(*wrong, f"{len(mutants)} mutants apply to the sources, {len(wrong)} do not", sep="\n")
            return 1 if wrong else 0
        if wrong:
            raise Failure("\n".join(wrong))
        # The quick ones first: Python needs no compiler, and the kernels take it longest.
        mutants.sort(key=lambda mutant: (mutant.file.startswith("csrc/"), mutant.file.startswith("csrc/kernels/")))
        if arguments.list:
            for mutant in mutants:
                print(f"{mutant.name:<44} {f'{mutant.file}:{mutant.line}':<34} {mutant.fault}")
            return 0
        return run_all(mutants, arguments.jobs, arguments.own, not arguments.unchecked)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1


def run_all(mutants: list[Seeded], jobs: int, own: bool, checked: bool) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):  # SIGINT too: the tests do not inherit that it is ignored
        signal.signal(number, signal.default_int_handler)
    start = time.monotonic()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="hotloop-mutants-") as folder:
        runner = Runner(Path(folder).resolve(), jobs, own)
        print(f"built in {time.monotonic() - start:.0f} s; instruction sets: {', '.join(runner.isas)}", flush=True)
        if checked:
            print(f"the unmutated tree passes, in {runner.check_clean(mutants):.0f} s", flush=True)
        executor = ThreadPoolExecutor(jobs)
        try:
            for mutant, outcome in zip(mutants, executor.map(runner.run, mutants), strict=True):
                outcomes.append(outcome)
                detail = " ".join(outcome.detail.split())[:110] if outcome.verdict == "caught" else outcome.detail
                print(f"{outcome.verdict:<9} {outcome.seconds:5.0f} s  {mutant.name:<44} {detail}", flush=True)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            end_all()
            executor.shutdown()
    counts = Counter(outcome.verdict for outcome in outcomes)
    areas: dict[str, Counter[str]] = {}
    for mutant, outcome in zip(mutants, outcomes, strict=True):
        areas.setdefault(Path(mutant.file).name, Counter())[outcome.verdict] += 1
    print()
    for area, verdicts in areas.items():
        print(f"{area:<16} " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(f"{len(mutants)} mutants: {total}; {time.monotonic() - start:.0f} s")
    return 0 if counts["caught"] + counts["not here"] == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
