"""How many examples a property-based test tries: `make test-all` ten times as many as `make test`,
and `make test-unit` a third."""

import os

FACTOR = float(os.environ.get("EXAMPLES", "1"))


def count_examples(usual: int) -> int:
    return max(1, round(usual * FACTOR))
