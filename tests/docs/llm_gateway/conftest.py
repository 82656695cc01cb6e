"""The gateway and its upstream, each on a real uvicorn."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from examples.llm_gateway.callers import CALLERS
from examples.llm_gateway.upstream import app as upstream_app
from tests.docs.llm_gateway.gateway import DEEP, SWIFT, WISE, ModelUpstream, Serve, gateway_with
from tests.support.example_apps import served, until


@pytest.fixture(scope="module")
def upstream_of_all() -> Iterator[ModelUpstream]:
    with served(upstream_app) as url:
        upstream = ModelUpstream(url)
        yield upstream
        upstream.close()


@pytest.fixture
def upstream(upstream_of_all: ModelUpstream) -> Iterator[ModelUpstream]:
    """Fails where a test leaves the upstream at work, or a place of a caller taken."""
    yield upstream_of_all
    until(lambda: not any(upstream_of_all.at_work(name) for name in (SWIFT, DEEP, WISE)))
    until(lambda: not any(caller.at_once for caller in CALLERS.values()))


@pytest.fixture(scope="module")
def serve(upstream_of_all: ModelUpstream) -> Iterator[Serve]:
    """Serves the gateway with the environment given, once for all tests; its URL."""
    with ExitStack() as stack:

        @cache
        def url(**environment: str) -> str:
            behind = f"{upstream_of_all.url}/v1"
            environment = {
                "SWIFT_URL": behind,
                "DEEP_URL": behind,
                "WISE_URL": behind,
                **environment,
            }
            return stack.enter_context(served(gateway_with(environment)))

        yield url


@pytest.fixture
def gateway(serve: Serve, upstream: ModelUpstream) -> str:
    return serve()
