"""AsyncioTransport as an httpx transport: arguments, timeouts, errors, extensions, repeats.

On asyncio's own loop and on uvloop, with an upstream of sockets in the same loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.flavor import AsyncioTransport, httpx
from tests.support.raw_upstream import OK, RawUpstream, client
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "uvloop")]


async def test_a_client_uses_it_as_any_transport() -> None:
    async with RawUpstream() as upstream, client(upstream) as c:
        for _ in range(3):
            response = await c.get("/a/b?c=d", headers={"X-Name": "value"})
            assert (response.status_code, response.text) == (200, "ok")
        assert len(upstream.peers) == 1
        head = upstream.requests[-1]
        assert head.startswith(b"GET /a/b?c=d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % upstream.port)
        assert b"\r\nX-Name: value\r\n" in head
    await aeventually(lambda: not upstream.open)


async def test_request_on_the_wire_is_that_of_httpxs_transport() -> None:
    async with RawUpstream() as upstream:
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
    async with RawUpstream() as one, RawUpstream() as other:
        stock = httpx.AsyncHTTPTransport(trust_env=False)
        mounts = {f"all://127.0.0.1:{other.port}": AsyncioTransport()}
        async with httpx.AsyncClient(transport=stock, mounts=mounts) as c:
            assert (await c.get(one.url)).text == (await c.get(other.url)).text == "ok"
        assert (len(one.requests), len(other.requests)) == (1, 1)


async def test_it_works_without_a_client() -> None:
    async with RawUpstream() as upstream, AsyncioTransport() as transport:
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
def test_transport_takes_the_arguments_of_httpxs_transport() -> None:
    """In the same order."""

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
        async with RawUpstream() as upstream, httpx.AsyncClient(transport=transport) as c:
            return (await c.get(upstream.url)).text

    assert [asyncio.run(answered()) for _ in range(3)] == ["ok"] * 3


def test_another_event_loop_is_refused_with_what_to_do() -> None:
    transport = AsyncioTransport()

    async def use() -> None:
        async with RawUpstream() as upstream:
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
    async with RawUpstream(path=path) as upstream, client(upstream, uds=path) as c:
        assert (await c.get("/")).text == "ok"
        assert b"\r\nHost: of.a.socket\r\n" in upstream.requests[0]


async def test_it_connects_from_the_local_address() -> None:
    async with RawUpstream() as upstream, client(upstream, local_address="127.0.0.9") as c:
        await c.get("/")
        assert upstream.peers[0][0] == "127.0.0.9"


async def test_socket_options_are_set() -> None:
    """TCP keepalive is on, and `socket_options` wins over it."""
    options = [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7)]
    async with (
        RawUpstream() as upstream,
        client(upstream, socket_options=options) as c,
        client(upstream) as plain,
    ):
        for one, expected in ((c, 7), (plain, 60)):
            response = await one.get("/")
            sock = response.extensions["network_stream"].get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == expected
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 5


async def test_a_socket_option_that_is_refused_leaves_nothing_open() -> None:
    options = [(socket.SOL_SOCKET, 9999, 1)]
    async with RawUpstream() as upstream, client(upstream, socket_options=options) as c:
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


@pytest.mark.backends("asyncio")  # The clock of uvloop cannot be replaced.
@pytest.mark.parametrize(
    ("options", "age"),
    [({}, 3600), ({"max_connection_age": 100}, 100), ({"max_connection_age": None}, None)],
)
async def test_connection_of_the_maximum_age_is_replaced(
    options: dict[str, Any], age: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The age is up to a tenth shorter, at random."""
    loop, ahead = asyncio.get_running_loop(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead)
    limits = httpx.Limits(keepalive_expiry=None)
    async with RawUpstream() as upstream, client(upstream, limits=limits, **options) as c:
        for part in (0.0, 0.8, 1.1):
            assert len(upstream.peers) <= 1
            ahead = part * (age or 1e9)
            for _ in range(2):  # A connection that is too old is closed after a request.
                await c.get("/")
    assert len(upstream.peers) == (1 if age is None else 2)
