"""The servers and the upstream that the conformance tests share, as a plugin of theirs."""

from collections.abc import Iterator

import pytest

from tests.support.servers import Server
from tests.support.waiting import eventually
from tests.support.wire import Wire, serving


@pytest.fixture(scope="session")
def listening() -> Iterator[Wire]:
    with Wire() as wire:
        yield wire


@pytest.fixture
def wire(listening: Wire) -> Iterator[Wire]:
    """The upstream. No test may leave an exchange with it open."""
    listening.reset()
    yield listening
    eventually(lambda: listening.busy == 0)


@pytest.fixture(scope="session")
def forwarder(server_name: str, listening: Wire) -> Iterator[Server]:
    yield from serving(server_name, listening)
