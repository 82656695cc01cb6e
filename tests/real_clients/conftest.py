"""The relay as a process, on each transport, with its upstreams."""

import json
import os
import sys
from collections.abc import Iterator

import pytest

from tests.real_clients.programs import listening
from tests.real_clients.upstreams import UPSTREAMS, Upstreams
from tests.support.servers import NOISE, Server, free_port


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


@pytest.fixture
def url(relay: Server) -> str:
    return f"http://127.0.0.1:{relay.port}"
