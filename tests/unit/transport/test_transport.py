"""AsyncioTransport as an httpx transport: arguments, timeouts, errors, extensions, repeats.

On asyncio's own loop and on uvloop, with an upstream of sockets in the same loop.
"""

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self, cast
from unittest.mock import Mock

import httpcore
import httpx
import pytest
import trio
from httpx_ws import AsyncWebSocketSession, aconnect_ws
from starlette.requests import Request
from starlette.types import Message
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, TextMessage
from wsproto.events import Request as Handshake

from asgi_upstream import StreamedResponse, forward_request, testing
from asgi_upstream.transport import AsyncioTransport
from asgi_upstream.transport._connection import HTTP11Connection
from asgi_upstream.transport._pool import Pool
from asgi_upstream.transport._serializer import OutgoingRequest
from tests.support.asgi import Caller

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "uvloop")]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body, as they came."""
    data = await reader.readuntil(b"\r\n\r\n")
    fields = data.lower()
    if b"content-length:" in fields:
        length = int(fields.split(b"content-length:")[1].split(b"\r\n")[0])
        data += await reader.readexactly(length)
    elif b"transfer-encoding: chunked" in fields:
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data += await reader.readuntil(b"\r\n")
    return data


class Upstream:
    """On loopback: serves each connection by a function, or each request with `OK`.

    Not the testing kit's: it is in the event loop of the client; each can wait for the other.
    """

    def __init__(
        self, serve: Serve | None = None, *, tls: ssl.SSLContext | None = None, path: str = ""
    ) -> None:
        self._serve = serve or self._answer_all
        self._tls = tls
        self._path = path
        self._serving: set[asyncio.Task[Any]] = set()
        self.requests: list[bytes] = []
        self.peers: list[Any] = []  # of each connection there was

    @property
    def open(self) -> int:
        return len(self._serving)

    async def __aenter__(self) -> Self:
        if self._path:
            self._server = await asyncio.start_unix_server(self._accept, self._path, ssl=self._tls)
            self.url = "http://of.a.socket"
        else:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", 0, ssl=self._tls, backlog=1000
            )
            self.port = self._server.sockets[0].getsockname()[1]
            scheme = "https" if self._tls else "http"
            self.url = f"{scheme}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        while self._serving:
            for task in self._serving:
                task.cancel()
            await asyncio.wait(self._serving)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.peers.append(writer.get_extra_info("peername"))
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._serving.discard(task)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self.requests.append(await read_request(reader))
            writer.write(OK[:-2] if self.requests[-1].startswith(b"HEAD") else OK)


def client(upstream: Upstream | None = None, **options: Any) -> httpx.AsyncClient:
    base_url = upstream.url if upstream is not None else ""
    return httpx.AsyncClient(transport=AsyncioTransport(**options), base_url=base_url, timeout=10)


eventually = testing.aeventually


# Arguments.


async def test_a_client_uses_it_as_any_transport() -> None:
    async with Upstream() as upstream, client(upstream) as c:
        for _ in range(3):
            response = await c.get("/a/b?c=d", headers={"X-Name": "value"})
            assert (response.status_code, response.text) == (200, "ok")
        assert len(upstream.peers) == 1
        head = upstream.requests[-1]
        assert head.startswith(b"GET /a/b?c=d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % upstream.port)
        assert b"\r\nX-Name: value\r\n" in head
    await eventually(lambda: not upstream.open)


async def test_the_wire_carries_the_same_request_as_with_the_stock_transport() -> None:
    async with Upstream() as upstream:
        stock = httpx.AsyncClient(base_url=upstream.url, trust_env=False)

        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        for c in (client(upstream), stock):
            async with c:
                await c.post("/ü?q=a b", json={"a": 1}, headers={b"X-Odd": b"\xe9"})
                await c.put("/", content=parts())
                await c.head("/")
                await c.request("DELETE", "/x", headers={"Cookie": "a=b"})
        assert upstream.requests[:4] == upstream.requests[4:]
        assert len(upstream.requests) == 8


async def test_it_is_one_of_several_transports_of_a_client() -> None:
    async with Upstream() as one, Upstream() as other:
        stock = httpx.AsyncHTTPTransport(trust_env=False)
        mounts = {f"all://127.0.0.1:{other.port}": AsyncioTransport()}
        async with httpx.AsyncClient(transport=stock, mounts=mounts) as c:
            assert (await c.get(one.url)).text == (await c.get(other.url)).text == "ok"
        assert (len(one.requests), len(other.requests)) == (1, 1)


async def test_it_works_without_a_client() -> None:
    async with Upstream() as upstream, AsyncioTransport() as transport:
        request = httpx.Request("GET", upstream.url)
        response = await transport.handle_async_request(request)
        assert await response.aread() == b"ok"
        await response.aclose()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"http2": True}, "AsyncHTTPTransport(http2=True)"),
        ({"http1": False}, "AsyncHTTPTransport(http2=True)"),
        ({"proxy": "http://p"}, "AsyncHTTPTransport(proxy=...)"),
        ({"proxy": httpx.Proxy("http://p")}, "AsyncHTTPTransport(proxy=...)"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once_with_what_can(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match="use httpx") as caught:
        AsyncioTransport(**options)
    assert says in str(caught.value)


@pytest.mark.of_httpx
def test_it_takes_the_arguments_of_the_stock_transport_in_the_same_order() -> None:
    def names(cls: Any) -> list[str]:
        return list(cls.__init__.__code__.co_varnames[: cls.__init__.__code__.co_argcount])

    assert names(AsyncioTransport) == names(httpx.AsyncHTTPTransport)
    for name in ("verify", "cert", "trust_env", "limits", "retries", "local_address", "uds"):
        assert name in names(AsyncioTransport)
    stock = httpx.AsyncHTTPTransport.__init__.__defaults__
    assert AsyncioTransport.__init__.__defaults__ == stock


def test_on_trio_the_first_use_says_what_to_use() -> None:
    async def use() -> None:
        async with httpx.AsyncClient(transport=AsyncioTransport()) as c:
            await c.get("http://127.0.0.1:1")

    with pytest.raises(RuntimeError, match="omit transport= on trio"):
        trio.run(use)


def test_when_it_was_closed_another_event_loop_may_use_it() -> None:
    """As where two tests open the same app, each with a test client of its own."""
    transport = AsyncioTransport()

    async def answered() -> str:
        async with Upstream() as upstream, httpx.AsyncClient(transport=transport) as c:
            return (await c.get(upstream.url)).text

    assert [asyncio.run(answered()) for _ in range(3)] == ["ok"] * 3


def test_another_event_loop_is_refused_with_what_to_do() -> None:
    transport = AsyncioTransport()

    async def use() -> None:
        async with Upstream() as upstream:
            response = await transport.handle_async_request(httpx.Request("GET", upstream.url))
            await response.aread()
            await response.aclose()

    async def use_and_close() -> None:
        try:
            await use()
        finally:
            await transport.aclose()

    async def both() -> None:
        await use()
        with pytest.raises(RuntimeError, match="another event loop: close its client first"):
            await asyncio.to_thread(asyncio.run, use())
        await use_and_close()

    asyncio.run(both())


async def test_it_connects_to_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with Upstream(path=path) as upstream, client(upstream, uds=path) as c:
        assert (await c.get("/")).text == "ok"
        assert b"\r\nHost: of.a.socket\r\n" in upstream.requests[0]


async def test_it_connects_from_the_local_address() -> None:
    async with Upstream() as upstream, client(upstream, local_address="127.0.0.9") as c:
        await c.get("/")
        assert upstream.peers[0][0] == "127.0.0.9"


async def test_socket_options_are_set() -> None:
    """TCP keepalive is on, and `socket_options` wins over it."""
    options = [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7)]
    async with (
        Upstream() as upstream,
        client(upstream, socket_options=options) as c,
        client(upstream) as plain,
    ):
        for one, expected in ((c, 7), (plain, 60)):
            response = await one.get("/")
            sock = response.extensions["network_stream"].get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == expected


async def test_a_socket_option_that_is_refused_leaves_nothing_open() -> None:
    options = [(socket.SOL_SOCKET, 9999, 1)]
    async with Upstream() as upstream, client(upstream, socket_options=options) as c:
        with pytest.raises(httpx.ConnectError):
            await c.get("/")
        assert not upstream.peers


async def test_connecting_is_tried_again_as_often_as_asked() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with client(retries=1) as c:
            trying = asyncio.create_task(c.get(url))
            with pytest.raises(httpx.ConnectError):
                await trying
        async with client(retries=3) as c:
            trying = asyncio.create_task(c.get(url))
            await asyncio.sleep(0.2)  # the third try is half a second later
            unused.listen()
            connection, _ = await asyncio.to_thread(unused.accept)
            await asyncio.to_thread(connection.recv, 65536)
            connection.sendall(OK)
            assert (await trying).text == "ok"
            connection.close()


# Timeouts.


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def silent_after_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(OK[:-1])
    await reader.read()


@pytest.mark.parametrize("serve", [silent, silent_after_the_head])
async def test_an_upstream_that_is_silent_for_too_long_is_a_read_timeout(serve: Serve) -> None:
    async with Upstream(serve) as upstream, client(upstream) as c:
        with pytest.raises(httpx.ReadTimeout) as caught:
            await c.get("/", timeout=httpx.Timeout(10, read=0.1))
        assert caught.value.request.url == upstream.url + "/"
        await eventually(lambda: not upstream.open)


async def test_each_read_has_the_whole_read_timeout() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.2)
            writer.write(b"x")

    async with Upstream(slow) as upstream, client(upstream) as c:
        response = await c.get("/", timeout=httpx.Timeout(10, read=1.2))
        assert response.text == "xxxxxxxx"


async def test_an_upload_that_is_not_taken_for_too_long_is_a_write_timeout() -> None:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    limits = httpx.Limits(max_connections=1)
    async with Upstream(deaf) as upstream, client(upstream, limits=limits) as c:
        with pytest.raises(httpx.WriteTimeout) as caught:
            await c.post("/", content=parts(), timeout=httpx.Timeout(10, write=0.2))
        assert caught.value.request.method == "POST"
        async with Upstream() as other:  # there is room again
            assert (await c.get(other.url)).text == "ok"


async def test_who_waits_too_long_for_a_connection_has_a_pool_timeout() -> None:
    limits = httpx.Limits(max_connections=1)
    async with Upstream(silent) as upstream, client(upstream, limits=limits) as c:
        first = asyncio.create_task(c.get("/"))
        await eventually(lambda: upstream.open == 1)
        with pytest.raises(httpx.PoolTimeout) as caught:
            await c.get("/second", timeout=httpx.Timeout(10, pool=0.1))
        assert caught.value.request.url.path == "/second"
        first.cancel()
        await asyncio.wait([first])


async def test_a_connect_that_is_never_answered_is_a_connect_timeout() -> None:
    # A full backlog: what Linux does with one more is to say nothing.
    with socket.socket() as full, contextlib.ExitStack() as filling:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):
            sock = filling.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        async with client() as c:
            url = f"http://127.0.0.1:{full.getsockname()[1]}"
            with pytest.raises(httpx.ConnectTimeout) as caught:
                await c.get(url, timeout=httpx.Timeout(10, connect=0.2))
            assert caught.value.request.url.port == full.getsockname()[1]


# Errors.


def sending(data: bytes, *, then_reset: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()
        if then_reset:
            await asyncio.sleep(0.1)  # until that was read
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            writer.write_eof()
            await reader.read()

    return serve


BROKEN = {
    "closed at once": sending(b""),
    "closed in the head": sending(b"HTTP/1.1 200 OK\r\nconte"),
    "closed in the body": sending(OK[:-1]),
    "closed in a chunk": sending(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"),
    "not HTTP": sending(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "reset at once": sending(b"", then_reset=True),
    "reset in the body": sending(OK[:-1], then_reset=True),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_upstream_that_breaks_is_the_error_of_the_stock_transport(name: str) -> None:
    seen = []
    async with Upstream(BROKEN[name]) as upstream:
        stock = httpx.AsyncClient(base_url=upstream.url, trust_env=False, timeout=10)
        for one in (client(upstream), stock):
            async with one as c:
                with pytest.raises(httpx.TransportError) as caught:
                    await c.post("/x", content=b"a body")
                seen.append((type(caught.value), caught.value.request.url.path))
        assert seen[0] == seen[1]
        await eventually(lambda: not upstream.open)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://no-such-host.invalid/",
        "http://[::1]:1/",
        "ftp://127.0.0.1/",
        "//127.0.0.1/",
        "/",
        "http://" + "a" * 64 + ".example/",
    ],
)
async def test_what_cannot_be_connected_to_is_the_error_of_the_stock_transport(url: str) -> None:
    seen = []
    for one in (client(), httpx.AsyncClient(trust_env=False)):
        async with one as c:
            with pytest.raises(httpx.HTTPError) as caught:
                await c.get(url)
            seen.append((type(caught.value), str(caught.value.request.url)))
    assert seen[0] == seen[1]


async def test_an_error_of_the_body_is_raised_as_it_is_and_nothing_stays_open() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"first"
        raise ZeroDivisionError

    async with Upstream() as upstream, client(upstream) as c:
        with pytest.raises(ZeroDivisionError):
            await c.post("/", content=broken())
        await eventually(lambda: not upstream.open)
        assert (await c.get("/")).text == "ok"


async def read_all(response: httpx.Response) -> None:
    async for _ in response.aiter_raw():
        pass


async def test_a_body_that_fails_or_is_cancelled_frees_its_connection_without_aclose() -> None:
    limits = httpx.Limits(max_connections=1)
    async with Upstream(silent_after_the_head) as upstream, client(upstream, limits=limits) as c:
        responses = []
        for read, error in ((0.1, httpx.ReadTimeout), (10, TimeoutError)):
            timeout = httpx.Timeout(10, read=read)
            request = c.build_request("GET", "/", timeout=timeout)
            responses.append(await c.send(request, stream=True))
            with pytest.raises(error):
                await asyncio.wait_for(read_all(responses[-1]), 1)
            await eventually(lambda: not upstream.open)
        for response in responses:
            await response.aclose()


# Extensions.


async def test_the_target_is_sent_as_it_is() -> None:
    async with Upstream() as upstream, client(upstream) as c:
        await c.request("OPTIONS", "/", extensions={"target": b"*"})
        await c.get("/", extensions={"target": b"/%2e/a//b?c%20d"})
        lines = [head.split(b"\r\n")[0] for head in upstream.requests]
        assert lines == [b"OPTIONS * HTTP/1.1", b"GET /%2e/a//b?c%20d HTTP/1.1"]


async def test_a_trace_that_fails_leaves_nothing_open() -> None:
    async def trace(name: str, info: dict[str, Any]) -> None:
        raise ZeroDivisionError

    async with Upstream() as upstream, client(upstream) as c:
        with pytest.raises(ZeroDivisionError):
            await c.get("/", extensions={"trace": trace})
        await eventually(lambda: not upstream.open)


async def test_the_response_has_the_extensions_of_the_stock_transport() -> None:
    answer = b"HTTP/1.0 299 Rather Odd\r\ncontent-length: 2\r\n\r\nok"
    async with Upstream(sending(answer)) as upstream:
        for one in (client(upstream), httpx.AsyncClient(base_url=upstream.url, trust_env=False)):
            async with one as c, c.stream("GET", "/") as response:
                assert response.http_version == "HTTP/1.0"
                assert response.extensions["http_version"] == b"HTTP/1.0"
                assert response.extensions["reason_phrase"] == b"Rather Odd"
                stream = response.extensions["network_stream"]
                server, own = (stream.get_extra_info(f"{x}_addr") for x in ("server", "client"))
                assert server == ("127.0.0.1", upstream.port)
                assert own == upstream.peers[-1]
                assert stream.get_extra_info("ssl_object") is None
                assert isinstance(stream.get_extra_info("socket").fileno(), int)
                assert stream.get_extra_info("nothing that is") is None


async def switching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Another protocol, which answers each line with the same in capitals."""
    await read_request(reader)
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n")
    writer.write(b"connection: upgrade\r\nupgrade: capitals\r\n\r\nhello\n")
    while line := await reader.readline():
        writer.write(line.upper())
    writer.close()


