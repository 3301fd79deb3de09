"""Try `hotloop compare` on the real thing: a revision against itself, and against a copy of it made slower.

    python tools/try_gate.py equal 5             five runs of HEAD against HEAD: all have to pass
    python tools/try_gate.py equal 5 --load      while another process computes
    python tools/try_gate.py slower 10           ten runs against a copy whose GRU inference takes 10 % longer: all have
                                                 to fail on that case and on no other

A run takes a minute or two, a failing one up to twice that; builds are kept. Exit status 1 if a run is not as it has to
be. What the slowdown is: each call into the library that is a GRU's inference waits for a share of the time it took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = "csrc/abi.cpp"
CALL = "  return hotloop::run(args, count, threads, workspace, if_short);\n"
SLOWER_CALL = """  const int64_t begun = hotloop::monotonic_ns();
  const int status = hotloop::run(args, count, threads, workspace, if_short);
  const hotloop_forward_args& first = hotloop::forward_of(args[0]);
  if (first.cell == HOTLOOP_GRU && first.gates == nullptr) {
    const int64_t now = hotloop::monotonic_ns(), end = now + (now - begun) * PERCENT / 100;
    while (hotloop::monotonic_ns() < end) {
    }
  }
  return status;
"""
SLOWER = "gru-inference"


def git(where: Path, *words: str) -> str:
    """Run git and return what it prints."""
    return subprocess.run(["git", *words], cwd=where, check=True, capture_output=True, text=True).stdout.strip()


def plant(clone: Path, percent: int) -> None:
    """Commit the slowdown: the same commit each time, so that it is built once."""
    path = clone / FILE
    text = path.read_text(encoding="utf-8")
    if text.count(CALL) != 1:
        raise SystemExit(f"{FILE}: expected once: {CALL.strip()}")
    text = text.replace(CALL, SLOWER_CALL.replace("PERCENT", str(percent)))
    path.write_text(text.replace('#include "hash.h"\n', '#include "hash.h"\n#include "threads.h"\n'), encoding="utf-8")
    when = git(clone, "log", "-1", "--format=%cI")
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "try_gate"), ("EMAIL", "try_gate@example.org"), ("DATE", when))}  # fmt: skip
    subprocess.run(
        ["git", "commit", "-qam", f"GRU inference takes {percent} % longer"],
        cwd=clone,
        check=True,
        env=os.environ | who,
    )


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="Try the time gate on equal and on unequal revisions.")
    parser.add_argument("what", choices=("equal", "slower"))
    parser.add_argument("runs", type=int)
    parser.add_argument("--percent", type=int, default=10, help="how much slower (default 10)")
    parser.add_argument("--load", action="store_true", help="keep a processor busy meanwhile")
    parser.add_argument("--problems", default="gate-short", metavar="GROUP")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the records there")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        git(ROOT, "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone))
        head = base = git(clone, "rev-parse", "HEAD")
        if options.what == "slower":
            plant(clone, options.percent)
            head = git(clone, "rev-parse", "HEAD")
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if options.load else None
        try:
            for number in range(options.runs):
                file = Path(folder) / f"{options.what}{'-load' * options.load}-{number + 1}.json"
                command = [
                    sys.executable,
                    "-m",
                    "hotloop.cli",
                    "compare",
                    base,
                    head,
                    "--problems",
                    options.problems,
                    "--json",
                    str(file),
                ]
                done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
                if not file.exists():
                    raise SystemExit(done.stdout + done.stderr)
                record = json.loads(file.read_text(encoding="utf-8"))
                slower = record["regressions"]
                right = [name.startswith(SLOWER) for name in slower] == [True] * (options.what == "slower")
                wrong += not right
                noise = record["noise"]
                print(
                    f"{file.stem}: {'as it has to be' if right else 'WRONG'}; exit status {done.returncode}, "
                    f"{record['seconds']:.0f} s, {len(record['rounds'])} rounds, noise {100 * noise['median']:.1f} to "
                    f"{100 * noise['largest']:.1f} %, slower: {', '.join(slower) or 'none'}",
                    flush=True,
                )
                if options.out is not None:
                    options.out.mkdir(parents=True, exist_ok=True)
                    file.rename(options.out / file.name)
        finally:
            if busy is not None:
                busy.kill()
    print(f"{options.runs - wrong} of {options.runs} runs as they have to be")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
