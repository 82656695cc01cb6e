from collections.abc import Iterator

import pytest

from tests.support.servers import NOISE, Server, SocketCaller
from tests.support.upstream import Upstream, untrusted_upstream
from tests.support.waiting import eventually


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def untrusted() -> Iterator[Upstream]:
    with untrusted_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def running(server_name: str, upstream: Upstream) -> Iterator[Server]:
    server = Server(server_name, upstream.url)
    yield server
    server.stop()


@pytest.fixture
def server(running: Server, upstream: Upstream) -> Iterator[Server]:
    """The app on one server. No test may leave an exchange open, or noise in the log."""
    before = len(running.log())
    yield running
    for caller in SocketCaller.open:
        caller.leave()
    SocketCaller.open.clear()
    eventually(lambda: upstream.open_exchanges == 0)
    for noise in NOISE:
        assert noise not in running.log()[before:]
