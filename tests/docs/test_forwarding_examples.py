"""The examples and the documents on forwarding, on a real uvicorn with a real upstream."""

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, Depends, FastAPI, Form, HTTPException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from asgi_upstream import (
    ReverseProxy,
    StreamedResponse,
    client_lifespan,
    forward_request,
    get_client,
)
from tests.support import example_apps
from tests.support.example_apps import imported, open_at, served, until

Call = Callable[..., httpx.Client]

upstream_url, upstream = example_apps.upstream_url, example_apps.upstream


@pytest.fixture
def call(upstream: httpx.Client) -> Iterator[Call]:
    """Serves an app, or an example by its name, and returns a caller of it."""
    with ExitStack() as stack:

        def start(app: Any, **environment: str) -> httpx.Client:
            if isinstance(app, str):
                app = imported(app, str(upstream.base_url), **environment)
            url = stack.enter_context(served(app))
            return stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=60))

        yield start


# gateway.py

ANN = {"x-api-key": "key-of-ann"}


def test_gateway_sends_each_service_its_own_key(call: Call) -> None:
    caller = call("gateway")
    for service in ("stock", "billing"):
        sent = caller.get(f"/{service}/headers", headers=ANN).json()
        assert sent["authorization"] == f"Bearer of-the-gateway-for-{service}"


@pytest.mark.parametrize("service", ["stock", "billing"])
def test_gateway_lets_no_caller_override_the_key_or_see_it(call: Call, service: str) -> None:
    headers = [*ANN.items(), ("authorization", "Bearer mine"), ("Authorization", "Bearer mine too")]
    response = call("gateway").get(f"/{service}/headers", headers=headers)
    assert response.json()["authorization"] == f"Bearer of-the-gateway-for-{service}"
    assert "of-the-gateway" not in str(response.headers)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "key-of-eve"}, {"x-api-key": "schlüssel"}])
@pytest.mark.parametrize("path", ["/stock/item", "/billing/item", "/stock/", "/stock/%2e%2e/x"])
def test_gateway_asks_no_service_for_a_caller_who_is_not_known(
    call: Call, headers: dict[str, str], path: str
) -> None:
    caller = call("gateway", STOCK_URL="http://127.0.0.1:1", BILLING_URL="http://127.0.0.1:1")
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert caller.get(path, headers=encoded).status_code == 401


def test_gateway_drops_the_callers_key_and_names_the_caller(call: Call) -> None:
    caller = call("gateway")
    stock = caller.get("/stock/headers", headers=ANN).json()
    assert "x-api-key" not in stock
    assert "x-caller" not in stock
    billing = caller.get("/billing/headers", headers={**ANN, "x-caller": "bob"}).json()
    assert "x-api-key" not in billing
    assert billing["x-caller"] == "ann"


def test_gateway_lets_nobody_say_who_asks_by_an_underscore_twin(call: Call) -> None:
    # Upstreams of CGI's kind read `x_caller` and `x-caller` as one.
    sent = call("gateway").get("/billing/headers", headers={**ANN, "x_caller": "bob"}).json()
    assert {name: value for name, value in sent.items() if name.endswith("caller")} == {
        "x-caller": "ann"
    }


@pytest.mark.parametrize("service", ["stock", "billing"])
def test_gateway_works_with_a_root_path_of_the_server(
    call: Call, upstream: httpx.Client, service: str
) -> None:
    gateway = imported("gateway", str(upstream.base_url))

    async def with_root_path(scope: Scope, receive: Receive, send: Send) -> None:
        """What an app gets from `uvicorn --root-path /gw`."""
        if scope["type"] == "http":
            path, raw_path = "/gw" + scope["path"], b"/gw" + scope["raw_path"]
            scope = {**scope, "root_path": "/gw", "path": path, "raw_path": raw_path}
        await gateway(scope, receive, send)

    assert call(with_root_path).get(f"/{service}/item", headers=ANN).status_code == 200


def test_gateway_streams_and_relays_the_status_and_the_query(
    call: Call, upstream: httpx.Client
) -> None:
    caller = call("gateway")
    response = caller.get("/stock/file?size=2000000", headers=ANN)
    assert len(response.content) == 2_000_000
    assert response.headers["x-sha256"] == upstream.get("/file?size=2000000").headers["x-sha256"]
    assert caller.get("/billing/status/418", headers=ANN).status_code == 418


