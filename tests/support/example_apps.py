"""The apps of examples/, imported anew and served by a real uvicorn."""

import importlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from asgi_upstream import testing
from tests.support.pages import ROOT

__all__ = ["ROOT", "Serve", "imported", "open_at", "served", "until"]

served, until = testing.serve, testing.eventually
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
