"""Print the costs of the cost model (csrc/cost.cpp) as this processor has them, for every instruction set here.

    python tools/measure_costs.py

They are stated in csrc/kernels/isa_*.cpp; docs/performance.md has those of several processors. Takes some 30 seconds,
and two processors that have nothing else to do: with one, what takes two threads is left out.

lane_flops_ns  from LSTM inference T64 B32 I256 H256, without its cell functions
cell_flops     from the probe of the LSTM's cell functions, in flops of products
read_bytes_ns  from the steps of LSTM inference T2000 B1 H128, which read 256 KiB from L2
handover_ns    what GRU inference T1 B32 I64 H128 takes on two threads beyond half of its time on one
wake_ns        the same, each call after a pause of 10 ms, beside calls on one thread after such a pause
exchange_ns    what a step of LSTM inference T2000 B1 H128 takes on two threads beyond half of its time on one

The last three are nothing to go by where two processors are threads of one core, or other programs run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import hotloop
from hotloop._backends import native
from hotloop.bench import roof

PAUSE = 10e-3  # after which the pool's threads sleep
LANE_BYTES = 4  # of float32


def seconds(call: Callable[[], Any], pause: float = 0.0) -> float:
    """What a call takes: the median of many, each after a pause."""
    taken: list[float] = []
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end or len(taken) < 20:
        time.sleep(pause)
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def run(kind: Any, seq_len: int, batch_size: int, input_size: int, hidden_size: int, threads: int) -> Callable[[], Any]:
    layer = kind(input_size, hidden_size, rng=0)
    x = np.random.default_rng(0).standard_normal((seq_len, batch_size, input_size)).astype(np.float32)
    return lambda: layer(x, threads=threads)


def costs() -> dict[str, float]:
    """The costs of the instruction set in use, by the names of hotloop_isa_traits."""
    cells = roof.run_probe(roof.Probe("cell_forward", "lstm", "float32", roof.CELL_BYTES), 0.3) * 1e-9
    lanes = roof.vector_bytes() // LANE_BYTES
    of_cells = 64 * 32 * 256 / lanes / cells  # ns
    products = 64 * 32 * 2 * 4 * 256 * (256 + 256)
    flops_ns = products / (1e9 * seconds(run(hotloop.LSTM, 64, 32, 256, 256, 1)) - of_cells)
    step = 1e9 * seconds(run(hotloop.LSTM, 2000, 1, 1, 128, 1)) / 2000 - 128 / lanes / cells
    found = {
        "lane_flops_ns": flops_ns / lanes,
        "cell_flops": flops_ns / cells / lanes,
        "read_bytes_ns": 4 * 128 * 128 * 4 / step,
    }
    if hotloop.info().processors < 2:
        return found
    one, two = (run(hotloop.GRU, 1, 32, 64, 128, threads) for threads in (1, 2))
    alone, awake = seconds(one), seconds(two)
    alone_later, later = seconds(one, PAUSE), seconds(two, PAUSE)
    step_ns = [seconds(run(hotloop.LSTM, 2000, 1, 1, 128, threads)) / 2000 for threads in (1, 2)]
    return {
        **found,
        "wake_ns": 1e9 * (later - (alone_later - alone / 2)),
        "handover_ns": 1e9 * (awake - alone / 2),
        "exchange_ns": 1e9 * (step_ns[1] - step_ns[0] / 2),
    }


def main() -> int:
    before = native.description()
    print(f"{hotloop.info().processor}, {hotloop.info().processors} processors")
    try:
        for name in native.isas():
            native.use_isa(name)
            print(f"{name:8}", "  ".join(f"{cost} {value:.4g}" for cost, value in costs().items()))
    finally:
        native.use_isa(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