def test_gateway_has_a_failure_of_one_service_without_the_other(call: Call) -> None:
    caller = call("gateway", BILLING_URL="http://127.0.0.1:1")
    assert caller.get("/billing/item", headers=ANN).status_code == 502
    assert caller.get("/stock/item", headers=ANN).json() == {"name": "lamp", "price": 20}


def test_gateway_gives_a_service_its_own_timeout(call: Call, upstream: httpx.Client) -> None:
    assert call("gateway").get("/stock/never", headers=ANN, timeout=60).status_code == 504


def test_gateway_frees_the_service_when_a_caller_leaves(call: Call, upstream: httpx.Client) -> None:
    caller = call("gateway")
    with pytest.raises(httpx.ReadTimeout):
        caller.get("/billing/never", headers=ANN, timeout=0.5)
    until(lambda: open_at(upstream) == 0)


def test_mounted_app_skips_dependencies_as_gateway_says(call: Call, upstream_url: str) -> None:
    async def refused() -> None:
        raise HTTPException(401)

    app = FastAPI(lifespan=client_lifespan(base_url=upstream_url), dependencies=[Depends(refused)])
    app.mount("/api", ReverseProxy())
    assert call(app).get("/api/item").status_code == 200


def test_body_that_the_endpoint_read_is_forwarded_but_no_form(call: Call) -> None:
    echo = httpx.MockTransport(lambda request: httpx.Response(200, content=request.content))
    app = FastAPI(lifespan=client_lifespan(base_url="http://x", transport=echo))

    async def forwarded(request: Request) -> StreamedResponse:
        client = await get_client(request)
        return StreamedResponse(client, forward_request(client, request))

    @app.post("/declared")
    async def declared(body: Annotated[dict[str, int], Body()], request: Request) -> Response:
        return await forwarded(request)

    @app.post("/read")
    async def read(request: Request) -> Response:
        await request.body()
        return await forwarded(request)

    @app.post("/form")
    async def form(a: Annotated[str, Form()], request: Request) -> Response:
        return await forwarded(request)

    caller = call(app)
    body = b'{ "a":1 }'
    for path in ("/declared", "/read"):
        headers = {"content-type": "application/json"}
        assert caller.post(path, content=body, headers=headers).content == body
    assert caller.post("/form", data={"a": "1"}).status_code == 500


# choose_upstream.py


@pytest.mark.parametrize(
    ("path", "headers", "sent_to"),
    [
        ("/by-host", {"host": "beta.example"}, "beta"),
        ("/by-host", {"host": "beta.example:8443"}, "beta"),
        ("/by-host", {"host": "evil.example"}, "stable"),
        ("/by-header", {"x-version": "2"}, "beta"),
        ("/by-header", {"x-version": "3"}, "stable"),
        ("/by-header", {}, "stable"),
        ("/by-tenant/acme", {}, "beta"),
        ("/by-tenant/umbrella", {}, "stable"),
    ],
)
def test_choose_upstream_asks_the_one_that_is_meant(
    call: Call, path: str, headers: dict[str, str], sent_to: str
) -> None:
    sent = call("choose_upstream").get(f"{path}/headers", headers=headers).json()
    assert sent["x-sent-to"] == sent_to


def test_choose_upstream_is_404_for_a_tenant_that_is_not_known(call: Call) -> None:
    response = call("choose_upstream").get("/by-tenant/nobody/headers")
    assert (response.status_code, response.json()) == (404, {"detail": "no such tenant"})


