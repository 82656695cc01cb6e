"""A socket to the first address that answers, and none left open whatever happens."""

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import AsyncGenerator, Generator

import pytest

from asgi_upstream.transport import _connect as connecting
from asgi_upstream.transport._connect import connect_tcp
from tests.support.ports import open_full_port
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "uvloop")]


class CountingListener:
    """Accepts, and counts who is there."""

    opened = open = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open += 1
        with contextlib.suppress(OSError):
            await reader.read()
        self.open -= 1
        writer.close()


@contextlib.asynccontextmanager
async def listening() -> AsyncGenerator[tuple[CountingListener, int]]:
    listener = CountingListener()
    server = await asyncio.start_server(listener, "127.0.0.1", 0)
    async with server:
        yield listener, server.sockets[0].getsockname()[1]


@pytest.fixture
def silent() -> Generator[int]:
    with open_full_port() as port:
        yield port


def addresses(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    async def fixed(*arguments: object) -> list[connecting.Address]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        return [(*kind, ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(connecting, "_resolve", fixed)


def refusing() -> socket.socket:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held


async def test_the_next_address_is_tried_where_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as (_, port):
        with refusing() as refused:
            addresses(monkeypatch, refused.getsockname()[1], port)
            with await connect_tcp("upstream", 1, None) as one:
                assert one.getpeername()[1] == port


async def test_the_next_address_is_tried_beside_one_that_is_silent(
    monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    async with listening() as (_, port):
        addresses(monkeypatch, silent, port)
        with await connect_tcp("upstream", 1, None) as one:
            assert one.getpeername()[1] == port


async def test_of_two_that_answer_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "HAPPY_EYEBALLS_DELAY", 0)
    async with listening() as (listener, port):
        addresses(monkeypatch, port, port, port)
        with await connect_tcp("upstream", 1, None):
            await aeventually(lambda: listener.opened > 0)
            await aeventually(lambda: listener.open == 1)
        await aeventually(lambda: listener.open == 0)


async def test_where_none_answers_the_failure_is_of_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with refusing() as first, refusing() as second:
        addresses(monkeypatch, first.getsockname()[1], second.getsockname()[1])
        with pytest.raises(ConnectionRefusedError):
            await connect_tcp("upstream", 1, None)


async def test_cancelled_at_any_step_it_leaves_no_socket_open() -> None:
    """Also where it was connected by then, which asyncio's own race of addresses forgets."""
    gc.disable()  # or it closes what was left
    try:
        async with listening() as (listener, port):
            for steps in range(16):
                task = asyncio.create_task(connect_tcp("127.0.0.1", port, None))
                for _ in range(steps):
                    await asyncio.sleep(0)
                time.sleep(0.005)  # noqa: ASYNC251  a busy loop: all that is due comes at once
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    (await task).close()
            await asyncio.sleep(0.01)
            await aeventually(lambda: listener.open == 0)
    finally:
        gc.enable()


async def test_a_socket_leaves_from_the_address_that_is_asked_for() -> None:
    async with listening() as (_, port):
        with await connect_tcp("127.0.0.1", port, "127.0.0.2") as one:
            assert one.getsockname()[0] == "127.0.0.2"


async def test_addresses_of_both_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    families = [socket.AF_INET6, socket.AF_INET6, socket.AF_INET6, socket.AF_INET]
    found = [(family, 1, 6, "", number) for number, family in enumerate(families)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    addresses = await connecting._resolve(asyncio.get_running_loop(), "any.example", 1)
    assert [address[4] for address in addresses] == [0, 3, 1, 2]


async def test_cancelled_connect_leaves_no_attempt() -> None:
    with open_full_port() as port:
        before = asyncio.all_tasks()
        connect = asyncio.create_task(connect_tcp("127.0.0.1", port, None))
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks() - before) == 2
        connect.cancel()
        await asyncio.wait([connect])
        for _ in range(5):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