async def test_a_connection_that_switched_protocols_is_handed_over() -> None:
    async with Upstream(switching) as upstream, client(upstream) as c:
        fields = {"connection": "upgrade", "upgrade": "capitals"}
        async with c.stream("GET", "/", headers=fields) as response:
            assert response.status_code == 101
            stream = response.extensions["network_stream"]
            assert await stream.read(4) == b"hell"
            assert await stream.read(100, timeout=5) == b"o\n"
            for line in (b"one\n", b"two\n"):
                await stream.write(line)
                assert await stream.read(100, timeout=5) == line.upper()
            with pytest.raises(httpcore.ReadTimeout):
                await stream.read(100, timeout=0.05)
            await stream.write(b"three\n", timeout=5)
            assert await stream.read(100) == b"THREE\n"
        await eventually(lambda: not upstream.open)  # and it is not used again
        async with c.stream("GET", "/", headers=fields) as response:
            await response.extensions["network_stream"].aclose()
        assert len(upstream.peers) == 2


async def test_the_end_of_a_connection_that_switched_protocols_is_read_as_such() -> None:
    answer = b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nbye"
    async with (
        Upstream(sending(answer)) as upstream,
        client(upstream) as c,
        c.stream("GET", "/", headers={"connection": "upgrade", "upgrade": "x"}) as response,
    ):
        stream = response.extensions["network_stream"]
        assert await stream.read(100) == b"bye"
        assert await stream.read(100) == b""


