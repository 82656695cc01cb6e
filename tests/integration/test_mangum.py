"""AWS Lambda's events through Mangum, with the lifespan of `LazyLifespan`."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from mangum import Mangum
from mangum.types import LambdaContext
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_upstream import ReverseProxy
from asgi_upstream.testing import Upstream
from examples.lazy_lifespan import LazyLifespan
from tests.support.flavor import client_lifespan

pytestmark = pytest.mark.filterwarnings("ignore:There is no current event loop")
Event = dict[str, Any]
Headers = dict[str, str]


def api_gateway_v1(method: str, path: str, headers: Headers, body: str | None) -> Event:
    return {
        "resource": "/{proxy+}",
        "httpMethod": method,
        "path": path,
        "headers": headers,
        "multiValueQueryStringParameters": {"q": ["a b", "c"]},
        "requestContext": {"identity": {"sourceIp": "203.0.113.9"}},
        "body": body,
        "isBase64Encoded": body is not None,
    }


def api_gateway_v2(method: str, path: str, headers: Headers, body: str | None) -> Event:
    http = {"method": method, "path": path, "sourceIp": "203.0.113.9"}
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "q=a%20b&q=c",
        "headers": headers,
        "requestContext": {"http": http, "stage": "$default"},
        "body": body,
        "isBase64Encoded": body is not None,
    }


def function_url(method: str, path: str, headers: Headers, body: str | None) -> Event:
    event = api_gateway_v2(method, path, headers, body)
    event["requestContext"]["domainName"] = "id.lambda-url.eu-central-1.on.aws"
    return event


def load_balancer(method: str, path: str, headers: Headers, body: str | None) -> Event:
    return {
        "httpMethod": method,
        "path": path,
        "headers": headers,
        "queryStringParameters": {"q": "a%20b"},
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:x"}},
        "body": body or "",
        "isBase64Encoded": body is not None,
    }


every_event = pytest.mark.parametrize(
    "make_event", [api_gateway_v1, api_gateway_v2, function_url, load_balancer]
)
MakeEvent = Callable[[str, str, Headers, str | None], Event]


class Function:
    """The Lambda function: an app with one mount, and how often its lifespan was entered."""

    def __init__(self, base_url: str) -> None:
        self.starts = 0
        self.clients: set[int] = set()
        self._base_url = base_url
        app = Starlette(routes=[Mount("/api", ReverseProxy())], lifespan=self._lifespan)
        self.application = LazyLifespan(app)
        self._handler = Mangum(cast(Any, self.application), lifespan="off")

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        self.starts += 1
        async with client_lifespan(base_url=self._base_url)(app) as state:
            self.clients.add(id(state["client"]))
            yield state

    def invoke(self, event: Event) -> dict[str, Any]:
        headers = event["headers"]
        event["headers"] = {"host": "lambda.example", "x-forwarded-proto": "https", **headers}
        return self._handler(event, cast(LambdaContext, None))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def function(upstream: Upstream) -> Iterator[Function]:
    loop = asyncio.new_event_loop()  # which Mangum uses for every invocation
    asyncio.set_event_loop(loop)
    function = Function(upstream.url)
    yield function
    loop.run_until_complete(function.application.aclose())
    asyncio.set_event_loop(None)
    loop.close()


def encode(body: bytes) -> str:
    return base64.b64encode(body).decode()


@every_event
def test_request_of_lambda_event_reaches_the_upstream(
    function: Function, upstream: Upstream, make_event: MakeEvent
) -> None:
    upstream.any().json({"total": 3}, headers={"x-one": "1"})
    answer = function.invoke(make_event("GET", "/api/report", {"accept": "a/b"}, None))
    assert (answer["statusCode"], answer["body"]) == (200, '{"total": 3}')
    [request] = upstream.requests
    assert (request.method, request.path, request.body) == ("GET", "/report", b"")
    assert request.query["q"] in ("a b", "c")
    assert request.headers["accept"] == "a/b"
    for name in ("content-length", "transfer-encoding"):
        assert name not in request.headers


@every_event
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("framed", [True, False])
def test_body_of_lambda_event_is_forwarded_whole(
    function: Function, upstream: Upstream, make_event: MakeEvent, method: str, framed: bool
) -> None:
    upstream.any().text("ok")
    body = bytes(range(256)) * 100
    headers = {"content-length": str(len(body))} if framed else {}
    event = make_event(method, "/api/x", headers, encode(body))
    assert function.invoke(event)["statusCode"] == 200
    [request] = upstream.requests
    assert (request.method, request.body) == (method, body)
    assert request.headers["content-length"] == str(len(body))


@every_event
def test_get_body_of_lambda_event_is_not_lost(
    function: Function, upstream: Upstream, make_event: MakeEvent
) -> None:
    upstream.any().text("ok")
    function.invoke(make_event("GET", "/api/search", {}, encode(b'{"query": 1}')))
    [request] = upstream.requests
    assert (request.method, request.body) == ("GET", b'{"query": 1}')


@every_event
def test_binary_response_is_encoded_for_lambda(
    function: Function, upstream: Upstream, make_event: MakeEvent
) -> None:
    data = bytes(range(256))
    upstream.any().content(data, headers={"content-type": "image/png"})
    answer = function.invoke(make_event("GET", "/api/picture", {}, None))
    assert answer["isBase64Encoded"] is True
    assert base64.b64decode(answer["body"]) == data


@every_event
def test_upstream_failure_is_502_for_lambda(make_event: MakeEvent) -> None:
    asyncio.set_event_loop(loop := asyncio.new_event_loop())
    function = Function("http://127.0.0.1:1")
    answer = function.invoke(make_event("GET", "/api/x", {}, None))
    assert answer["statusCode"] == 502
    loop.run_until_complete(function.application.aclose())
    asyncio.set_event_loop(None)
    loop.close()


def test_lifespan_of_lambda_is_entered_once_per_process(
    function: Function, upstream: Upstream
) -> None:
    upstream.any().text("ok")
    for make_event in (api_gateway_v1, api_gateway_v2, function_url, load_balancer) * 2:
        assert function.invoke(make_event("GET", "/api/x", {}, None))["statusCode"] == 200
    assert (function.starts, len(function.clients)) == (1, 1)
    assert upstream.total_connections == 1
