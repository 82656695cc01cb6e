"""The gateway and its upstream, each on a real uvicorn."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import httpx
import pytest

from examples.llm_gateway.callers import CALLERS
from examples.llm_gateway.upstream import app as upstream_app
from tests.support.example_apps import served, until

Serve = Callable[..., str]
SWIFT, DEEP, WISE = "swift", "deep", "wise"


class Upstream:
    """The upstream, as seen from outside of the gateway: what it has made, and for whom."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=60)

    def close(self) -> None:
        self._client.close()

    def made(self, account: str) -> int:
        return self._counters(account)["tokens"]

    def at_work(self, account: str) -> int:
        return self._counters(account)["at_work"]

    def _counters(self, account: str) -> dict[str, int]:
        counters: dict[str, int] = self._client.get("/made").json()[account]
        return counters


@pytest.fixture(scope="module")
def upstream_of_all() -> Iterator[Upstream]:
    with served(upstream_app) as url:
        upstream = Upstream(url)
        yield upstream
        upstream.close()


@pytest.fixture
def upstream(upstream_of_all: Upstream) -> Iterator[Upstream]:
    """Fails where a test leaves the upstream at work, or a place of a caller taken."""
    yield upstream_of_all
    until(lambda: not any(upstream_of_all.at_work(name) for name in (SWIFT, DEEP, WISE)))
    until(lambda: not any(caller.at_once for caller in CALLERS.values()))


@pytest.fixture(scope="module")
def serve(upstream_of_all: Upstream) -> Iterator[Serve]:
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


def gateway_with(environment: dict[str, str]) -> Any:
    """Import the app again, without a reload, which would change the apps before it."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        for module in ("app", "upstreams", "bodies"):  # those that read the environment
            patch.delitem(sys.modules, f"examples.llm_gateway.{module}", raising=False)
        return importlib.import_module("examples.llm_gateway.app").app


@pytest.fixture
def gateway(serve: Serve, upstream: Upstream) -> str:
    return serve()
