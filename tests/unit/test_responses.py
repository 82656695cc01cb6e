"""StreamedResponse and BufferedResponse, between a caller and an upstream in memory.

Where a test is about both, it is parametrized with `both`. What needs sockets and servers is in
tests/integration.
"""

import asyncio
import contextlib
import gzip
import json
import logging
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from asgi_upstream import (
    BufferedResponse,
    PoolExhausted,
    StreamedResponse,
    UpstreamBodyTooLarge,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from tests.support.asgi import Caller, RawHeaders, Script, Upstream, answering, collect_garbage

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

both = pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
AnyClass = type[StreamedResponse] | type[BufferedResponse]


def answer_of(
    upstream: Upstream,
    cls: AnyClass = StreamedResponse,
    method: str = "GET",
    path: str = "/",
    **options: Any,
) -> StreamedResponse | BufferedResponse:
    client = upstream.client()
    return cls(client, client.build_request(method, path), **options)


async def called(
    upstream: Upstream,
    cls: AnyClass = StreamedResponse,
    method: str = "GET",
    **options: Any,
) -> Caller:
    """The caller, after it called a response of `upstream`; nothing may be open any more."""
    caller = Caller(method)
    try:
        with anyio.fail_after(50):
            await caller.call(answer_of(upstream, cls, method, **options))
    finally:
        assert upstream.open == 0
    return caller


async def failing(
    upstream: Upstream, error: type[Exception], cls: AnyClass = StreamedResponse, **options: Any
) -> tuple[Caller, Exception]:
    """The same for a call that raises `error`."""
    caller = Caller()
    with anyio.fail_after(50), pytest.raises(error) as caught:
        await caller.call(answer_of(upstream, cls, **options))
    assert type(caught.value) is error, "an exception of another kind, or a group"
    assert upstream.open == 0
    return caller, caught.value


# --- what is relayed -----------------------------------------------------------------------


@both
async def test_status_headers_and_body_are_relayed(cls: AnyClass) -> None:
    upstream = answering(b"one ", b"two", status=418, headers=[("X-Own", "1"), ("etag", '"t"')])
    caller = await called(upstream, cls)
    assert caller.status == 418
    assert caller.values("x-own") == ["1"]
    assert caller.values("etag") == ['"t"']
    assert caller.body == b"one two"
    assert caller.complete
    assert upstream.opened == 1


@both
async def test_repeated_headers_are_relayed_one_by_one(cls: AnyClass) -> None:
    headers = [("set-cookie", "a=1"), ("vary", "x"), ("set-cookie", "b=2"), ("vary", "y")]
    caller = await called(answering(b"x", headers=headers), cls)
    kept = [field for field in caller.headers if field[0] in (b"set-cookie", b"vary")]
    assert kept == [(name.encode(), value.encode()) for name, value in headers]


@both
async def test_fields_of_one_hop_are_not_relayed(cls: AnyClass) -> None:
    headers = [
        ("Connection", "X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "5"),
        ("date", "now"),
        ("server", "nginx"),
        ("x-end", "1"),
    ]
    caller = await called(answering(b"x", headers=headers), cls)
    assert {name for name, _ in caller.headers} <= {b"x-end", b"content-length"}


async def test_each_chunk_is_passed_on_as_it_arrives() -> None:
    caller = await called(answering(b"one", b"two", b"three"))
    parts = [message["body"] for message in caller.messages[1:] if message["body"]]
    assert parts == [b"one", b"two", b"three"]


async def test_no_more_than_one_chunk_is_read_ahead_of_a_slow_caller() -> None:
    upstream = answering(*[b"chunk"] * 20)
    ahead: list[int] = []

    class Slow(Caller):
        async def send(self, message: Any) -> None:
            sent = sum(bool(message.get("body")) for message in self.messages[1:])
            ahead.append(upstream.chunks_read - sent)
            await super().send(message)

    with anyio.fail_after(50):
        await Slow().call(answer_of(upstream))
    assert max(ahead) == 1


async def test_the_head_is_not_held_back_until_there_is_a_body() -> None:
    """Some servers send the head with the first part of the body, so there must be one."""
    upstream = answering(30.0, headers=[("content-type", "text/event-stream")])
    caller = Caller(leaves_after=0.3)
    with anyio.fail_after(50):
        await caller.call(answer_of(upstream))
    assert caller.status == 200
    assert caller.messages[1] == {"type": "http.response.body", "body": b"", "more_body": True}


async def test_the_content_length_of_an_untouched_stream_is_kept() -> None:
    caller = await called(answering(b"12", b"345", headers=[("content-length", "5")]))
    assert caller.values("content-length") == ["5"]
    assert caller.body == b"12345"


async def test_the_upstream_is_closed_before_the_last_byte_of_known_length_is_sent() -> None:
    upstream = answering(b"12", b"345", headers=[("content-length", "5")])
    open_at: list[tuple[bytes, int]] = []

    class Watching(Caller):
        async def send(self, message: Any) -> None:
            open_at.append((message.get("body", b""), upstream.open))
            await super().send(message)

    await Watching().call(answer_of(upstream))
    assert open_at[-1] == (b"345", 0)


@pytest.mark.parametrize(
    "headers", [[], [("transfer-encoding", "chunked"), ("content-length", "9")]]
)
async def test_a_stream_of_unknown_length_has_no_content_length(headers: RawHeaders) -> None:
    caller = await called(answering(b"12345", headers=headers))
    assert caller.values("content-length") == []
    assert caller.values("transfer-encoding") == []
    assert caller.body == b"12345"


@pytest.mark.parametrize("headers", [[], [("content-length", "5")], [("content-length", "9")]])
async def test_a_buffered_body_always_has_its_content_length(headers: RawHeaders) -> None:
    caller = await called(answering(b"12", b"345", headers=headers), BufferedResponse)
    assert caller.values("content-length") == ["5"]


@both
async def test_an_empty_body_is_relayed(cls: AnyClass) -> None:
    caller = await called(answering(headers=[("content-length", "0")]), cls)
    assert caller.body == b""
    assert caller.values("content-length") == ["0"]
    assert caller.complete


@both
async def test_a_coded_body_passes_untouched(cls: AnyClass) -> None:
    coded = gzip.compress(b"text")
    headers = [("content-encoding", "gzip"), ("content-length", str(len(coded))), ("etag", '"t"')]
    caller = await called(answering(coded, headers=headers), cls)
    assert caller.body == coded
    assert caller.values("content-encoding") == ["gzip"]
    assert caller.values("content-length") == [str(len(coded))]
    assert caller.values("etag") == ['"t"']


@both
async def test_the_body_of_the_request_reaches_the_upstream(cls: AnyClass) -> None:
    upstream = answering(b"ok")
    client = upstream.client()
    request = client.build_request("POST", "/p?q=1", content=b"upload", headers={"x-own": "1"})
    await Caller("POST").call(cls(client, request))
    assert upstream.bodies == [b"upload"]
    assert upstream.requests[0].headers["x-own"] == "1"
    assert str(upstream.requests[0].url) == "http://upstream.example:8765/p?q=1"


@both
async def test_redirects_are_relayed(cls: AnyClass) -> None:
    upstream = answering(status=302, headers=[("location", "/elsewhere"), ("content-length", "0")])
    caller = await called(upstream, cls)
    assert caller.status == 302
    assert caller.values("location") == ["/elsewhere"]
    assert len(upstream.requests) == 1


@both
async def test_a_client_that_follows_redirects_follows_them(cls: AnyClass) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/":
            return httpx.Response(302, headers={"location": "/end"}, stream=Script(b"moved"))
        return httpx.Response(200, stream=Script(b"the end"))

    upstream = Upstream(answer)
    client = upstream.client()
    client.follow_redirects = True
    caller = await Caller().call(cls(client, client.build_request("GET", "/")))
    assert (caller.status, caller.body) == (200, b"the end")
    assert upstream.opened == 2
    assert upstream.open == 0


@both
async def test_auth_and_event_hooks_of_the_client_are_in_force(cls: AnyClass) -> None:
    upstream = answering(b"ok")

    async def hook(request: httpx.Request) -> None:
        request.headers["x-hook"] = "1"

    async def seen(response: httpx.Response) -> None:
        response.headers["x-seen"] = "1"

    client = httpx.AsyncClient(
        transport=upstream,
        auth=("user", "word"),
        event_hooks={"request": [hook], "response": [seen]},
    )
    caller = await Caller().call(cls(client, client.build_request("GET", "http://x.example")))
    assert upstream.requests[0].headers["authorization"].startswith("Basic ")
    assert upstream.requests[0].headers["x-hook"] == "1"
    assert caller.values("x-seen") == ["1"]


@both
async def test_an_event_hook_may_read_the_body(cls: AnyClass) -> None:
    upstream = answering(
        gzip.compress(b'{"a": 1}'), headers=[("content-encoding", "gzip"), ("content-length", "28")]
    )

    async def hook(response: httpx.Response) -> None:
        assert (await response.aread()) == b'{"a": 1}'

    client = httpx.AsyncClient(transport=upstream, event_hooks={"response": [hook]})
    caller = await Caller().call(cls(client, client.build_request("GET", "http://x.example")))
    assert caller.body == b'{"a": 1}'
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") in ([], ["8"])
    assert upstream.open == 0


async def test_a_mock_transport_of_httpx_does_as_an_upstream() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"a": 1}))
    client = httpx.AsyncClient(transport=transport, base_url="http://x.example")
    for cls in (StreamedResponse, BufferedResponse):
        caller = await Caller().call(cls(client, client.build_request("GET", "/")))
        assert json.loads(caller.body) == {"a": 1}
        assert caller.values("content-type") == ["application/json"]


