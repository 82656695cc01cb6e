"""docs/runbook.md says what the library does: its log lines, outcomes, statuses and metrics."""

import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.responses import Response
from starlette.testclient import TestClient

import asgi_upstream
from asgi_upstream import BufferedResponse, StreamedResponse, client_lifespan, get_client
from asgi_upstream.errors import map_exception
from asgi_upstream.instrumentation.prometheus import prometheus_observer
from asgi_upstream.records import Outcome
from asgi_upstream.transport import AsyncioTransport
from tests.support.example_apps import ROOT
from tests.support.upstream import Upstream

PAGE = (ROOT / "docs/runbook.md").read_text()
LINE = re.compile(r"upstream (\S+) failed: (\w+)(?:: (.*\S))? \((\w+) (\S+)\)")


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


STATUS = {
    name: int(status)
    for status, listed in re.findall(r"(?m)^- \*\*(\d{3}) (.*?)\*\*", PAGE)
    for name in names(listed)
}


@pytest.fixture(params=["stock", "asyncio"])
def caller(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """Calls an app that relays the URL it is given, through a pool of one place."""
    limits = httpx.Limits(max_connections=1)
    transport = AsyncioTransport if request.param == "asyncio" else httpx.AsyncHTTPTransport
    timeout = httpx.Timeout(60, pool=0.1)
    app = FastAPI(lifespan=client_lifespan(transport=transport(limits=limits), timeout=timeout))

    @app.post("/buffered")
    async def buffered(request: Request, url: str) -> Response:
        client = await get_client(request)
        return BufferedResponse(client, client.build_request("GET", url), max_bytes=10)

    @app.post("/streamed")
    async def streamed(
        request: Request, url: str, read: float = 10, deadline: float = 10
    ) -> Response:
        client = await get_client(request)
        outgoing = client.build_request("GET", url, timeout=httpx.Timeout(60, read=read))
        return StreamedResponse(client, outgoing, deadline=deadline)

    @app.post("/full")
    async def full(request: Request, url: str) -> Response:
        client = await get_client(request)
        async with client.stream("GET", url):  # has the one place
            await StreamedResponse(client, client.build_request("GET", url))(
                request.scope, request.receive, request._send
            )
        raise AssertionError("there was a second place")

    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "url", "exception"),
    [
        ("/streamed", "http://127.0.0.1:1/", "ConnectError"),
        ("/streamed", "{}/close_at_once", "RemoteProtocolError"),
        ("/streamed", "{}/no_http", "RemoteProtocolError"),
        ("/streamed", "{}/reset_at_once", "ReadError"),
        ("/streamed", "{}/odd_status", "UpstreamProtocolError"),
        ("/buffered", "{}/item", "UpstreamBodyTooLarge"),
        ("/streamed?read=0.2", "{}/never", "ReadTimeout"),
        ("/streamed?deadline=0.2", "{}/never", "UpstreamTimeout"),
        ("/full", "{}/silent_after_head", "PoolTimeout"),
    ],
)
def test_failure_has_the_status_and_log_line_of_the_page(
    caller: TestClient,
    upstream: Upstream,
    caplog: pytest.LogCaptureFixture,
    path: str,
    url: str,
    exception: str,
) -> None:
    url = url.format(upstream.url)
    response = caller.post(str(httpx.URL(path).copy_add_param("url", url)))
    [record] = [record for record in caplog.records if record.name == "asgi_upstream"]
    match = LINE.fullmatch(record.getMessage())
    assert match
    assert record.levelno == logging.WARNING
    assert match[1] == httpx.URL(url).netloc.decode()
    assert (response.status_code, match[2]) == (STATUS[exception], exception)
    assert (match[4], match[5]) == ("GET", path.partition("?")[0])


def test_log_line_of_a_deadline_names_the_deadline(
    caller: TestClient, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caller.post("/streamed", params={"url": f"{upstream.url}/never", "deadline": 0.25})
    assert "the deadline of 0.25 s passed" in caplog.text


@pytest.mark.parametrize(("name", "status"), STATUS.items())
def test_each_exception_on_the_page_has_its_status(name: str, status: int) -> None:
    kind = getattr(httpx, name, None) or getattr(asgi_upstream, name)
    error = map_exception(kind.__new__(kind))
    assert error is not None
    assert error.status_code == status


def test_queries_ask_for_outcomes_that_exist() -> None:
    for asked in re.findall(r'outcome!?=~?"(.*?)"', PAGE):
        for pattern in asked.split("|"):
            assert any(re.fullmatch(pattern, outcome) for outcome in Outcome), pattern


def test_each_quoted_log_line_exists() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    formats = re.findall(r'(?:warning|error|exception)\(\s*"(.*?)"', source)
    patterns = [re.sub(r"%[a-z]", ".+", re.escape(text)) for text in formats]
    quoted = re.findall(
        r"^(?:WARNING|ERROR) asgi_upstream: (.*)$", re.sub(r"\n    ", " ", PAGE), re.M
    )
    assert len(quoted) > 3
    for line in quoted:
        assert any(re.fullmatch(pattern, line) for pattern in patterns), line


def test_each_metric_on_the_page_exists() -> None:
    registry = CollectorRegistry()
    prometheus_observer(registry)
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "gauge": [""]}
    known = {m.name + suffix for m in registry.collect() for suffix in suffixes[m.type]}
    for name in set(re.findall(r"\basgi_upstream_\w+", PAGE)):
        assert name in known
