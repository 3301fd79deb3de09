"""The command `hotloop`: info, bench, report, compare and history."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import info
from ._core.environment import natural
from ._core.settings import active, processors
from .bench.files import shown

if TYPE_CHECKING:
    from .bench.problems import Shape

RESULTS = ("run.json", "report.html")


class _Parser(argparse.ArgumentParser):
    """One that shows what it was given without what moves a terminal's cursor."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            print(shown(message), end="", file=sys.stderr if file is None else file)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 where its output cannot be written.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, those of the process where None.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # not one of Python's own
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # here: when the interpreter ends, its error would be a traceback
    except OSError as error:
        _give_up_output()
        with suppress(OSError):
            print(f"hotloop: error: {shown(str(error.filename or 'output'))}: {error.strerror}", file=sys.stderr)
        return 2


def _give_up_output() -> None:
    """What is left of the output goes nowhere, so that the end of the interpreter does not stumble over it again."""
    with suppress(OSError, ValueError):  # it may be no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _run(arguments: list[str]) -> int:
    parser = _Parser(prog="hotloop", description="Fused RNN, LSTM and GRU kernels for CPUs.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands = {
        "info": subparsers.add_parser("info", help="what hotloop runs on, and why a better backend is not in use"),
        "bench": subparsers.add_parser("bench", help="time hotloop against every library that is installed"),
        "report": subparsers.add_parser("report", help="one page of HTML, or Markdown, from runs of hotloop bench"),
        "compare": subparsers.add_parser("compare", help="whether HEAD is slower than BASE: a gate for noisy machines"),
        "history": subparsers.add_parser("history", help="keep runs of hotloop bench, and show trends and changes"),
    }
    _add_bench(commands["bench"])
    _add_report(commands["report"])
    _add_compare(commands["compare"])
    _add_history(commands["history"])
    options, unknown = parser.parse_known_args(arguments)
    command = commands.get(options.command, parser)
    if unknown:
        command.error(f"unrecognized arguments: {' '.join(unknown)}")  # with the usage of that command
    if options.version:
        from . import __version__

        print(f"hotloop {__version__}")
    elif options.command == "info":
        print(info())
    elif options.command == "bench":
        return _bench(command, options, ["hotloop", *arguments])
    elif options.command == "report":
        return _report(command, options)
    elif options.command == "compare":
        return _compare(command, options, ["hotloop", *arguments])
    elif options.command == "history":
        return _history(command, options)
    else:
        parser.print_help()
    return 0


def _shape(text: str) -> Shape:
    try:
        steps, batch, inputs, hidden = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected four integers T,B,I,H, got {text!r}") from None
    if min(steps, batch, inputs, hidden) < 1:
        raise argparse.ArgumentTypeError(f"expected integers >= 1, got {text!r}")
    return steps, batch, inputs, hidden


def _threads(text: str) -> int:
    most = processors()
    if (number := natural(text)) is not None and 1 <= number <= most:
        return number
    rule = f"1 to {most}, as many processors as this process may run on" if most > 1 else "1: there is one processor"
    raise argparse.ArgumentTypeError(f"expected {rule}; got {text!r}")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(text)) and value >= 0:
            return value
    raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {text!r}")


def _isa(text: str) -> str:
    backend = active()
    isas: tuple[str, ...] = getattr(backend, "isas", tuple)()
    if not isas:
        raise argparse.ArgumentTypeError(
            f"only the native backend has instruction sets to choose from, and {backend.NAME} is in use (hotloop info)"
        )
    if text not in isas:
        raise argparse.ArgumentTypeError(f"this processor has {', '.join(isas)}; got {text!r}")
    return text