# --- messages without content --------------------------------------------------------------


@both
async def test_head_keeps_its_content_length_and_has_no_body(cls: AnyClass) -> None:
    caller = await called(answering(headers=[("content-length", "5000")]), cls, "HEAD")
    assert caller.values("content-length") == ["5000"]
    assert caller.body == b""
    assert caller.complete


@both
async def test_a_get_for_a_caller_who_asked_head_sends_no_body(cls: AnyClass) -> None:
    upstream = answering(b"12345", headers=[("content-length", "5")])
    caller = await Caller("HEAD").call(answer_of(upstream, cls))
    assert caller.values("content-length") == ["5"]
    assert caller.body == b""
    assert upstream.open == 0


@both
async def test_a_head_for_a_caller_who_asked_get_promises_no_body(cls: AnyClass) -> None:
    upstream = answering(headers=[("content-length", "5000")])
    caller = await Caller("GET").call(answer_of(upstream, cls, "HEAD"))
    assert caller.values("content-length") in ([], ["0"])
    assert caller.body == b""
    assert upstream.open == 0


@both
@pytest.mark.parametrize("status", [204, 205, 304])
async def test_a_status_without_content_carries_no_body(cls: AnyClass, status: int) -> None:
    caller = await called(answering(status=status, headers=[("etag", '"t"')]), cls)
    assert caller.status == status
    assert caller.body == b""
    assert caller.values("content-length") in ([], ["0"]) if status == 205 else [[]]
    assert caller.values("etag") == ['"t"']


@both
@pytest.mark.parametrize("status", [204, 205, 304])
async def test_a_body_that_a_status_forbids_is_dropped(cls: AnyClass, status: int) -> None:
    upstream = answering(b"forbidden", status=status, headers=[("content-length", "9")])
    caller = await called(upstream, cls)
    assert caller.body == b""
    assert caller.complete
    assert caller.values("content-length") == []


