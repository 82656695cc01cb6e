"""Which servers a test runs on, with `--servers=fast` and with `--servers=all`.

A test gets a server through the fixture `server_name`. Without a marker it is about this package's
own rules, and runs on `ONE_SERVER`. A test of the server interface has the marker `every_server`.
"""

import pytest

from tests.support.servers import COMMANDS, ON_ASYNCIO_TRANSPORT

ONE_SERVER = "uvicorn-httptools+asyncio"
ONE_OF_EACH_KIND = (ONE_SERVER, "hypercorn-trio", "granian")
FAST_SERVERS = ("uvicorn-h11", *ONE_OF_EACH_KIND)
ALL_SERVERS = (*COMMANDS, *ON_ASYNCIO_TRANSPORT)

every_server = pytest.mark.servers(*ALL_SERVERS)


def choose_servers(marker: pytest.Mark | None, *, choose_all: bool) -> tuple[object, ...]:
    """Return the servers for a test with this marker.

    The arguments of the marker are the servers for `--servers=all`. Its `fast=` are those for
    `--servers=fast`, by default those arguments that are in `FAST_SERVERS`.
    """
    if marker is None:
        return ONE_OF_EACH_KIND if choose_all else (ONE_SERVER,)
    if choose_all:
        return marker.args
    fast = marker.kwargs.get("fast", FAST_SERVERS)
    return tuple(name for name in marker.args if name in fast)
