"""Connections that the upstream has closed, and what is not sent again."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

from asgi_upstream.transport._connection import HTTP11Connection
from asgi_upstream.transport._pool import Pool
from asgi_upstream.transport._serializer import OutgoingRequest
from tests.support.flavor import AsyncioTransport, httpcore, httpx
from tests.support.memory import MemorySocket, VirtualLoop
from tests.support.ports import open_full_port
from tests.support.raw_upstream import OK, RawUpstream, client, read_request
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "uvloop")]


class Closing:
    """Answers one request on each connection, and closes at the second, or breaks."""

    def __init__(self, instead: bytes = b"", *, on: range = range(1000)) -> None:
        self.requests: list[bytes] = []
        self._instead = instead
        self._on = on
        self._connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self._connections = self._connections, self._connections + 1
        if number not in self._on:
            self.requests.append(await read_request(reader))
            return
        self.requests.append(await read_request(reader))
        writer.write(OK)
        self.requests.append(await read_request(reader))
        writer.write(self._instead)
        await writer.drain()
        writer.write_eof()
        await reader.read()


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
async def test_idempotent_request_is_sent_again_if_connection_closed(method: str) -> None:
    serve = Closing()
    async with RawUpstream(serve) as upstream, client(upstream) as c:
        await c.get("/first")
        response = await c.request(method, "/second", content=b"" if method != "PUT" else b"body")
        assert response.status_code == 200
        assert serve.requests[1] == serve.requests[2]
        assert serve.requests[1].endswith(b"body" if method == "PUT" else b"\r\n\r\n")
        assert len(upstream.peers) == 2


async def test_it_is_sent_twice_and_no_more() -> None:
    serve = Closing(on=range(1))
    async with RawUpstream(serve) as upstream, client(upstream) as c:
        await c.get("/first")
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            await c.get("/second")
        assert len(serve.requests) == 3


async def test_on_a_new_connection_it_is_sent_once() -> None:
    serve = Closing(on=range(0))
    async with RawUpstream(serve) as upstream, client(upstream) as c:
        with pytest.raises(httpx.RemoteProtocolError):
            await c.get("/first")
        assert len(serve.requests) == 1


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_408_on_a_reused_connection_is_retried_if_safe(method: str) -> None:
    """RFC 9110 15.5.9: the upstream only closes an idle connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(b"HTTP/1.1 408 Idle\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")

    async with RawUpstream(serve) as upstream, client(upstream) as c:
        assert (await c.get("/")).text == "ok"
        response = await c.request(method, "/")
        assert response.status_code == (408 if method == "POST" else 200)
        assert len(upstream.peers) == (1 if method == "POST" else 2)


async def test_408_that_keeps_its_connection_is_returned() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.write(b"HTTP/1.1 408 Slow\r\ncontent-length: 0\r\n\r\n")

    async with RawUpstream(serve) as upstream, client(upstream) as c:
        assert [(await c.get("/")).status_code for _ in range(2)] == [200, 408]
        assert len(upstream.peers) == 1


async def test_408_on_a_new_connection_is_returned() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 408 Slow\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")

    async with RawUpstream(serve) as upstream, client(upstream) as c:
        assert (await c.get("/")).status_code == 408
        assert len(upstream.peers) == 1


@pytest.mark.parametrize("event", ["nothing", "bytes", "end"])
@pytest.mark.parametrize("where", ["tcp", "unix"])
async def test_unread_input_makes_a_connection_not_reusable(
    tmp_path: Path, where: str, event: str
) -> None:
    """A busy event loop has not called the connection yet."""
    near: Any
    if where == "unix":
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
    loop = asyncio.get_running_loop()
    owner = Pool(cast(Any, None), httpx.Limits(), httpx)
    _, connection = await loop.create_connection(
        lambda: HTTP11Connection(owner, loop, httpx), sock=near
    )
    with far:
        if event == "bytes":
            far.sendall(b"x")
        elif event == "end":
            far.shutdown(socket.SHUT_WR)
        assert connection.is_reusable() == (event == "nothing")
        connection.close()
        assert not connection.is_reusable()
        await asyncio.sleep(0)


