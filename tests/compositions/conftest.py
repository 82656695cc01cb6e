from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import httpx
import pytest

from asgi_upstream._clients import iter_registered
from tests.compositions.callers import Serve
from tests.compositions.upstream import arrivals
from tests.support.example_apps import imported, served
from tests.support.upstream import Upstream
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def listening() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def url_of(listening: Upstream) -> Iterator[Callable[..., str]]:
    """Serves an example by its name, or an app, once for all tests of a module."""
    with ExitStack() as stack:

        @cache
        def url(example: Any, **environment: str) -> str:
            if isinstance(example, str):
                example = imported(f"compositions.{example}", listening.url, **environment)
            return stack.enter_context(served(example))

        yield url


@pytest.fixture
def upstream(listening: Upstream) -> Iterator[Upstream]:
    """An upstream that has seen nothing yet. No test may leave an exchange open there."""
    listening.requests.clear()
    arrivals.clear()
    yield listening
    eventually(lambda: listening.open_exchanges == 0)


@pytest.fixture
def serve(url_of: Callable[..., str], upstream: Upstream) -> Iterator[Serve]:
    """Serves an example or an app, and returns a caller. No test may leave an exchange open."""
    with ExitStack() as stack:

        def start(example: object, **environment: str) -> httpx.Client:
            url = url_of(example, **environment)
            return stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=60))

        yield start
        eventually(lambda: not any(ledger.open_count for _, ledger in iter_registered()))