async def deaf_for_a_while(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
    await asyncio.sleep(0.2)
    while await reader.read(1 << 20):
        pass


async def test_several_tasks_may_write_to_a_connection_that_switched_protocols() -> None:
    async with (
        Upstream(deaf_for_a_while) as upstream,
        client(upstream) as c,
        c.stream("GET", "/", headers={"connection": "upgrade", "upgrade": "x"}) as response,
    ):
        stream = response.extensions["network_stream"]
        async with asyncio.timeout(60):
            await asyncio.gather(*(stream.write(bytes(10 << 20)) for _ in range(3)))


async def echoing_websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    protocol = WSConnection(ConnectionType.SERVER)
    while data := await reader.read(65536):
        protocol.receive_data(data)
        for event in protocol.events():
            if isinstance(event, Handshake):
                writer.write(protocol.send(AcceptConnection()))
            elif isinstance(event, TextMessage):
                echo = TextMessage(event.data.upper(), message_finished=event.message_finished)
                writer.write(protocol.send(echo))
            elif isinstance(event, CloseConnection):
                writer.write(protocol.send(event.response()))


@pytest.mark.parametrize("scheme", ["http", "ws"])
async def test_httpx_ws_works_on_it(scheme: str) -> None:
    async with Upstream(echoing_websocket) as upstream, client(upstream) as c:
        url = f"{scheme}://127.0.0.1:{upstream.port}/"
        websocket: AsyncWebSocketSession
        async with aconnect_ws(url, c, keepalive_ping_interval_seconds=None) as websocket:
            for text in ("one", "two" * 50_000):
                await websocket.send_text(text)
                assert await websocket.receive_text(timeout=10) == text.upper()
        await eventually(lambda: not upstream.open)


# Connections that are stale.


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
async def test_what_may_be_sent_twice_is_where_a_reused_connection_was_closed(method: str) -> None:
    serve = Closing()
    async with Upstream(serve) as upstream, client(upstream) as c:
        await c.get("/first")
        response = await c.request(method, "/second", content=b"" if method != "PUT" else b"body")
        assert response.status_code == 200
        assert serve.requests[1] == serve.requests[2]
        assert serve.requests[1].endswith(b"body" if method == "PUT" else b"\r\n\r\n")
        assert len(upstream.peers) == 2


async def test_it_is_sent_twice_and_no_more() -> None:
    serve = Closing(on=range(1))
    async with Upstream(serve) as upstream, client(upstream) as c:
        await c.get("/first")
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            await c.get("/second")
        assert len(serve.requests) == 3


async def test_on_a_new_connection_it_is_sent_once() -> None:
    serve = Closing(on=range(0))
    async with Upstream(serve) as upstream, client(upstream) as c:
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

    async with Upstream(serve) as upstream, client(upstream) as c:
        assert (await c.get("/")).text == "ok"
        response = await c.request(method, "/")
        assert response.status_code == (408 if method == "POST" else 200)
        assert len(upstream.peers) == (1 if method == "POST" else 2)


async def test_408_on_a_new_connection_is_returned() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 408 Slow\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")

    async with Upstream(serve) as upstream, client(upstream) as c:
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
async def test_a_connection_that_closes_as_it_is_handed_over_is_not_used(method: str) -> None:
    async def says_nothing_of_it(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_request(reader)
        writer.write(OK)

    limits = httpx.Limits(max_connections=2)
    async with Upstream(says_nothing_of_it) as upstream, client(upstream, limits=limits) as c:
        answers = await asyncio.gather(*(c.request(method, "/") for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_request_that_says_close_ends_its_connection() -> None:
    async with Upstream() as upstream, client(upstream) as c:
        for _ in range(3):
            await c.get("/", headers={"connection": "x, Close"})
        assert len(upstream.peers) == 3


async def test_connects_that_nobody_waits_for_give_way_to_another_origin() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        filling = [socket.socket() for _ in range(3)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        black_hole = f"http://127.0.0.1:{full.getsockname()[1]}"
        limits = httpx.Limits(max_connections=2)
        async with Upstream() as upstream, client(upstream, limits=limits) as c:
            leaving = [asyncio.create_task(c.get(black_hole)) for _ in range(2)]
            await asyncio.sleep(0.05)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            timeout = httpx.Timeout(10, pool=1)
            assert (await c.get("/", timeout=timeout)).status_code == 200
        for one in filling:
            one.close()


async def test_a_network_stream_does_not_reach_into_the_next_exchange() -> None:
    async with Upstream() as upstream, client(upstream) as c:
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


async def test_a_reused_connection_that_is_only_slow_is_not_given_up_for_another() -> None:
    async with Upstream(answers_once) as upstream, client(upstream) as c:
        await c.get("/first")
        with pytest.raises(httpx.ReadTimeout):
            await c.get("/second", timeout=httpx.Timeout(10, read=0.1))
        assert len(upstream.peers) == 1


async def test_what_was_under_way_when_the_client_was_closed_is_not_sent_again() -> None:
    async with Upstream(answers_once) as upstream, client(upstream) as c:
        transport = c._transport
        assert isinstance(transport, AsyncioTransport)
        await c.get("/first")
        under_way = asyncio.create_task(c.get("/second"))
        await eventually(lambda: not transport.pool_state().idle)
        await transport.aclose()
        with pytest.raises(httpx.CloseError, match="the client was closed"):
            await under_way
        await eventually(lambda: not upstream.open)
        assert len(upstream.peers) == 1
        assert transport.pool_state().open == 0


async def test_a_transport_that_is_used_again_after_its_closing_keeps_no_connection_for_ever() -> (
    None
):
    limits = httpx.Limits(keepalive_expiry=0.1)
    async with Upstream() as upstream, AsyncioTransport(limits=limits) as transport:
        for _ in range(2):
            response = await transport.handle_async_request(httpx.Request("GET", upstream.url))
            await response.aread()
            assert transport.pool_state().idle == 1
            await transport.aclose()
            assert transport.pool_state().open == 0
        await (await transport.handle_async_request(httpx.Request("GET", upstream.url))).aread()
        await eventually(lambda: not transport.pool_state().open)


async def test_interim_responses_without_end_are_an_error_and_those_of_one_request_no_others() -> (
    None
):
    async def hinting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_request(reader):
            for _ in itertools.count() if b"/forever" in head else range(1000):
                writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
                await writer.drain()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with Upstream(hinting) as upstream, client(upstream) as c:
        for _ in range(3):
            assert (await c.get("/some")).content == b"ok"
        assert len(upstream.peers) == 1
        with pytest.raises(httpx.RemoteProtocolError, match="head exceeds 64 KiB"):
            await c.get("/forever")
        await eventually(lambda: not upstream.open)


async def test_what_comes_behind_a_body_that_is_read_late_is_not_the_next_response() -> None:
    size = 320 * 1024  # of which not all is read from the socket while nobody takes it

    async def smuggling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 Smuggled\r\ncontent-length: 8\r\n\r\nsmuggled")
        await reader.read()

    async with Upstream(smuggling) as upstream, client(upstream) as c:
        transport = c._transport
        assert isinstance(transport, AsyncioTransport)
        opening = transport.send_raw(c.build_request("GET", "/first"))
        assert opening is not None
        connection = await opening
        await asyncio.sleep(0.5)  # nothing is taken, and all of that has come
        body = b""
        while piece := connection.read_nowait():
            body += piece
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
    async with Upstream(serve) as upstream, client(upstream) as c:
        await c.get("/first")
        body = content() if callable(content) else content
        with pytest.raises(httpx.TransportError) as caught:
            await c.request(method, "/second", content=body)
        assert caught.value.request.url.path == "/second"
        assert len(upstream.peers) == 1


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 200 OK\r\n", OK[:-1]])
async def test_it_is_not_sent_again_once_a_byte_of_the_answer_came(start: bytes) -> None:
    serve = Closing(start)
    async with Upstream(serve) as upstream, client(upstream) as c:
        await c.get("/first")
        with pytest.raises(httpx.RemoteProtocolError):
            await c.get("/second")
        assert len(serve.requests) == 2


# Uploads.


async def test_the_response_is_read_while_the_body_is_sent() -> None:
    answered: asyncio.Queue[bytes] = asyncio.Queue()

    async def in_turn() -> AsyncIterator[bytes]:
        yield b"ping"
        for _ in range(3):
            yield b"after " + await answered.get()

    async with Upstream(echoing) as upstream, client(upstream) as c:
        async with c.stream("POST", "/", content=in_turn()) as response:
            seen = []
            async for part in response.aiter_raw():
                seen.append(part)
                answered.put_nowait(part)
        assert seen == [b"ping"] + [b"after " * n + b"ping" for n in (1, 2, 3)]


async def echoing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    size = 1
    while size:
        line = await reader.readline()
        size = int(line, 16)
        writer.write(line + await reader.readexactly(size + 2))
    await reader.read()


async def test_a_long_upload_reaches_an_upstream_that_answers_meanwhile_whole() -> None:
    parts = [b"<%d>" % number for number in range(20)]
    expected, answer = b"".join(parts), bytearray()

    async def receive() -> Message:
        await asyncio.sleep(0.03)  # in all longer than until the caller is watched
        if not parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Message) -> None:
        answer.extend(message.get("body", b""))

    fields = [(b"transfer-encoding", b"chunked")]
    scope = Caller("POST", headers=fields).scope
    async with Upstream(echoing) as upstream, client(upstream) as c:
        request = forward_request(c, Request(scope, receive))
        async with asyncio.timeout(60):
            await StreamedResponse(c, request)(scope, receive, send)
    assert answer == expected


async def test_no_time_is_counted_against_an_upstream_that_waits_for_the_body() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.5)
        yield b"b"

    async with Upstream() as upstream, client(upstream) as c:
        response = await c.post("/", content=slow(), timeout=httpx.Timeout(10, read=0.1))
        assert response.text == "ok"


@pytest.mark.parametrize("length", [None, "1000000000"])
async def test_an_early_answer_is_delivered_at_once_and_ends_the_connection(
    length: str | None,
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await reader.read()

    async def endless() -> AsyncIterator[bytes]:
        yield b"a part"
        await asyncio.Event().wait()

    fields = {"content-length": length} if length else {}
    async with Upstream(refuse) as upstream, client(upstream) as c:
        for number in (1, 2):
            async with asyncio.timeout(60):
                response = await c.post("/", content=endless(), headers=fields)
            assert (response.status_code, response.text) == (413, "big")
            await eventually(lambda: not upstream.open)
            assert len(upstream.peers) == number


async def test_a_body_whose_maker_was_cancelled_is_cancelled_and_nothing_stays_open() -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"a part"
        maker = asyncio.create_task(asyncio.sleep(10))
        maker.cancel()
        await maker

    async with Upstream() as upstream, client(upstream) as c:
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(60):
                await c.post("/", content=content())
        await eventually(lambda: not upstream.open)
        assert (await c.get("/")).text == "ok"


@pytest.mark.parametrize("parts", [[b"1234"], [b"123", b"456"], [b"1", b"2"]])
async def test_a_body_of_another_length_than_it_says_is_refused(parts: list[bytes]) -> None:
    async def content() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    fields = {"content-length": "3"}
    async with Upstream() as upstream, client(upstream) as c:
        for body in (content(), b"".join(parts)):
            with pytest.raises(httpx.LocalProtocolError) as caught:
                await c.post("/", content=body, headers=fields)
            assert caught.value.request.method == "POST"
            await eventually(lambda: not upstream.open)


# What no request may hold.

BAD = ["\r", "\n", "\0", "\r\n", "\r\nx-injected: 1", "\n\nGET / HTTP/1.1"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", ["method", "target", "name", "value", "host"])
async def test_a_line_break_or_nul_is_refused_and_nothing_is_sent(place: str, bad: str) -> None:
    values = dict.fromkeys(("method", "target", "name", "value", "host"), "a") | {place: f"a{bad}b"}
    async with Upstream() as upstream, client(upstream) as c:
        request = httpx.Request(
            values["method"],
            upstream.url,
            headers=[("host", values["host"]), (values["name"], values["value"])],
            extensions={"target": values["target"].encode()},
        )
        with pytest.raises(httpx.LocalProtocolError) as caught:
            await c.send(request)
        assert caught.value.request is request
        assert upstream.peers == []


@pytest.mark.parametrize(
    "fields",
    [
        [("host", "a"), ("a b", "c")],
        [("host", "a"), ("", "c")],
        [("host", "a"), ("a:b", "c")],
        [("host", "a"), ("content-length", "1, 1")],
        [("host", "a"), ("content-length", "-1")],
        [("host", "a"), ("content-length", "5"), ("transfer-encoding", "chunked")],
    ],
)
async def test_fields_that_make_no_message_are_refused(fields: list[tuple[str, str]]) -> None:
    async with Upstream() as upstream, client(upstream) as c:
        request = httpx.Request("GET", upstream.url, headers=fields, stream=httpx.ByteStream(b""))
        with pytest.raises(httpx.LocalProtocolError):
            await c.send(request)
        assert upstream.requests == []


async def test_a_request_without_a_host_is_refused() -> None:
    async with Upstream() as upstream, client(upstream) as c:
        request = c.build_request("GET", "/")
        del request.headers["host"]
        with pytest.raises(httpx.LocalProtocolError):
            await c.send(request)
        assert upstream.requests == []


@pytest.mark.parametrize("secret", ["?token=secret", "user:secret@"])
async def test_transport_keeps_no_url_with_a_secret(secret: str) -> None:
    async with Upstream() as upstream, client(upstream) as c:
        host = upstream.url.removeprefix("http://")
        url = f"http://{secret}{host}/" if "@" in secret else f"http://{host}/{secret}"
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"a")]}
        for target, kept in ((url, False), (None, True)):
            request = forward_request(c, Request(scope), url=target and httpx.URL(target))
            await Caller().call(StreamedResponse(c, request))
            assert (cast(Any, c)._transport._shared_url is not None) is kept


async def test_upload_stops_when_its_refusal_arrives() -> None:
    """Before the response is read or closed, so that the caller's body is free to be drained."""
    stopped, refused = asyncio.Event(), asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\n")
        await refused.wait()

    async def content() -> AsyncIterator[bytes]:
        try:
            yield b"x"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with Upstream(refuse) as upstream, client(upstream) as c:
        response = await c.send(c.build_request("POST", "/", content=content()), stream=True)
        assert response.status_code == 413
        await asyncio.wait_for(stopped.wait(), 10)
        await response.aclose()
        refused.set()
