"""Marks that tests of several folders have."""

import pytest

ignore_httpcore_generators = pytest.mark.filterwarnings(
    "ignore:Async generator '(httpcore|httpx):ResourceWarning"
)
"""httpcore does not close the generators of a body that was not read, and trio warns of each."""
