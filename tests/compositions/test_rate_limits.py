"""slowapi around a relay: what it limits, and which of its parts do not go with streams."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from slowapi import Limiter
from slowapi.middleware import SlowAPIASGIMiddleware, SlowAPIMiddleware
from slowapi.util import get_remote_address
from starlette.responses import Response

from asgi_upstream import ReverseProxy, client_lifespan
from tests.compositions.callers import Serve
from tests.support.example_apps import imported, served
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

ANN, BOB = {"x-api-key": "ann"}, {"x-api-key": "bob"}


@pytest.fixture
def caller(upstream: Upstream) -> Iterator[httpx.Client]:
    """Calls examples/compositions/rate_limits.py, where nobody has asked yet."""
    app = imported("compositions.rate_limits", upstream.url, LIMIT="3/minute")
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as caller:
        yield caller


def test_a_caller_gets_so_many_and_takes_none_of_anothers(
    caller: httpx.Client, upstream: Upstream
) -> None:
    statuses = [caller.get("/api/item", headers=ANN).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert caller.get("/api/item", headers=BOB).status_code == 200
    assert len(upstream.requests) == 4


def test_the_answer_tells_what_is_left_and_when_to_come_again(caller: httpx.Client) -> None:
    response = caller.get("/api/item", headers=ANN)
    assert response.headers["x-ratelimit-remaining"] == "2"
    assert response.headers["x-upstream"] == "yes"
    for _ in range(3):
        refused = caller.get("/api/item", headers=ANN)
    assert (refused.status_code, 0 < int(refused.headers["retry-after"]) <= 60) == (429, True)


def test_stream_counts_once_and_frees_upstream_on_disconnect(
    caller: httpx.Client, upstream: Upstream
) -> None:
    with caller.stream("GET", "/events", headers=ANN) as response:
        chunks = response.iter_raw()
        for _ in range(5):
            next(chunks)
        assert caller.get("/api/item", headers=ANN).headers["x-ratelimit-remaining"] == "2"
    eventually(lambda: upstream.open_exchanges == 0)
    remaining = caller.get("/api/item", headers=ANN).headers["x-ratelimit-remaining"]
    assert remaining == "1"


def limited(upstream: Upstream, middleware: Any) -> FastAPI:
    """One request a minute, by a middleware and not by a decorator."""
    app = FastAPI(lifespan=client_lifespan(base_url=upstream.url))
    app.state.limiter = Limiter(key_func=get_remote_address, default_limits=["1/minute"])
    app.add_middleware(middleware)
    forward = ReverseProxy(prefix="/routed")

    @app.get("/routed/{path:path}")
    async def routed(request: Request) -> Response:
        return await forward.respond(request)

    app.mount("/mounted", ReverseProxy())
    return app


def test_its_middleware_limits_routes_and_not_what_is_mounted(
    serve: Serve, upstream: Upstream
) -> None:
    caller = serve(limited(upstream, SlowAPIMiddleware))
    assert [caller.get("/routed/chunks").status_code for _ in range(3)] == [200, 429, 429]
    assert [caller.get("/mounted/chunks").status_code for _ in range(3)] == [200, 200, 200]


def test_slowapi_asgi_middleware_breaks_streamed_responses(
    serve: Serve, upstream: Upstream
) -> None:
    """It starts the response again at each chunk."""
    caller = serve(limited(upstream, SlowAPIASGIMiddleware))
    with pytest.raises(httpx.RemoteProtocolError):
        caller.get("/routed/chunks")