@both
@pytest.mark.parametrize("status", [101, 100, 99, 600, 700])
async def test_a_status_that_is_no_final_one_is_a_protocol_error_and_the_log_has_it(
    cls: AnyClass, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caller, error = await failing(answering(b"x", status=status), UpstreamProtocolError, cls)
    assert caller.messages == []
    assert f"failed: UpstreamProtocolError: status {status} (GET" in caplog.text
    assert str(status) not in str(error)


# --- what the author sets ------------------------------------------------------------------


@both
async def test_headers_given_replace_those_of_their_name(cls: AnyClass) -> None:
    upstream = answering(b"x", headers=[("vary", "a"), ("vary", "b"), ("x-kept", "1")])
    caller = await called(upstream, cls, headers={"Vary": "own", "x-new": "1"})
    assert caller.values("vary") == ["own"]
    assert caller.values("x-kept") == ["1"]
    assert caller.values("x-new") == ["1"]


@both
async def test_headers_set_later_replace_too(cls: AnyClass) -> None:
    upstream = answering(b"x", headers=[("cache-control", "public"), ("x-kept", "1")])
    response = answer_of(upstream, cls)
    response.headers["Cache-Control"] = "no-store"
    caller = await Caller().call(response)
    assert caller.values("cache-control") == ["no-store"]
    assert caller.values("x-kept") == ["1"]


@both
async def test_a_cookie_set_is_added_to_the_upstreams(cls: AnyClass) -> None:
    response = answer_of(answering(b"x", headers=[("set-cookie", "theirs=1")]), cls)
    response.set_cookie("mine", "2")
    response.delete_cookie("old")
    caller = await Caller().call(response)
    theirs, mine, old = caller.values("set-cookie")
    assert theirs == "theirs=1"
    assert mine.startswith("mine=2")
    assert old.startswith("old=")


@both
async def test_a_status_given_stands_in_place_of_the_upstreams(cls: AnyClass) -> None:
    caller = await called(answering(b"x", status=404), cls, status_code=200)
    assert caller.status == 200


@both
async def test_a_status_set_later_does_too(cls: AnyClass) -> None:
    response = answer_of(answering(b"x", status=404), cls)
    response.status_code = 201
    assert (await Caller().call(response)).status == 201


@both
async def test_a_status_without_content_that_is_given_takes_the_body_away(cls: AnyClass) -> None:
    upstream = answering(b"12345", headers=[("content-length", "5")])
    caller = await called(upstream, cls, status_code=204)
    assert caller.status == 204
    assert caller.body == b""
    assert caller.values("content-length") == []


@both
async def test_a_media_type_given_stands_in_place_of_the_upstreams(cls: AnyClass) -> None:
    upstream = answering(b"x", headers=[("content-type", "text/html; charset=latin-1")])
    caller = await called(upstream, cls, media_type="application/json")
    assert caller.values("content-type") == ["application/json"]


@both
async def test_the_upstreams_content_type_is_relayed_unless_one_is_given(cls: AnyClass) -> None:
    upstream = answering(b"x", headers=[("content-type", "text/html; charset=latin-1")])
    assert (await called(upstream, cls)).values("content-type") == ["text/html; charset=latin-1"]
    assert (await called(answering(b"x"), cls)).values("content-type") == []


async def test_a_plain_text_stream_is_not_held_back_by_browsers() -> None:
    plain = [("content-type", "text/plain; charset=utf-8")]
    caller = await called(answering(b"x", headers=plain))
    assert caller.values("x-content-type-options") == ["nosniff"]
    caller = await called(answering(b"x"), media_type="text/plain")
    assert caller.values("x-content-type-options") == ["nosniff"]
    caller = await called(answering(b"x", headers=plain), media_type="text/event-stream")
    assert caller.values("x-content-type-options") == []
    caller = await called(answering(b"x", headers=plain), headers={"x-content-type-options": "own"})
    assert caller.values("x-content-type-options") == ["own"]


@both
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"deadline": 0}, ValueError, "deadline=0"),
        ({"deadline": -1}, ValueError, "deadline=-1"),
        ({"deadline": float("nan")}, ValueError, "deadline=nan"),
        ({"status_code": 99}, ValueError, "status_code=99"),
        ({"status_code": 101}, ValueError, "status_code=101"),
        ({"status_code": 600}, ValueError, "status_code=600"),
        ({"deadline": "30"}, ValueError, "deadline='30': give seconds"),
    ],
)
async def test_an_argument_that_makes_no_sense_is_refused_at_once(
    cls: AnyClass, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        answer_of(answering(), cls, **options)


@pytest.mark.parametrize("max_bytes", [0, -1, "10MB"])
async def test_a_bound_of_nothing_is_refused(max_bytes: Any) -> None:
    with pytest.raises(ValueError, match=f"max_bytes={max_bytes!r}"):
        answer_of(answering(), BufferedResponse, max_bytes=max_bytes)


async def test_a_buffered_answer_has_no_error_frame() -> None:
    with pytest.raises(TypeError, match="StreamedResponse"):
        answer_of(answering(), BufferedResponse, on_stream_error=lambda exc: b"")


@both
async def test_a_sync_client_is_refused_with_what_to_write_instead(cls: AnyClass) -> None:
    with httpx.Client() as client:
        request = client.build_request("GET", "http://x.example")
        with pytest.raises(TypeError, match=r"client_lifespan.*`def` endpoint"):
            cls(client, request)  # type: ignore[call-overload]


@both
async def test_a_forgotten_client_or_request_is_refused_by_the_public_name(cls: AnyClass) -> None:
    request = httpx.Request("GET", "http://x.example")
    made: Any = cls
    with pytest.raises(TypeError, match=rf"^{cls.__name__} needs an .*, not httpx2?\.Request: "):
        made(request)
    with pytest.raises(
        TypeError, match=rf"^{cls.__name__} needs the .*, not None: .*build_request"
    ):
        made(httpx.AsyncClient())


@both
async def test_a_client_that_was_not_awaited_is_refused_as_such(cls: AnyClass) -> None:
    unawaited: Any = httpx.AsyncClient().get("http://x.example")
    with pytest.raises(TypeError, match="an un-awaited coroutine"):
        cls(unawaited, httpx.Request("GET", "http://x.example"))
    unawaited.close()


@both
async def test_the_callers_request_in_place_of_the_upstreams_is_refused(cls: AnyClass) -> None:
    with pytest.raises(TypeError, match="build_request"):
        cls(httpx.AsyncClient(), Request(Caller().scope))  # type: ignore[call-overload]


@both
async def test_a_url_in_place_of_a_request_is_refused(cls: AnyClass) -> None:
    with pytest.raises(TypeError, match="build_request"):
        cls(httpx.AsyncClient(), "http://x.example")  # type: ignore[call-overload]


# --- decode and transform ------------------------------------------------------------------
#
# On trio a generator that is dropped and not closed is a warning, and so an error here.


@both
async def test_decode_relays_the_decoded_body_without_what_was_true_of_the_other(
    cls: AnyClass,
) -> None:
    coded = gzip.compress(b"text" * 100)
    upstream = answering(
        coded[:7],
        coded[7:],
        headers=[
            ("content-encoding", "gzip"),
            ("content-length", str(len(coded))),
            ("etag", '"t"'),
            ("content-type", "text/html"),
        ],
    )
    caller = await called(upstream, cls, decode=True)
    assert caller.body == b"text" * 100
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") == ([] if cls is StreamedResponse else ["400"])
    assert caller.values("etag") == ['W/"t"']
    assert caller.values("content-type") == ["text/html"]


@both
async def test_decode_leaves_a_body_without_codings_as_it_is(cls: AnyClass) -> None:
    caller = await called(
        answering(b"12345", headers=[("content-length", "5"), ("etag", '"t"')]), cls, decode=True
    )
    assert caller.body == b"12345"
    assert caller.values("content-length") == ["5"]
    assert caller.values("etag") == ['"t"']


async def test_a_body_that_cannot_be_decoded_is_the_upstreams_failure() -> None:
    headers = [("content-encoding", "gzip")]
    caller, _ = await failing(
        answering(b"no gzip", headers=headers), UpstreamProtocolError, BufferedResponse, decode=True
    )
    assert caller.messages == []
    caller, _ = await failing(
        answering(gzip.compress(os.urandom(100))[:-9], headers=headers),
        UpstreamProtocolError,
        decode=True,
    )
    assert not caller.complete


@both
async def test_a_coding_that_nobody_can_undo_is_a_502_before_the_start(cls: AnyClass) -> None:
    upstream = answering(b"x", headers=[("content-encoding", "nonsense")])
    caller, _ = await failing(upstream, UpstreamProtocolError, cls, decode=True)
    assert caller.messages == []


async def upper(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in body:
        yield chunk.upper()


@both
async def test_transform_changes_the_decoded_body_on_the_way(cls: AnyClass) -> None:
    coded = gzip.compress(b"some text")
    headers = [
        ("content-encoding", "gzip"),
        ("content-length", str(len(coded))),
        ("accept-ranges", "bytes"),
        ("etag", '"t"'),
    ]
    caller = await called(answering(coded, headers=headers), cls, transform=upper)
    assert caller.body == b"SOME TEXT"
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") == ([] if cls is StreamedResponse else ["9"])
    assert caller.values("accept-ranges") == []
    assert caller.values("etag") == ['W/"t"']


async def test_a_streamed_transform_sees_each_chunk_as_it_comes() -> None:
    caller = await called(answering(b"a", b"b", b"c"), transform=upper)
    assert [m["body"] for m in caller.messages[1:] if m["body"]] == [b"A", b"B", b"C"]


@both
async def test_a_transform_may_send_what_it_likes(cls: AnyClass) -> None:
    async def around(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"<"
        async for chunk in body:
            yield b""
            yield chunk
        yield b">"

    assert (await called(answering(b"a", b"b"), cls, transform=around)).body == b"<ab>"


@both
async def test_a_transform_may_stop_before_the_end(cls: AnyClass) -> None:
    async def first(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk
            return

    caller = await called(
        answering(b"a", b"b", headers=[("content-length", "2")]), cls, transform=first
    )
    assert caller.body.startswith(b"a")
    assert caller.complete


async def test_a_transform_is_closed_when_the_caller_leaves() -> None:
    closed: list[str] = []

    async def careful(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in body:
                yield chunk
        finally:
            closed.append("transform")

    upstream = answering(b"a", 30.0, b"b")
    with anyio.fail_after(50):
        await Caller(leaves_at_body=True).call(answer_of(upstream, transform=careful))
    assert closed == ["transform"]
    assert upstream.open == 0


async def test_a_transform_is_closed_when_sending_fails() -> None:
    closed: list[str] = []

    async def careful(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in body:
                yield chunk
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append("transform")

    upstream = answering(b"a", b"b", b"c")
    await Caller(send_fails_after=3).call(answer_of(upstream, transform=careful))
    assert closed == ["transform"]
    assert upstream.open == 0


async def test_a_transform_that_raises_cuts_the_caller_off() -> None:
    async def fails(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk
            raise LookupError("the transform's own")

    caller, error = await failing(answering(b"a", b"b"), LookupError, transform=fails)
    assert str(error) == "the transform's own"
    assert caller.body == b"a"
    assert not caller.complete


async def test_a_transform_that_raises_is_the_apps_failure_when_buffered() -> None:
    async def fails(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b""
        raise LookupError

    caller, _ = await failing(answering(b"a"), LookupError, BufferedResponse, transform=fails)
    assert caller.messages == []


@both
@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_a_transform_may_yield_what_is_like_bytes(cls: AnyClass, kind: type[object]) -> None:
    async def alike(body: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for chunk in body:
            yield kind(chunk)  # type: ignore[call-arg]

    caller = await called(answering(b"a"), cls, transform=alike)
    assert caller.body == b"a"
    assert {type(m["body"]) for m in caller.messages[1:]} == {bytes}


@both
async def test_a_transform_that_yields_text_is_told_what_is_wrong(cls: AnyClass) -> None:
    async def text(body: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        yield "text"

    caller, error = await failing(answering(b"a"), TypeError, cls, transform=text)
    assert "str" in str(error)
    assert not caller.complete


# --- on_response ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize("is_async", [False, True])
async def test_on_response_sees_the_upstream_before_anything_is_sent(
    cls: AnyClass, is_async: bool
) -> None:
    seen: list[tuple[int, str]] = []
    caller = Caller()

    def plain(upstream: httpx.Response) -> None:
        assert caller.messages == []
        seen.append((upstream.status_code, upstream.headers["x-own"]))

    async def awaited(upstream: httpx.Response) -> None:
        await anyio.lowlevel.checkpoint()
        plain(upstream)

    upstream = answering(b"x", status=201, headers=[("x-own", "1")])
    await caller.call(answer_of(upstream, cls, on_response=awaited if is_async else plain))
    assert seen == [(201, "1")]
    assert caller.body == b"x"
    assert upstream.open == 0


@both
async def test_the_headers_that_on_response_leaves_are_relayed(cls: AnyClass) -> None:
    def edit(upstream: httpx.Response) -> None:
        del upstream.headers["x-secret"]
        upstream.headers["x-new"] = "1"

    upstream = answering(b"x", headers=[("x-secret", "1"), ("x-kept", "1")])
    caller = await called(upstream, cls, on_response=edit, headers={"x-own": "1"})
    assert caller.values("x-secret") == []
    assert caller.values("x-new") == caller.values("x-kept") == caller.values("x-own") == ["1"]


@both
async def test_on_response_may_raise_an_http_error(cls: AnyClass) -> None:
    def refuse(upstream: httpx.Response) -> None:
        raise HTTPException(404, "gone from here")

    upstream = answering(b"x", b"y")
    caller, error = await failing(upstream, HTTPException, cls, on_response=refuse)
    assert isinstance(error, HTTPException)
    assert (error.status_code, error.detail) == (404, "gone from here")
    assert caller.messages == []


@both
async def test_on_response_may_fail(cls: AnyClass) -> None:
    async def fails(upstream: httpx.Response) -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError

    caller, _ = await failing(answering(b"x"), LookupError, cls, on_response=fails)
    assert caller.messages == []


@both
async def test_an_http_error_of_the_upstream_may_be_raised_by_on_response(cls: AnyClass) -> None:
    def check(upstream: httpx.Response) -> None:
        upstream.raise_for_status()

    _, error = await failing(answering(b"x", status=500), UpstreamError, cls, on_response=check)
    assert isinstance(error.__cause__, httpx.HTTPStatusError)


@both
async def test_on_response_may_answer_instead_and_the_upstream_is_closed_first(
    cls: AnyClass,
) -> None:
    upstream = answering(b"x", b"y")
    open_at_start: list[int] = []

    class Own(PlainTextResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            open_at_start.append(upstream.open)
            await super().__call__(scope, receive, send)

    caller = await called(upstream, cls, on_response=lambda r: Own("own", 202))
    assert (caller.status, caller.body) == (202, b"own")
    assert caller.complete
    assert open_at_start == [0]


@both
async def test_another_exchange_may_be_the_answer_instead(cls: AnyClass) -> None:
    second = answering(b"from the second")
    caller = await called(
        answering(b"x", status=503), cls, on_response=lambda r: answer_of(second, cls)
    )
    assert (caller.status, caller.body) == (200, b"from the second")
    assert second.open == 0


@both
async def test_an_answer_of_another_type_is_refused(cls: AnyClass) -> None:
    caller, error = await failing(
        answering(b"x"), TypeError, cls, on_response=lambda r: {"no": "response"}
    )
    assert "dict" in str(error)
    assert "JSONResponse" in str(error)
    assert caller.messages == []


@both
async def test_on_response_may_read_the_body_itself(cls: AnyClass) -> None:
    async def reads(upstream: httpx.Response) -> None:
        assert await upstream.aread() == b'{"a": 1}'

    coded = gzip.compress(b'{"a": 1}')
    headers = [("content-encoding", "gzip"), ("content-length", str(len(coded)))]
    caller = await called(answering(coded, headers=headers), cls, on_response=reads)
    assert caller.body == b'{"a": 1}'
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") in ([], ["8"])


@pytest.mark.parametrize("how", ["closes", "reads on"])
async def test_an_on_response_that_leaves_no_body_is_told_what_is_wrong(how: str) -> None:
    async def careless(upstream: httpx.Response) -> None:
        if how == "closes":
            await upstream.aclose()
        else:
            async for _ in upstream.aiter_raw():
                pass

    caller, error = await failing(answering(b"a", b"b"), RuntimeError, on_response=careless)
    assert "aread()" in str(error)
    assert caller.messages == []


@pytest.mark.parametrize(
    "encode", [None, gzip.compress, zlib.compress], ids=["plain", "gzip", "deflate"]
)
async def test_a_changed_answer_is_one_line(encode: Callable[[bytes], bytes] | None) -> None:
    body, headers = b'{"a": "\xc3\xa4"}', [("content-type", "application/json")]
    if encode is not None:
        coding = "gzip" if encode is gzip.compress else "deflate"
        body, headers = encode(body), [*headers, ("content-encoding", coding)]
    caller = await called(
        answering(body[:4], body[4:], headers=headers),
        BufferedResponse,
        on_response=lambda r: JSONResponse({"changed": r.json()["a"], "text": r.text}),
    )
    assert json.loads(caller.body) == {"changed": "ä", "text": '{"a": "ä"}'}


async def test_a_buffered_upstream_is_closed_before_on_response_is_called() -> None:
    upstream = answering(b"x")
    seen: list[int] = []
    await called(upstream, BufferedResponse, on_response=lambda r: seen.append(upstream.open))
    assert seen == [0]


async def test_a_buffered_body_in_a_coding_nobody_knows_is_relayed_past_on_response() -> None:
    statuses: list[int] = []
    caller = await called(
        answering(b"coded", headers=[("content-encoding", "nonsense")]),
        BufferedResponse,
        on_response=lambda r: statuses.append(r.status_code),
    )
    assert statuses == [200]
    assert caller.body == b"coded"
    assert caller.values("content-encoding") == ["nonsense"]


# --- failures ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (httpx.ConnectError("refused"), UpstreamConnectError),
        (httpx.ProxyError("refused"), UpstreamConnectError),
        (httpx.RemoteProtocolError("not HTTP"), UpstreamProtocolError),
        (httpx.ReadError("reset"), UpstreamProtocolError),
        (httpx.ReadTimeout("slow"), UpstreamTimeout),
        (httpx.ConnectTimeout("slow"), UpstreamTimeout),
        (httpx.PoolTimeout("full"), PoolExhausted),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_failure_before_the_headers_is_a_plain_upstream_error(
    cls: AnyClass,
    theirs: Exception,
    ours: type[UpstreamError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caller, error = await failing(answering(failing=theirs), ours, cls)
    assert error.__cause__ is theirs
    assert caller.messages == []
    (record,) = [r for r in caplog.records if r.levelno >= logging.INFO]
    assert record.name == "asgi_upstream"
    assert record.levelno == logging.WARNING
    assert type(theirs).__name__ in record.getMessage()
    assert "upstream.example" in record.getMessage()


@both
async def test_an_app_answers_a_failure_without_a_handler(cls: AnyClass) -> None:
    async def endpoint(request: Request) -> Response:
        return answer_of(answering(failing=httpx.PoolTimeout("full")), cls)

    caller = await Caller().call(Starlette(routes=[Route("/", endpoint)]))
    assert caller.status == 503
    assert caller.values("retry-after") == ["1"]
    assert caller.body == PoolExhausted.detail.encode()


@both
async def test_a_handler_of_the_app_sees_a_plain_upstream_error(cls: AnyClass) -> None:
    seen: list[Exception] = []

    async def endpoint(request: Request) -> Response:
        return answer_of(answering(failing=httpx.ReadTimeout("slow")), cls)

    async def handler(request: Request, exc: Exception) -> Response:
        seen.append(exc)
        return PlainTextResponse("own words", 599)

    app = Starlette(routes=[Route("/", endpoint)], exception_handlers={HTTPException: handler})
    caller = await Caller().call(app)
    assert (caller.status, caller.body) == (599, b"own words")
    assert [type(exc) for exc in seen] == [UpstreamTimeout]


async def test_an_upstream_that_dies_cuts_the_caller_off(caplog: pytest.LogCaptureFixture) -> None:
    death = httpx.ReadError("reset")
    caller, error = await failing(answering(b"half", death), UpstreamProtocolError)
    assert error.__cause__ is death
    assert caller.body == b"half"
    assert not caller.complete
    (record,) = [r for r in caplog.records if r.levelno >= logging.INFO]
    assert "ReadError" in record.getMessage()
    assert "upstream.example" in record.getMessage()


async def test_an_upstream_that_dies_is_a_clean_error_when_buffered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = answering(b"half", httpx.ReadError("reset"))
    caller, _ = await failing(upstream, UpstreamProtocolError, BufferedResponse)
    assert caller.messages == []
    assert len([r for r in caplog.records if r.levelno >= logging.INFO]) == 1


async def test_an_upstream_that_dies_after_its_last_byte_cuts_off_too() -> None:
    """The last byte of a known length is kept back until the upstream ended well."""
    caller, _ = await failing(
        answering(b"12345", httpx.ReadError("reset"), headers=[("content-length", "5")]),
        UpstreamProtocolError,
    )
    assert not caller.complete


async def test_the_app_may_say_that_it_aborts_and_no_server_needs_to_know() -> None:
    """A server that fails on unknown messages gets no other exception than the upstream's."""
    told: list[str] = []

    class Lenient(Caller):
        async def send(self, message: Any) -> None:
            told.append(message["type"])
            if "abort" not in message["type"]:
                await super().send(message)

    caller = Lenient()
    with pytest.raises(UpstreamProtocolError):
        await caller.call(answer_of(answering(b"half", httpx.ReadError("reset"))))
    assert not caller.complete
    assert told[-1] != "http.response.body" or caller.messages[-1]["more_body"]


# --- on_stream_error ---------------------------------------------------------------------------


async def test_an_error_frame_ends_the_body_of_an_upstream_that_dies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Exception] = []
    death = httpx.ReadError("reset")

    def frame(exc: Exception) -> bytes:
        seen.append(exc)
        return b"event: error\n\n"

    upstream = answering(b"data: 1\n\n", death, headers=[("content-length", "500")])
    caller = await called(upstream, on_stream_error=frame)
    assert caller.body == b"data: 1\n\nevent: error\n\n"
    assert caller.complete
    assert caller.values("content-length") == []
    assert [type(exc) for exc in seen] == [UpstreamProtocolError]
    assert seen[0].__cause__ is death
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


async def test_an_error_frame_ends_the_body_of_a_transform_that_raises_and_the_log_has_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk
            raise LookupError("own")

    caller = await called(
        answering(b"a", b"b"), transform=fails, on_stream_error=lambda exc: repr(exc).encode()
    )
    assert caller.body == b"aLookupError('own')"
    assert caller.complete
    (line,) = [r for r in caplog.records if r.name == "asgi_upstream"]
    assert line.levelno == logging.ERROR
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], LookupError)


async def test_an_error_frame_after_the_deadline_tells_of_a_timeout() -> None:
    caller = await called(
        answering(b"a", 30.0),
        deadline=0.1,
        on_stream_error=lambda exc: type(exc).__name__.encode(),
    )
    assert caller.body == b"aUpstreamTimeout"
    assert caller.complete


async def test_an_error_frame_can_be_read_in_a_body_that_was_compressed() -> None:
    coded = gzip.compress(os.urandom(1000))
    caller = await called(
        answering(coded[:500], httpx.ReadError("reset"), headers=[("content-encoding", "gzip")]),
        on_stream_error=lambda exc: b"the frame",
    )
    assert caller.body.endswith(b"the frame")
    assert caller.values("content-encoding") == []


async def test_an_error_frame_is_not_for_failures_before_the_start() -> None:
    upstream = answering(failing=httpx.ConnectError("refused"))
    caller, _ = await failing(upstream, UpstreamConnectError, on_stream_error=lambda exc: b"frame")
    assert caller.messages == []


async def test_a_body_that_ends_well_has_no_error_frame() -> None:
    upstream = answering(b"all", headers=[("content-length", "3")])
    caller = await called(upstream, on_stream_error=lambda exc: b"frame")
    assert caller.body == b"all"
    assert caller.complete


# --- deadline ------------------------------------------------------------------------------


@both
async def test_a_deadline_before_the_headers_is_a_504(
    cls: AnyClass, caplog: pytest.LogCaptureFixture
) -> None:
    caller, error = await failing(answering(b"x", before=30), UpstreamTimeout, cls, deadline=0.1)
    assert isinstance(error, UpstreamTimeout)
    assert error.status_code == 504
    assert caller.messages == []
    (record,) = [r for r in caplog.records if r.levelno >= logging.INFO]
    assert record.getMessage() == (
        "upstream upstream.example:8765 failed: UpstreamTimeout: the deadline of 0.1 s passed (GET)"
    )


async def test_a_deadline_in_the_body_cuts_the_caller_off() -> None:
    caller, _ = await failing(answering(b"a", 30.0), UpstreamTimeout, deadline=0.1)
    assert caller.body == b"a"
    assert not caller.complete


async def test_a_deadline_in_the_body_is_a_504_when_buffered() -> None:
    caller, _ = await failing(
        answering(b"a", 30.0), UpstreamTimeout, BufferedResponse, deadline=0.1
    )
    assert caller.messages == []


async def test_a_deadline_counts_the_callers_reading() -> None:
    class Stuck(Caller):
        async def send(self, message: Any) -> None:
            if message.get("body"):
                await anyio.sleep(30)
            await super().send(message)

    upstream = answering(b"a", b"b")
    with anyio.fail_after(50), pytest.raises(UpstreamTimeout):
        await Stuck().call(answer_of(upstream, deadline=0.1))
    assert upstream.open == 0


@both
async def test_an_exchange_within_its_deadline_is_not_disturbed(cls: AnyClass) -> None:
    upstream = answering(b"a", 0.01, b"b")
    caller = await called(upstream, cls, deadline=5)
    assert caller.body == b"ab"
    assert caller.complete


@both
async def test_a_deadline_of_on_response_is_the_same(cls: AnyClass) -> None:
    async def slow(upstream: httpx.Response) -> None:
        await anyio.sleep(30)

    caller, _ = await failing(answering(b"a"), UpstreamTimeout, cls, deadline=0.1, on_response=slow)
    assert caller.messages == []


# --- max_bytes -----------------------------------------------------------------------------


async def test_a_body_of_just_the_bound_passes() -> None:
    caller = await called(answering(b"12345"), BufferedResponse, max_bytes=5)
    assert caller.body == b"12345"


async def test_a_body_past_the_bound_is_a_502_and_read_no_further() -> None:
    upstream = answering(*[b"12345"] * 100)
    caller, error = await failing(upstream, UpstreamBodyTooLarge, BufferedResponse, max_bytes=9)
    assert isinstance(error, UpstreamBodyTooLarge)
    assert error.status_code == 502
    assert caller.messages == []
    assert upstream.chunks_read == 2


@pytest.mark.parametrize("options", [{"decode": True}, {"on_response": lambda r: None}])
async def test_a_small_gzip_that_grows_past_the_bound_is_a_502(options: dict[str, Any]) -> None:
    bomb = gzip.compress(bytes(5_000_000))
    upstream = answering(bomb, b"never read", headers=[("content-encoding", "gzip")])
    await failing(upstream, UpstreamBodyTooLarge, BufferedResponse, max_bytes=100_000, **options)
    assert upstream.chunks_read == 1


async def test_a_small_gzip_that_stays_coded_is_counted_as_it_is() -> None:
    bomb = gzip.compress(bytes(5_000_000))
    upstream = answering(bomb, headers=[("content-encoding", "gzip")])
    assert (await called(upstream, BufferedResponse, max_bytes=100_000)).body == bomb


async def test_a_transform_that_grows_past_the_bound_is_a_502() -> None:
    async def grows(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            while True:
                yield chunk

    upstream = answering(b"12345")
    await failing(upstream, UpstreamBodyTooLarge, BufferedResponse, max_bytes=50, transform=grows)


async def test_the_bound_is_ten_mebibytes_where_none_is_given() -> None:
    chunk = bytes(1024 * 1024)
    assert len((await called(answering(*[chunk] * 10), BufferedResponse)).body) == 10 * len(chunk)
    await failing(answering(*[chunk] * 10, b"x"), UpstreamBodyTooLarge, BufferedResponse)


# --- from_response -------------------------------------------------------------------------------


async def opened_by_hand(upstream: Upstream) -> httpx.Response:
    client = upstream.client()
    return await client.send(client.build_request("GET", "/"), stream=True)


@both
async def test_an_open_response_is_adopted_and_closed(cls: AnyClass) -> None:
    upstream = answering(b"a", b"b", status=201, headers=[("x-own", "1")])
    response = cls.from_response(await opened_by_hand(upstream), headers={"x-new": "1"})
    assert isinstance(response, cls)
    assert upstream.open == 1
    caller = await Caller().call(response)
    assert (caller.status, caller.body) == (201, b"ab")
    assert caller.values("x-own") == caller.values("x-new") == ["1"]
    assert (upstream.opened, upstream.open) == (1, 0)


@both
async def test_an_adopted_response_can_be_sent_once(cls: AnyClass) -> None:
    response = cls.from_response(await opened_by_hand(answering(b"a")))
    await Caller().call(response)
    caller = Caller()
    with pytest.raises(RuntimeError, match=r"StreamedResponse\(client, request\)"):
        await caller.call(response)
    assert caller.messages == []


@both
async def test_an_open_response_that_is_adopted_twice_is_sent_once(cls: AnyClass) -> None:
    upstream = await opened_by_hand(answering(b"a"))
    first, second = cls.from_response(upstream), cls.from_response(upstream)
    await Caller().call(first)
    caller = Caller()
    with pytest.raises(RuntimeError, match="the upstream's body is gone"):
        await caller.call(second)
    assert caller.messages == []


@both
async def test_a_response_whose_body_is_gone_is_not_adopted(cls: AnyClass) -> None:
    upstream = await opened_by_hand(answering(b"a"))
    async for _ in upstream.aiter_raw():
        pass
    with pytest.raises(RuntimeError, match="stream=True"):
        cls.from_response(upstream)


@both
async def test_a_closed_response_is_not_adopted(cls: AnyClass) -> None:
    upstream = await opened_by_hand(answering(b"a"))
    await upstream.aclose()
    with pytest.raises(RuntimeError, match="stream=True"):
        cls.from_response(upstream)


@both
async def test_a_response_read_whole_is_adopted_as_it_was_read(cls: AnyClass) -> None:
    coded = gzip.compress(b"text")
    upstream = await opened_by_hand(
        answering(coded, headers=[("content-encoding", "gzip"), ("content-length", "24")])
    )
    await upstream.aread()
    caller = await Caller().call(cls.from_response(upstream))
    assert caller.body == b"text"
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") in ([], ["4"])


async def test_options_of_an_adopted_response_are_checked_too() -> None:
    upstream = answering(b"a")
    opened = await opened_by_hand(upstream)
    with pytest.raises(ValueError, match="deadline=0"):
        StreamedResponse.from_response(opened, deadline=0)
    with pytest.raises(ValueError, match="max_bytes=0"):
        BufferedResponse.from_response(opened, max_bytes=0)
    await opened.aclose()


@both
async def test_a_caller_who_leaves_frees_an_adopted_response(cls: AnyClass) -> None:
    upstream = answering(b"a", 30.0)
    response = cls.from_response(await opened_by_hand(upstream))
    with anyio.fail_after(50):
        await Caller(leaves_after=0.05).call(response)
    assert upstream.open == 0


# --- called twice --------------------------------------------------------------------------


@both
async def test_a_response_called_twice_makes_two_exchanges(cls: AnyClass) -> None:
    upstream = answering(b"ok")
    client = upstream.client()
    response = cls(client, client.build_request("POST", "/", content=b"sent twice"))
    for _ in range(2):
        assert (await Caller("POST").call(response)).body == b"ok"
    assert upstream.bodies == [b"sent twice", b"sent twice"]
    assert (upstream.opened, upstream.open) == (2, 0)


@both
async def test_a_response_whose_body_can_be_sent_once_raises_when_called_again(
    cls: AnyClass,
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"once"

    upstream = answering(b"ok")
    client = upstream.client()
    response = cls(client, client.build_request("POST", "/", content=parts()))
    await Caller("POST").call(response)
    again = Caller("POST")
    with pytest.raises(RuntimeError, match="build the request with bytes"):
        await again.call(response)
    assert again.messages == []
    assert upstream.bodies == [b"once"]
    assert upstream.open == 0


# --- background ----------------------------------------------------------------------------


class Ran:
    """A background task that remembers what the caller had when it ran."""

    def __init__(self, caller: Caller, upstream: Upstream) -> None:
        self.caller = caller
        self.upstream = upstream
        self.when: list[tuple[bool, int]] = []

    async def __call__(self) -> None:
        self.when.append((self.caller.complete, self.upstream.open))


@both
async def test_background_runs_after_the_whole_response(cls: AnyClass) -> None:
    upstream, caller = answering(b"a", b"b"), Caller()
    ran = Ran(caller, upstream)
    await caller.call(answer_of(upstream, cls, background=BackgroundTask(ran)))
    assert ran.when == [(True, 0)]


@both
async def test_background_set_later_runs(cls: AnyClass) -> None:
    upstream, caller = answering(b"a"), Caller()
    ran = Ran(caller, upstream)
    response = answer_of(upstream, cls)
    response.background = BackgroundTask(ran)
    await caller.call(response)
    assert ran.when == [(True, 0)]


@both
async def test_background_runs_after_an_answer_sent_instead(cls: AnyClass) -> None:
    upstream, caller = answering(b"a"), Caller()
    ran = Ran(caller, upstream)
    await caller.call(
        answer_of(
            upstream, cls, background=BackgroundTask(ran), on_response=lambda r: Response("own")
        )
    )
    assert ran.when == [(True, 0)]


@both
@pytest.mark.parametrize("where", ["before the headers", "in the body"])
async def test_background_does_not_run_after_an_exception(cls: AnyClass, where: str) -> None:
    death = httpx.ReadError("reset")
    upstream = answering(failing=death) if where[0] == "b" else answering(b"a", death)
    caller = Caller()
    ran = Ran(caller, upstream)
    with pytest.raises(UpstreamProtocolError):
        await caller.call(answer_of(upstream, cls, background=BackgroundTask(ran)))
    assert ran.when == []


@both
@pytest.mark.parametrize("where", ["before the headers", "in the body"])
async def test_background_does_not_run_for_a_caller_who_left(cls: AnyClass, where: str) -> None:
    upstream = answering(b"a", 30.0, before=30 if where[0] == "b" else 0)
    caller = Caller(leaves_after=0.05)
    ran = Ran(caller, upstream)
    with anyio.fail_after(50):
        await caller.call(answer_of(upstream, cls, background=BackgroundTask(ran)))
    assert ran.when == []


@both
@pytest.mark.parametrize("messages", [0, 1])
async def test_background_does_not_run_where_sending_failed(cls: AnyClass, messages: int) -> None:
    upstream = answering(b"a", headers=[("content-length", "1")])
    caller = Caller(send_fails_after=messages)
    ran = Ran(caller, upstream)
    await caller.call(answer_of(upstream, cls, background=BackgroundTask(ran)))
    assert ran.when == []


# --- a caller who leaves -------------------------------------------------------------------


@both
async def test_a_caller_who_leaves_before_the_headers_frees_the_connection(
    cls: AnyClass, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = answering(b"a", before=30)
    caller = Caller(leaves_after=0.05)
    with anyio.fail_after(10):
        await caller.call(answer_of(upstream, cls))
    assert (upstream.opened, upstream.open) == (1, 0)
    assert [m.get("status") for m in caller.messages if "status" in m] in ([], [499])
    assert caller.body == b""
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@both
async def test_a_caller_who_leaves_while_the_upstream_is_silent_frees_the_connection(
    cls: AnyClass, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = answering(b"a", 30.0)
    caller = Caller(leaves_after=0.05)
    with anyio.fail_after(10):
        await caller.call(answer_of(upstream, cls))
    assert upstream.open == 0
    if cls is StreamedResponse:
        assert (caller.status, caller.body, caller.complete) == (200, b"a", False)
    else:
        assert [m.get("status") for m in caller.messages if "status" in m] in ([], [499])
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


async def test_a_caller_who_leaves_while_the_upstream_pours_frees_the_connection() -> None:
    pouring: list[bytes | float] = [b"a", 0.01] * 3000
    upstream = answering(*pouring)
    caller = Caller(leaves_after=0.05)
    with anyio.fail_after(10):
        await caller.call(answer_of(upstream))
    assert upstream.open == 0
    assert not caller.complete


@both
async def test_a_caller_who_left_before_the_call_frees_the_connection(cls: AnyClass) -> None:
    upstream = answering(b"a", before=30)
    caller = Caller()
    caller.left.set()
    with anyio.fail_after(10):
        await caller.call(answer_of(upstream, cls))
    assert upstream.open == 0


@both
@pytest.mark.parametrize("messages", [0, 1, 2])
async def test_a_server_that_fails_to_send_frees_the_connection(
    cls: AnyClass, messages: int, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = answering(b"a", 0.01, b"b", 0.01, b"c")
    with anyio.fail_after(50):
        await Caller(send_fails_after=messages).call(answer_of(upstream, cls))
    assert upstream.open == 0
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@both
async def test_a_caller_who_leaves_during_on_response_is_noticed(cls: AnyClass) -> None:
    async def slow(upstream: httpx.Response) -> None:
        await anyio.sleep(30)

    upstream = answering(b"a")
    with anyio.fail_after(10):
        await Caller(leaves_after=0.05).call(answer_of(upstream, cls, on_response=slow))
    assert upstream.open == 0


async def test_a_disconnect_after_the_last_part_is_no_caller_who_left() -> None:
    upstream = answering(b"a", headers=[("content-length", "1")])
    caller = Caller()
    ran = Ran(caller, upstream)
    for _ in range(3):
        caller.messages.clear()
        await caller.call(answer_of(upstream, background=BackgroundTask(ran)))
        caller.left = anyio.Event()
    assert [complete for complete, _ in ran.when] == [True] * 3


# --- uploads -------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "headers", [[(b"content-length", b"9")], [(b"transfer-encoding", b"chunked")]]
)
async def test_the_watch_for_the_caller_does_not_eat_the_upload(
    cls: AnyClass, headers: list[tuple[bytes, bytes]]
) -> None:
    upstream = answering(b"ok")
    caller = Caller("POST", headers=headers, body=[b"one", b"two", b"end"])

    async def parts() -> AsyncIterator[bytes]:
        more = True
        while more:
            # The first pause is long, for the watch may start late.
            await anyio.sleep(0 if caller.parts_left < 3 else 0.25)
            message = await caller.receive()
            assert message["type"] == "http.request", "the watch took a part of the upload"
            yield message["body"]
            more = message["more_body"]

    client = upstream.client()
    with anyio.fail_after(50):
        await caller.call(cls(client, client.build_request("POST", "/", content=parts())))
    assert upstream.bodies == [b"onetwoend"]
    assert caller.body == b"ok"


@both
async def test_a_caller_who_leaves_during_its_upload_frees_the_connection(
    cls: AnyClass, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = answering(b"ok")
    caller = Caller(
        "POST",
        headers=[(b"content-length", b"9")],
        body=[b"one"],
        body_is_whole=False,
        leaves_after=0.05,
    )
    request = Request(caller.scope, caller.receive)
    client = upstream.client()
    with anyio.fail_after(10):
        await caller.call(cls(client, client.build_request("POST", "/", content=request.stream())))
    assert upstream.open == 0
    assert [m.get("status") for m in caller.messages if "status" in m] in ([], [499])
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@both
async def test_a_caller_who_leaves_after_its_upload_frees_the_connection(cls: AnyClass) -> None:
    upstream = answering(b"ok", before=30)
    caller = Caller(
        "POST", headers=[(b"content-length", b"6")], body=[b"one", b"two"], leaves_after=0.05
    )
    request = Request(caller.scope, caller.receive)
    client = upstream.client()
    with anyio.fail_after(10):
        await caller.call(cls(client, client.build_request("POST", "/", content=request.stream())))
    assert upstream.bodies == [b"onetwo"]
    assert upstream.open == 0


# --- cancellation --------------------------------------------------------------------------


class CancelledAt:
    """Awaits a coroutine and cancels its task at the n-th time that it waits for the loop."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int) -> None:
        self._coroutine = coroutine
        self._n = n
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731
        while True:
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value
            self.waits += 1
            if self.waits == self._n:
                task = asyncio.current_task()
                assert task is not None
                task.cancel("from outside")
            try:
                value = yield waits_for
            except BaseException as exc:
                step = lambda exc=exc: self._coroutine.throw(exc)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda value=value: self._coroutine.send(value)  # type: ignore[misc]  # noqa: E731


async def waiting_on(awaitable: Awaitable[Any]) -> None:
    await awaitable


def scenario(cls: AnyClass, **options: Any) -> tuple[Upstream, Coroutine[Any, Any, Any]]:
    upstream = answering(b"a", 0.0, b"b", headers=[("x", "1")])
    caller = Caller()
    return upstream, answer_of(upstream, cls, **options)(caller.scope, caller.receive, caller.send)


def watched(cls: AnyClass) -> tuple[Upstream, Coroutine[Any, Any, Any]]:
    upstream = answering(b"a", b"b", before=0.4)
    caller = Caller()
    return upstream, answer_of(upstream, cls)(caller.scope, caller.receive, caller.send)


def replaced(cls: AnyClass) -> tuple[Upstream, Coroutine[Any, Any, Any]]:
    async def instead(upstream: httpx.Response) -> Response:
        await asyncio.sleep(0)
        return Response("own")

    return scenario(cls, on_response=instead)


def uploading(cls: AnyClass) -> tuple[Upstream, Coroutine[Any, Any, Any]]:
    upstream = answering(b"a")
    caller = Caller("POST", headers=[(b"content-length", b"6")], body=[b"one", b"two"])
    client = upstream.client()
    content = Request(caller.scope, caller.receive).stream()
    response = cls(client, client.build_request("POST", "/", content=content))
    return upstream, response(caller.scope, caller.receive, caller.send)


def dying(cls: AnyClass) -> tuple[Upstream, Coroutine[Any, Any, Any]]:
    upstream = answering(b"a", httpx.ReadError("reset"))
    caller = Caller()
    response = answer_of(upstream, cls, deadline=9)
    return upstream, response(caller.scope, caller.receive, caller.send)


SCENARIOS: dict[str, Callable[[AnyClass], tuple[Upstream, Coroutine[Any, Any, Any]]]] = {
    "plain": scenario,
    "deadline": lambda cls: scenario(cls, deadline=9),
    "transform": lambda cls: scenario(cls, transform=upper),
    "watched": watched,
    "replaced": replaced,
    "uploading": uploading,
    "dying": dying,
}


async def cancelled_at_any_wait(
    make: Callable[[], tuple[Upstream, Coroutine[Any, Any, Any]]],
) -> tuple[list[int], list[int]]:
    """At which waits a cancellation was swallowed, and at which it left something open."""
    upstream, coroutine = make()
    whole = CancelledAt(coroutine, 0)
    with contextlib.suppress(UpstreamError):
        await waiting_on(whole)
    assert upstream.open == 0
    assert whole.waits >= 4
    runs = [(n, *make()) for n in range(1, whole.waits + 1)]
    tasks = [asyncio.create_task(waiting_on(CancelledAt(coro, n))) for n, _, coro in runs]
    await asyncio.gather(*tasks, return_exceptions=True)
    swallowed = [n for (n, *_), task in zip(runs, tasks, strict=True) if not task.cancelled()]
    return swallowed, [n for n, upstream, _ in runs if upstream.open]


@both
@pytest.mark.parametrize("kind", SCENARIOS)
@pytest.mark.asyncio_only
async def test_a_task_cancelled_at_any_wait_leaves_nothing_open(cls: AnyClass, kind: str) -> None:
    def make() -> tuple[Upstream, Coroutine[Any, Any, Any]]:
        upstream, coroutine = SCENARIOS[kind](cls)
        upstream.closing_waits = False
        return upstream, coroutine

    assert await cancelled_at_any_wait(make) == ([], [])


# A shielded scope of anyio does not keep task.cancel() out.
@both
@pytest.mark.parametrize("kind", SCENARIOS)
@pytest.mark.asyncio_only
async def test_a_task_cancelled_while_it_closes_closes_all_the_same(
    cls: AnyClass, kind: str
) -> None:
    assert await cancelled_at_any_wait(lambda: SCENARIOS[kind](cls)) == ([], [])


@both
async def test_a_scope_of_anyio_that_is_cancelled_leaves_nothing_open(cls: AnyClass) -> None:
    for before, body in [(30.0, 0.0), (0.0, 30.0)]:
        upstream = answering(b"a", body, before=before)
        caller = Caller()
        with anyio.move_on_after(0.05) as scope:
            await answer_of(upstream, cls)(caller.scope, caller.receive, caller.send)
        assert scope.cancelled_caught
        assert upstream.open == 0
        assert not caller.complete


@both
async def test_a_timeout_of_the_apps_own_is_not_taken_for_the_deadline(cls: AnyClass) -> None:
    upstream = answering(b"a", before=30)
    caller = Caller()
    with pytest.raises(TimeoutError), anyio.fail_after(0.05):
        await answer_of(upstream, cls, deadline=20)(caller.scope, caller.receive, caller.send)
    assert upstream.open == 0


@both
@pytest.mark.asyncio_only
async def test_no_task_is_left_behind(cls: AnyClass) -> None:
    before = asyncio.all_tasks()
    for upstream in (answering(b"a"), answering(b"a", before=0.3)):
        caller = Caller()
        await answer_of(upstream, cls)(caller.scope, caller.receive, caller.send)
        assert asyncio.all_tasks() == before


# --- descriptions that are never sent ------------------------------------------------------


@both
async def test_a_response_that_is_dropped_opens_nothing(cls: AnyClass) -> None:
    upstream = answering(b"a")
    response = answer_of(upstream, cls, background=BackgroundTask(print), deadline=5)
    assert isinstance(response, Response)
    del response
    collect_garbage()
    assert upstream.opened == 0


@both
async def test_many_callers_who_leave_at_once_free_everything(cls: AnyClass) -> None:
    upstream = answering(b"a", 30.0)
    with anyio.fail_after(50):
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(Caller(leaves_after=0.05).call, answer_of(upstream, cls))
    assert (upstream.opened, upstream.open) == (100, 0)


# --- responses that were never a stream ----------------------------------------------------


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize(
    "option", [{"json": {"a": 1}}, {"content": b'{"a":1}'}, {"text": '{"a":1}'}]
)
async def test_hook_reads_a_response_that_was_never_streamed(
    option: dict[str, Any], replaces: bool
) -> None:
    """Mocks, caches and fallbacks return such responses, and they have no `elapsed`."""

    def hook(response: httpx.Response) -> JSONResponse | None:
        return JSONResponse({"seen": response.json()}) if replaces else None

    transport = httpx.MockTransport(lambda request: httpx.Response(200, **option))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        request = client.build_request("GET", "/")
        caller = await Caller().call(BufferedResponse(client, request, on_response=hook))
    assert caller.body == (b'{"seen":{"a":1}}' if replaces else b'{"a":1}')
