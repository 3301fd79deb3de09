"""Random calls of the ops and the modules end in torch's answer or in an error: `torch_fuzz` says which there are."""

from __future__ import annotations

import pytest
import torch_fuzz


def test_random_calls():
    for seed in range(150):
        torch_fuzz.one(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(150, 6150, 500))
def test_many_random_calls(first):
    for seed in range(first, first + 500):
        torch_fuzz.one(seed)
