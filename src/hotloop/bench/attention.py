"""What one more step costs: a recurrent cell, always the same, against attention with a cache, more the longer it is.

Attention is one layer as a decoder runs it for one token at batch 1: projections to query, key and value, key and value
written to the end of a cache that is there already, torch's scaled_dot_product_attention over the cache, and the
projection of what comes out. The cells have the same width: torch.nn's, stock and swapped by
`hotloop.torch.replace_modules`, from a given state, and a layer of ours without torch, from none. All on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .check import TOLERANCE, relative_errors
from .peers import OURS, RUN_MODULES
from .problems import Module, Problem
from .processes import WorkerError, WorkerProcess, start_candidate

PEER = "torch"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes
    ----------
    width : int
        Of a token: the cells' input and hidden size, and of all heads together.
    heads : int
    contexts : tuple of int
        Tokens in the cache, the new one included.
    rounds, samples : int
        Every step in turn, that many times; samples a turn.
    sample_seconds : float
        Steps are repeated until a sample takes about that long.
    """

    width: int = 256
    heads: int = 4
    contexts: tuple[int, ...] = tuple(64 << number for number in range(9))
    rounds: int = 9
    samples: int = 3
    sample_seconds: float = 3e-3


SMALL = Plan(width=16, heads=2, contexts=(4, 8), rounds=2, samples=1, sample_seconds=5e-4)
CELLS = ("lstm", "gru")


def measure(
    plan: Plan, isa: str | None, write_reference: Callable[[Problem], Path], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every step in fresh processes of one thread, in turns.

    Returns
    -------
    dict
        The plan's width and heads, and "steps": for each "name" (of the candidate), "step" ("attention", or a cell),
        "module" (of a cell, as of a problem), "context" (None for a cell), status, detail and rounds as of a case.
    """
    steps: list[dict[str, Any]] = []
    for cell in CELLS:
        steps.append(_new_step(OURS, cell))
        steps += [_new_step(name, cell, "cell") for name in RUN_MODULES]
    steps += [_new_step(PEER, "attention", context=context) for context in plan.contexts]
    workers = {name: start_candidate(name, 1, isa) for name in RUN_MODULES}
    try:
        versions = {name: worker.greet()["versions"] for name, worker in workers.items()}
        requests = [_request(step, plan, write_reference) for step in steps]
        for number in range(plan.rounds):
            progress(f"cost of a step: round {number + 1}")
            turn = number % len(steps)
            order = list(range(len(steps)))
            for index in order[turn:] + order[:turn]:
                if number == 0 or steps[index]["status"] == "ok":
                    _take_turn(steps[index], requests[index], workers[steps[index]["name"]], plan)
    except WorkerError as error:
        return {"error": str(error)}
    finally:
        for worker in workers.values():
            worker.close()
    return {"width": plan.width, "heads": plan.heads, "versions": versions, "steps": steps}


def _new_step(name: str, step: str, module: Module = "", context: int | None = None) -> dict[str, Any]:
    about = {"name": name, "step": step, "module": module, "context": context}
    return {**about, "status": "failed", "detail": "", "rounds": []}


def _request(step: dict[str, Any], plan: Plan, write_reference: Callable[[Problem], Path]) -> dict[str, Any]:
    """Make what a worker is asked to prepare."""
    if step["context"] is not None:
        shape = {"width": plan.width, "heads": plan.heads, "context": step["context"]}
        return {"do": "attention", **shape, "sample_seconds": plan.sample_seconds}
    problem = Problem(step["step"], "inference", 1, 1, plan.width, plan.width, module=step["module"])
    return {
        "do": "prepare",
        "problem": problem.as_dict(),
        "reference": str(write_reference(problem)),
        "sample_seconds": plan.sample_seconds,
    }


def _take_turn(step: dict[str, Any], request: dict[str, Any], worker: WorkerProcess, plan: Plan) -> None:
    """Have a worker prepare a step, anew since it holds one at a time, and time it."""
    try:
        with worker.awake():
            reply = worker.ask(request)
            step.update(status=reply["status"], detail=reply.get("detail", ""))
            if reply["status"] == "ok":
                request["calls"] = reply["calls_per_sample"]
                step["rounds"].append(worker.ask({"do": "time", "samples": plan.samples})["samples"])
    except WorkerError as error:
        step.update(status="failed", detail=str(error))


def prepare(width: int, heads: int, context: int) -> tuple[Callable[[], Any], float]:
    """Return a step of attention, and how far its answer is from the formula in float64 (relative L2)."""
    import torch

    functional, size = torch.nn.functional, width // heads
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator)

    x, keys, values = draw(1, 1, width), draw(1, heads, context, size), draw(1, heads, context, size)
    into, back = draw(3 * width, width) / width**0.5, draw(width, width) / width**0.5
    into_bias, back_bias = draw(3 * width), draw(width)

    @torch.inference_mode()
    def step() -> Any:
        query, key, value = functional.linear(x, into, into_bias).view(3, 1, heads, 1, size)
        keys[:, :, -1:] = key
        values[:, :, -1:] = value
        mixed = functional.scaled_dot_product_attention(query, keys, values)
        return functional.linear(mixed.view(1, 1, width), back, back_bias)

    answer = step().numpy()
    arrays = (x, keys, values, into, into_bias, back, back_bias)
    expected = _formula(*(array.numpy().astype(np.float64) for array in arrays))
    return step, relative_errors({"output": answer}, {"output": expected})["output"]


def _formula(x: Any, keys: Any, values: Any, into: Any, into_bias: Any, back: Any, back_bias: Any) -> Any:
    """Compute the same step by its definition; the cache holds the new key and value, which are computed once more."""
    heads, size = keys.shape[1], keys.shape[3]
    query, key, value = (x[0, 0] @ into.T + into_bias).reshape(3, heads, size)
    keys, values = keys[0].copy(), values[0].copy()
    keys[:, -1], values[:, -1] = key, value
    scores = np.einsum("hd,htd->ht", query, keys) / size**0.5
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return (np.einsum("ht,htd->hd", weights, values).reshape(1, 1, -1)) @ back.T + back_bias


def is_right(error: float) -> bool:
    """Whether an answer is near enough to be timed."""
    return error <= TOLERANCE["float32"]


def failed(record: Mapping[str, Any]) -> str | None:
    """Say what went wrong in the measurement of a run; None where nothing did."""
    found = record.get("attention") or {}
    wrong = [f"{label(one)}: {one['detail']}" for one in found.get("steps", ()) if one["status"] != "ok"]
    return found.get("error") or ("; ".join(wrong) or None)


def steps(record: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """List the steps of a record that were timed."""
    return [one for one in (record or {}).get("steps", ()) if one["status"] == "ok" and one["rounds"]]


def label(step: Mapping[str, Any]) -> str:
    """Name a step for people."""
    if step["context"] is not None:
        return "attention (torch)"
    name = step["step"].upper()
    if not step["module"]:
        return f"hotloop.{name}"
    return f"{name}Cell on hotloop.torch" if step["name"] == OURS else f"{name}Cell of torch"
