"""Framing and body of a forwarded request, and what sits between it and the upstream."""

import functools
import typing
from typing import Any

import pytest
from pytest_httpx import HTTPXMock
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from asgi_upstream import (
    BufferedResponse,
    ReverseProxy,
    StreamedResponse,
    forward_request,
)
from tests.support.asgi import Caller, InMemoryUpstream, Script, answering
from tests.support.flavor import httpx
from tests.support.forwarding import (
    BASE,
    called,
    caller_of,
    client_of,
    forwarded,
    request_of,
    target_of,
    values,
)

pytestmark = pytest.mark.virtual_time


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PATCH", "X"])
async def test_a_body_of_known_length_is_sent_with_it(method: str) -> None:
    upstream = answering(b"ok")
    await forwarded(
        upstream, "/", method, headers=[(b"content-length", b"6")], body=[b"ab", b"", b"cdef"]
    )
    assert upstream.bodies == [b"abcdef"]
    assert values(upstream.requests[0], b"content-length") == [b"6"]
    assert not values(upstream.requests[0], b"transfer-encoding")


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_body_of_unknown_length_is_sent_in_chunks(method: str) -> None:
    upstream = answering(b"ok")
    caller_sent = [(b"transfer-encoding", b"chunked"), (b"content-length", b"6")]
    await forwarded(upstream, "/", method, headers=caller_sent, body=[b"ab", b"cdef"])
    assert upstream.bodies == [b"abcdef"]
    assert values(upstream.requests[0], b"transfer-encoding") == [b"chunked"]
    assert not values(upstream.requests[0], b"content-length")


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "X"])
async def test_no_body_is_invented_where_the_caller_sent_none(method: str) -> None:
    upstream = answering()
    await forwarded(upstream, "/", method)
    assert upstream.bodies == [b""]
    assert not values(upstream.requests[0], b"content-length")
    assert not values(upstream.requests[0], b"transfer-encoding")


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_length_of_zero_stays(method: str) -> None:
    upstream = answering()
    await forwarded(upstream, "/", method, headers=[(b"content-length", b"0")])
    assert values(upstream.requests[0], b"content-length") == [b"0"]


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["2", "3"])
async def test_http_2_body_without_length_is_sent_chunked(version: str) -> None:
    upstream = answering(b"ok")
    await forwarded(upstream, "/", "POST", body=[b"ab", b"c"], scope={"http_version": version})
    assert upstream.bodies == [b"abc"]
    assert values(upstream.requests[0], b"transfer-encoding") == [b"chunked"]


@pytest.mark.anyio
async def test_a_length_that_connection_names_does_not_cost_the_body() -> None:
    upstream = answering(b"ok")
    headers = [(b"connection", b"content-length"), (b"content-length", b"3")]
    await forwarded(upstream, "/", "POST", headers=headers, body=[b"abc"])
    assert upstream.bodies == [b"abc"]


@pytest.mark.anyio
async def test_a_caller_who_leaves_in_the_upload_ends_the_exchange() -> None:
    upstream = answering(b"ok")
    caller = caller_of("/", "POST", headers=[(b"content-length", b"6")], client=client_of(upstream))
    caller = _leaving(caller, [b"ab"])
    await called(caller, ReverseProxy())
    assert upstream.open == 0
    assert upstream.bodies == []
    assert not caller.messages or caller.status == 499


def _leaving(caller: Caller, parts: list[bytes]) -> Caller:
    leaving = Caller("POST", body=parts, body_is_whole=False)
    leaving.scope.update(caller.scope)
    leaving.left.set()
    return leaving


async def endpoint_after(read: str, request: Request) -> Response:
    if read == "body":
        await request.body()
    elif read == "json":
        await request.json()
    elif read == "stream":
        async for _ in request.stream():
            pass
    client: httpx.AsyncClient = request.state.client
    return StreamedResponse(client, forward_request(client, request))


@pytest.mark.anyio
@pytest.mark.parametrize("read", ["nothing", "body", "json"])
async def test_a_body_that_the_endpoint_read_and_kept_is_forwarded(read: str) -> None:
    upstream = answering(b"ok")
    endpoint = functools.partial(endpoint_after, read)
    app = Starlette(routes=[Route("/", endpoint, name="reads", methods=["POST"])])
    caller = caller_of(
        "/",
        "POST",
        headers=[(b"content-length", b"9")],
        body=[b'{"a"', b": 12}"[:5]],
        client=client_of(upstream),
    )
    await called(caller, app)
    assert caller.status == 200
    assert upstream.bodies == [b'{"a": 12}']


