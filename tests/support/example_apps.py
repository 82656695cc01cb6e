"""The apps of examples/, imported anew and served by a real uvicorn."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest

from asgi_upstream import testing
from tests.support.flavor import httpx
from tests.support.pages import ROOT
from tests.support.waiting import eventually

__all__ = ["ROOT", "Serve", "imported", "open_at", "served", "until"]

served, until = testing.serve, eventually
Serve = Callable[..., httpx.Client]


def imported(name: str, upstream_url: str, **environment: str) -> Any:
    """The app of an example, which reads the environment when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"UPSTREAM_URL": upstream_url, **environment}.items():
            patch.setenv(key, value)
        return importlib.reload(importlib.import_module(f"examples.{name}")).app


def open_at(upstream: httpx.Client) -> int:
    count: int = upstream.get("/open").json()["open"]
    return count


@pytest.fixture(scope="module")
def upstream_url() -> Iterator[str]:
    with served(importlib.import_module("examples.upstream").app) as url:
        yield url


@pytest.fixture
def upstream(upstream_url: str) -> Iterator[httpx.Client]:
    """Talks to the upstream itself, and fails if a test leaves an exchange open there."""
    with httpx.Client(base_url=upstream_url, trust_env=False, timeout=60) as client:
        yield client
        until(lambda: open_at(client) == 0)


@pytest.fixture(scope="module")
def url_of(upstream_url: str) -> Iterator[Callable[..., str]]:
    """Serves an example by its name, with the environment given, once for all tests."""
    with ExitStack() as stack:

        @cache
        def url(name: str, **environment: str) -> str:
            return stack.enter_context(served(imported(name, upstream_url, **environment)))

        yield url


@pytest.fixture
def serve(url_of: Callable[..., str], upstream: httpx.Client) -> Iterator[Serve]:
    """Serves an example, and returns a caller of it."""
    with ExitStack() as stack:

        def start(name: str, **environment: str) -> httpx.Client:
            url = url_of(name, **environment)
            return stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=60))

        yield start
