"""How forward_request frames the caller's body, and how long it waits for it."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from asgi_upstream import (
    BufferedResponse,
    ReverseProxy,
    StreamedResponse,
    fetch,
    forward_request,
)
from asgi_upstream._forwarding import body as caller_bodies
from asgi_upstream._forwarding.read_timeout import ReadTimeout
from asgi_upstream._httpx.requests import ForwardedRequest
from tests.support.asgi import Caller, answering
from tests.support.flavor import httpx
from tests.support.forwarding import called, make_caller

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


def get_framing(request: httpx.Request) -> dict[str, str]:
    names = ("content-length", "transfer-encoding")
    return {name: request.headers[name] for name in names if name in request.headers}


CHUNKED = {"transfer-encoding": "chunked"}


@pytest.mark.parametrize("version", ["1.0", "1.1", "2", "3"])
@pytest.mark.parametrize(
    ("method", "chunks", "framing"),
    [
        ("POST", [b"abc"], {"content-length": "3"}),
        ("PUT", [b"abc"], {"content-length": "3"}),
        ("DELETE", [b"abc"], {"content-length": "3"}),
        ("QUERY", [b"abc"], {"content-length": "3"}),
        ("PATCH", [b"a", b"bc"], CHUNKED),
        ("POST", [b"", b"a", b"bc"], CHUNKED),
        ("POST", [], {"content-length": "0"}),
        ("PUT", [], {"content-length": "0"}),
        ("DELETE", [], {}),
    ],
)
async def test_body_without_framing_is_framed_by_first_message(
    version: str, method: str, chunks: list[bytes], framing: dict[str, str]
) -> None:
    upstream = answering(b"ok")
    caller = make_caller(upstream, method, chunks, http_version=version)
    await called(caller, ReverseProxy())
    assert caller.status == 200
    assert upstream.bodies == [b"".join(chunks)]
    assert get_framing(upstream.requests[0]) == framing


@pytest.mark.parametrize("chunks", [[b"abc"], [b"a", b"bc"], []])
async def test_get_of_http2_caller_may_have_a_body(chunks: list[bytes]) -> None:
    upstream = answering(b"ok")
    await called(make_caller(upstream, "GET", chunks, http_version="2"), ReverseProxy())
    assert upstream.bodies == [b"".join(chunks)]


@pytest.mark.parametrize("response_class", [StreamedResponse, BufferedResponse])
async def test_unframed_body_is_framed_in_both_responses(response_class: Any) -> None:
    async def endpoint(request: Request) -> Response:
        client = request.state.client
        response: Response = response_class(client, forward_request(client, request), decode=True)
        return response

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    caller = await called(make_caller(upstream, chunks=[b"abc"]), app)
    assert caller.body == b"ok"
    assert upstream.bodies == [b"abc"]
    assert get_framing(upstream.requests[0]) == {"content-length": "3"}


async def test_unframed_body_is_framed_in_fetch() -> None:
    upstream = answering(b"ok")
    caller = make_caller(upstream, chunks=[b"abc"])
    client = caller.scope["state"]["client"]
    response = await fetch(client, forward_request(client, Request(caller.scope, caller.receive)))
    assert response.content == b"ok"
    assert upstream.bodies == [b"abc"]
    assert get_framing(upstream.requests[0]) == {"content-length": "3"}


async def test_on_request_sees_framing_of_unframed_body() -> None:
    seen: list[dict[str, str]] = []
    upstream = answering(b"ok")

    def on_request(request: httpx.Request) -> None:
        seen.append(get_framing(request))

    await called(make_caller(upstream, chunks=[b"abc"]), ReverseProxy(on_request=on_request))
    assert seen == [{"content-length": "3"}]
    assert upstream.bodies == [b"abc"]


@pytest.mark.parametrize("hook", [None, lambda request: None])
async def test_disconnect_before_unframed_body_is_quiet(hook: Any) -> None:
    upstream = answering(b"ok")
    caller = make_caller(upstream, http_version="2")
    caller.left.set()
    caller._parts.clear()
    await called(caller, ReverseProxy(on_request=hook))
    assert not upstream.requests
    assert not caller.messages or caller.status == 499


@pytest.mark.parametrize(("method", "version"), [("POST", "1.1"), ("GET", "2")])
@pytest.mark.parametrize(("body_timeout", "wait"), [(60, 1.0), (None, 1.0), (0.25, 0.25)])
async def test_server_without_first_message_means_no_body(
    method: str, version: str, body_timeout: float | None, wait: float
) -> None:
    upstream = answering(b"ok")
    caller = make_caller(upstream, method, http_version=version)
    caller._parts.clear()
    start = anyio.current_time()
    await called(caller, ReverseProxy(body_timeout=body_timeout))
    assert anyio.current_time() - start == pytest.approx(wait, abs=0.1)
    assert caller.status == 200
    assert upstream.bodies == [b""]


@pytest.mark.parametrize(
    ("scope", "body"),
    [
        ({}, b""),
        ({"http_version": "1.0"}, b""),
        ({"http_version": None}, b""),
        ({"http_version": "2"}, b"abc"),
        ({"aws.event": {}}, b"abc"),
        ({"azure_functions.invocation_id": "1"}, b"abc"),
    ],
)
async def test_get_without_framing_has_no_body_on_http1(scope: dict[str, Any], body: bytes) -> None:
    """But serverless adapters drop the framing headers."""
    upstream = answering(b"ok")
    caller = make_caller(upstream, "GET", [b"abc"], **scope)
    if caller.scope["http_version"] is None:
        del caller.scope["http_version"]
    await called(caller, ReverseProxy())
    assert upstream.bodies == [body]


@pytest.mark.parametrize(
    ("method", "body", "framing"), [("POST", b"abc", CHUNKED), ("GET", b"", {})]
)
async def test_request_sent_without_a_response_has_its_body(
    method: str, body: bytes, framing: dict[str, str]
) -> None:
    upstream = answering(b"ok")
    caller = make_caller(upstream, method, [b"abc"] if body else [], http_version="2")
    client = caller.scope["state"]["client"]
    await client.send(forward_request(client, Request(caller.scope, caller.receive)))
    assert upstream.bodies == [body]
    assert get_framing(upstream.requests[0]) == framing


async def forward_chunks(
    chunks: Sequence[bytes], headers: Sequence[tuple[bytes, bytes]] = ()
) -> ForwardedRequest:
    caller = make_caller(answering(), chunks=chunks, headers=headers)
    client = caller.scope["state"]["client"]
    request = forward_request(client, Request(caller.scope, caller.receive))
    assert isinstance(request, ForwardedRequest)
    await request.resolve_body()
    return request


async def drain(request: ForwardedRequest, sent: list[bytes]) -> None:
    assert isinstance(request.stream, httpx.AsyncByteStream)
    async for chunk in request.stream:
        sent.append(chunk)


@pytest.mark.parametrize(
    ("length", "sent"), [(b"4", [b"abc"]), (b"9", [b"abc", b"def"]), (b"2", [])]
)
async def test_body_that_differs_from_its_length_is_a_400(length: bytes, sent: list[bytes]) -> None:
    """No byte after the length is sent: the upstream would read it as the next request."""
    request, chunks = (
        await forward_chunks([b"abc", b"def"], [(b"content-length", length)]),
        list[bytes](),
    )
    with pytest.raises(HTTPException, match="shorter than its Content-Length") as caught:
        await drain(request, chunks)
    assert caught.value.status_code == 400
    assert chunks == sent


async def test_first_chunk_is_not_sent_again() -> None:
    request, chunks = await forward_chunks([b"abc", b"def"]), list[bytes]()
    await drain(request, chunks)
    assert chunks == [b"abc", b"def"]
    with pytest.raises(httpx.StreamConsumed):
        await drain(request, chunks)
    assert chunks == [b"abc", b"def"]


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"6")]])
@pytest.mark.parametrize("chunks", [[b"abcdef"], [b"abc", b"def"]])
async def test_no_read_timeout_is_open_after_the_body(
    headers: list[tuple[bytes, bytes]], chunks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its timer would be in the event loop for a minute."""
    timeouts: set[ReadTimeout] = set()

    class CountedTimeout(ReadTimeout):
        def __init__(self, seconds: float | None) -> None:
            super().__init__(seconds)
            timeouts.add(self)

        def close(self) -> None:
            super().close()
            timeouts.remove(self)

    monkeypatch.setattr(caller_bodies, "ReadTimeout", CountedTimeout)
    upstream = answering(b"ok")
    await called(make_caller(upstream, chunks=chunks, headers=headers), ReverseProxy())
    assert upstream.bodies == [b"abcdef"]
    assert not timeouts


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"6")],
        [(b"transfer-encoding", b"chunked")],
        [],
    ],
)
@pytest.mark.parametrize("chunks", [[b"abc"], None])
async def test_body_that_stalls_is_answered_408(
    headers: list[tuple[bytes, bytes]], chunks: list[bytes] | None
) -> None:
    upstream = answering(b"ok")
    caller = make_caller(
        upstream, chunks=chunks or [], complete=False, headers=headers, http_version="2"
    )
    if chunks is None:
        caller._parts.clear()
    await called(caller, ReverseProxy(body_timeout=0.05))
    assert (caller.status, caller.body) == (408, b"The request body did not arrive in time")
    assert upstream.open == 0
    assert upstream.bodies == []


