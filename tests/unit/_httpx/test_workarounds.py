"""A real pool of one connection, and a request that is cancelled at each of its waits."""

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from asgi_upstream import BufferedResponse, StreamedResponse
from asgi_upstream._httpx.workarounds import (
    EarlyResponseDetector,
    clean_up_pool,
    close_stranded_connections,
    end_connection_if_unusable,
    holds_pool_place,
    reset_abandoned_streams,
    warn_of_unknown_httpcore,
)
from tests.support.asgi import Caller
from tests.support.cancellation import cancelled_at_each_wait
from tests.support.flavor import AsyncioTransport, httpx
from tests.support.responses import AnyClass, both
from tests.support.upstream import Upstream


@both
@pytest.mark.asyncio
async def test_pool_regains_its_slot_at_any_cancellation(upstream: Upstream, cls: AnyClass) -> None:
    async def transport() -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1))

    assert await cancelled_at_each_wait(upstream.url, transport, cls, 40) > 5


@pytest.mark.parametrize("failure", [AttributeError, OSError, ValueError])
def test_a_connection_that_is_gone_has_given_no_early_answer(failure: type[Exception]) -> None:
    stream, client = object(), Mock()

    class Pool:
        _requests = [Mock()]  # noqa: RUF012

    Pool._requests[0].request.stream = stream
    connection = Pool._requests[0].connection = Mock(spec=["_network_stream"])
    # anyio asks the socket for both its names, whatever it is asked for itself.
    connection._network_stream.get_extra_info.side_effect = failure
    client._transport_for_url.return_value._pool = Pool()
    assert not EarlyResponseDetector(client, "http://any", stream).available()


class _UnknownConnection:
    """A connection of a later httpcore."""

    def is_idle(self) -> bool:
        return False

    is_closed = is_idle


def _make_unknown(name: str, **attributes: object) -> Any:
    cls = type(name, (), {"__module__": "httpcore._async.connection_pool"})
    instance: Any = cls()
    vars(instance).update(attributes)
    return instance


@pytest.fixture
def forgotten_warnings() -> Iterator[None]:
    warn_of_unknown_httpcore.cache_clear()
    yield
    warn_of_unknown_httpcore.cache_clear()


@pytest.mark.usefixtures("forgotten_warnings")
@pytest.mark.asyncio
async def test_unknown_httpcore_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    inner = _make_unknown("ByteStream", _connection=_UnknownConnection())
    response = Mock(stream=_make_unknown("PoolStream", _stream=inner))
    client = Mock()
    client._transport_for_url.return_value = Mock(_pool=_make_unknown("Pool"))
    for _ in range(3):
        end_connection_if_unusable(response, has_ended=False)
        assert not EarlyResponseDetector(client, "http://any", object()).can_detect
        assert not holds_pool_place(response)
        await close_stranded_connections(_make_unknown("Pool"))
        await reset_abandoned_streams(_make_unknown("Pool"))
    assert [(r.levelname, r.getMessage().split(": ")[1].split(";")[0]) for r in caplog.records] == [
        ("WARNING", "bytes after a response are not detected"),
        ("WARNING", "an early response to an upload is not detected"),
        ("WARNING", "cancelled requests may use up the pool"),
        ("WARNING", "HTTP/2 streams are not reset"),
    ]


@pytest.mark.usefixtures("forgotten_warnings")
@pytest.mark.asyncio
async def test_other_transports_are_not_warned_of(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="ok")

    for transport in (httpx.MockTransport(respond), httpx.AsyncHTTPTransport(), AsyncioTransport()):
        async with httpx.AsyncClient(transport=transport, base_url=upstream.url) as client:
            for cls in (StreamedResponse, BufferedResponse):
                await Caller().call(cls(client, client.build_request("GET", "/item")))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def _cancel_in_handshake(*, through_proxy: bool = False) -> None:
    """Cancel a TLS handshake that stalls, and wait until its socket is closed."""

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if through_proxy:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.read(10)
        stalls.set()
        await reader.read()
        writer.close()
        closed.set()

    stalls, closed = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(stall, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    proxy = f"http://{address}" if through_proxy else None
    transport = httpx.AsyncHTTPTransport(verify=False, proxy=proxy)
    async with server, httpx.AsyncClient(transport=transport) as client:
        request = client.build_request("GET", f"https://{address}")
        exchange = asyncio.create_task(Caller().call(StreamedResponse(client, request)))
        await stalls.wait()
        exchange.cancel()
        await asyncio.wait([exchange])
        await asyncio.wait_for(closed.wait(), 60)


@pytest.mark.asyncio
@pytest.mark.parametrize("through_proxy", [False, True])
async def test_cancelled_handshake_closes_its_socket(through_proxy: bool) -> None:
    await _cancel_in_handshake(through_proxy=through_proxy)


@pytest.mark.asyncio
async def test_cancelled_trace_of_connect_closes_its_socket() -> None:
    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        closed.set()

    async def trace(name: str, info: object) -> None:
        if name == "connection.connect_tcp.complete":
            connected.set()
            await asyncio.Event().wait()

    connected, closed = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(wait_for_end, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, httpx.AsyncClient(transport=httpx.AsyncHTTPTransport()) as client:
        request = client.build_request("GET", url, extensions={"trace": trace})
        exchange = asyncio.create_task(Caller().call(StreamedResponse(client, request)))
        await connected.wait()
        exchange.cancel()
        await asyncio.wait([exchange])
        await asyncio.wait_for(closed.wait(), 60)


@pytest.mark.usefixtures("forgotten_warnings")
@pytest.mark.asyncio
async def test_handshake_of_unknown_httpcore_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    of_httpcore: dict[str, Any] = {"__name__": "httpcore.unknown"}
    exec("def wrap(exc): raise exc", of_httpcore)
    async with httpx.AsyncClient(transport=AsyncioTransport()) as client:
        try:
            of_httpcore["wrap"](asyncio.CancelledError())
        except asyncio.CancelledError as exc:
            await clean_up_pool(client, "http://any", exc)
    assert "a cancelled TLS handshake may leave its socket open" in caplog.text


@pytest.mark.asyncio
async def test_cancelled_handshake_through_socks_closes_its_socket() -> None:
    of_httpcore: dict[str, Any] = {"__name__": "httpcore.any"}
    exec("def start_tls(self, exc): raise exc", of_httpcore)
    stream = AsyncMock()
    async with httpx.AsyncClient(transport=AsyncioTransport()) as client:
        try:
            of_httpcore["start_tls"](stream, asyncio.CancelledError())
        except asyncio.CancelledError as exc:
            await clean_up_pool(client, "http://any", exc)
    stream.aclose.assert_awaited_once()
