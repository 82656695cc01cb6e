"""Corners that somebody ran into: each is a bug that this library, or another relay, once had."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from starlette.responses import JSONResponse
from starlette.types import Message

import asgi_upstream._exchange.closing
import asgi_upstream._exchange.disconnect
import asgi_upstream._exchange.downstream
from asgi_upstream import (
    BufferedResponse,
    PoolExhausted,
    StreamedResponse,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    count_open_exchanges,
    upstream_errors,
)
from tests.support.asgi import Caller, InMemoryUpstream, answering
from tests.support.flavor import httpx
from tests.support.responses import (
    AnyClass,
    answer_of,
    both,
    called,
    failing,
)

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

LATE = 2 * asgi_upstream._exchange.disconnect.LISTEN_DELAY + 0.05


class ClosingBy(httpx.AsyncByteStream):
    """A body that closes as it is told."""

    def __init__(self, close: Any) -> None:
        self._close = close
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"body"

    async def aclose(self) -> None:
        await self._close()
        self.closed = True


async def relayed(stream: httpx.AsyncByteStream, **options: Any) -> Caller:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=stream))
    client = httpx.AsyncClient(transport=transport, base_url="http://x")
    return await Caller().call(StreamedResponse(client, client.build_request("GET", "/")))


async def test_a_close_that_hangs_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(asgi_upstream._exchange.closing, "CLOSE_TIMEOUT", 0.1)
    with anyio.fail_after(60):
        caller = await relayed(ClosingBy(lambda: anyio.sleep(60)))
    assert caller.complete
    assert "took more than 0.1 s" in caplog.text


async def test_a_close_with_a_timeout_of_its_own_ends_by_it() -> None:
    async def close() -> None:
        with anyio.move_on_after(0.05):
            await anyio.sleep(60)

    stream = ClosingBy(close)
    with anyio.fail_after(60):
        caller = await relayed(stream)
    assert caller.complete
    assert stream.closed


async def test_a_close_that_waits_is_shielded_from_a_cancelled_scope() -> None:
    stream = ClosingBy(lambda: anyio.sleep(0.1))

    class StuckCaller(Caller):
        async def send(self, message: Any) -> None:
            await anyio.sleep(60)

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=stream))
    client = httpx.AsyncClient(transport=transport, base_url="http://x")
    response = StreamedResponse(client, client.build_request("GET", "/"))
    caller = StuckCaller()
    with anyio.move_on_after(0.05):
        await response(caller.scope, caller.receive, caller.send)
    assert stream.closed


async def test_a_close_that_fails_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def close() -> None:
        raise OSError("close broke")

    caller = await relayed(ClosingBy(close))
    assert caller.complete
    assert "close broke" in caplog.text


@both
async def test_an_upload_without_any_framing_is_not_taken_by_the_watch(cls: AnyClass) -> None:
    """As of a caller by HTTP/2, or a GET whose endpoint passes `request.stream()` on."""
    upstream = answering(b"ok")
    caller = Caller("POST", body=[b"one", b"two"])

    async def parts() -> AsyncIterator[bytes]:
        await anyio.sleep(LATE)
        more = True
        while more:
            message = await caller.receive()
            yield message["body"]
            more = message["more_body"]

    client = upstream.client()
    with anyio.fail_after(60):
        await caller.call(cls(client, client.build_request("POST", "/", content=parts())))
    assert upstream.bodies == [b"onetwo"]


@both
async def test_the_request_is_left_as_it_was(cls: AnyClass) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"part"

    client = answering(b"ok").client()
    request = client.build_request("POST", "/", content=parts())
    stream = request.stream
    await Caller().call(cls(client, request))
    assert request.stream is stream


async def test_a_buffered_body_that_nobody_looks_at_is_not_decoded() -> None:
    broken = b"this is no gzip"
    caller = await called(
        answering(broken, headers=[("content-encoding", "gzip")]), BufferedResponse
    )
    assert (caller.body, caller.values("content-encoding")) == (broken, ["gzip"])


async def test_on_response_sees_what_cannot_be_decoded_as_it_is() -> None:
    coded = gzip.compress(b"{}")
    seen: list[bytes] = []
    caller = await called(
        answering(coded, headers=[("content-encoding", "gzip, unheard-of")]),
        BufferedResponse,
        on_response=lambda upstream: seen.append(upstream.content),
    )
    assert seen == [coded]
    assert (caller.body, caller.values("content-encoding")) == (coded, ["gzip, unheard-of"])


async def test_head_of_a_route_that_gets_and_changes_json_works() -> None:
    """Starlette adds HEAD to each GET route, whose endpoint then still sends a GET upstream."""
    upstream = answering(b'{"a": 1}')
    client = upstream.client()
    response = BufferedResponse(
        client,
        client.build_request("GET", "/"),
        on_response=lambda upstream: JSONResponse(upstream.json()),
    )
    caller = await Caller("HEAD").call(response)
    assert caller.status == 200

    caller = await Caller("HEAD").call(BufferedResponse(client, client.build_request("GET", "/")))
    assert (caller.body, upstream.open) == (b"", 0)


@both
async def test_a_status_with_content_in_place_of_a_304_promises_none(cls: AnyClass) -> None:
    upstream = answering(status=304, headers=[("content-length", "100")])
    caller = await called(upstream, cls, status_code=200)
    assert caller.values("content-length") == ([] if cls is StreamedResponse else ["0"])


@both
async def test_a_receive_that_never_waits_does_not_stop_the_server(cls: AnyClass) -> None:
    caller = Caller()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    with anyio.fail_after(60):
        response = answer_of(answering(b"late", before=LATE), cls)
        await response(caller.scope, receive, caller.send)
    assert caller.body == b"late"


@both
async def test_a_receive_that_fails_ends_only_the_watch(cls: AnyClass) -> None:
    caller = Caller()

    async def receive() -> Any:
        raise RuntimeError("receive was called twice")

    response = answer_of(answering(b"late", before=LATE), cls)
    await response(caller.scope, receive, caller.send)
    assert caller.body == b"late"


@both
async def test_receive_that_raises_connection_reset_is_a_disconnect(
    cls: AnyClass,
) -> None:
    upstream, caller = answering(b"late", before=60), Caller()

    async def receive() -> Any:
        raise ConnectionResetError

    with anyio.fail_after(60):
        await answer_of(upstream, cls)(caller.scope, receive, caller.send)
    assert (upstream.open, caller.status) == (0, 499)


async def test_receive_is_read_by_one_listener() -> None:
    caller, listening, most = Caller(), 0, 0

    async def receive() -> Any:
        nonlocal listening, most
        listening += 1
        most = max(most, listening)
        try:
            return await caller.receive()
        finally:
            listening -= 1

    response = answer_of(answering(b"one", LATE, b"two", before=LATE))
    await response(caller.scope, receive, caller.send)
    assert most == 1


@both
async def test_a_refused_websocket_is_answered_and_its_caller_watched(cls: AnyClass) -> None:
    messages: list[str] = []
    scope: dict[str, Any] = {**Caller().scope, "type": "websocket"}
    del scope["method"]
    events = ["connect"]

    async def receive() -> Any:
        if not events:
            await anyio.sleep(60)
        return {"type": f"websocket.{events.pop()}"}

    async def send(message: Any) -> None:
        messages.append(message["type"])

    await answer_of(answering(b"no", status=403, before=LATE), cls)(scope, receive, send)
    assert messages[0] == "websocket.http.response.start"
    assert set(messages[1:]) == {"websocket.http.response.body"}

    events.append("disconnect")
    upstream = answering(b"late", before=60)
    with anyio.fail_after(60):
        await answer_of(upstream, cls)(scope, receive, send)
    assert upstream.open == 0


async def test_an_error_frame_of_text_says_so_and_cuts_the_connection() -> None:
    upstream = answering(b"a", httpx.ReadError("broke"))
    caller, error = await failing(upstream, TypeError, on_stream_error=lambda exc: "text")
    assert "on_stream_error returned str" in str(error)
    assert not caller.complete


async def test_an_error_frame_that_raises_cuts_the_connection() -> None:
    upstream = answering(b"a", httpx.ReadError("broke"))
    caller, _ = await failing(upstream, ZeroDivisionError, on_stream_error=lambda exc: 1 / 0)
    assert not caller.complete


async def test_deadline_that_becomes_a_read_error_is_a_timeout() -> None:
    class Turning(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"first"
            try:
                await anyio.sleep(60)
            except BaseException as exc:
                raise httpx.ReadError("cancelled") from exc

    frames: list[str] = []

    def frame(exc: Exception) -> bytes:
        frames.append(type(exc).__name__)
        return b""

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Turning()))
    client = httpx.AsyncClient(transport=transport)
    request = client.build_request("GET", "http://x")
    await Caller().call(StreamedResponse(client, request, deadline=0.1, on_stream_error=frame))
    assert frames == ["UpstreamTimeout"]


def test_upstream_errors_refuses_to_decorate_a_generator() -> None:
    async def dependency() -> AsyncIterator[None]:
        yield

    with pytest.raises(TypeError, match="use `with`"):
        upstream_errors()(dependency)


def test_headers_of_one_error_are_not_those_of_the_next() -> None:
    first = PoolExhausted()
    assert isinstance(first.headers, dict)
    first.headers["x-other"] = "1"
    assert PoolExhausted().headers == {"retry-after": "1"}


@pytest.mark.parametrize("argument", ["transform", "on_response", "on_stream_error"])
def test_a_hook_that_is_no_function_is_refused_at_once(argument: str) -> None:
    client = httpx.AsyncClient(transport=httpx.MockTransport(lambda r: httpx.Response(200)))
    options: dict[str, Any] = {argument: b"text"}
    with pytest.raises(TypeError, match=argument):
        StreamedResponse(client, client.build_request("GET", "http://x"), **options)


def test_a_request_without_a_host_is_refused_at_once() -> None:
    client = httpx.AsyncClient(transport=httpx.MockTransport(lambda r: httpx.Response(200)))
    with pytest.raises(ValueError, match="base_url="):
        StreamedResponse(client, client.build_request("GET", "/path"))


async def test_zeros_behind_a_gzip_body_are_padding() -> None:
    coded = gzip.compress(json.dumps({"a": 1}).encode()) + bytes(100)
    caller = await called(answering(coded, headers=[("content-encoding", "gzip")]), decode=True)
    assert caller.body == b'{"a": 1}'


@pytest.mark.parametrize(
    ("step", "raises", "outcome"),
    [
        (b"body", UpstreamTimeout, "deadline"),
        (httpx.ReadError("reset"), UpstreamProtocolError, "body_failed"),
    ],
    ids=["of a whole body", "of one that had failed"],
)
async def test_the_deadline_bounds_the_last_part_too(
    step: bytes | Exception, raises: type[UpstreamError], outcome: str
) -> None:
    ended: list[str] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            await anyio.sleep(60)  # a server that holds it back, for a caller who reads nothing

    async def receive() -> Any:
        await anyio.sleep(60)

    response = answer_of(
        answering(step, headers=[("content-length", "4")]),
        deadline=0.2,
        on_stream_error=lambda exc: b"broken",
        observers=[lambda record: ended.append(record.outcome)],
    )
    with anyio.fail_after(60), pytest.raises(raises):
        await response({"type": "http", "method": "GET"}, receive, send)
    assert ended == [outcome]


async def test_task_cancelled_as_the_listener_ends_leaves_no_scope() -> None:
    began = anyio.Event()

    async def receive() -> Any:
        try:
            await anyio.sleep(60)
        finally:
            began.set()
            with anyio.CancelScope(shield=True):  # a server that tidies up
                await anyio.sleep(0.3)

    async def send(message: Any) -> None:
        pass

    async def slowly() -> AsyncIterator[bytes]:
        yield b"body"
        await anyio.sleep(LATE)

    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=slowly()))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        response = StreamedResponse(client, client.build_request("GET", "/"))

        async def under_a_middleware() -> None:
            async with anyio.create_task_group():
                await response({"type": "http", "method": "GET"}, receive, send)

        if asyncio._get_running_loop() is None:
            return  # trio has no such cancellation
        task = asyncio.create_task(under_a_middleware())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("stuck_at", [0, 1])
async def test_server_that_never_accepts_the_499_is_given_up(
    stuck_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hypercorn's HTTP/2 connections do that after the caller has closed them."""
    monkeypatch.setattr(asgi_upstream._exchange.downstream, "CLIENT_CLOSED_TIMEOUT", 0.01)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if len(sent) == stuck_at:
            await anyio.sleep_forever()
        sent.append(message)

    async def silent(request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    upstream = InMemoryUpstream(silent)
    async with upstream.client() as client:
        response = StreamedResponse(client, client.build_request("GET", "/"))
        with anyio.fail_after(60):
            await response({"type": "http", "method": "GET"}, receive, send)
        assert count_open_exchanges(client) == 0
    assert upstream.open == 0


@pytest.mark.parametrize("name", [b"", b"x y", b"x:y", b"x\r\ny", b"x\0y", b"x\xff", b":x"])
@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_malformed_header_name_is_a_protocol_error(name: bytes, cls: Any) -> None:
    """An HTTP/2 upstream can send any bytes, and servers fail on them in several ways."""

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=[(b"x-before", b"1"), (name, b"1")], content=b"x")

    caller = Caller()
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        response = cls(client, client.build_request("GET", "http://x"))
        with pytest.raises(UpstreamProtocolError):
            await caller.call(response)
    assert caller.messages == []


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/5.6"])
@both
async def test_other_http_version_is_a_protocol_error(version: bytes, cls: AnyClass) -> None:
    """h11 accepts any version of two digits."""
    extensions = {"network_stream": object(), "http_version": version}

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"x", extensions=extensions)

    caller = Caller()
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        with pytest.raises(UpstreamProtocolError):
            await caller.call(cls(client, client.build_request("GET", "http://x")))
    assert caller.messages == []
