"""The route and the host of a record."""

from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from asgi_upstream import BufferedResponse, ExchangeRecord, Outcome, ReverseProxy, StreamedResponse
from tests.support.asgi import Caller, answering
from tests.support.recorded import Observed, recorded_tests, streamed

pytestmark = recorded_tests


async def test_the_route_is_the_template_and_not_the_path(seen: Observed) -> None:
    async def endpoint(request: Request) -> Response:
        return StreamedResponse(seen.client, seen.get("/item"))

    def sync(request: Request) -> Response:
        return BufferedResponse(seen.client, seen.get("/item"))

    router = APIRouter(prefix="/shop")
    fast = FastAPI()
    fast.add_api_route("/items/{item_id}", endpoint, response_model=None)
    fast.add_api_route("/sync/{item_id}", sync, response_model=None)
    router.add_api_route("/goods/{item_id:int}", endpoint, response_model=None)
    fast.include_router(router, prefix="/v1")
    fast.mount("/api/{tenant}", ReverseProxy())
    star = Starlette(routes=[Route("/things/{name:path}", endpoint), Mount("/sub", fast)])
    for app, path, template in [
        (fast, "/items/7", "/items/{item_id}"),
        (fast, "/sync/7", "/sync/{item_id}"),
        (fast, "/v1/shop/goods/7", "/v1/shop/goods/{item_id:int}"),
        (fast, "/api/ann/item", "/api/{tenant}"),
        (star, "/things/a/b", "/things/{name:path}"),
        (star, "/sub/items/7", "/items/{item_id}"),
    ]:
        caller = Caller()
        caller.scope.update(path=path, raw_path=path.encode(), state={"client": seen.client})
        record = await seen.record(app, caller)
        assert (record.outcome, record.route) == (Outcome.COMPLETED, template), path
    assert (await seen.record(streamed(seen, "/item"))).route is None


async def test_the_host_is_as_in_the_url(seen: Observed) -> None:
    own: list[ExchangeRecord] = []
    for url, host in [
        ("http://upstream.example/a", "upstream.example"),
        ("https://upstream.example:443/a", "upstream.example"),
        ("http://user:secret@upstream.example:8080/a", "upstream.example:8080"),
        ("http://[::1]:8080/a", "[::1]:8080"),
        ("http://b\u00fccher.example/", "xn--bcher-kva.example"),
    ]:
        client = answering(b"x").client()
        request = client.build_request("GET", url)
        await Caller().call(StreamedResponse(client, request, observers=[own.append]))
        assert own.pop().host == host
