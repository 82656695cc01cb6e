"""ReverseProxy: methods, mounts and the answers to its errors."""

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message

from asgi_upstream import (
    ReverseProxy,
    UpstreamError,
)
from tests.support.asgi import answering
from tests.support.flavor import httpx
from tests.support.forwarding import (
    called,
    caller_of,
    client_of,
    forwarded,
    target_of,
)

pytestmark = pytest.mark.virtual_time


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_connect_and_trace_are_never_forwarded(method: str) -> None:
    upstream = answering()
    for allowed in (None, [method]):
        caller = await forwarded(upstream, "/", method, methods=allowed)
        assert caller.status == 405
        assert method not in caller.values("allow")
    assert upstream.requests == []


@pytest.mark.anyio
async def test_allow_header_of_a_405_is_not_empty() -> None:
    # RFC 9110 10.2.1: an empty Allow says just that.
    caller = await forwarded(answering(), "/", "TRACE")
    assert caller.values("allow") != [""]


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PATCH", "PROPFIND", "X"])
async def test_every_other_method_is_forwarded_by_default(method: str) -> None:
    upstream = answering()
    assert (await forwarded(upstream, "/", method)).status == 200
    assert upstream.requests[0].method == method


@pytest.mark.anyio
async def test_method_outside_methods_is_405_with_allow() -> None:
    upstream = answering()
    for method in ("POST", "get", "X"):
        caller = await forwarded(upstream, "/", method, methods={"GET", "HEAD"})
        assert (caller.status, caller.values("allow")) == (405, ["GET, HEAD"])
    assert upstream.requests == []
    assert (await forwarded(upstream, "/", "HEAD", methods={"GET", "HEAD"})).status == 200


@pytest.mark.anyio
async def test_methods_with_get_include_head() -> None:
    upstream = answering()
    assert (await forwarded(upstream, "/", "HEAD", methods=["GET"])).status == 200
    assert (await forwarded(upstream, "/", "HEAD", methods=["POST"])).status == 405


def test_methods_as_a_str_are_refused() -> None:
    with pytest.raises(TypeError, match="give a list of methods"):
        ReverseProxy(methods="GET")


@pytest.mark.anyio
async def test_a_head_is_forwarded_as_one_and_answered_with_its_length() -> None:
    upstream = answering(headers=[("content-length", "12")])
    caller = await forwarded(upstream, "/", "HEAD")
    assert upstream.requests[0].method == "HEAD"
    assert (caller.values("content-length"), caller.body) == (["12"], b"")


@pytest.mark.anyio
async def test_options_for_the_whole_server_is_answered_400() -> None:
    upstream = answering()
    assert (await forwarded(upstream, "*", "OPTIONS")).status == 400
    assert upstream.requests == []


@pytest.mark.anyio
async def test_as_the_whole_app_it_answers_the_lifespan() -> None:
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await ReverseProxy()({"type": "lifespan", "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.anyio
async def test_mounted_its_errors_go_to_the_apps_own_handlers() -> None:
    async def handler(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        return JSONResponse({"own": exc.status_code}, exc.status_code)

    app = Starlette(
        routes=[Mount("/api", ReverseProxy())], exception_handlers={HTTPException: handler}
    )
    upstream = answering(failing=httpx.ConnectError("no"))
    for path, status in (("/api/%2e%2e", 400), ("/api/a", 502)):
        caller = await called(caller_of(path, client=client_of(upstream)), app)
        assert (caller.status, caller.body) == (status, b'{"own":%d}' % status)


@pytest.mark.anyio
async def test_as_the_whole_app_it_answers_its_errors_plainly() -> None:
    upstream = answering(failing=httpx.PoolTimeout("full"))
    caller = await forwarded(upstream)
    assert (caller.status, caller.values("retry-after")) == (503, ["1"])
    assert caller.values("content-type") == ["text/plain; charset=utf-8"]
    assert b"up.example" not in caller.body


@pytest.mark.anyio
@pytest.mark.parametrize("mounted", [False, True])
async def test_upstream_failure_mid_body_cuts_the_callers_connection(
    mounted: bool,
) -> None:
    upstream = answering(b"a", httpx.ReadError("broken"))
    app: ASGIApp = ReverseProxy()
    if mounted:
        app = Starlette(routes=[Mount("/", app)])
    caller = caller_of(client=client_of(upstream))
    with pytest.raises((UpstreamError, RuntimeError)):  # Starlette's own, of a response begun
        await called(caller, app)
    assert (caller.status, caller.complete) == (200, False)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "routes",
    [
        [Route("/api/{path:path}", ReverseProxy(prefix="/api"))],
        [Mount("/api", ReverseProxy())],
        [Mount("/api", routes=[Mount("/", ReverseProxy(prefix="/api"))])],
        [Mount("/{tenant}", ReverseProxy())],
        [Mount("/", ReverseProxy(prefix="/api"))],
    ],
)
async def test_it_is_mounted_or_an_endpoint(routes: list[Mount | Route]) -> None:
    upstream = answering(b"ok")
    caller = caller_of("/api/a%2Fb/?c", client=client_of(upstream))
    await called(caller, Starlette(routes=routes))
    assert caller.body == b"ok"
    assert target_of(upstream.requests[0]) == b"/a%2Fb/?c"


@pytest.mark.anyio
async def test_an_endpoint_may_respond_by_it_after_what_it_does_itself() -> None:
    forward = ReverseProxy(prefix="/api")

    async def endpoint(request: Request) -> Response:
        response = await forward.respond(request)
        response.headers["x-own"] = "1"
        return response

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/api/{path:path}", endpoint)])
    caller = await called(caller_of("/api/a", client=client_of(upstream)), app)
    assert (caller.body, caller.values("x-own")) == (b"ok", ["1"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path", ["/%ff/a", "/%ff%fe/", "/%C3%A9/a", "/%2541/a", "/a%2Fb/c", "/%/a"]
)
async def test_any_path_under_a_mount_with_parameters_is_answered(
    path: str,
) -> None:
    # Servers decode a path with replacement characters where it is not UTF-8.
    upstream = answering(b"ok")
    app = Starlette(routes=[Mount("/{tenant}", ReverseProxy())])
    caller = await called(caller_of(path, client=client_of(upstream)), app)
    assert caller.status in (200, 400, 404)


@pytest.mark.anyio
async def test_path_outside_the_prefix_of_a_whole_app_is_400_or_404() -> None:
    # Here no route has chosen the paths: any caller may ask for any.
    app = Starlette(routes=[Mount("/", ReverseProxy(prefix="/api"))])
    caller = await called(caller_of("/other", client=client_of()), app)
    assert caller.status in (400, 404)