@pytest.mark.anyio
async def test_body_that_the_endpoint_streamed_is_an_error() -> None:
    upstream = answering(b"ok")
    endpoint = functools.partial(endpoint_after, "stream")
    app = Starlette(routes=[Route("/", endpoint, name="reads")])
    caller = caller_of(
        "/", headers=[(b"content-length", b"3")], body=[b"abc"], client=client_of(upstream)
    )
    with pytest.raises(RuntimeError, match="body was consumed before forward_request"):
        await called(caller, app)
    assert upstream.open == 0


@pytest.mark.anyio
@pytest.mark.parametrize("middleware_reads", [False, True])
async def test_body_that_middleware_read_is_forwarded(
    middleware_reads: bool,
) -> None:
    class Reading(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            if middleware_reads:
                assert await request.body() == b"abc"
            return await call_next(request)

    upstream = answering(b"ok")
    app = Starlette(routes=[Mount("/api", ReverseProxy())], middleware=[Middleware(Reading)])
    caller = caller_of(
        "/api/a",
        "POST",
        headers=[(b"content-length", b"3")],
        body=[b"ab", b"c"],
        client=client_of(upstream),
    )
    await called(caller, app)
    assert caller.body == b"ok"
    assert upstream.bodies == [b"abc"]


@pytest.mark.anyio
async def test_response_called_twice_refuses_to_send_a_body_again() -> None:
    upstream = answering(b"ok")
    client = client_of(upstream)
    request = request_of("/", "POST", headers=[(b"content-length", b"3")], body=[b"abc"])
    response = StreamedResponse(client, forward_request(client, request))
    assert (await called(Caller(), response)).status == 200
    with pytest.raises(RuntimeError, match="already been consumed"):
        await called(Caller(), response)


@pytest.mark.anyio
async def test_a_response_of_a_bodyless_request_can_be_called_again() -> None:
    upstream = InMemoryUpstream(_ok)
    client = client_of(upstream)
    response = StreamedResponse(client, forward_request(client, request_of()))
    for _ in range(2):
        assert (await called(Caller(), response)).status == 200


@pytest.mark.anyio
async def test_a_buffered_response_takes_a_forwarded_request_too() -> None:
    upstream = answering(b"on", b"e")
    client = client_of(upstream)
    request = request_of("/", "POST", headers=[(b"content-length", b"3")], body=[b"abc"])
    caller = await called(Caller(), BufferedResponse(client, forward_request(client, request)))
    assert (caller.body, caller.values("content-length")) == (b"one", ["3"])
    assert upstream.bodies == [b"abc"]


async def _ok(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=Script(b"ok"))


@pytest.mark.anyio
async def test_client_auth_wins_over_the_callers_authorization() -> None:
    upstream = answering(b"ok")
    caller = caller_of(
        headers=[(b"authorization", b"Bearer theirs"), (b"authorization", b"again")],
        client=client_of(upstream, auth=("user", "pw")),
    )
    await called(caller, ReverseProxy())
    assert values(upstream.requests[0], b"authorization") == [b"Basic dXNlcjpwdw=="]


@pytest.mark.anyio
async def test_authorization_passes_if_the_client_has_no_auth() -> None:
    upstream = answering(b"ok")
    await forwarded(upstream, headers=[(b"authorization", b"Bearer theirs")])
    assert values(upstream.requests[0], b"authorization") == [b"Bearer theirs"]


class SecondTry(httpx.Auth):
    """Asks again with a token when it is refused."""

    def auth_flow(
        self, request: httpx.Request
    ) -> typing.Generator[httpx.Request, httpx.Response, None]:
        response = yield request
        if response.status_code == 401:
            request.headers["authorization"] = "Bearer token"
            yield request


class Signed(httpx.Auth):
    requires_request_body = True

    def auth_flow(
        self, request: httpx.Request
    ) -> typing.Generator[httpx.Request, httpx.Response, None]:
        request.headers["x-signed"] = str(len(request.content))
        yield request


class KeyInQuery(httpx.Auth):
    def auth_flow(
        self, request: httpx.Request
    ) -> typing.Generator[httpx.Request, httpx.Response, None]:
        request.url = request.url.copy_set_param("key", "secret")
        yield request


async def _asks_for_a_token(request: httpx.Request) -> httpx.Response:
    is_known = request.headers.get("authorization") == "Bearer token"
    return httpx.Response(200 if is_known else 401, stream=Script(b"ok"))


@pytest.mark.anyio
async def test_an_auth_flow_may_send_a_bodyless_request_again() -> None:
    upstream = InMemoryUpstream(_asks_for_a_token)
    caller = caller_of("/a%2Fb", client=client_of(upstream, auth=SecondTry()))
    await called(caller, ReverseProxy())
    assert caller.status == 200
    assert [target_of(request) for request in upstream.requests] == [b"/a%2Fb"] * 2


@pytest.mark.anyio
async def test_auth_flow_that_repeats_a_streamed_body_is_an_error() -> None:
    upstream = InMemoryUpstream(_asks_for_a_token)
    caller = caller_of(
        "/",
        "POST",
        headers=[(b"content-length", b"3")],
        body=[b"abc"],
        client=client_of(upstream, auth=SecondTry()),
    )
    with pytest.raises(RuntimeError, match="already been consumed"):
        await called(caller, ReverseProxy())
    assert upstream.open == 0


@pytest.mark.anyio
async def test_an_auth_flow_may_read_the_body_and_it_is_still_sent() -> None:
    upstream = answering(b"ok")
    caller = caller_of(
        "/",
        "POST",
        headers=[(b"content-length", b"3")],
        body=[b"ab", b"c"],
        client=client_of(upstream, auth=Signed()),
    )
    await called(caller, ReverseProxy())
    assert values(upstream.requests[0], b"x-signed") == [b"3"]
    assert values(upstream.requests[0], b"content-length") == [b"3"]
    assert upstream.bodies == [b"abc"]


@pytest.mark.anyio
async def test_an_auth_that_changes_the_url_changes_what_is_sent() -> None:
    # What is sent is the target extension where there is one, and else the URL (httpcore).
    upstream = answering(b"ok")
    caller = caller_of("/a?b=1", client=client_of(upstream, auth=KeyInQuery()))
    await called(caller, ReverseProxy())
    sent = upstream.requests[0]
    assert b"key=secret" in sent.extensions.get("target", sent.url.raw_path)


@pytest.mark.anyio
async def test_event_hooks_of_the_client_see_the_true_request() -> None:
    seen: list[str] = []

    async def on_request(request: httpx.Request) -> None:
        seen.append(f"{request.method} {request.url}")
        request.headers["x-hook"] = "1"

    async def on_response(response: httpx.Response) -> None:
        seen.append(str(response.status_code))

    upstream = answering(b"ok")
    hooks = {"request": [on_request], "response": [on_response]}
    caller = caller_of("/api/a%2Fb?c", client=client_of(upstream, event_hooks=hooks))
    await called(caller, ReverseProxy(prefix="/api"))
    assert seen == [f"GET {BASE}/a%2Fb?c", "200"]
    assert values(upstream.requests[0], b"x-hook") == [b"1"]


@pytest.mark.anyio
async def test_a_hook_that_raises_for_status_is_answered_502() -> None:
    async def on_response(response: httpx.Response) -> None:
        response.raise_for_status()

    upstream = answering(b"no", status=404)
    hooks: dict[str, list[Any]] = {"response": [on_response]}
    caller = caller_of(client=client_of(upstream, event_hooks=hooks))
    await called(caller, ReverseProxy())
    assert caller.status == 502
    assert upstream.open == 0


@pytest.mark.anyio
async def test_a_mock_transport_sees_the_request() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=f"{request.method} {request.url.path}")

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=BASE)
    caller = await called(caller_of("/a/b", client=client), ReverseProxy())
    assert caller.body == b"GET /a/b"


