"""Uploads, and what no request may hold."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
from starlette.requests import Request
from starlette.types import Message

from asgi_upstream import StreamedResponse, forward_request
from asgi_upstream.transport import _upload
from asgi_upstream.transport._serializer import BodyFramer
from tests.support.asgi import Caller
from tests.support.flavor import httpx
from tests.support.raw_upstream import RawUpstream, client
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "uvloop")]
long_wait = pytest.mark.backends("asyncio", pytest.param("uvloop", marks=pytest.mark.exhaustive))


async def test_the_response_is_read_while_the_body_is_sent() -> None:
    answered: asyncio.Queue[bytes] = asyncio.Queue()

    async def in_turn() -> AsyncIterator[bytes]:
        yield b"ping"
        for _ in range(3):
            yield b"after " + await answered.get()

    async with RawUpstream(echoing) as upstream, client(upstream) as c:
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


async def test_long_upload_arrives_whole_after_an_early_response() -> None:
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
    async with RawUpstream(echoing) as upstream, client(upstream) as c:
        request = forward_request(c, Request(scope, receive))
        async with asyncio.timeout(60):
            await StreamedResponse(c, request)(scope, receive, send)
    assert answer == expected


@long_wait
async def test_read_timeout_does_not_run_during_the_upload() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(1.5)
        yield b"b"

    async with RawUpstream() as upstream, client(upstream) as c:
        response = await c.post("/", content=slow(), timeout=httpx.Timeout(60, read=1))
        assert response.text == "ok"


@pytest.mark.parametrize("length", [None, "1000000000"])
async def test_early_response_arrives_at_once_and_ends_connection(
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
    async with RawUpstream(refuse) as upstream, client(upstream) as c:
        for number in (1, 2):
            async with asyncio.timeout(60):
                response = await c.post("/", content=endless(), headers=fields)
            assert (response.status_code, response.text) == (413, "big")
            await aeventually(lambda: not upstream.open)
            assert len(upstream.peers) == number


async def test_cancelled_body_iterator_leaves_nothing_open() -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"a part"
        maker = asyncio.create_task(asyncio.sleep(10))
        maker.cancel()
        await maker

    async with RawUpstream() as upstream, client(upstream) as c:
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(60):
                await c.post("/", content=content())
        await aeventually(lambda: not upstream.open)
        assert (await c.get("/")).text == "ok"


@pytest.mark.parametrize("parts", [[b"1234"], [b"123", b"456"], [b"1", b"2"]])
async def test_a_body_of_another_length_than_it_says_is_refused(parts: list[bytes]) -> None:
    async def content() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    fields = {"content-length": "3"}
    async with RawUpstream() as upstream, client(upstream) as c:
        for body in (content(), b"".join(parts)):
            with pytest.raises(httpx.LocalProtocolError) as caught:
                await c.post("/", content=body, headers=fields)
            assert caught.value.request.method == "POST"
            await aeventually(lambda: not upstream.open)


BAD = ["\r", "\n", "\0", "\r\n", "\r\nx-injected: 1", "\n\nGET / HTTP/1.1"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", ["method", "target", "name", "value", "host"])
async def test_a_line_break_or_nul_is_refused_and_nothing_is_sent(place: str, bad: str) -> None:
    values = dict.fromkeys(("method", "target", "name", "value", "host"), "a") | {place: f"a{bad}b"}
    async with RawUpstream() as upstream, client(upstream) as c:
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
    async with RawUpstream() as upstream, client(upstream) as c:
        request = httpx.Request("GET", upstream.url, headers=fields, stream=httpx.ByteStream(b""))
        with pytest.raises(httpx.LocalProtocolError):
            await c.send(request)
        assert upstream.requests == []


async def test_a_request_without_a_host_is_refused() -> None:
    async with RawUpstream() as upstream, client(upstream) as c:
        request = c.build_request("GET", "/")
        del request.headers["host"]
        with pytest.raises(httpx.LocalProtocolError):
            await c.send(request)
        assert upstream.requests == []


@pytest.mark.parametrize("secret", ["?token=secret", "user:secret@"])
async def test_transport_keeps_no_url_with_a_secret(secret: str) -> None:
    async with RawUpstream() as upstream, client(upstream) as c:
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

    async with RawUpstream(refuse) as upstream, client(upstream) as c:
        response = await c.send(c.build_request("POST", "/", content=content()), stream=True)
        assert response.status_code == 413
        await asyncio.wait_for(stopped.wait(), 60)
        await response.aclose()
        refused.set()


async def test_body_that_resists_cancellation_delays_close_briefly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_upload, "CANCEL_TIMEOUT", 0.05)
    released = asyncio.Event()

    async def resist() -> AsyncIterator[bytes]:
        try:
            yield b"x"
            await asyncio.sleep(3600)
        finally:
            await released.wait()

    framer = BodyFramer(None, httpx.LocalProtocolError)
    loop = asyncio.get_running_loop()
    upload = _upload.Upload(AsyncMock(), loop, resist(), framer, None)
    await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await upload.aclose()
    assert not upload.task.done()
    released.set()
    await asyncio.wait([upload.task])