async def test_many_tiny_chunks_let_other_tasks_run() -> None:
    """The chunks of one read are decoded over several iterations of the loop."""
    loop = asyncio.get_running_loop()
    connection = HTTP11Connection(Pool(cast(Any, None), httpx.Limits(), httpx), loop, httpx)
    connection.connection_made(Mock())
    connection.send(OutgoingRequest("GET", b"", b"", 0, None, None))
    connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    connection.data_received(b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
    turns = body = 0
    while chunk := connection.read_nowait() or await connection.read():
        body += len(chunk)
        turns += 1
        await asyncio.sleep(0)
    assert body == 20_000
    assert turns >= 10


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_connection_that_closes_at_handover_is_not_used(method: str) -> None:
    async def says_nothing_of_it(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_request(reader)
        writer.write(OK)

    limits = httpx.Limits(max_connections=2)
    async with RawUpstream(says_nothing_of_it) as upstream, client(upstream, limits=limits) as c:
        answers = await asyncio.gather(*(c.request(method, "/") for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_request_that_says_close_ends_its_connection() -> None:
    async with RawUpstream() as upstream, client(upstream) as c:
        for _ in range(3):
            await c.get("/", headers={"connection": "x, Close"})
        assert len(upstream.peers) == 3


async def test_connects_without_waiters_give_way_to_another_origin() -> None:
    with open_full_port() as port:
        black_hole = f"http://127.0.0.1:{port}"
        limits = httpx.Limits(max_connections=2)
        async with RawUpstream() as upstream, client(upstream, limits=limits) as c:
            leaving = [asyncio.create_task(c.get(black_hole)) for _ in range(2)]
            await asyncio.sleep(0.05)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            timeout = httpx.Timeout(60, pool=20)
            assert (await c.get("/", timeout=timeout)).status_code == 200


async def test_a_network_stream_does_not_reach_into_the_next_exchange() -> None:
    async with RawUpstream() as upstream, client(upstream) as c:
        first = await c.get("/")
        stream = first.extensions["network_stream"]
        assert (await c.get("/")).status_code == 200
        with pytest.raises(httpcore.ReadError):
            await stream.read(1)
        await stream.aclose()
        assert (await c.get("/")).status_code == 200
        assert len(upstream.peers) == 1


async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(OK)
    await reader.read()


async def test_slow_reused_connection_is_not_replaced() -> None:
    async with RawUpstream(answers_once) as upstream, client(upstream) as c:
        await c.get("/first")
        with pytest.raises(httpx.ReadTimeout):
            await c.get("/second", timeout=httpx.Timeout(60, read=0.1))
        assert len(upstream.peers) == 1


async def test_request_in_progress_at_client_close_is_not_sent_again() -> None:
    async with RawUpstream(answers_once) as upstream, client(upstream) as c:
        transport = c._transport
        assert isinstance(transport, AsyncioTransport)
        await c.get("/first")
        under_way = asyncio.create_task(c.get("/second"))
        await aeventually(lambda: not transport.pool_state().idle)
        await transport.aclose()
        with pytest.raises(httpx.CloseError, match="the client was closed"):
            await under_way
        await aeventually(lambda: not upstream.open)
        assert len(upstream.peers) == 1
        assert transport.pool_state().open == 0


async def test_transport_used_after_close_still_expires_connections() -> None:
    limits = httpx.Limits(keepalive_expiry=0.1)
    async with RawUpstream() as upstream, AsyncioTransport(limits=limits) as transport:
        for _ in range(2):
            response = await transport.handle_async_request(httpx.Request("GET", upstream.url))
            await response.aread()
            assert transport.pool_state().idle == 1
            await transport.aclose()
            assert transport.pool_state().open == 0
        await (await transport.handle_async_request(httpx.Request("GET", upstream.url))).aread()
        await aeventually(lambda: not transport.pool_state().open)


async def test_endless_interim_responses_are_an_error() -> None:
    """The count starts again with each request."""

    async def hinting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_request(reader):
            for _ in itertools.count() if b"/forever" in head else range(1000):
                writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
                await writer.drain()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with RawUpstream(hinting) as upstream, client(upstream) as c:
        for _ in range(3):
            assert (await c.get("/some")).content == b"ok"
        assert len(upstream.peers) == 1
        with pytest.raises(httpx.RemoteProtocolError, match="head exceeds 64 KiB"):
            await c.get("/forever")
        await aeventually(lambda: not upstream.open)


async def test_bytes_after_a_body_read_late_are_not_the_next_response() -> None:
    size = 320 * 1024  # of which not all is read from the socket while nobody takes it
    sent = asyncio.Event()

    async def smuggling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 Smuggled\r\ncontent-length: 8\r\n\r\nsmuggled")
        sent.set()
        await reader.read()

    async with RawUpstream(smuggling) as upstream, client(upstream) as c:
        transport = c._transport
        assert isinstance(transport, AsyncioTransport)
        opening = transport.send_raw(c.build_request("GET", "/first"))
        assert opening is not None
        connection = await opening
        await sent.wait()
        await asyncio.sleep(0.1)  # until what was sent has come
        body = b""
        async with asyncio.timeout(60):
            while len(body) < size:
                if piece := connection.read_nowait():
                    body += piece
                else:
                    await asyncio.sleep(0.01)
        assert len(body) == size
        assert not connection.release()
        await connection.aclose()
        assert len((await c.get("/second")).content) == size
        assert len(upstream.peers) == 2


async def stream_of_parts() -> AsyncIterator[bytes]:
    yield b"part"


@pytest.mark.parametrize(
    ("method", "content"),
    [("POST", b"body"), ("POST", b""), ("PATCH", b"body"), ("PUT", stream_of_parts)],
)
async def test_what_may_not_be_sent_twice_is_not(method: str, content: Any) -> None:
    serve = Closing()
    async with RawUpstream(serve) as upstream, client(upstream) as c:
        await c.get("/first")
        body = content() if callable(content) else content
        with pytest.raises(httpx.TransportError) as caught:
            await c.request(method, "/second", content=body)
        assert caught.value.request.url.path == "/second"
        assert len(upstream.peers) == 1


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 200 OK\r\n", OK[:-1]])
async def test_it_is_not_sent_again_once_a_byte_of_the_answer_came(start: bytes) -> None:
    serve = Closing(start)
    async with RawUpstream(serve) as upstream, client(upstream) as c:
        await c.get("/first")
        with pytest.raises(httpx.RemoteProtocolError):
            await c.get("/second")
        assert len(serve.requests) == 2


async def test_connection_is_kept_as_long_as_the_upstream_tells() -> None:
    """It is closed a second earlier, so that `timeout=1` closes it at once."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for seconds in (600, 1, 600):
            await read_request(reader)
            writer.write(OK.replace(b"\r\n", b"\r\nkeep-alive: timeout=%d\r\n" % seconds, 1))

    async with RawUpstream(serve) as upstream, client(upstream) as c:
        assert [(await c.get("/")).status_code for _ in range(3)] == [200, 200, 200]
        assert len(upstream.peers) == 2


def test_connection_that_is_closing_is_not_reusable() -> None:
    loop = VirtualLoop()
    connection = HTTP11Connection(Mock(), loop, httpx)
    wire = MemorySocket(connection, loop)
    assert connection.is_reusable()
    wire.abort()
    assert not connection.closed  # The loop has not told it yet.
    assert not connection.is_reusable()
    loop.close()


def test_each_16th_wait_gives_way_to_other_tasks() -> None:
    """anyio cannot cancel a task that always finds data."""
    loop = VirtualLoop()
    connection = HTTP11Connection(Mock(), loop, httpx)
    waits = [connection.wait_readable() for _ in range(32)]
    assert [n for n, wait in enumerate(waits, 1) if not asyncio.isfuture(wait)] == [16, 32]
    loop.close()