def _add_bench(parser: argparse.ArgumentParser) -> None:
    # Only names, no libraries: `hotloop --help` is to work and to be quick without the extra.
    from .bench.peers import BACKENDS, PEERS, label
    from .bench.problems import CELL_NAMES, DEFAULT_GROUPS, DTYPES, GROUPS, MODES

    counts = [count for count in (1, 2) if count <= processors()]
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a fixed list of shapes, in under two minutes")
    size.add_argument("--smoke", action="store_true", help="tiny shapes, to see that everything works")
    size.add_argument(
        "--problems", action="append", choices=GROUPS, metavar="GROUP",
        help=f"groups of problems: {', '.join(GROUPS)} (default: {', '.join(DEFAULT_GROUPS)})",
    )  # fmt: skip
    size.add_argument(
        "--shape", action="append", type=_shape, metavar="T,B,I,H", help="these shapes in place of a group; repeatable"
    )
    parser.add_argument(
        "--torch", action="store_true",
        help="time whole training steps (forward, backward, plain SGD) of modules of torch.nn against the same modules "
        "swapped by hotloop.torch.replace_modules, and cells under no_grad; with --quick and --shape too",
    )  # fmt: skip
    parser.add_argument("--cells", nargs="+", choices=CELL_NAMES, default=CELL_NAMES, help="default: all")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="default: both")
    parser.add_argument("--threads", nargs="+", type=_threads, metavar="N",
                        help=f"default: {' '.join(map(str, counts))}; with --smoke: 1")  # fmt: skip
    parser.add_argument("--peers", nargs="*", choices=PEERS, metavar="PEER",
                        help=f"default: all of {', '.join(PEERS)} that are installed; {' and '.join(BACKENDS)} are "
                        f"hotloop's own backends, shown as {' and '.join(map(label, BACKENDS))}")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="in place of each problem's own")
    parser.add_argument("--isa", type=_isa, metavar="ISA",
                        help="hotloop's instruction set, in place of the best one that the processor has")  # fmt: skip
    parser.add_argument("--seconds-per-case", type=_seconds, metavar="S",
                        help="bound on the rounds of a problem; three there are always")  # fmt: skip
    parser.add_argument("--memory", action="store_true",
                        help="measure what training steps hold, in processes of their own")  # fmt: skip
    parser.add_argument("--latency", action="store_true",
                        help="time ten thousand single calls of one step, too: how long the slowest take")  # fmt: skip
    parser.add_argument("--attention", action="store_true",
                        help="time a step of a cell and of attention with a cache, too (needs torch)")  # fmt: skip
    parser.add_argument("--roof", action="store_true", help="print the parts of the roof")
    parser.add_argument("--out", type=Path, default=Path("hotloop-bench"), metavar="DIR", help="default: %(default)s")
    parser.set_defaults(counts=counts)


def _why_not_writable(folder: Path) -> str | None:
    """Say what keeps the results from being written there, before minutes go into measuring them; leave no trace."""
    made: list[Path] = []
    try:
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in (folder / name for name in RESULTS):
            if path.exists():
                path.open("ab").close()
    except OSError as error:
        return error.strerror
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()
    return None


def _bench(parser: argparse.ArgumentParser, options: argparse.Namespace, command: list[str]) -> int:
    try:
        import matplotlib  # noqa: F401  (here, not after minutes of measuring)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError as error:
        print(
            f'hotloop bench needs {error.name}: install the extra "bench", as `pip install ".[bench]"` in a clone',
            file=sys.stderr,
        )
        return 2
    from .bench import attention
    from .bench.latency import Calls
    from .bench.peers import PEERS, missing_modules
    from .bench.problems import DEFAULT_GROUPS, LATENCY, LATENCY_SMOKE, select
    from .bench.processes import WorkerError
    from .bench.report import write_report
    from .bench.results import ours
    from .bench.rounds import Effort, estimate
    from .bench.run import Settings, run
    from .bench.table import print_results

    groups = ["quick"] if options.quick else ["smoke"] if options.smoke else options.problems or DEFAULT_GROUPS
    peers = PEERS if options.peers is None else options.peers
    if options.torch:
        for name in ("problems", "peers", "memory", "roof"):
            if getattr(options, name) not in (None, False):
                parser.error(f"argument --torch: not allowed with argument --{name}")
        groups, peers = ["torch-smoke" if options.smoke else "torch"], ["torch"]
    problems = select(
        groups, shapes=options.shape or (), cells=options.cells, modes=options.modes, dtype=options.dtype,
        module="layer" if options.torch else "",
    )  # fmt: skip
    if not problems:
        parser.error("no problem of these groups has that cell and mode")
    wants_torch = "--torch" if any(problem.module for problem in problems) else "--attention"
    if (wants_torch == "--torch" or options.attention) and missing_modules("torch"):
        print(
            f'hotloop bench {wants_torch} needs torch: install the extra "torch", as `pip install ".[torch]"` in a '
            "clone",
            file=sys.stderr,
        )
        return 2
    threads = sorted(set(options.threads or ([1] if options.smoke else options.counts)))
    if why := _why_not_writable(options.out):
        parser.exit(2, f"hotloop bench: error: argument --out: cannot write to {options.out}: {why}\n")
    effort, total = Effort(), None
    if options.quick:
        effort, total = Effort(min_rounds=5, max_seconds=6.0), 85.0  # and some 15 s to start and to draw
    elif options.smoke:
        effort = Effort(sample_seconds=5e-4, samples=1, min_rounds=2, max_seconds=0.0)
    if options.seconds_per_case is not None:
        bound = options.seconds_per_case
        effort = replace(effort, max_seconds=bound, most_seconds=bound)
    settings = Settings(
        peers, threads, options.isa, effort, total, options.memory,
        latency=() if not options.latency else LATENCY_SMOKE if options.smoke else LATENCY,
        latency_calls=Calls(turns=2, calls=100) if options.smoke else Calls(),
        attention=None if not options.attention else attention.SMALL if options.smoke else attention.Plan(),
    )  # fmt: skip
    installed = [peer for peer in peers if not missing_modules(peer)]
    least, most = (seconds / 60 for seconds in estimate(problems, installed, threads, effort))
    if total is None and most >= 1:
        print(f"{len(problems)} problems: some {least:.0f} to {most:.0f} minutes (--seconds-per-case bounds them)",
              file=sys.stderr)  # fmt: skip

    # Where nobody looks at a terminal, a line is as long as it is.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=len(problems))
            record = run(
                problems,
                settings,
                command=command,
                progress=lambda done, text: bar.update(task, completed=done, description=text),
            )
    except WorkerError as error:
        print(f"hotloop bench: {error}", file=sys.stderr)
        return 1

    if not record["cases"]:
        print("hotloop bench: interrupted before a case was complete", file=sys.stderr)
        return 130
    options.out.mkdir(parents=True, exist_ok=True)
    data, page = (options.out / name for name in RESULTS)
    data.write_text(json.dumps(record, indent=1), encoding="utf-8")
    write_report([record], page)
    print_results(record, console, show_roof=options.roof)
    console.print(f"{data}  {page}", highlight=False, soft_wrap=True)
    if record["interrupted"]:
        return 130
    return 0 if all(ours(case) is not None for case in record["cases"]) else 1


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs of one machine are joined: of a problem that several have, the newest counts, and all are shown side by "
        "side. Different machines are kept apart. How to read it: docs/reports.md."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN",
                        help="run.json of hotloop bench; or of hotloop compare --json, for its A/A noise")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="the page (default: report.html, or none where --markdown is given)")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the same as Markdown, without figures")


