"""Servers whose app relays WebSockets."""

import pytest

from tests.support.server_choice import ALL_SERVERS
from tests.support.servers import COMMANDS, Server
from tests.support.websocket_wire import Listener

# Each server has an implementation of its own. `make test` runs most of this on one.
websocket_servers = pytest.mark.servers(*ALL_SERVERS, fast=("uvicorn-httptools+asyncio",))
APP = "tests.support.apps.websocket_app:app"
# uvicorn has two implementations of WebSockets.
FLAVOURS = {
    "uvicorn-h11": ["--ws", "wsproto"],
    "uvicorn-httptools": ["--ws", "websockets-sansio"],
}


def start(name: str, listener: Listener) -> Server:
    command = name.partition("+")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMMANDS, command, [*COMMANDS[command], *FLAVOURS.get(command, [])])
        return Server(name, listener.url, app=APP)


def is_hypercorn(server: Server) -> bool:
    return server.name.startswith("hypercorn")