async def test_receive_that_raises_oserror_is_a_disconnect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = answering(b"ok")
    caller = make_caller(
        upstream, chunks=[b"abc"], complete=False, headers=[(b"content-length", b"6")]
    )

    async def receive_of_a_lost_connection() -> Message:
        if not caller._parts:
            raise ConnectionResetError("the connection is gone")
        return await Caller.receive(caller)

    caller.receive = receive_of_a_lost_connection  # type: ignore[method-assign]
    await called(caller, ReverseProxy())
    assert upstream.open == 0
    assert upstream.bodies == []
    assert not caller.messages or caller.status == 499
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_body_timeout_none_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = answering(b"ok")
    caller = make_caller(upstream, chunks=[b"a", b"b"], headers=[(b"content-length", b"2")])
    await called(caller, ReverseProxy(body_timeout=None))
    assert upstream.bodies == [b"ab"]


async def test_is_disconnected_before_forwarding_ends_with_408() -> None:
    async def endpoint(request: Request) -> Response:
        assert not await request.is_disconnected()
        client = request.state.client
        return StreamedResponse(client, forward_request(client, request, body_timeout=0.05))

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    caller = make_caller(upstream, chunks=[b"abc"], headers=[(b"content-length", b"3")])
    original, is_first = caller.receive, True

    async def receive() -> Message:
        nonlocal is_first
        if is_first:  # at once, as servers do if a message is already there
            is_first = False
            return {"type": "http.request", "body": caller._parts.pop(0)["body"], "more_body": True}
        return await original()

    caller.receive = receive  # type: ignore[method-assign]
    await called(caller, app)
    assert caller.status == 408
    assert upstream.open == 0


