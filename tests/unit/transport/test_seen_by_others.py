"""What watches httpx sees every exchange: mocks, instrumentation, wrapped methods, logging.

Each test asks the same of the stock transport and of AsyncioTransport, by `client.get` and by
StreamedResponse, which may take a shorter way than `client.send`.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import respx
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pytest_httpx import HTTPXMock

from asgi_upstream import StreamedResponse
from asgi_upstream._httpx.fast_path import _guard_methods, direct_transport
from asgi_upstream.errors import UpstreamConnectError
from tests.support.asgi import Caller
from tests.support.flavor import AsyncioTransport, client_lifespan, httpcore, httpx
from tests.support.instrumented import Ask, MakeTransport, both_ways, by_relay, shared, traceparent
from tests.support.raw_upstream import RawUpstream

pytestmark = [pytest.mark.anyio, pytest.mark.asyncio_only]


def stock() -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(trust_env=False)


on_both = pytest.mark.parametrize(
    "transport", [stock, AsyncioTransport], ids=["stock", "AsyncioTransport"]
)


# Mocks.

MOCKED = "http://mocked.example"


@on_both
@both_ways
async def test_pytest_httpx_answers(
    transport: MakeTransport, ask: Ask, httpx_mock: HTTPXMock
) -> None:
    httpx_mock.add_response(url=f"{MOCKED}/a?b=c", status_code=207, text="mocked")
    async with shared(transport, MOCKED) as client:
        assert await ask(client, "/a?b=c") == (207, "mocked")
    (request,) = httpx_mock.get_requests()
    assert (request.method, str(request.url)) == ("GET", f"{MOCKED}/a?b=c")


@on_both
@both_ways
@pytest.mark.httpx_mock(should_mock=lambda request: request.url.host == "mocked.example")
async def test_pytest_httpx_lets_pass_what_it_is_not_to_mock(
    transport: MakeTransport, ask: Ask, httpx_mock: HTTPXMock
) -> None:
    httpx_mock.add_response(text="mocked")
    async with RawUpstream() as upstream, shared(transport) as client:
        assert await ask(client, upstream.url) == (200, "ok")
        assert await ask(client, MOCKED) == (200, "mocked")
        assert len(upstream.requests) == 1


@on_both
async def test_what_pytest_httpx_raises_is_raised(
    transport: MakeTransport, httpx_mock: HTTPXMock
) -> None:
    httpx_mock.add_exception(httpx.ReadTimeout("mocked"), is_reusable=True)
    async with shared(transport, MOCKED) as client:
        with pytest.raises(httpx.ReadTimeout, match="mocked") as caught:
            await client.get("/")
        assert caught.value.request.url == f"{MOCKED}/"
        app = StreamedResponse(client, client.build_request("GET", "/"))
        with pytest.raises(Exception, match="504") as failure:
            await Caller().call(app)
        assert isinstance(failure.value.__cause__, httpx.ReadTimeout)


@pytest.mark.of_httpx
@on_both
@both_ways
@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_respx_answers(transport: MakeTransport, ask: Ask, using: str) -> None:
    async with shared(transport, MOCKED) as client:
        with respx.mock(using=using) as mock:
            mock.route(host="app.example").pass_through()
            route = mock.get(f"{MOCKED}/a", params={"b": "c"})
            route.respond(207, text="mocked", headers={"x-mocked": "1"})
            mock._assert_all_called = False
            assert await ask(client, "/a?b=c") == (207, "mocked")
            assert route.call_count == 1
            assert str(route.calls.last.request.url) == f"{MOCKED}/a?b=c"


@pytest.mark.of_httpx
@on_both
@both_ways
@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_respx_lets_pass_what_it_is_told_to(
    transport: MakeTransport, ask: Ask, using: str
) -> None:
    async with RawUpstream() as upstream, shared(transport) as client:
        with respx.mock(using=using, assert_all_called=False) as mock:
            mock.route(host="app.example").pass_through()
            route = mock.get(upstream.url).pass_through()
            assert await ask(client, upstream.url) == (200, "ok")
            # In httpcore it asks twice: at the pool and at the connection, which are both real.
            assert route.call_count == (2 if using == "httpcore" else 1)
        assert await ask(client, upstream.url) == (200, "ok")  # and after the mock
        assert len(upstream.requests) == 2


# OpenTelemetry.


class Spans:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def of_clients(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield spans
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    spans.provider.shutdown()


def told(span: ReadableSpan) -> Any:
    """All that may not differ between two transports."""
    assert span.context is not None
    return (
        span.name,
        span.kind,
        dict(span.attributes or {}),
        span.status.status_code,
        [(event.name, (event.attributes or {}).get("exception.type")) for event in span.events],
        span.parent,
    )


@pytest.mark.of_httpx
@both_ways
async def test_opentelemetry_makes_the_spans_of_the_stock_transport(spans: Spans, ask: Ask) -> None:
    async with RawUpstream() as upstream:
        for transport in (stock, AsyncioTransport):
            async with shared(transport) as client:
                assert await ask(client, f"{upstream.url}/a?b=c") == (200, "ok")
        first, second = spans.of_clients()
        assert told(first) == told(second)
        for request, span in zip(upstream.requests, (first, second), strict=True):
            context = span.context
            assert context is not None
            expected = (
                f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
            )
            assert traceparent(request) == expected


@pytest.mark.of_httpx
async def test_opentelemetry_records_failures_as_on_httpxs_transport(spans: Spans) -> None:
    for transport in (stock, AsyncioTransport):
        async with shared(transport, "http://127.0.0.1:1") as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/")
            app = StreamedResponse(client, client.build_request("GET", "/"))
            with pytest.raises(UpstreamConnectError):
                await Caller().call(app)
    seen = [told(span) for span in spans.of_clients()]
    assert len(seen) == 4
    assert seen == [seen[0]] * 4


@pytest.mark.of_httpx
async def test_a_span_of_the_app_is_the_parent(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("app")
    async with RawUpstream() as upstream, shared(AsyncioTransport, upstream.url) as client:
        with tracer.start_as_current_span("of the app") as outer:
            await by_relay(client, "/")
    inner, _ = spans.of_clients()
    assert inner.parent == outer.get_span_context()


@pytest.mark.of_httpx
@both_ways
async def test_after_uninstrument_there_are_no_spans(spans: Spans, ask: Ask) -> None:
    async with RawUpstream() as upstream, shared(AsyncioTransport, upstream.url) as client:
        await ask(client, "/")
        HTTPXClientInstrumentor().uninstrument()
        assert await ask(client, "/") == (200, "ok")
        assert len(spans.of_clients()) == 1
        assert [traceparent(request) is None for request in upstream.requests] == [False, True]


@pytest.mark.of_httpx
@on_both
@both_ways
async def test_opentelemetry_instruments_a_single_client(
    transport: MakeTransport, ask: Ask
) -> None:
    spans = Spans()
    async with RawUpstream() as upstream, shared(transport, upstream.url) as client:
        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=spans.provider)
        assert await ask(client, "/") == (200, "ok")
        HTTPXClientInstrumentor.uninstrument_client(client)
        assert await ask(client, "/") == (200, "ok")
        assert [traceparent(request) is None for request in upstream.requests] == [False, True]
    assert len(spans.of_clients()) == 1
    spans.provider.shutdown()


@pytest.mark.process
@pytest.mark.of_httpx
@pytest.mark.parametrize("order", ["before", "after", "before, and ended"])
def test_opentelemetry_may_come_before_or_after_the_import(order: str) -> None:
    code = f"""if True:
        import asyncio
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        order = {order!r}
        if order.startswith("before"):
            HTTPXClientInstrumentor().instrument(tracer_provider=provider)
        import asgi_upstream.transport
        if order == "after":
            HTTPXClientInstrumentor().instrument(tracer_provider=provider)
        if order.endswith("ended"):
            HTTPXClientInstrumentor().uninstrument()
        from tests.support.instrumented import by_get, by_relay, shared, traceparent
        from tests.support.raw_upstream import RawUpstream
        async def run():
            async with RawUpstream() as upstream:
                async with shared(asgi_upstream.transport.AsyncioTransport, upstream.url) as client:
                    for ask in (by_get, by_relay):
                        assert await ask(client, "/") == (200, "ok")
                print(len(exporter.get_finished_spans()),
                      sum(traceparent(request) is not None for request in upstream.requests))
        asyncio.run(run())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    assert done.stdout.split() == (["0", "0"] if order.endswith("ended") else ["2", "2"])


