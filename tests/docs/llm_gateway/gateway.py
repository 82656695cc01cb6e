"""The gateway of the example, and what its upstream counts."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

Serve = Callable[..., str]


SWIFT, DEEP, WISE = "swift", "deep", "wise"


class ModelUpstream:
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


def gateway_with(environment: dict[str, str]) -> Any:
    """Import the app again, without a reload, which would change the apps before it."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        for module in ("app", "upstreams", "bodies"):  # those that read the environment
            patch.delitem(sys.modules, f"examples.llm_gateway.{module}", raising=False)
        return importlib.import_module("examples.llm_gateway.app").app