@pytest.mark.anyio
async def test_pytest_httpx_matches_the_url_the_headers_and_the_body(
    httpx_mock: HTTPXMock,
) -> None:
    httpx_mock.add_response(
        method="POST",
        url=BASE + "/a%2Fb?c=1",
        match_content=b"abc",
        match_headers={"x-one": "1"},
        text="mocked",
    )
    async with httpx.AsyncClient(base_url=BASE) as client:
        caller = caller_of(
            "/a%2Fb?c=1",
            "POST",
            headers=[(b"x-one", b"1"), (b"content-length", b"3")],
            body=[b"abc"],
            client=client,
        )
        await called(caller, ReverseProxy())
    assert caller.body == b"mocked"


@pytest.mark.anyio
@pytest.mark.parametrize("body", [[], [b"abc"]])
@pytest.mark.parametrize("to", ["/b", "http://other.example/b"])
async def test_redirect_is_relayed_even_if_the_client_follows_them(
    to: str, body: list[bytes]
) -> None:
    upstream = answering(status=307, headers=[("location", to)])
    caller = caller_of(
        "/a",
        "POST",
        headers=[(b"content-length", b"3")] if body else [],
        body=body,
        client=client_of(upstream, follow_redirects=True),
    )
    await called(caller, ReverseProxy())
    assert (caller.status, caller.values("location")) == (307, [to])
    assert len(upstream.requests) == 1


@pytest.mark.anyio
async def test_forwarded_request_sent_by_hand_follows_redirects() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        # As httpcore does, which sends the target extension where there is one.
        target = request.extensions.get("target", request.url.raw_path)
        if target == b"/a":
            return httpx.Response(302, headers={"location": "/b"}, stream=Script())
        return httpx.Response(200, stream=Script(target))

    client = client_of(InMemoryUpstream(answer), follow_redirects=True)
    response = await client.send(forward_request(client, request_of("/a")))
    assert (response.status_code, response.content) == (200, b"/b")
