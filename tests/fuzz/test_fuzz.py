"""A short run of the fuzzer; `make fuzz` is a long one, and each failure names its seed."""

import random

import pytest

from .fuzz import fuzz


@pytest.mark.parametrize("start", range(0, 1000, 250))
def test_any_exchange_with_any_upstream_ends_and_leaves_nothing(start: int) -> None:
    for seed in range(start, start + 250):
        fuzz(seed)


def test_so_do_others_than_last_time() -> None:
    start = random.SystemRandom().randrange(1 << 40)
    for seed in range(start, start + 250):
        fuzz(seed)
