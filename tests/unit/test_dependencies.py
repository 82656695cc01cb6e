"""Finding a shared client, wherever there is a connection."""

import inspect
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_upstream import client_dependency, combine_lifespans, get_client
from tests.support.flavor import client_lifespan, httpx

Client = Annotated[httpx.AsyncClient, Depends(get_client)]
LIFESPAN = client_lifespan(base_url="http://main.example")
TWO = combine_lifespans(
    LIFESPAN, client_lifespan(name="billing", base_url="http://billing.example")
)


def base_of(client: httpx.AsyncClient) -> str:
    return str(client.base_url)


async def endpoint(request: Request) -> PlainTextResponse:
    return PlainTextResponse(base_of(await get_client(request)))


def get(app: Starlette, path: str = "/", **options: Any) -> str:
    with TestClient(app) as caller:
        answer = caller.get(path, **options)
        assert answer.status_code == 200
        return answer.text


# --- where it works ------------------------------------------------------------------------


def test_it_is_found_in_a_route() -> None:
    assert get(Starlette(lifespan=LIFESPAN, routes=[Route("/", endpoint)])) == "http://main.example"


def test_every_request_gets_the_same_client() -> None:
    seen: list[httpx.AsyncClient] = []

    async def remember(request: Request) -> Response:
        seen.append(await get_client(request))
        return Response()

    with TestClient(Starlette(lifespan=LIFESPAN, routes=[Route("/", remember)])) as caller:
        caller.get("/")
        caller.get("/")
        assert seen[0] is seen[1]
        assert not seen[0].is_closed
    assert seen[0].is_closed


@pytest.mark.parametrize("inner", [Starlette, Router])
def test_it_is_found_in_a_mounted_sub_app(inner: Callable[..., ASGIApp]) -> None:
    deep = inner(routes=[Mount("/b", inner(routes=[Route("/c", endpoint)]))])
    app = Starlette(lifespan=LIFESPAN, routes=[Mount("/a", deep)])
    assert get(app, "/a/b/c") == "http://main.example"


def test_it_is_found_in_a_mounted_fastapi_app() -> None:
    sub = FastAPI()

    @sub.get("/")
    async def route(client: Client) -> str:
        return base_of(client)

    app = FastAPI(lifespan=LIFESPAN)
    app.mount("/sub", sub)
    assert get(app, "/sub/") == '"http://main.example"'


