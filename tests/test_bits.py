"""The bits of revision 8d2f1e4, which refactoring keeps."""

from __future__ import annotations

import json

import bits
import pytest


@pytest.fixture(scope="module")
def record():
    return json.loads(bits.RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("problem", bits.PROBLEMS, ids=str)
def test_bits(problem, isa, record):
    if isa not in record:
        pytest.skip(f"there is no record for {isa}")
    assert bits.digest(problem) == record[isa][str(problem)]


def test_the_record_is_of_these_problems(record):
    """None is recorded that is not run; and a reordered sum would show, since no two have the same bits."""
    names = {str(problem) for problem in bits.PROBLEMS}
    assert len(names) == len(bits.PROBLEMS)
    for of_isa in record.values():
        assert set(of_isa) == names
        assert len(set(of_isa.values())) >= len(names) - sum(problem.threads > 1 for problem in bits.PROBLEMS)


def test_numbers():
    """Of splitmix64 seeded with 0, the first values of the reference implementation, scaled."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert bits.numbers(0, 3).tolist() == [(value >> 52) / 2048 - 1 for value in expected]