@pytest.mark.parametrize("seconds", [0, -1, "1"])
def test_body_timeout_that_is_not_positive_is_refused(seconds: Any) -> None:
    with pytest.raises(ValueError, match="body_timeout="):
        ReverseProxy(body_timeout=seconds)
    request = Request({"type": "http", "method": "GET"})
    with pytest.raises(ValueError, match="body_timeout="):
        forward_request(httpx.AsyncClient(), request, body_timeout=seconds)


@pytest.mark.parametrize(
    "headers", [[(b"transfer-encoding", b"chunked")], [(b"content-length", b"6")], []]
)
@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("method", ["POST", "DELETE", "GET"])
async def test_body_that_was_read_is_sent_with_its_length(
    headers: list[tuple[bytes, bytes]], version: str, method: str
) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        client = request.state.client
        return StreamedResponse(client, forward_request(client, request))

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/", endpoint, methods=[method])])
    caller = make_caller(
        upstream, method, chunks=[b"abc", b"def"], headers=headers, http_version=version
    )
    await called(caller, app)
    assert upstream.bodies == [b"abcdef"]
    assert get_framing(upstream.requests[0]) == {"content-length": "6"}


@pytest.mark.parametrize(
    ("method", "headers", "framing"),
    [
        ("POST", [], {"content-length": "0"}),
        ("POST", [(b"content-length", b"0")], {"content-length": "0"}),
        ("POST", [(b"transfer-encoding", b"chunked")], {"content-length": "0"}),
        ("DELETE", [(b"transfer-encoding", b"chunked")], {"content-length": "0"}),
        ("DELETE", [], {}),
        ("GET", [], {}),
    ],
)
@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_empty_body_that_was_read_is_forwarded(
    method: str, headers: list[tuple[bytes, bytes]], framing: dict[str, str], version: str
) -> None:
    async def endpoint(request: Request) -> Response:
        assert await request.body() == b""
        client = request.state.client
        return StreamedResponse(client, forward_request(client, request))

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/", endpoint, methods=[method])])
    await called(make_caller(upstream, method, headers=headers, http_version=version), app)
    assert upstream.bodies == [b""]
    assert get_framing(upstream.requests[0]) == framing


