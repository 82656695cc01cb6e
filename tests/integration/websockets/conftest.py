"""The app on one server, and both ends of its WebSockets."""

from collections.abc import Iterator

import pytest

from tests.support.servers import NOISE, Server
from tests.support.waiting import eventually
from tests.support.websocket_servers import start
from tests.support.websocket_wire import Listener


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(scope="module")
def running(server_name: str, listener: Listener) -> Iterator[Server]:
    server = start(server_name, listener)
    yield server
    server.stop()


@pytest.fixture
def server(running: Server, listener: Listener) -> Iterator[Server]:
    """The app on one server. No test may leave an exchange or a task, or noise in the log."""
    before, tasks = len(running.log()), running.state()["tasks"]
    yield running
    listener.hang_up()
    eventually(lambda: running.state()["open"] == 0)
    eventually(lambda: running.state()["tasks"] <= tasks)
    for noise in (*NOISE, "asgi_upstream/_websockets/relay.py"):  # as in a traceback
        assert noise not in running.log()[before:]