@pytest.mark.slow
def test_choose_upstream_sends_a_tenth_to_the_canary(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = call("choose_upstream")
    importlib.import_module("examples.choose_upstream").random.seed(1)
    answers = [caller.get("/by-weight/headers").json()["x-sent-to"] for _ in range(200)]
    counted = Counter(answers)
    assert counted["stable"] > counted["beta"] > 5


def test_choose_upstream_has_an_address_for_each(call: Call) -> None:
    caller = call("choose_upstream", BETA_URL="http://127.0.0.1:1")
    assert caller.get("/by-tenant/umbrella/item").status_code == 200
    assert caller.get("/by-tenant/acme/item").status_code == 502


# bff.py


def test_bff_asks_nothing_of_the_upstream_without_a_session(call: Call) -> None:
    caller = call("bff", UPSTREAM_URL="http://127.0.0.1:1")
    for cookie in ({}, {"cookie": "bff_session=made-up"}, {"cookie": "bff_session"}):
        response = caller.get("/api/item", headers=cookie)
        assert (response.status_code, response.json()) == (401, {"error": "log in first"})


def test_bff_exchanges_the_session_cookie_for_the_token(call: Call) -> None:
    caller = call("bff")
    login = caller.post("/login?user=ann")
    assert login.status_code == 204
    set_cookie = login.headers["set-cookie"].lower()
    assert "httponly" in set_cookie
    assert "samesite=strict" in set_cookie
    sent = caller.get("/api/headers", headers={"authorization": "Bearer of-the-browser"}).json()
    assert sent["authorization"] == "Bearer token-of-ann"
    assert "cookie" not in sent


def test_bff_never_shows_the_token_to_the_browser(call: Call) -> None:
    caller = call("bff")
    responses = [caller.post("/login?user=ann"), caller.get("/"), caller.get("/api/item")]
    for response in responses:
        assert "token-of" not in response.text + str(response.headers) + str(caller.cookies)


def test_bff_passes_the_other_cookies_on_and_not_its_own(call: Call) -> None:
    caller = call("bff")
    own = caller.post("/login?user=ann").cookies["bff_session"]
    caller.cookies.clear()
    for cookie in (f"a=1; bff_session={own}; b=2", f"bff_session={own};a=1 ;  b=2"):
        sent = caller.get("/api/headers", headers={"cookie": cookie}).json()
        assert sent["cookie"] == "a=1; b=2"
    several = [("cookie", "a=1"), ("cookie", f"bff_session={own}; b=2")]
    sent = caller.get("/api/headers", headers=several).json()
    assert sent["cookie"] == "a=1; b=2"


def test_bff_moves_the_upstreams_cookies_under_the_mount(call: Call) -> None:
    caller = call("bff")
    caller.post("/login?user=ann")
    first = caller.get("/api/cookie")
    assert "; Path=/api/;" in first.headers["set-cookie"]
    second = caller.get("/api/cookie").json()
    assert second["got"].keys() == {"session"}, "the upstream gets back its own, and that alone"


def test_bff_moves_the_upstreams_redirects_under_the_mount(
    call: Call, upstream: httpx.Client
) -> None:
    direct = upstream.get("/item/").headers["location"]
    assert direct == f"{str(upstream.base_url).rstrip('/')}/item"
    caller = call("bff")
    caller.post("/login?user=ann")
    assert caller.get("/api/item/").headers["location"] == "/api/item"
    assert caller.get("/api/item/", follow_redirects=True).json()["name"] == "lamp"


def test_bff_ends_the_session_at_logout(call: Call) -> None:
    caller = call("bff")
    session = caller.post("/login?user=ann").cookies["bff_session"]
    assert caller.get("/api/item").status_code == 200
    assert caller.post("/logout").status_code == 204
    assert "bff_session" not in caller.cookies
    stolen = caller.get("/api/item", headers={"cookie": f"bff_session={session}"})
    assert stolen.status_code == 401


# What pages say of redirects and targets


async def _target(request: Request) -> Response:
    return JSONResponse({"path": request.scope["raw_path"].decode()})


async def _moved(request: Request) -> Response:
    return RedirectResponse("/elsewhere")


@pytest.fixture(scope="module")
def target_url() -> Iterator[str]:
    """An upstream that tells which path it was asked for; `/moved` redirects."""
    with served(Starlette(routes=[Route("/moved", _moved), Route("/{path:path}", _target)])) as url:
        yield url


def test_redirects_are_not_followed_as_the_document_says(call: Call, target_url: str) -> None:
    lifespan = client_lifespan(base_url=target_url, follow_redirects=True)
    caller = call(Starlette(routes=[Mount("/api", ReverseProxy())], lifespan=lifespan))
    response = caller.get("/api/moved")
    assert (response.status_code, response.headers["location"]) == (307, "/elsewhere")


def test_target_is_sent_unless_on_request_changes_the_url(call: Call, target_url: str) -> None:
    def set_the_url(request: httpx.Request) -> None:
        request.url = request.url.copy_with(path="/other")

    def set_the_target(request: httpx.Request) -> None:
        request.extensions["target"] = b"/%6fther"

    mounts = [
        Mount("/plain", ReverseProxy()),
        Mount("/url", ReverseProxy(on_request=set_the_url)),
        Mount("/target", ReverseProxy(on_request=set_the_target)),
    ]
    caller = call(Starlette(routes=mounts, lifespan=client_lifespan(base_url=target_url)))
    assert caller.get("/plain/a%2Fb").json() == {"path": "/a%2Fb"}
    assert caller.get("/url/a").json() == {"path": "/other"}
    assert caller.get("/target/a").json() == {"path": "/%6fther"}
