"""Timeouts and errors of AsyncioTransport, compared with those of the transport of httpx."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.flavor import httpx
from tests.support.ports import open_full_port
from tests.support.raw_upstream import (
    BROKEN,
    OK,
    RawUpstream,
    Serve,
    client,
    read_request,
)
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "uvloop")]
long_wait = pytest.mark.backends("asyncio", pytest.param("uvloop", marks=pytest.mark.exhaustive))


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def silent_after_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(OK[:-1])
    await reader.read()


@pytest.mark.parametrize("serve", [silent, silent_after_the_head])
async def test_silent_upstream_is_a_read_timeout(serve: Serve) -> None:
    async with RawUpstream(serve) as upstream, client(upstream) as c:
        with pytest.raises(httpx.ReadTimeout) as caught:
            await c.get("/", timeout=httpx.Timeout(60, read=0.1))
        assert caught.value.request.url == upstream.url + "/"
        await aeventually(lambda: not upstream.open)


@long_wait
async def test_each_read_has_the_whole_read_timeout() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n")
        for _ in range(11):
            await asyncio.sleep(0.2)
            writer.write(b"x")

    async with RawUpstream(slow) as upstream, client(upstream) as c:
        response = await c.get("/", timeout=httpx.Timeout(60, read=2))
        assert response.text == "x" * 11


async def test_upload_that_is_not_read_is_a_write_timeout() -> None:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    limits = httpx.Limits(max_connections=1)
    async with RawUpstream(deaf) as upstream, client(upstream, limits=limits) as c:
        with pytest.raises(httpx.WriteTimeout) as caught:
            await c.post("/", content=parts(), timeout=httpx.Timeout(60, write=0.2))
        assert caught.value.request.method == "POST"
        async with RawUpstream() as other:  # there is room again
            assert (await c.get(other.url)).text == "ok"


async def test_who_waits_too_long_for_a_connection_has_a_pool_timeout() -> None:
    limits = httpx.Limits(max_connections=1)
    async with RawUpstream(silent) as upstream, client(upstream, limits=limits) as c:
        first = asyncio.create_task(c.get("/"))
        await aeventually(lambda: upstream.open == 1)
        with pytest.raises(httpx.PoolTimeout) as caught:
            await c.get("/second", timeout=httpx.Timeout(60, pool=0.1))
        assert caught.value.request.url.path == "/second"
        first.cancel()
        await asyncio.wait([first])


async def test_a_connect_that_is_never_answered_is_a_connect_timeout() -> None:
    with open_full_port() as port:
        async with client() as c:
            with pytest.raises(httpx.ConnectTimeout) as caught:
                await c.get(f"http://127.0.0.1:{port}", timeout=httpx.Timeout(60, connect=0.2))
            assert caught.value.request.url.port == port


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_upstream_raises_the_error_of_httpxs_transport(name: str) -> None:
    seen = []
    async with RawUpstream(BROKEN[name]) as upstream:
        stock = httpx.AsyncClient(base_url=upstream.url, trust_env=False, timeout=60)
        for one in (client(upstream), stock):
            async with one as c:
                with pytest.raises(httpx.TransportError) as caught:
                    await c.post("/x", content=b"a body")
                seen.append((type(caught.value), caught.value.request.url.path))
        assert seen[0] == seen[1]
        await aeventually(lambda: not upstream.open)


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
async def test_failed_connect_raises_the_error_of_httpxs_transport(url: str) -> None:
    seen = []
    for one in (client(), httpx.AsyncClient(trust_env=False)):
        async with one as c:
            with pytest.raises(httpx.HTTPError) as caught:
                await c.get(url)
            seen.append((type(caught.value), str(caught.value.request.url)))
    assert seen[0] == seen[1]


async def test_request_body_error_is_raised_and_leaves_nothing_open() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"first"
        raise ZeroDivisionError

    async with RawUpstream() as upstream, client(upstream) as c:
        with pytest.raises(ZeroDivisionError):
            await c.post("/", content=broken())
        await aeventually(lambda: not upstream.open)
        assert (await c.get("/")).text == "ok"


async def read_all(response: httpx.Response) -> None:
    async for _ in response.aiter_raw():
        pass


@long_wait
async def test_failed_or_cancelled_read_frees_the_connection() -> None:
    """Without a call to `aclose`."""
    limits = httpx.Limits(max_connections=1)
    async with RawUpstream(silent_after_the_head) as upstream, client(upstream, limits=limits) as c:
        responses = []
        for read, within, error in ((2, 60, httpx.ReadTimeout), (60, 0.1, TimeoutError)):
            timeout = httpx.Timeout(60, read=read)
            request = c.build_request("GET", "/", timeout=timeout)
            responses.append(await c.send(request, stream=True))
            with pytest.raises(error):
                await asyncio.wait_for(read_all(responses[-1]), within)
            await aeventually(lambda: not upstream.open)
        for response in responses:
            await response.aclose()


async def test_silence_after_an_upload_is_a_read_timeout() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(0.05)  # Meanwhile the response is awaited, without a limit.
        yield b"second"

    async with RawUpstream(silent) as upstream, client(upstream) as c:
        with pytest.raises(httpx.ReadTimeout):
            async with asyncio.timeout(10):
                await c.post("/", content=parts(), timeout=httpx.Timeout(None, read=0.2))
