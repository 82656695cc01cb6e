"""A short run of the fuzzer; `make fuzz` is a long one, and each failure names its seed."""

import random

from tests.support.examples import count_examples

from .fuzz import fuzz

SEEDS = count_examples(100)


def test_any_exchange_with_any_upstream_ends_and_leaves_nothing() -> None:
    for seed in range(SEEDS):
        fuzz(seed)


def test_so_do_others_than_last_time() -> None:
    start = random.SystemRandom().randrange(1 << 40)
    for seed in range(start, start + SEEDS):
        fuzz(seed)
