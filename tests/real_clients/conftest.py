"""The relay as a process, on each transport, with its upstreams."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest

from tests.real_clients.programs import listening
from tests.support.servers import NOISE, Server, free_port

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


@pytest.fixture(scope="session")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstreams]:
    """The upstream `web` runs. The others are started by the tests that need them."""
    folder = tmp_path_factory.mktemp("upstreams")
    ports = {name: free_port() for name in UPSTREAMS}
    command = [sys.executable, "-m", "uvicorn", "--no-access-log", "--log-level", "warning"]
    command += ["--no-proxy-headers", "--timeout-graceful-shutdown", "1"]
    command += ["--port", str(ports["web"])]
    home = tmp_path_factory.mktemp("web")
    environment = {"FOLDER": str(folder)}
    with listening([*command, "tests.real_clients.web:app"], ports["web"], home, environment):
        yield Upstreams(folder, ports)


STOCK, ASYNCIO = "uvicorn-httptools", "uvicorn-httptools+asyncio"
both_transports = pytest.mark.servers(STOCK, ASYNCIO, fast=(ASYNCIO,))


@pytest.fixture(scope="session")
def running(server_name: str, upstreams: Upstreams) -> Iterator[Server]:
    urls = {name: upstreams.url(name) for name in UPSTREAMS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "UPSTREAMS", json.dumps(urls))
        server = Server(server_name, "", app="tests.real_clients.app:app", dev_mode=False)
    yield server
    server.stop()


@pytest.fixture
def relay(running: Server) -> Iterator[Server]:
    """The app, whose log must be quiet of what was lost and not raised."""
    before = len(running.log())
    yield running
    for noise in NOISE:
        assert noise not in running.log()[before:]


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


@pytest.fixture
def url(relay: Server) -> str:
    return f"http://127.0.0.1:{relay.port}"