def _check_outputs(
    parser: argparse.ArgumentParser, outputs: Mapping[str, Path | None], inputs: Sequence[Path] = ()
) -> None:
    """Exit where a file cannot be written, or would replace one that is read or written: before any work is done."""
    from .bench.files import is_same, why_not_writable

    seen: dict[str, Path] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        why = None
        if any(is_same(path, one) for one in inputs):
            why = f"{path} is one of the files that are read, which would be lost"
        elif twin := next((one for one in seen if is_same(seen[one], path)), None):
            why = f"{path} is the file of {twin}, too"
        elif problem := why_not_writable(path):
            why = f"cannot write to {path}: {problem}"
        if why:
            parser.exit(2, f"{parser.prog}: error: argument {name}: {why}\n")
        seen[name] = path


def _report(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    page = options.out or (None if options.markdown else Path("report.html"))
    _check_outputs(parser, {"--out": page, "--markdown": options.markdown}, options.runs)
    if page is not None and find_spec("matplotlib") is None:
        print(
            'hotloop report needs matplotlib for figures: install the extra "bench", or write --markdown alone',
            file=sys.stderr,
        )
        return 2
    from .bench import joined, markdown
    from .bench.files import DAMAGE, FileError, told

    texts: dict[Path, bytes] = {}
    try:
        parts = joined.join([joined.read(path) for path in options.runs])
        if page is not None:
            from .bench.report import render

            texts[page] = render(parts).encode()
        if options.markdown is not None:
            texts[options.markdown] = markdown.render(parts).encode()
    except FileError as error:
        parser.exit(2, f"hotloop report: error: {error}\n")
    except DAMAGE as error:
        runs = ", ".join(map(str, options.runs))
        parser.exit(2, f"hotloop report: error: {runs}: no report can be made of that ({told(error)})\n")
    for path, text in texts.items():
        try:
            path.write_bytes(text)
        except OSError as error:
            parser.exit(2, f"hotloop report: error: {path}: {error.strerror}\n")
    if len(parts) > 1:
        print(f"{len(parts)} machines: their figures are kept apart", file=sys.stderr)
    print("  ".join(str(path) for path in (page, options.markdown) if path is not None))
    return 0


def _pairs(text: str) -> int:
    from .bench.stats import AT_LEAST

    if (number := natural(text)) is not None and number >= AT_LEAST:
        return number
    raise argparse.ArgumentTypeError(f"expected an integer >= {AT_LEAST}, got {text!r}")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    from .bench.problems import GROUPS

    parser.description = (
        "Each side is a git revision (built, and kept for the next time), an environment or installed prefix with "
        "hotloop in it, or JSON of pytest-benchmark: a file, a folder of files or a quoted pattern. "
        "Exit status: 0 passed, 1 slower, 2 nothing was compared. How it works: docs/gating.md."
    )
    parser.add_argument("base", metavar="BASE")
    parser.add_argument("head", metavar="HEAD")
    parser.add_argument("--problems", choices=GROUPS, default="gate", metavar="GROUP",
                        help=f"one of {', '.join(GROUPS)} (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threads", nargs="+", type=_threads, metavar="N",
                        help="default: 1, and for a few problems 2")  # fmt: skip
    parser.add_argument(
        "--pairs", type=_pairs, metavar="N", help="pairs of fresh processes in a round, at least 10 (default 24)"
    )
    parser.add_argument("--isa", type=_isa, metavar="ISA", help="in place of the best one that the processor has")
    parser.add_argument("--confirm", nargs=2, metavar=("BASE", "HEAD"),
                        help="for JSON of pytest-benchmark: a second round of files; what seems slower in the first "
                        "fails if it is slower in these, too")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the summary there, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, with raw samples")
    parser.add_argument("--ignore-changes", action="store_true",
                        help="measure a revision that is checked out with changes, without them")  # fmt: skip


def _compare(parser: argparse.ArgumentParser, options: argparse.Namespace, command: list[str]) -> int:
    from .bench import compare, pytest_json
    from .bench.files import DAMAGE, FileError, told
    from .bench.pairs import Plan
    from .bench.processes import WorkerError
    from .bench.sides import SideError, resolve

    def say(text: str) -> None:
        print(f"hotloop compare: {text}", file=sys.stderr, flush=True)

    names = [options.base, options.head, *(options.confirm or ())]
    if not all(names):
        parser.exit(2, "hotloop compare: error: BASE and HEAD: expected a revision, a folder or files, got ''\n")
    try:
        kinds = [pytest_json.is_json(name) for name in names[:2]]
        if any(kinds) and not all(kinds):
            raise SideError("one side is JSON of pytest-benchmark and the other is not")
        files = [path for name in names for path in pytest_json.files(name)] if any(kinds) else []
        _check_outputs(parser, {"--markdown": options.markdown, "--json": options.json}, files)
        if files:
            confirm = (options.confirm[0], options.confirm[1]) if options.confirm else None
            try:
                record = pytest_json.run(options.base, options.head, command, confirm)
                text = compare.markdown(record)
                text.encode()
            except DAMAGE as error:
                raise FileError(f"{', '.join(names)}: these cannot be compared ({told(error)})") from None
        elif options.confirm:
            parser.error("argument --confirm: only files of pytest-benchmark need it; other sides are measured again")
        else:
            base, head = (
                resolve(name, ignore_changes=options.ignore_changes, say=say) for name in (options.base, options.head)
            )
            cases = compare.default_cases(options.problems, processors())
            if options.threads:
                problems = dict.fromkeys(problem for problem, _ in cases)
                cases = [(problem, threads) for threads in sorted(set(options.threads)) for problem in problems]
            plan = Plan() if options.pairs is None else Plan(pairs=options.pairs)
            say(f"{len(cases)} cases, {plan.pairs} pairs of processes")
            progress = (lambda _, text: say(text)) if sys.stderr.isatty() else (lambda _, text: None)
            record = compare.run(base, head, cases, plan, isa=options.isa, command=command, progress=progress)
            text = compare.markdown(record)
    except (SideError, FileError) as error:
        say(f"error: {error}")
        return 2
    except WorkerError as error:
        say(f"error: a side does not start: {error}")
        return 2
    except OSError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    failed = False
    for path, content in ((options.markdown, text), (options.json, json.dumps(record))):
        if path is not None:
            try:
                path.write_text(content, encoding="utf-8")
            except OSError as error:
                say(f"error: {path}: {error.strerror}")
                failed = True
    print(text, end="", flush=True)  # last: the files are there even where nobody reads this
    return compare.status(record) or (2 if failed else 0)


def _add_history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="lines of JSON, one a problem and commit")
    parser.add_argument("--add", type=Path, nargs="+", metavar="RUN", default=[],
                        help="append these runs (run.json of hotloop bench) first")  # fmt: skip
    parser.add_argument("--commit", metavar="HASH", help="of the runs that are added, where they do not say it")


def _history(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from .bench import history
    from .bench.files import DAMAGE, FileError, told

    if find_spec("ruptures") is None:
        print(
            'hotloop history needs ruptures: install the extra "history", as `pip install ".[bench,history]"`',
            file=sys.stderr,
        )
        return 2
    try:
        # All are read before the first is added: half of what was asked for is harder to mend than nothing.
        runs = [(path, history.read_run(path, options.commit)) for path in options.add]
        for path, lines in runs:
            print(f"{path}: {history.add(options.file, lines)} lines added", file=sys.stderr)
        found = history.read(options.file)
        machines = {line["machine"]["id"]: line["machine"] for line in found}
        text = history.tell(history.trends(found), machines)
        text.encode()
    except FileError as error:
        parser.exit(2, f"hotloop history: error: {error}\n")
    except DAMAGE as error:
        parser.exit(2, f"hotloop history: error: {options.file}: its lines make no trends ({told(error)})\n")
    print(text or "no runs yet; --add some")
    return 0


if __name__ == "__main__":
    sys.exit(main())