# Who wraps the client's own methods, as Sentry and Datadog do.


@on_both
@both_ways
async def test_a_wrapped_send_is_seen(
    transport: MakeTransport, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = httpx.AsyncClient.send

    async def send(self: httpx.AsyncClient, request: httpx.Request, **kwargs: Any) -> Any:
        seen.append(request.url.path)
        request.headers["x-wrapped"] = "1"
        return await real(self, request, **kwargs)

    async with RawUpstream() as upstream, shared(transport, upstream.url) as client:
        assert await ask(client, "/before") == (200, "ok")
        with monkeypatch.context() as patching:
            patching.setattr(httpx.AsyncClient, "send", send)
            assert await ask(client, "/wrapped") == (200, "ok")
        assert await ask(client, "/after") == (200, "ok")
        wrapped = [b"x-wrapped: 1" in request for request in upstream.requests]
    assert [path for path in seen if path != "/"] == ["/wrapped"]
    assert wrapped == [False, True, False]


@pytest.mark.parametrize(
    ("of", "name"),
    [
        ("class", "send"),
        ("class", "_send_handling_auth"),
        ("class", "_send_handling_redirects"),
        ("class", "_send_single_request"),
        ("class", "_transport_for_url"),  # respx
        ("client", "send"),
    ],
)
async def test_whatever_method_on_the_way_is_wrapped_is_called(
    of: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    async with RawUpstream() as upstream, shared(AsyncioTransport, upstream.url) as client:
        target: Any = client if of == "client" else httpx.AsyncClient
        real = getattr(target, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(target, name, wrapper)
        await Caller().call(StreamedResponse(client, client.build_request("GET", "/")))
    assert called == [name]


# The short way is taken only where nobody could tell.


async def test_a_client_with_nothing_to_do_goes_the_short_way() -> None:
    # Or this module has lost touch with httpx's private names, and every exchange pays for it.
    async with shared(AsyncioTransport, MOCKED) as client:
        assert direct_transport(client, client.build_request("GET", "/")) is client._transport


async def test_short_way_is_taken_after_a_first_request_was_mocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flavor: Any = AsyncioTransport._flavor
    monkeypatch.delitem(vars(flavor), "core", raising=False)
    _guard_methods.cache_clear()  # type: ignore[attr-defined]
    async with shared(AsyncioTransport, MOCKED) as client:
        request = client.build_request("GET", "/")
        with monkeypatch.context() as patch:
            patch.setattr(httpx.AsyncClient, "send", hook)
            patch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", hook)
            assert not flavor.is_intact()
            assert direct_transport(client, request) is None
        assert flavor.is_intact()
        assert direct_transport(client, request) is client._transport


class Subclass(httpx.AsyncClient):
    pass


async def hook(message: object) -> None:
    pass


OPTIONS: dict[str, dict[str, Any]] = {
    "auth": {"auth": ("user", "password")},
    "request hooks": {"event_hooks": {"request": [hook]}},
    "response hooks": {"event_hooks": {"response": [hook]}},
    "cookies": {"cookies": {}},
    "redirects": {"follow_redirects": True},
    "mounts": {"mounts": {"all://other.example": httpx.MockTransport(lambda _: None)}},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_a_client_that_has_something_to_do_goes_the_long_way(name: str) -> None:
    async with shared(AsyncioTransport, MOCKED, **OPTIONS[name]) as client:
        assert direct_transport(client, client.build_request("GET", "/")) is None


async def test_so_does_a_subclass_and_what_is_no_httpx_client() -> None:
    request = httpx.Request("GET", MOCKED)
    async with client_lifespan(Subclass, transport=AsyncioTransport())(None) as state:
        assert direct_transport(state["client"], request) is None
    assert direct_transport(object(), request) is None


async def test_request_with_password_or_no_timeout_skips_fast_path() -> None:
    async with shared(AsyncioTransport, MOCKED) as client:
        assert (
            direct_transport(client, client.build_request("GET", "http://u:p@mocked.example/"))
            is None
        )
        assert direct_transport(client, httpx.Request("GET", MOCKED)) is None


async def test_a_closed_client_is_refused_by_httpx() -> None:
    async with shared(AsyncioTransport, MOCKED) as client:
        pass
    app = StreamedResponse(client, client.build_request("GET", "/"))
    with pytest.raises(RuntimeError, match="client has been closed"):
        await Caller().call(app)


async def test_auth_hooks_and_cookies_work_through_a_streamed_response() -> None:
    seen: list[str] = []

    async def on_request(request: httpx.Request) -> None:
        seen.append(request.method)
        request.headers["x-hooked"] = "1"

    async def on_response(response: httpx.Response) -> None:
        seen.append(str(response.status_code))
        assert response.request.headers["x-hooked"] == "1"

    options: dict[str, Any] = {
        "auth": ("user", "password"),
        "event_hooks": {"request": [on_request], "response": [on_response]},
        "cookies": {"a": "b"},
    }
    async with (
        RawUpstream() as upstream,
        shared(AsyncioTransport, upstream.url, **options) as client,
    ):
        assert await by_relay(client, "/") == (200, "ok")
        (request,) = upstream.requests
    assert seen == ["GET", "200"]
    for field in (b"Authorization: Basic dXNlcjpwYXNzd29yZA==", b"x-hooked: 1", b"Cookie: a=b"):
        assert field.lower() in request.lower()


# What httpx tells of by itself.


@both_ways
async def test_the_log_has_the_line_of_the_stock_transport(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    lines = []
    async with RawUpstream() as upstream:
        for transport in (stock, AsyncioTransport):
            async with shared(transport, upstream.url) as client:
                caplog.clear()
                with caplog.at_level(logging.INFO, logger=httpx.__name__):
                    await ask(client, "/a?b=c")
                lines.append([r.getMessage() for r in caplog.records if r.name == httpx.__name__])
        expected = f'HTTP Request: GET {upstream.url}/a?b=c "HTTP/1.1 200 OK"'
    assert lines[0] == lines[1]
    assert expected in lines[1]
    assert lines[1].count(expected) == 1


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
async def test_the_line_is_there_only_at_its_level(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with RawUpstream() as upstream, shared(AsyncioTransport, upstream.url) as client:
        with caplog.at_level(level, logger=httpx.__name__):
            await Caller().call(StreamedResponse(client, client.build_request("GET", "/")))
    assert len([r for r in caplog.records if r.name == httpx.__name__]) == (level == logging.INFO)


@pytest.mark.of_httpx
@on_both
async def test_responses_and_errors_know_their_request(transport: MakeTransport) -> None:
    async with RawUpstream() as upstream, shared(transport, upstream.url) as client:
        request = client.build_request("GET", "/")
        response = await client.send(request)
        assert response.request is request
        assert response.elapsed.total_seconds() > 0
        seen: list[httpx.Response] = []
        request = client.build_request("GET", "/")
        await Caller().call(StreamedResponse(client, request, on_response=seen.append))
        assert seen[0].request is request
        assert seen[0].elapsed.total_seconds() > 0
        request = client.build_request("GET", "http://127.0.0.1:1/")
        with pytest.raises(UpstreamConnectError) as caught:
            await Caller().call(StreamedResponse(client, request))
        assert isinstance(caught.value.__cause__, httpx.ConnectError)
        assert caught.value.__cause__.request is request


async def test_wrapper_of_httpcore_connection_sees_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Elastic APM wraps this method and adds its traceparent to the request's headers."""
    seen: list[bytes] = []
    original = httpcore.AsyncHTTPConnection.handle_async_request

    async def wrapper(
        self: httpcore.AsyncHTTPConnection, request: httpcore.Request
    ) -> httpcore.Response:
        seen.append(request.url.target)
        request.headers.append((b"traceparent", b"00-1-2-01"))
        return await original(self, request)

    async with RawUpstream() as upstream, shared(AsyncioTransport, upstream.url) as client:
        with monkeypatch.context() as patch:
            patch.setattr(httpcore.AsyncHTTPConnection, "handle_async_request", wrapper)
            response = StreamedResponse(client, client.build_request("GET", "/x"))
            assert (await Caller().call(response)).status == 200
        assert seen == [b"/x"]
        assert traceparent(upstream.requests[0]) == "00-1-2-01"