async def test_body_that_was_read_and_is_short_is_answered_400() -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        client = request.state.client
        return StreamedResponse(client, forward_request(client, request))

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    caller = make_caller(upstream, chunks=[b"abc"], headers=[(b"content-length", b"6")])
    assert (await called(caller, app)).status == 400
    assert not upstream.requests


def test_body_of_a_connection_that_is_no_request_is_an_error() -> None:
    """A dependency with `HTTPConnection` has no way to read the body."""
    client = answering().client()
    caller = make_caller(answering(), headers=[(b"content-length", b"3")])
    with pytest.raises(TypeError, match=r"not starlette\.HTTPConnection: take `request: Request`"):
        forward_request(client, HTTPConnection(caller.scope))
    caller.scope["headers"] = []
    assert get_framing(forward_request(client, HTTPConnection(caller.scope))) == {}


async def read_form(request: Request) -> None:
    await request.form()


async def read_stream(request: Request) -> None:
    async for _ in request.stream():
        pass


@pytest.mark.parametrize("read", [read_form, read_stream])
@pytest.mark.parametrize("length", [[(b"content-length", b"3")], []])
async def test_body_that_was_consumed_is_an_error_at_once(
    read: Any, length: list[tuple[bytes, bytes]]
) -> None:
    async def endpoint(request: Request) -> Response:
        await read(request)
        with pytest.raises(RuntimeError, match="consumed before forward_request"):
            forward_request(request.state.client, request)
        return Response()

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    form = (b"content-type", b"application/x-www-form-urlencoded")
    caller = make_caller(upstream, chunks=[b"a=b"], headers=[form, *length])
    assert (await called(caller, app)).status == 200


async def test_empty_body_that_was_consumed_is_no_error() -> None:
    async def endpoint(request: Request) -> Response:
        await read_stream(request)
        client = request.state.client
        return StreamedResponse(client, forward_request(client, request))

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])
    empty = [(b"content-length", b"0")]
    assert (await called(make_caller(upstream, headers=empty), app)).status == 200
    for version in ("1.1", "2"):
        caller = make_caller(upstream, "GET", http_version=version)
        assert (await called(caller, app)).status == 200
