"""Methods and options of a proxy: preserve_host, headers, a bare mount path, overridden clients."""

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from asgi_upstream import (
    ReverseProxy,
    client_dependency,
    get_client,
)
from tests.support.asgi import Caller, answering
from tests.support.flavor import httpx
from tests.support.forwarding import called, make_caller

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@pytest.mark.parametrize("method", ["G\xc9T", "GET X", "", "A\tB"])
async def test_invalid_method_is_answered_400(method: str) -> None:
    upstream = answering(b"ok")
    caller = await called(make_caller(upstream, method), ReverseProxy())
    assert (caller.status, caller.body) == (400, b"Invalid method")
    assert not upstream.requests


HOST = (b"host", b"app.example:8000")


@pytest.mark.parametrize(
    ("preserve_host", "expected"),
    [(True, "app.example:8000"), (False, "upstream.example:8765")],
)
async def test_preserve_host_sends_host_of_caller(preserve_host: bool, expected: str) -> None:
    upstream = answering(b"ok")
    caller = make_caller(upstream, "GET", headers=[HOST])
    await called(caller, ReverseProxy(preserve_host=preserve_host))
    assert upstream.requests[0].headers.get_list("host") == [expected]
    assert upstream.requests[0].url.host == "upstream.example"


async def test_preserve_host_finds_a_name_in_any_case() -> None:
    upstream = answering(b"ok")
    headers = [(b"Accept", b"a"), (b"HOST", b"app.example")]
    await called(make_caller(upstream, "GET", headers=headers), ReverseProxy(preserve_host=True))
    assert upstream.requests[0].headers.get_list("host") == ["app.example"]


async def test_preserve_host_without_host_sends_that_of_upstream() -> None:
    upstream = answering(b"ok")
    await called(make_caller(upstream, "GET"), ReverseProxy(preserve_host=True))
    assert upstream.requests[0].headers["host"] == "upstream.example:8765"


async def respond(proxy: ReverseProxy, headers: Any, request: Request) -> Response:
    return await proxy.respond(request, headers=headers)


