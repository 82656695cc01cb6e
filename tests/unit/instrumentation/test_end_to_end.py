"""A real app on uvicorn, a real upstream, both transports: what the tools see of it."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry, make_asgi_app

from asgi_upstream import StreamedResponse, client_dependency, combine_lifespans
from asgi_upstream.instrumentation.opentelemetry import opentelemetry_observer
from asgi_upstream.instrumentation.prometheus import prometheus_observer
from asgi_upstream.records import Observer
from tests.support.example_apps import ROOT, served, until
from tests.support.flavor import AsyncioTransport, client_lifespan, httpx
from tests.support.opentelemetry import Metrics
from tests.support.prometheus import TIMES, Scrape
from tests.support.servers import free_port
from tests.support.upstream import Upstream

Serve = Callable[..., httpx.Client]
METHODS = ["GET", "HEAD", "POST", "PROPFIND"]


pytestmark = [pytest.mark.process, pytest.mark.no_leaks]


def make_app(upstream_url: str, transport: str, observe: Observer) -> FastAPI:
    """`/relay/item` is `/item` of the upstream; `narrow` has one connection, `dead` none."""

    def lifespan(name: str, url: str, connections: int = 100) -> Any:
        limits = httpx.Limits(max_connections=connections)
        options: dict[str, Any] = {"transport": httpx.AsyncHTTPTransport(limits=limits)}
        if transport == "asyncio":
            options = {"transport": AsyncioTransport(limits=limits)}
        timeout = httpx.Timeout(60, pool=0.2 if name == "narrow" else 60)
        return client_lifespan(
            name=name, base_url=url, observers=[observe], timeout=timeout, **options
        )

    app = FastAPI(
        lifespan=combine_lifespans(
            lifespan("client", upstream_url),
            lifespan("narrow", upstream_url, connections=1),
            lifespan("queue", upstream_url, connections=1),
            lifespan("dead", f"http://127.0.0.1:{free_port()}"),
        )
    )

    @app.api_route("/{name}/{behaviour}", methods=METHODS)
    async def relay(request: Request, name: str, behaviour: str) -> StreamedResponse:
        client = await client_dependency({"relay": "client"}.get(name, name))(request)
        timeout = json.loads(request.headers.get("x-timeout", "20"))
        outgoing = client.build_request(
            request.method,
            f"/{behaviour}",
            params=request.url.query or None,
            content=await request.body(),
            timeout=httpx.Timeout(timeout, pool=client.timeout.pool),
        )
        return StreamedResponse(client, outgoing)

    return app


@pytest.fixture(params=["stock", "asyncio"])
def transport(request: pytest.FixtureRequest) -> str:
    transport: str = request.param
    return transport


@contextmanager
def leaving(caller: httpx.Client, path: str) -> Iterator[socket.socket]:
    """A caller who is there, and leaves at the end of the block."""
    url = caller.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=60) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: app\r\n\r\n".encode())
        yield sock


# Prometheus.


@pytest.fixture
def counted(upstream: Upstream, transport: str) -> Iterator[httpx.Client]:
    registry = CollectorRegistry()
    app = make_app(upstream.url, transport, prometheus_observer(registry))
    app.mount("/metrics", make_asgi_app(registry))
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as caller:
        yield caller


def text_of(caller: httpx.Client) -> str:
    response = caller.get("/metrics/")
    assert response.headers["content-type"].startswith("text/plain")
    return response.text


def scraped(caller: httpx.Client) -> Scrape:
    return Scrape(text_of(caller))


def ask(caller: httpx.Client, path: str, method: str = "GET", **options: Any) -> int:
    """The status; 0 where the answer broke off."""
    try:
        return caller.request(method, path, **options).status_code
    except httpx.RemoteProtocolError:
        return 0


def test_a_scrape_tells_how_each_exchange_ended(counted: httpx.Client, upstream: Upstream) -> None:
    assert ask(counted, "/relay/item?secret=s3cret") == 200
    assert ask(counted, "/relay/item", "HEAD") == 200
    assert ask(counted, "/relay/echo", "POST", content=b"up") == 200
    assert ask(counted, "/relay/echo", "PROPFIND") == 200
    assert ask(counted, "/relay/status?code=404") == 404
    assert ask(counted, "/dead/item") == 502
    assert ask(counted, "/relay/close_at_once") == 502
    assert ask(counted, "/relay/short") == 0
    assert ask(counted, "/relay/never", headers={"x-timeout": "0.1"}) == 504
    with leaving(counted, "/relay/events") as sock:
        sock.recv(65536)
        until(lambda: b"data: " in sock.recv(65536))
    until(lambda: scraped(counted).value("exchanges_total") == 10)

    seen = scraped(counted)
    assert {
        (of["outcome"], of["status"], of["method"]): v for of, v in seen.all("exchanges_total")
    } == {
        ("completed", "200", "GET"): 1,
        ("completed", "200", "HEAD"): 1,
        ("completed", "200", "POST"): 1,
        ("completed", "200", "_OTHER"): 1,
        ("completed", "404", "GET"): 1,
        ("connect_failed", "", "GET"): 1,
        ("protocol_failed", "", "GET"): 1,
        ("body_failed", "200", "GET"): 1,
        ("read_timeout", "", "GET"): 1,
        ("caller_disconnected_mid_body", "200", "GET"): 1,
    }
    assert {of["route"] for of, _ in seen.all("exchanges_total")} == {"/{name}/{behaviour}"}
    host = upstream.url.removeprefix("http://")
    assert seen.value("exchanges_total", client="client", host=host) == 9
    assert seen.value("exchanges_total", client="dead", outcome="connect_failed") == 1
    assert [seen.value(f"{name}_count") for name in TIMES] == [7, 5, 10]
    assert seen.value("exchange_duration_seconds_sum", client="client") > 0.1
    assert not any(word in text_of(counted) for word in ("s3cret", "short", "/item", "PROPFIND"))


def test_a_full_pool_is_told_as_such(counted: httpx.Client) -> None:
    with leaving(counted, "/narrow/events") as sock:
        sock.recv(65536)
        assert ask(counted, "/narrow/item") == 503
    until(lambda: scraped(counted).value("exchanges_total", client="narrow") == 2)
    seen = scraped(counted)
    assert seen.value("exchanges_total", client="narrow", outcome="pool_exhausted", status="") == 1


def test_gauges_tell_who_is_open_and_who_waits(counted: httpx.Client, transport: str) -> None:
    gauges = {("open", "client"): 1, ("open", "queue"): 3, ("open", "dead"): 0}
    if transport == "asyncio":
        gauges |= {("waiting", "client"): 0, ("waiting", "queue"): 2}

    def now() -> dict[tuple[str, str], float]:
        seen = scraped(counted)
        return {(kind, name): seen.value(f"{kind}_exchanges", client=name) for kind, name in gauges}

    paths = ["/relay/never", "/queue/never", "/queue/never", "/queue/never"]
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(leaving(counted, path))
        until(lambda: now() == gauges)
        waiting = scraped(counted).all("waiting_exchanges")
        assert bool(waiting) is (transport == "asyncio")  # the stock transport does not tell
    until(lambda: not any(now().values()))


# OpenTelemetry.


class Telemetry:
    """The SDK of the app, in memory."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.exporter, self.provider = InMemorySpanExporter(), TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observe = opentelemetry_observer(
            meter_provider=self.metrics.provider, tracer_provider=self.provider
        )

    def spans(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]

    def told(self) -> list[ReadableSpan]:
        """The spans that were told of an exchange."""
        spans = self.exporter.get_finished_spans()
        return [span for span in spans if "asgi_upstream.outcome" in (span.attributes or {})]

    def of_exchange(self) -> tuple[ReadableSpan, dict[str, Any]]:
        until(lambda: len(self.told()) == 1)
        (span,) = self.told()
        return span, dict(span.attributes or {})

    def shutdown(self) -> None:
        self.provider.shutdown()
        self.metrics.provider.shutdown()


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=telemetry.provider)
    yield telemetry
    instrumentor.uninstrument()
    telemetry.shutdown()


