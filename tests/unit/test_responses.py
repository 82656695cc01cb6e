"""StreamedResponse and BufferedResponse, between a caller and an upstream in memory.

Where a test is about both, it is parametrized with `both`. What needs sockets and servers is in
tests/integration."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from asgi_upstream import (
    BufferedResponse,
    StreamedResponse,
    UpstreamProtocolError,
)
from tests.support.asgi import (
    Caller,
    InMemoryUpstream,
    RawHeaders,
    Script,
    answering,
    collect_garbage,
)
from tests.support.flavor import httpx
from tests.support.responses import AnyClass, answer_of, both, called, failing

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


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

    with anyio.fail_after(60):
        await Slow().call(answer_of(upstream))
    assert max(ahead) == 1


async def test_the_head_is_not_held_back_until_there_is_a_body() -> None:
    """Some servers send the head with the first part of the body, so there must be one."""
    upstream = answering(30.0, headers=[("content-type", "text/event-stream")])
    caller = Caller(leaves_after=0.3)
    with anyio.fail_after(60):
        await caller.call(answer_of(upstream))
    assert caller.status == 200
    assert caller.messages[1] == {"type": "http.response.body", "body": b"", "more_body": True}


async def test_the_content_length_of_an_untouched_stream_is_kept() -> None:
    caller = await called(answering(b"12", b"345", headers=[("content-length", "5")]))
    assert caller.values("content-length") == ["5"]
    assert caller.body == b"12345"


async def test_upstream_is_closed_before_the_last_byte_is_sent() -> None:
    """If the length is known."""
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

    upstream = InMemoryUpstream(answer)
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
async def test_status_that_is_not_final_is_a_logged_protocol_error(
    cls: AnyClass, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caller, error = await failing(answering(b"x", status=status), UpstreamProtocolError, cls)
    assert caller.messages == []
    assert f"failed: UpstreamProtocolError: status {status} (GET" in caplog.text
    assert str(status) not in str(error)


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
async def test_given_status_without_content_drops_the_body(cls: AnyClass) -> None:
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
async def test_upstream_content_type_is_relayed_unless_one_is_given(cls: AnyClass) -> None:
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
async def test_missing_client_or_request_is_refused_by_public_name(cls: AnyClass) -> None:
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
async def test_caller_request_instead_of_upstream_request_is_refused(cls: AnyClass) -> None:
    with pytest.raises(TypeError, match="build_request"):
        cls(httpx.AsyncClient(), Request(Caller().scope))  # type: ignore[call-overload]


@both
async def test_a_url_in_place_of_a_request_is_refused(cls: AnyClass) -> None:
    with pytest.raises(TypeError, match="build_request"):
        cls(httpx.AsyncClient(), "http://x.example")  # type: ignore[call-overload]


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
async def test_second_call_with_a_body_sent_once_raises(
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
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(Caller(leaves_after=0.05).call, answer_of(upstream, cls))
    assert (upstream.opened, upstream.open) == (100, 0)


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


@pytest.mark.parametrize("response_class", [StreamedResponse, BufferedResponse])
def test_unexpected_argument_names_the_class(response_class: Any) -> None:
    client = httpx.AsyncClient()
    request = client.build_request("GET", "http://upstream.example/")
    name = response_class.__name__
    with pytest.raises(
        TypeError, match=rf"^{name}\.__init__\(\) .* keyword argument 'error_frame'"
    ):
        response_class(client, request, error_frame=None)
