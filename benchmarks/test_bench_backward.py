"""Training: forward and backward with all gradients, packing included, since weights change every step."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import candidates, check_and_time, problems

from hotloop.bench.problems import Problem


@pytest.mark.parametrize("name", candidates())
@pytest.mark.parametrize("problem", problems("training"))
def test_backward(benchmark: Any, problem: Problem, name: str) -> None:
    """Time one training step without the optimizer."""
    check_and_time(benchmark, problem, name)
