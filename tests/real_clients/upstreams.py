"""The relay's upstreams and transports, and what came through it."""

import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest

from tests.support.servers import Server

UPSTREAMS = ("web", "nginx", "s3", "mcp", "registry", "webdav", "by_host")


open_directly = build_opener(ProxyHandler({})).open  # no proxy of the machine's


def asked_directly(url: str) -> Any:
    """What an upstream says of itself in JSON, asked past the relay."""
    with closing(open_directly(url, timeout=10)) as answer:
        return json.loads(answer.read())


@dataclass(frozen=True)
class Upstreams:
    """The address that each upstream has, or will have when a test starts it."""

    folder: Path
    ports: dict[str, int]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def seen(self, name: str) -> int:
        """How many requests `web` has had by that name, or in that coding."""
        count: int = asked_directly(f"{self.url('web')}/seen?name={name}")
        return count

    @property
    def open(self) -> int:
        """How many exchanges are open at `web`, less the one that asks."""
        count: int = asked_directly(self.url("web") + "/open")
        return count - 1


STOCK, ASYNCIO = "uvicorn-httptools", "uvicorn-httptools+asyncio"


both_transports = pytest.mark.servers(STOCK, ASYNCIO, fast=(ASYNCIO,))


class Passed:
    """What has come through the relay to one upstream since the last look."""

    def __init__(self, relay: Server, name: str) -> None:
        self._relay, self._name = relay, name
        self._before = self._count()

    def _count(self) -> Counter[str]:
        return Counter(self._relay.state()["passed"].get(self._name, {}))

    def look(self) -> Counter[str]:
        before, self._before = self._before, self._count()
        return self._before - before
