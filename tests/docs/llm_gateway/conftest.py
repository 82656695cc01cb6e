"""The gateway and its upstream, each on a real uvicorn."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import httpx
import pytest

from examples.llm_gateway.callers import CALLERS
from examples.llm_gateway.upstream import app as upstream_app
from tests.docs.test_examples import ROOT, served, until

Serve = Callable[..., str]
SWIFT, DEEP = "swift", "deep"


class Upstream:
    """The upstream, as seen from outside of the gateway: what it has made, and for whom."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, trust_env=False)

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
    until(lambda: upstream_of_all.at_work(SWIFT) == upstream_of_all.at_work(DEEP) == 0)
    until(lambda: not any(caller.at_once for caller in CALLERS.values()))


@pytest.fixture(scope="module")
def serve(upstream_of_all: Upstream) -> Iterator[Serve]:
    """Serves the gateway with the environment given, once for all tests; its URL."""
    with ExitStack() as stack:

        @cache
        def url(**environment: str) -> str:
            behind = f"{upstream_of_all.url}/v1"
            environment = {"SWIFT_URL": behind, "DEEP_URL": behind, **environment}
            return stack.enter_context(served(gateway_with(environment)))

        yield url


def gateway_with(environment: dict[str, str]) -> Any:
    """The app, imported once more and not reloaded: that would take the one before it apart."""
    name, path = "examples.llm_gateway.app", ROOT / "examples/llm_gateway/app.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        spec.loader.exec_module(module)
    app: object = module.app
    return app


@pytest.fixture
def gateway(serve: Serve, upstream: Upstream) -> str:
    return serve()
