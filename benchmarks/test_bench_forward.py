"""Inference: weights packed beforehand, as all that can do so hold them."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import candidates, check_and_time, problems

from hotloop.bench.problems import Problem


@pytest.mark.parametrize("name", candidates())
@pytest.mark.parametrize("problem", problems("inference"))
def test_forward(benchmark: Any, problem: Problem, name: str) -> None:
    """Time one sequence, or one batch of sequences."""
    check_and_time(benchmark, problem, name)
