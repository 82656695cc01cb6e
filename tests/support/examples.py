"""How many examples a property-based test tries: `make test-all` tries ten times as many."""

import os

FACTOR = float(os.environ.get("EXAMPLES", "1"))


def count_examples(usual: int) -> int:
    return max(1, round(usual * FACTOR))
