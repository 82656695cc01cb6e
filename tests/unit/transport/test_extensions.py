"""The extensions of requests and responses."""

import asyncio
from typing import Any

import pytest
from httpx_ws import AsyncWebSocketSession, aconnect_ws
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, TextMessage
from wsproto.events import Request as Handshake

from tests.support.flavor import httpcore, httpx
from tests.support.raw_upstream import RawUpstream, client, read_request, sending
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "uvloop")]


async def test_the_target_is_sent_as_it_is() -> None:
    async with RawUpstream() as upstream, client(upstream) as c:
        await c.request("OPTIONS", "/", extensions={"target": b"*"})
        await c.get("/", extensions={"target": b"/%2e/a//b?c%20d"})
        lines = [head.split(b"\r\n")[0] for head in upstream.requests]
        assert lines == [b"OPTIONS * HTTP/1.1", b"GET /%2e/a//b?c%20d HTTP/1.1"]


async def test_a_trace_that_fails_leaves_nothing_open() -> None:
    async def trace(name: str, info: dict[str, Any]) -> None:
        raise ZeroDivisionError

    async with RawUpstream() as upstream, client(upstream) as c:
        with pytest.raises(ZeroDivisionError):
            await c.get("/", extensions={"trace": trace})
        await aeventually(lambda: not upstream.open)


async def test_the_response_has_the_extensions_of_the_stock_transport() -> None:
    answer = b"HTTP/1.0 299 Rather Odd\r\ncontent-length: 2\r\n\r\nok"
    async with RawUpstream(sending(answer)) as upstream:
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
    async with RawUpstream(switching) as upstream, client(upstream) as c:
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
        await aeventually(lambda: not upstream.open)  # and it is not used again
        async with c.stream("GET", "/", headers=fields) as response:
            await response.extensions["network_stream"].aclose()
        assert len(upstream.peers) == 2


async def test_end_of_a_switched_connection_is_read_as_such() -> None:
    answer = b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nbye"
    async with (
        RawUpstream(sending(answer)) as upstream,
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


async def test_several_tasks_may_write_to_a_switched_connection() -> None:
    async with (
        RawUpstream(deaf_for_a_while) as upstream,
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
    async with RawUpstream(echoing_websocket) as upstream, client(upstream) as c:
        url = f"{scheme}://127.0.0.1:{upstream.port}/"
        websocket: AsyncWebSocketSession
        async with aconnect_ws(url, c, keepalive_ping_interval_seconds=None) as websocket:
            for text in ("one", "two" * 50_000):
                await websocket.send_text(text)
                assert await websocket.receive_text(timeout=10) == text.upper()
        await aeventually(lambda: not upstream.open)
