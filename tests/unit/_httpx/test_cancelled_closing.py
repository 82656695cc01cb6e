"""Cancellation by asyncio while httpcore closes: it comes in the end, and no place is lost."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
import trustme

from asgi_upstream import BufferedResponse, StreamedResponse
from asgi_upstream._httpx.cancellation import defer_cancellation
from tests.support.asgi import Caller
from tests.support.cancellation import cancelled_at
from tests.support.flavor import AsyncioTransport, httpx

CALLERS, PLACES = 8, 10


@pytest.mark.anyio
@pytest.mark.backends("asyncio", "uvloop")
async def test_deferred_cancellation_comes_after_the_future() -> None:
    waiting, closed = asyncio.get_running_loop().create_future(), False

    async def close() -> None:
        nonlocal closed
        await asyncio.sleep(0)
        assert await waiting == "done"
        closed = True

    async def run() -> None:
        await defer_cancellation(close())

    task = asyncio.ensure_future(run())
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    waiting.set_result("done")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed


@pytest.mark.anyio
@pytest.mark.backends("asyncio", "uvloop")
async def test_deferred_cancellation_keeps_the_time_limit() -> None:
    async def close() -> None:
        with anyio.move_on_after(0.05, shield=True):
            await asyncio.get_running_loop().create_future()  # never done

    async def run() -> None:
        await defer_cancellation(close())

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, OSError, RuntimeError):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha")
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(b"lf")
            await writer.drain()
    writer.close()


@asynccontextmanager
async def _serve(tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    server = await asyncio.start_server(_respond, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    finally:
        server.close()
        await asyncio.sleep(0.05)  # the connections' tasks see the end of their connection


@pytest.mark.anyio
@pytest.mark.backends("asyncio", "uvloop")
@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_pool_place_survives_repeated_cancellation(cls: Any) -> None:
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1))
    async with (
        _serve(None) as url,
        httpx.AsyncClient(transport=transport, base_url=url) as client,
    ):
        for wait in range(1, 30):
            for gap in range(4):
                caller = Caller()
                app = cls(client, client.build_request("GET", "/"))
                # Once more `gap` iterations after the first one.
                run = cancelled_at(wait, app(caller.scope, caller.receive, caller.send))
                task = asyncio.ensure_future(_as_coroutine(run))
                while not task.done() and not task.cancelling():  # noqa: ASYNC110
                    await asyncio.sleep(0)
                for _ in range(gap):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                timeout = httpx.Timeout(60, pool=20)
                assert (await client.get("/", timeout=timeout)).text == "half", (wait, gap)


async def _as_coroutine(run: Any) -> None:
    await run


async def _cancel_randomly(exchange: Callable[[], Any], rng: random.Random, longest: float) -> None:
    delay = rng.random() * longest
    if rng.random() < 0.5:
        async with asyncio.timeout(delay):
            await exchange()
        return
    task = asyncio.ensure_future(exchange())
    await asyncio.sleep(delay)
    for _ in range(rng.randint(1, 3)):  # as servers and nested timeouts do
        task.cancel()
        for _ in range(rng.randint(0, 4)):
            await asyncio.sleep(0)
    await task


@pytest.mark.anyio
@pytest.mark.backends("asyncio", "uvloop")
@pytest.mark.parametrize("fast", [False, True], ids=["httpx", "fast"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
async def test_random_timeouts_lose_no_pool_place(fast: bool, scheme: str, count: int) -> None:
    server_tls, client_tls = None, ssl.create_default_context()
    if scheme == "https":
        authority, server_tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(server_tls)
        authority.configure_trust(client_tls)
    transport_class = AsyncioTransport if fast else httpx.AsyncHTTPTransport
    limits = httpx.Limits(max_connections=PLACES, max_keepalive_connections=PLACES)
    transport = transport_class(limits=limits, verify=client_tls)
    rng, remaining = random.Random(7), iter(range(count))
    async with (
        _serve(server_tls) as url,
        httpx.AsyncClient(transport=transport, base_url=url, timeout=60) as client,
    ):

        async def exchange() -> None:
            caller, cls = Caller(), rng.choice([StreamedResponse, BufferedResponse])
            await cls(client, client.build_request("GET", "/"))(
                caller.scope, caller.receive, caller.send
            )

        async def cancel_in_turn() -> None:
            for _ in remaining:
                with suppress(TimeoutError, asyncio.CancelledError):
                    await _cancel_randomly(exchange, rng, 0.03)

        await asyncio.gather(*[cancel_in_turn() for _ in range(CALLERS)])
        pool: Any = transport._pool
        assert not pool._requests
        assert [c.info() for c in pool.connections if not (c.is_idle() or c.is_closed())] == []
        if isinstance(transport, AsyncioTransport):
            state = transport.pool_state()
            assert state.open == state.idle
        await asyncio.gather(*[exchange() for _ in range(PLACES)])