def set_b(raw: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [*raw, (b"X-B", b"function")]


@pytest.mark.parametrize(
    ("own", "once", "expected"),
    [
        ({"x-a": "1"}, {"x-a": "2"}, {"x-a": "2"}),
        ({"x-a": "1"}, {"x-b": "2"}, {"x-a": "1", "x-b": "2"}),
        ({"x-a": "1"}, set_b, {"x-a": "1", "x-b": "function"}),
        (set_b, {"x-b": None}, {}),
        (None, {"x-b": "2"}, {"x-b": "2"}),
        ({"x-b": "1"}, None, {"x-b": "1"}),
    ],
)
async def test_respond_takes_headers_for_one_request(own: Any, once: Any, expected: Any) -> None:
    upstream = answering(b"ok")
    endpoint = functools.partial(respond, ReverseProxy(prefix="", headers=own), once)
    app = Starlette(routes=[Route("/", endpoint, methods=["GET"])])
    await called(make_caller(upstream, "GET"), app)
    headers = upstream.requests[0].headers
    assert {name: headers[name] for name in ("x-a", "x-b") if name in headers} == expected


async def test_path_outside_of_prefix_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    proxy, upstream = ReverseProxy(prefix="/orders"), answering(b"ok")
    app = Starlette(routes=[Route("/v1/orders/{path:path}", proxy)])
    for _ in range(2):
        caller = make_caller(upstream, "GET", path="/v1/orders/a", raw_path=b"/v1/orders/a")
        assert (await called(caller, app)).status == 404
    messages = [r.getMessage() for r in caplog.records if "answered 404" in r.getMessage()]
    assert len(messages) == 1
    assert "/v1/orders/a" in messages[0]
    assert "/orders" in messages[0]


BARE = ReverseProxy(prefix="/mcp")


@pytest.mark.parametrize(
    ("path", "target"), [("/mcp", b"/"), ("/mcp/", b"/"), ("/mcp/a/b", b"/a/b")]
)
@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
async def test_route_beside_mount_serves_bare_path(
    path: str, target: bytes, framework: str
) -> None:
    if framework == "starlette":
        app: Starlette = Starlette()
    else:
        app = fastapi.FastAPI()
    app.router.routes.append(Route("/mcp", BARE))
    app.router.routes.append(Mount("/mcp", BARE))
    upstream = answering(b"ok")
    caller = make_caller(upstream, "POST", [b"{}"], path=path, raw_path=path.encode())
    assert (await called(caller, app)).status == 200
    assert upstream.requests[0].extensions["target"] == target
    assert upstream.bodies == [b"{}"]


# --- FastAPI's dependency_overrides ---------------------------------------------------------


@pytest.mark.parametrize("style", ["sync", "async", "connection", "yield", "async yield"])
@pytest.mark.parametrize("form", ["mount", "respond"])
@pytest.mark.parametrize("name", ["client", "billing"])
async def test_dependency_override_replaces_client(style: str, form: str, name: str) -> None:
    upstream, events = answering(b"overridden"), list[str]()
    client = upstream.client()

    def sync() -> httpx.AsyncClient:
        return client

    async def is_async() -> httpx.AsyncClient:
        return client

    def with_connection(request: Request) -> httpx.AsyncClient:
        assert request.scope["path"].startswith("/api")
        return client

    def with_yield() -> Any:
        yield client
        events.append("closed")

    async def with_async_yield() -> AsyncIterator[httpx.AsyncClient]:
        yield client
        events.append("closed")

    app = fastapi.FastAPI()
    overrides: dict[str, Any] = {
        "sync": sync,
        "async": is_async,
        "connection": with_connection,
        "yield": with_yield,
        "async yield": with_async_yield,
    }
    app.dependency_overrides[client_dependency(name)] = overrides[style]
    proxy = ReverseProxy(name, prefix="/api")
    if form == "mount":
        app.mount("/api", proxy)
    else:

        async def endpoint(request: fastapi.Request) -> fastapi.Response:
            return await proxy.respond(request)

        app.add_api_route("/api/{path:path}", endpoint, include_in_schema=False)
    caller = Caller()
    caller.scope.update(path="/api/a", raw_path=b"/api/a")
    await called(caller, app)
    assert caller.body == b"overridden"
    assert events == (["closed"] if "yield" in style else [])


def make_override(client: httpx.AsyncClient) -> Any:
    def override(*args: object, page: int = 1, **options: object) -> httpx.AsyncClient:
        assert not args
        return client

    return override


async def test_override_is_called_without_optional_arguments() -> None:
    upstream = answering(b"overridden")
    app = fastapi.FastAPI()
    app.dependency_overrides[get_client] = make_override(upstream.client())
    app.mount("/", ReverseProxy())
    assert (await called(Caller(), app)).body == b"overridden"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["fastapi_inner_astack"], "fastapi_inner_astack"),
        (["fastapi_middleware_astack"], "fastapi_middleware_astack"),
        (["fastapi_middleware_astack", "fastapi_inner_astack"], "fastapi_inner_astack"),
        ([], None),
    ],
)
async def test_override_with_yield_ends_with_the_innermost_stack(
    keys: list[str], expected: str | None
) -> None:
    upstream, closed = answering(b"overridden"), list[str]()

    def override() -> Any:
        yield upstream.client()
        closed.append("override")

    caller, stacks = Caller(), {key: AsyncExitStack() for key in keys}
    app = SimpleNamespace(dependency_overrides={get_client: override})
    caller.scope.update(app=app, **stacks)
    if expected is None:
        with pytest.raises(TypeError, match="no exit stack"):
            await called(caller, ReverseProxy())
        return
    await called(caller, ReverseProxy())
    assert not closed
    await stacks[expected].aclose()
    assert closed == ["override"]


async def test_override_with_more_arguments_is_an_error() -> None:
    app = fastapi.FastAPI()
    app.dependency_overrides[get_client] = lambda a, b: None
    app.mount("/", ReverseProxy())
    with pytest.raises(TypeError, match="needs a, b"):
        await called(Caller(), app)


@pytest.mark.parametrize(
    "options", [{"max_message_bytes": 0}, {"max_message_bytes": 1.5}, {"ping_interval": 0}]
)
def test_websocket_option_that_makes_no_sense_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ReverseProxy(**options)
