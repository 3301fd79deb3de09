"""Records of benchmarks as tests want them: small, and with figures that are known."""

from dataclasses import replace

from hotloop.bench import memory, results
from hotloop.bench.peers import OURS
from hotloop.bench.problems import Problem

SMALL = Problem("lstm", "training", 6, 2, 5, 9)


def page(*records):
    """The report of records, as HTML."""
    from hotloop.bench import joined, report

    return report.render(joined.join(records))


def stored_record():
    """A small record, as read back from a file."""

    def candidate(name, threads, seconds, **more):
        timed = [[seconds, seconds * 1.01, seconds * 0.99]] * 4
        return {"name": name, "threads": threads, "status": "ok", "detail": "", "errors": {"output": 2.5e-7},
                "checked_steps": 64, "rounds": timed, **more}  # fmt: skip

    def case(problem, candidates, probes=None):
        return {"problem": problem.as_dict(), "flops": problem.flops, "lanes": 16, "probes": probes,
                "candidates": candidates}  # fmt: skip

    inference = [Problem("lstm", "inference", steps, 1, 10, 32) for steps in (16, 100)]
    rates = {"fma float32": 1e11, "read 5120": 1e11, "read 16384": 1e11, "cell_forward lstm float32": 1e8}
    return {
        "schema_version": 1,
        "date": "2025-01-02T03:04:05+00:00",
        "command": ["hotloop", "bench", "--shape", "<odd>"],
        "environment": {
            "hotloop": {"version": "9.8.7", "backend": "native", "variant": "avx512", "processor": "Test <CPU>",
                        "processors": 2},
            "versions": {"hotloop": {"hotloop": "9.8.7"}, "torch": {"torch": "1.2.3"}},
            "not_installed": ["jax"], "lscpu": {"L2 cache": "2 MiB"}, "platform": "test", "python": "3.10", "load": 2.5,
        },
        "cases": [
            case(
                inference[0],
                [candidate("hotloop", 1, 10e-6), candidate("hotloop", 2, 8e-6), candidate("torch", 1, 30e-6),
                 candidate("torch", 2, 20e-6)],
                {key: [rate] for key, rate in rates.items()},
            ),
            case(inference[1], [candidate("hotloop", 1, 50e-6), candidate("torch", 1, 25e-6)]),
            case(
                SMALL,
                [candidate("hotloop", 1, 123.4e-6), candidate("torch", 1, 1e-3, status="wrong", rounds=[],
                           errors={"x": None}, detail="x: relative error inf")],
            ),
        ],
        "interrupted": False,
    }  # fmt: skip


def grid_record():
    """A record with something in every line of the summary: by problem, the microseconds of each candidate."""
    keys = ["fma float32", *(f"read {size}" for size in (65536, 196608, 262144)),
            *(f"copy {size}" for size in (262144, 786432))]  # fmt: skip
    probes = {key: [1e11] for key in keys}
    for cell in ("lstm", "gru", "rnn_tanh"):
        for way in ("forward", "backward"):
            probes[f"cell_{way} {cell} float32"] = [1e8]
    times = {
        Problem("lstm", "inference", 100, 16, 128, 128): {"hotloop": (6000, 4000), "torch": (9000, 8000)},
        Problem("lstm", "inference", 1000, 1, 64, 64): {"hotloop": (1000, 1250), "openvino": (900, 800)},
        Problem("lstm", "inference", 1, 1, 64, 64): {"hotloop": (10, 20), "torch": (10, 30)},
        Problem("gru", "training", 1000, 1, 128, 128): {"hotloop": (9000, 6000), "torch": (60000, 54000),
                                                        "jax": (12000, 15000), "numpy": (5000, 5000)},
        Problem("rnn", "training", 100, 16, 128, 128): {"hotloop": (3000, 1500), "torch": (4500, 6000)},
        Problem("rnn", "training", 1, 16, 128, 128): {"hotloop": (300, 300), "torch": (1, 1)},
    }  # fmt: skip
    cases = []
    for problem, candidates in times.items():
        records = [
            {"name": name, "threads": threads, "status": "ok", "detail": "", "rounds": [[us * 1e-6]] * 3}
            for name, both in candidates.items()
            for threads, us in zip((1, 2), both, strict=True)
        ]
        cases.append({"problem": problem.as_dict(), "flops": problem.flops, "lanes": 16, "probes": probes,
                      "candidates": records})  # fmt: skip
    computed = sum(memory.grows(results.problem_of(cases[3])).values())
    cases[3]["memory"] = {
        "threads": 2,
        "runs": [
            {"seq_len": steps, "forward": 0, "peak": steps // 1000 * computed + 5_000_000 + steps * 100}
            for steps in (1000, 2000)
        ],
    }
    return {**stored_record(), "cases": cases}


def modules_record():
    """Modules of torch: one that reaches its goal, one that misses it, one without a goal and one that was wrong."""

    def case(problem, times, status="ok"):
        timed = [
            {"name": name, "threads": threads, "status": status if name == OURS else "ok", "detail": "", "errors": {},
             "checked_steps": problem.seq_len, "rounds": [[seconds]] * 4 if name != OURS or status == "ok" else []}
            for (name, threads), seconds in times.items()
        ]  # fmt: skip
        return {"problem": problem.as_dict(), "flops": problem.flops, "lanes": 16, "probes": None, "candidates": timed}

    layer = Problem("gru", "training", 100, 32, 16, 64, module="layer", goal=3.0)
    keys = [(OURS, 1), (OURS, 2), ("torch", 1), ("torch", 2)]
    record = stored_record()
    record["cases"] = [
        case(layer, dict(zip(keys, (5e-3, 4e-3, 20e-3, 16e-3), strict=True))),
        case(replace(layer, lengths="uniform", goal=5.0), dict(zip(keys, (5e-3, 4e-3, 8e-3, 16e-3), strict=True))),
        case(Problem("lstm", "inference", 1, 32, 16, 64, module="cell"), {keys[0]: 10e-6, keys[2]: 25e-6}),
        case(replace(layer, cell="rnn"), {keys[0]: 10e-6, keys[2]: 25e-6}, "wrong"),
    ]
    return record