def test_it_is_found_in_a_websocket_route() -> None:
    async def route(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_text(base_of(await get_client(websocket)))
        await websocket.close()

    app = Starlette(lifespan=LIFESPAN, routes=[WebSocketRoute("/", route)])
    with TestClient(app) as caller, caller.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "http://main.example"


def test_it_is_found_in_an_exception_handler() -> None:
    async def fails(request: Request) -> Response:
        raise LookupError

    async def handler(request: Request, exc: Exception) -> Response:
        return await endpoint(request)

    app = Starlette(
        lifespan=LIFESPAN,
        routes=[Route("/", fails)],
        exception_handlers={LookupError: handler, 404: handler},
    )
    assert get(app) == "http://main.example"
    assert get(app, "/nowhere") == "http://main.example"


def test_it_is_found_in_a_pure_asgi_middleware() -> None:
    class Pure:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                return await self.app(scope, receive, send)
            client = await get_client(HTTPConnection(scope))
            return await PlainTextResponse(base_of(client))(scope, receive, send)

    assert get(Starlette(lifespan=LIFESPAN, middleware=[Middleware(Pure)])) == "http://main.example"


def test_it_is_found_in_a_base_http_middleware_and_under_it() -> None:
    class Base(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            response = await call_next(request)
            response.headers["x-seen"] = base_of(await get_client(request))
            return response

    app = Starlette(lifespan=LIFESPAN, middleware=[Middleware(Base)], routes=[Route("/", endpoint)])
    with TestClient(app) as caller:
        answer = caller.get("/")
    assert answer.headers["x-seen"] == answer.text == "http://main.example"


# --- in FastAPI ----------------------------------------------------------------------------


def fastapi_app(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    router = APIRouter(prefix="/router")

    @app.get("/")
    async def is_async(client: Client) -> str:
        return base_of(client)

    @app.get("/plain")
    def is_plain(client: Client) -> str:
        return base_of(client)

    @router.get("/")
    async def routed(client: Client) -> str:
        return base_of(client)

    @app.get("/billing")
    async def other(
        billing: Annotated[httpx.AsyncClient, Depends(client_dependency("billing"))], client: Client
    ) -> str:
        return base_of(billing) + " " + base_of(client)

    @app.websocket("/ws")
    async def websocket_route(websocket: WebSocket, client: Client) -> None:
        await websocket.accept()
        await websocket.send_text(base_of(client))
        await websocket.close()

    app.include_router(router)
    return app


@pytest.mark.parametrize("path", ["/", "/plain", "/router/"])
def test_it_is_a_dependency_of_fastapi(path: str) -> None:
    assert get(fastapi_app(lifespan=LIFESPAN), path) == '"http://main.example"'


def test_it_is_a_dependency_of_a_websocket_route() -> None:
    app = fastapi_app(lifespan=LIFESPAN)
    with TestClient(app) as caller, caller.websocket_connect("/ws") as websocket:
        assert websocket.receive_text() == "http://main.example"


def test_two_clients_are_found_by_their_names() -> None:
    expected = '"http://billing.example http://main.example"'
    assert get(fastapi_app(lifespan=TWO), "/billing") == expected


def test_it_costs_no_worker_thread() -> None:
    assert inspect.iscoroutinefunction(get_client)
    assert inspect.iscoroutinefunction(client_dependency("billing"))


def test_the_client_is_no_part_of_the_documented_interface() -> None:
    route = fastapi_app().openapi()["paths"]["/"]["get"]
    assert "parameters" not in route
    assert "requestBody" not in route


def test_an_override_takes_the_place_of_the_client() -> None:
    app = fastapi_app(lifespan=LIFESPAN)
    app.dependency_overrides[get_client] = lambda: httpx.AsyncClient(base_url="http://fake")
    assert get(app, "/plain") == '"http://fake"'
    app.dependency_overrides.clear()
    assert get(app, "/plain") == '"http://main.example"'


def test_an_override_needs_no_lifespan() -> None:
    app = fastapi_app()
    app.dependency_overrides[get_client] = lambda: httpx.AsyncClient(base_url="http://fake")
    assert get(app) == '"http://fake"'


def test_an_override_of_a_named_client_leaves_the_others() -> None:
    app = fastapi_app(lifespan=LIFESPAN)
    fake = httpx.AsyncClient(base_url="http://fake")
    app.dependency_overrides[client_dependency("billing")] = lambda: fake
    assert get(app, "/billing") == '"http://fake http://main.example"'


# --- client_dependency ---------------------------------------------------------------------


def test_one_name_has_one_function() -> None:
    assert client_dependency("billing") is client_dependency("billing")
    assert client_dependency("billing") is not client_dependency("search")


def test_the_name_of_get_client_has_that_very_function() -> None:
    assert client_dependency("client") is get_client


@pytest.mark.anyio
async def test_a_named_client_is_found_in_any_connection() -> None:
    client = httpx.AsyncClient()
    connection = HTTPConnection({"type": "http", "headers": [], "state": {"billing": client}})
    assert await client_dependency("billing")(connection) is client


def test_a_client_that_a_lifespan_of_ones_own_yields_is_found() -> None:
    @asynccontextmanager
    async def own(app: object) -> AsyncIterator[Mapping[str, object]]:
        async with httpx.AsyncClient(base_url="http://own.example") as client:
            yield {"client": client}

    assert get(Starlette(lifespan=own, routes=[Route("/", endpoint)])) == "http://own.example"


# --- on servers that drop the lifespan state ------------------------------------------------


class DropsState:
    """A server that runs the lifespan and drops its state, as Ray Serve does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope = {key: value for key, value in scope.items() if key != "state"}
        await self.app(scope, receive, send)


async def from_middleware(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(base_of(await get_client(HTTPConnection(scope))))(scope, receive, send)


def sub_fastapi() -> FastAPI:
    sub = FastAPI()

    @sub.get("/{path:path}")
    async def inner(client: Client) -> str:
        return base_of(client)

    return sub


@pytest.mark.parametrize("outer", [Starlette, FastAPI])
@pytest.mark.parametrize(
    "mounted",
    [
        endpoint,
        from_middleware,
        Starlette(routes=[Route("/{path:path}", endpoint)]),
        Starlette(routes=[Mount("/", Starlette(routes=[Route("/{path:path}", endpoint)]))]),
        Router(routes=[Route("/{path:path}", endpoint)]),
        sub_fastapi(),
    ],
    ids=lambda mounted: getattr(mounted, "__name__", type(mounted).__name__),
)
def test_client_is_found_without_lifespan_state(outer: Callable[..., Any], mounted: Any) -> None:
    route = Route("/{path:path}", endpoint) if mounted is endpoint else Mount("/", mounted)
    app = outer(lifespan=LIFESPAN, routes=[route])
    with TestClient(DropsState(app)) as caller:
        assert caller.get("/x").text.strip('"') == "http://main.example"
    assert not hasattr(app.state, "client")


def test_websocket_finds_client_without_lifespan_state() -> None:
    async def accept(websocket: WebSocket) -> None:
        client = await get_client(websocket)
        await websocket.accept()
        await websocket.send_text(base_of(client))
        await websocket.close()

    app = Starlette(lifespan=LIFESPAN, routes=[WebSocketRoute("/", accept)])
    with TestClient(DropsState(app)) as caller, caller.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "http://main.example"


def test_named_clients_are_found_without_lifespan_state() -> None:
    async def both(request: Request) -> PlainTextResponse:
        billing = await client_dependency("billing")(request)
        return PlainTextResponse(base_of(await get_client(request)) + base_of(billing))

    app = Starlette(lifespan=TWO, routes=[Route("/", both)])
    with TestClient(DropsState(app)) as caller:
        assert caller.get("/").text == "http://main.examplehttp://billing.example"


@pytest.mark.anyio
async def test_lifespan_state_precedes_app_state() -> None:
    app = Starlette()
    async with LIFESPAN(app):
        scope: Scope = {"type": "http", "headers": [], "app": app, "state": {"client": "first"}}
        found: Any = await get_client(HTTPConnection(scope))
        assert found == "first"


@pytest.mark.anyio
async def test_client_is_found_in_an_app_mounted_in_litestar() -> None:
    """Litestar drops what a lifespan yields, and a mounted Starlette app replaces the app."""

    class Litestar:
        state = State()

    app = Litestar()
    scope: Scope = {"type": "http", "headers": [], "app": Starlette(), "litestar_app": app}
    async with LIFESPAN(app):
        assert base_of(await get_client(HTTPConnection(scope))) == "http://main.example"
    with pytest.raises(RuntimeError, match="there is no client"):
        await get_client(HTTPConnection(scope))


@pytest.mark.anyio
async def test_attribute_of_the_app_itself_is_left_alone() -> None:
    app = Starlette()
    app.state.client = "the app's own"
    async with LIFESPAN(app) as state:
        assert app.state.client == "the app's own"
        assert isinstance(state["client"], httpx.AsyncClient)
    assert app.state.client == "the app's own"


@pytest.mark.anyio
async def test_second_lifespan_of_an_app_takes_over_its_state() -> None:
    app = Starlette()
    async with LIFESPAN(app) as first, LIFESPAN(app) as second:
        assert app.state.client is second["client"] is not first["client"]


def test_app_can_be_pickled_before_and_after_its_lifespan() -> None:
    app = Starlette(lifespan=LIFESPAN)
    before = pickle.dumps(app.state)
    with TestClient(app):
        pass
    assert pickle.dumps(app.state) == before


# --- where there is none -------------------------------------------------------------------


async def refusal(name: str, state: dict[str, object] | None) -> str:
    scope: Scope = {"type": "http", "headers": []}
    if state is not None:
        scope["state"] = state
    with pytest.raises(RuntimeError) as caught:
        await client_dependency(name)(HTTPConnection(scope))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("state", [None, {}])
async def test_without_a_lifespan_the_error_tells_all_likely_causes(
    state: dict[str, object] | None,
) -> None:
    message = await refusal("client", state)
    assert "'client'" in message
    assert "lifespan=client_lifespan(...)" in message
    assert "sub-app" in message
    assert "with TestClient(app)" in message


@pytest.mark.anyio
@pytest.mark.parametrize("state", [None, {}])
async def test_without_a_named_client_the_line_to_add_has_its_name(
    state: dict[str, object] | None,
) -> None:
    message = await refusal("billing", state)
    assert "'billing'" in message
    assert "client_lifespan(name='billing'" in message


@pytest.mark.anyio
async def test_where_only_others_are_there_the_error_names_them() -> None:
    message = await refusal("billing", {"client": object(), "database": object()})
    assert "'client'" in message
    assert "'database'" in message
    assert "client_lifespan(name='billing'" in message
    assert "combine_lifespans" in message


def test_a_test_client_without_with_is_told_of() -> None:
    app = Starlette(lifespan=LIFESPAN, routes=[Route("/", endpoint)])
    with pytest.raises(RuntimeError, match="with TestClient"):
        TestClient(app).get("/")


def test_a_lifespan_of_a_sub_app_alone_is_told_of() -> None:
    sub = Starlette(lifespan=LIFESPAN, routes=[Route("/", endpoint)])
    app = Starlette(routes=[Mount("/sub", sub)])
    with TestClient(app) as caller, pytest.raises(RuntimeError, match="sub-app"):
        caller.get("/sub/")


@pytest.mark.anyio
async def test_missing_lifespan_of_asgi_transport_is_explained() -> None:
    """The transport works if it is given the state."""
    app = Starlette(lifespan=LIFESPAN, routes=[Route("/", endpoint)])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as caller:
        with pytest.raises(RuntimeError, match="ASGITransport"):
            await caller.get("/")

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    async with LIFESPAN(app) as state:
        transport = httpx.ASGITransport(cast(Any, with_state))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as caller:
            assert (await caller.get("/")).text == "http://main.example"