@pytest.fixture
def traced(telemetry: Telemetry, upstream: Upstream, transport: str) -> Iterator[httpx.Client]:
    app = OpenTelemetryMiddleware(
        make_app(upstream.url, transport, telemetry.observe),
        tracer_provider=telemetry.provider,
        exclude_spans=["receive", "send"],
    )
    caller = httpx.Client(trust_env=False)
    HTTPXClientInstrumentor().uninstrument_client(caller)  # this one is of the outside
    with served(app) as url, caller:
        caller.base_url = httpx.URL(url)
        yield caller


@pytest.mark.of_httpx  # HTTPXClientInstrumentor knows no other
def test_a_trace_goes_on_to_the_upstream(
    traced: httpx.Client, telemetry: Telemetry, upstream: Upstream
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    parent = f"00-{trace_id}-b7ad6b7169203331-01"
    assert ask(traced, "/relay/item", headers={"traceparent": parent}) == 200
    own, _ = telemetry.of_exchange()
    (server,), (client,) = telemetry.spans(SpanKind.SERVER), telemetry.spans(SpanKind.CLIENT)
    contexts = [span.context for span in (server, client, own)]
    assert None not in contexts
    assert {f"{context.trace_id:032x}" for context in contexts if context} == {trace_id}
    assert client.parent == server.context
    assert client.context is not None
    sent = f"traceparent: 00-{trace_id}-{client.context.span_id:016x}-01\r\n"
    assert sent.encode() in upstream.requests[-1].head


def test_what_completes_is_told_under_the_callers_span(
    traced: httpx.Client, telemetry: Telemetry
) -> None:
    assert ask(traced, "/relay/chunks?count=3&delay=0.05") == 200
    span, attributes = telemetry.of_exchange()
    (server,) = telemetry.spans(SpanKind.SERVER)
    assert span.parent == server.context
    assert attributes["asgi_upstream.outcome"] == "completed"
    assert attributes["asgi_upstream.client"] == "client"
    assert attributes["asgi_upstream.status"] == 200
    assert attributes["asgi_upstream.time_to_first_byte"] > 0
    assert attributes["asgi_upstream.time_to_first_byte"] < attributes["asgi_upstream.duration"]
    assert [event.name for event in span.events] == [
        "asgi_upstream.headers",
        "asgi_upstream.first_byte",
    ]
    assert span.start_time is not None
    assert span.end_time is not None
    times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert times == sorted(times)


def test_what_fails_is_told_on_the_callers_span(traced: httpx.Client, telemetry: Telemetry) -> None:
    assert ask(traced, "/dead/item") == 502
    span, attributes = telemetry.of_exchange()
    assert span.kind is SpanKind.SERVER
    assert attributes["asgi_upstream.outcome"] == "connect_failed"
    assert attributes["asgi_upstream.error"].startswith("ConnectError: ")
    (point,) = telemetry.metrics.points("http.client.request.duration")
    assert point.attributes["error.type"] == "connect_failed"


def test_a_caller_who_left_is_told_on_its_span(traced: httpx.Client, telemetry: Telemetry) -> None:
    with leaving(traced, "/relay/events") as sock:
        until(lambda: b"data: " in sock.recv(65536))
    span, attributes = telemetry.of_exchange()
    assert span.kind is SpanKind.SERVER
    assert attributes["asgi_upstream.outcome"] == "caller_disconnected_mid_body"
    assert "error.type" not in attributes


def test_metrics_are_those_of_the_exchanges(
    traced: httpx.Client, telemetry: Telemetry, upstream: Upstream
) -> None:
    for path in ("/relay/item", "/relay/item", "/relay/status?code=404"):
        ask(traced, path)
    until(
        lambda: sum(p.count for p in telemetry.metrics.points("http.client.request.duration")) == 3
    )
    points = telemetry.metrics.points("http.client.request.duration")
    assert {p.attributes["http.response.status_code"]: p.count for p in points} == {200: 2, 404: 1}
    for point in points:
        assert point.attributes["server.address"] == "127.0.0.1"
        assert point.attributes["server.port"] == upstream.port
        assert point.attributes["http.route"] == "/{name}/{behaviour}"
    (first_byte,) = telemetry.metrics.points("asgi_upstream.time_to_first_byte")
    assert first_byte.count == 2
    with leaving(traced, "/relay/never"):
        until(lambda: open_by_client(telemetry)["client"] == 1)
    until(lambda: open_by_client(telemetry)["client"] == 0)


def open_by_client(telemetry: Telemetry) -> dict[str, int]:
    points = telemetry.metrics.points("asgi_upstream.open_exchanges")
    return {point.attributes["asgi_upstream.client"]: point.value for point in points}


# docs/metrics-and-tracing.md


def test_the_code_of_the_docs_runs_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "docs/metrics-and-tracing.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 3
    worker = """
from asgi_upstream.instrumentation.prometheus import prometheus_observer
from tests.support.records import record
prometheus_observer()(record())
"""
    check = """
from starlette.testclient import TestClient
with TestClient(app) as caller:
    assert 'asgi_upstream_open_exchanges{client="client"} 0.0' in caller.get("/metrics/").text
    assert 'outcome="completed"' not in caller.get("/metrics/").text
    assert 'outcome="completed"' in caller.get("/all-workers/").text
"""
    for code in (worker, "\n".join([*blocks, check])):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
