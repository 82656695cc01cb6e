"""Both libraries in one process, as an app has them that moves from one to the other.

The other tests run on httpx2 too: `make test-httpx2`.
"""

import asyncio
import base64
import hashlib
import logging
import re
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any, cast

import httpx
import httpx2
import pytest
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message
from starlette.websockets import WebSocket

from asgi_upstream import (
    BufferedResponse,
    PoolExhausted,
    StreamedResponse,
    UpstreamConnectError,
    UpstreamTimeout,
    client_lifespan,
    count_open_exchanges,
    forward_request,
    relay_websocket,
    upstream_errors,
)
from asgi_upstream import transport as of_httpx
from asgi_upstream._httpx.exceptions import is_httpx_error
from asgi_upstream._httpx.fast_path import direct_transport
from asgi_upstream._httpx.flavors import get_library
from asgi_upstream._httpx.interfaces import HTTPXModule
from asgi_upstream.records import ExchangeRecord, Outcome
from asgi_upstream.testing import ReceivedRequest, ScriptedResponse, Upstream
from asgi_upstream.transport import httpx2 as of_httpx2
from tests.support.asgi import Caller

# of_httpx: these know both.
pytestmark = [pytest.mark.asyncio, pytest.mark.no_leaks, pytest.mark.of_httpx]
both = pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda module: module.__name__)
transports = pytest.mark.parametrize("is_fast", [False, True], ids=["stock", "AsyncioTransport"])


def answer(request: ReceivedRequest) -> ScriptedResponse:
    """Answer with the request's body."""
    body = request.body or b'{"a": 1}'
    return ScriptedResponse().content(body, headers={"set-cookie": "a=b"})


@asynccontextmanager
async def sharing(library: Any, is_fast: bool, url: str, **options: Any) -> AsyncIterator[Any]:
    if is_fast:
        module: Any = of_httpx if library is httpx else of_httpx2
        limits = options.pop("limits", library.Limits())
        options["transport"] = module.AsyncioTransport(limits=limits)
    else:
        options["trust_env"] = False
    lifespan = client_lifespan(library.AsyncClient, base_url=url, **options)
    async with lifespan(None) as state:
        yield state["client"]


@asynccontextmanager
async def shared(library: Any, is_fast: bool, **options: Any) -> AsyncIterator[Any]:
    with Upstream() as upstream:
        upstream.any("/").callback(answer)
        upstream.get("/silent").stall()
        upstream.get("/cut").content(b"0123").close(after=2)
        async with sharing(library, is_fast, upstream.url, **options) as client:
            yield client


HANDSHAKE: dict[str, Any] = {
    "type": "websocket",
    "http_version": "1.1",
    "scheme": "ws",
    "root_path": "",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "headers": [],
    "extensions": {"websocket.http.response": {}},
}


class GreetingCaller:
    """One that says hello when it is accepted, and leaves when it is told to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self._comes: asyncio.Queue[Message] = asyncio.Queue()
        self._comes.put_nowait({"type": "websocket.connect"})

    async def receive(self) -> Message:
        return await self._comes.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "websocket.accept":
            self._comes.put_nowait({"type": "websocket.receive", "text": "hello"})
        elif message["type"] == "websocket.close":
            self._comes.put_nowait({"type": "websocket.disconnect", "code": 1000, "reason": ""})


@both
@transports
@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_a_response_is_relayed(library: Any, is_fast: bool, cls: Any) -> None:
    async with shared(library, is_fast) as client:
        caller = await Caller().call(cls(client, client.build_request("GET", "/")))
        again = await Caller().call(cls(client, client.build_request("POST", "/", content="b")))
    assert (caller.status, caller.body) == (200, b'{"a": 1}')
    assert caller.values("set-cookie") == ["a=b"]
    assert again.body == b"b"


@both
@transports
async def test_on_response_gets_a_response_of_the_clients_own_library(
    library: Any, is_fast: bool
) -> None:
    def shape(upstream: Any) -> JSONResponse:
        assert type(upstream) is library.Response
        return JSONResponse(upstream.json())

    async with shared(library, is_fast) as client:
        request = client.build_request("GET", "/")
        caller = await Caller().call(BufferedResponse(client, request, on_response=shape))
        assert caller.body == b'{"a":1}'


@both
@transports
async def test_a_response_that_is_open_already_is_adopted(library: Any, is_fast: bool) -> None:
    async with shared(library, is_fast) as client:
        upstream = await client.send(client.build_request("GET", "/"), stream=True)
        caller = await Caller().call(StreamedResponse.from_response(upstream))
        assert caller.body == b'{"a": 1}'
        assert upstream.is_closed


@both
@transports
async def test_a_forwarded_request_is_of_the_clients_own_library(
    library: Any, is_fast: bool
) -> None:
    async with shared(library, is_fast) as client:
        for fields, body in [([], b'{"a": 1}'), ([(b"content-length", b"3")], b"abc")]:
            caller = Caller("POST", headers=fields, body=[b"abc"] if fields else ())
            outgoing = forward_request(client, Request(caller.scope, caller.receive))
            assert isinstance(outgoing, library.Request)
            assert type(outgoing.headers) is library.Headers
            assert isinstance(outgoing.stream, library.AsyncByteStream)
            await caller.call(StreamedResponse(client, outgoing))
            assert caller.body == body


@both
@transports
async def test_failure_has_the_librarys_own_exception_as_cause(library: Any, is_fast: bool) -> None:
    records: list[ExchangeRecord] = []
    short = library.Timeout(60, read=0.05)
    async with shared(library, is_fast, timeout=60, observers=[records.append]) as client:
        for url, status, cause in [
            ("http://127.0.0.1:1/", 502, library.ConnectError),
            ("/silent", 504, library.ReadTimeout),
            ("/cut", 502, library.RemoteProtocolError),
        ]:
            timeout = short if url == "/silent" else 60
            request = client.build_request("GET", url, timeout=timeout)
            with pytest.raises(Exception, match=str(status)) as caught:
                await Caller().call(BufferedResponse(client, request))
            failure: Any = caught.value.__cause__
            assert type(failure) is cause
            assert failure.request is request
        with pytest.raises(UpstreamTimeout) as caught, upstream_errors():
            await client.get("/silent", timeout=short)
        assert type(caught.value.__cause__) is library.ReadTimeout
    failed = [Outcome.CONNECT_FAILED, Outcome.READ_TIMEOUT, Outcome.BODY_FAILED]
    assert [record.outcome for record in records] == failed


@both
@transports
async def test_so_has_a_pool_that_is_full(library: Any, is_fast: bool) -> None:
    limits = library.Limits(max_connections=1)
    async with shared(library, is_fast, limits=limits) as client:
        held = await client.send(client.build_request("GET", "/"), stream=True)
        request = client.build_request("GET", "/", timeout=library.Timeout(60, pool=0.05))
        with pytest.raises(PoolExhausted) as caught:
            await Caller().call(StreamedResponse(client, request))
        assert type(caught.value.__cause__) is library.PoolTimeout
        await held.aclose()


async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept a WebSocket, and end it as the path says; the path is said first."""
    head = await reader.readuntil(b"\r\n\r\n")
    path, key = head.split(b" ")[1], re.findall(b"(?i)sec-websocket-key: (\\S+)", head)[0]
    whole = key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(whole).digest())
    writer.write(b"HTTP/1.1 101 Go\r\nupgrade: websocket\r\nconnection: upgrade\r\n")
    writer.write(b"sec-websocket-accept: %b\r\n\r\n\x81%c%b" % (accept, len(path), path))
    try:
        if path == b"/closes":
            writer.write(b"\x88\x02\x0f\xa1")  # 4001
            await reader.read()
        elif path == b"/breaks":
            writer.write(b"\xff\xff")
            await reader.read()
        elif path == b"/silent":
            await reader.read()
        elif path == b"/resets":
            await reader.readexactly(2)  # of the caller's word
            linger = struct.pack("ii", 1, 0)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except ConnectionError:
        pass
    finally:
        writer.close()


@both
@transports
async def test_websocket_failure_has_the_librarys_exception_as_cause(
    library: Any, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None of these upstreams answers a close.
    monkeypatch.setattr("asgi_upstream._websockets.upstream.CLOSING_HANDSHAKE_TIMEOUT", 0.1)
    records: list[ExchangeRecord] = []
    options: dict[str, Any] = {"observers": [records.append]}
    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, sharing(library, is_fast, url, **options) as client:
        for path, code, cause in [
            ("/closes", 4001, None),
            ("/breaks", 1011, library.RemoteProtocolError),
            ("/leaves", 1011, library.RemoteProtocolError),
            ("/silent", 1011, library.ReadTimeout),
            ("/resets", 1011, library.ReadError),
        ]:
            client.timeout = library.Timeout(60, read=2 if path == "/silent" else 60)
            caller = GreetingCaller()
            scope = HANDSHAKE | {"path": path, "raw_path": path.encode()}
            websocket = WebSocket(scope, caller.receive, caller.send)
            await relay_websocket(client, websocket, ping_interval=0.1)
            sent = [message["type"].partition(".")[2] for message in caller.sent]
            assert sent == ["accept", "send", "close"], path
            assert caller.sent[1]["text"] == path
            assert caller.sent[2]["code"] == code
            record = records[-1]
            assert record.status == 101
            assert type(record.exception) is (cause or type(None))
        assert count_open_exchanges(client) == 0


@both
@transports
async def test_failed_handshake_has_the_librarys_exception_as_cause(
    library: Any, is_fast: bool
) -> None:
    timeout = library.Timeout(60, read=0.1)
    async with shared(library, is_fast, timeout=timeout) as client:
        for url, kind, cause in [
            ("http://127.0.0.1:1", UpstreamConnectError, library.ConnectError),
            (client.base_url, UpstreamTimeout, library.ReadTimeout),
        ]:
            caller = GreetingCaller()
            websocket = WebSocket(HANDSHAKE, caller.receive, caller.send)
            with pytest.raises(kind) as caught:
                await relay_websocket(client, websocket, library.URL(url).join("/silent"))
            assert type(caught.value.__cause__) is cause
            assert caller.sent == []


@both
async def test_every_timeout_has_its_outcome(library: Any) -> None:
    outcomes = []
    for kind in (library.ConnectTimeout, library.WriteTimeout, library.PoolTimeout):

        def fail(request: object, kind: Any = kind) -> Any:
            raise kind("")

        records: list[ExchangeRecord] = []
        options: dict[str, Any] = {"base_url": "http://x", "observers": [records.append]}
        transport = library.MockTransport(fail)
        lifespan = client_lifespan(library.AsyncClient, transport=transport, **options)
        async with lifespan(None) as state:
            client: Any = state["client"]
            with pytest.raises(Exception, match="50"):
                await Caller().call(StreamedResponse(client, client.build_request("GET", "/")))
        outcomes += [record.outcome for record in records]
    assert outcomes == [Outcome.CONNECT_TIMEOUT, Outcome.WRITE_TIMEOUT, Outcome.POOL_EXHAUSTED]


@both
async def test_a_client_with_nothing_to_do_is_passed_by(
    library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with shared(library, True) as client:
        request = client.build_request("GET", "/")
        assert direct_transport(client, request) is client._transport
        with caplog.at_level(logging.INFO, logger=library.__name__):
            await Caller().call(StreamedResponse(client, request))
        (line,) = [r.getMessage() for r in caplog.records if r.name == library.__name__]
    assert line == f'HTTP Request: GET {request.url} "HTTP/1.1 200 OK"'


@both
async def test_a_request_of_the_other_library_is_refused_at_once(library: Any) -> None:
    other: Any = httpx if library is httpx2 else httpx2
    async with library.AsyncClient() as client:
        with pytest.raises(TypeError, match=r"build the request with client\.build_request"):
            StreamedResponse(client, other.Request("GET", "http://x"))


@both
async def test_the_transport_of_the_other_library_is_refused_by_name(library: Any) -> None:
    module: Any = of_httpx2 if library is httpx else of_httpx
    async with library.AsyncClient(transport=module.AsyncioTransport()) as client:
        with pytest.raises(TypeError, match=r"is for httpx.*asgi_upstream\.transport"):
            await client.get("http://127.0.0.1:1/")
    lifespan = client_lifespan(library.AsyncClient, transport=module.AsyncioTransport())
    async with lifespan(None) as state:
        mixed: Any = state["client"]
        way = StreamedResponse(mixed, mixed.build_request("GET", "http://127.0.0.1:1/"))
        with pytest.raises(TypeError, match="is for httpx"):
            await Caller().call(way)


async def test_httpx2_instrumentation_sees_requests_of_the_transport() -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instrumentor: Any = HTTPX2ClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        async with shared(httpx2, True) as client:
            await Caller().call(StreamedResponse(client, client.build_request("GET", "/")))
    finally:
        instrumentor.uninstrument()
    assert [span.name for span in spans.get_finished_spans()] == ["GET"]


@both
async def test_a_library_has_all_that_is_asked_of_one(library: ModuleType) -> None:
    assert get_library(library.AsyncClient) is cast(HTTPXModule, library)
    assert get_library(type("Subclass", (library.AsyncClient,), {})) is cast(HTTPXModule, library)
    for name in HTTPXModule.__annotations__.keys() - {"__name__"}:
        assert get_library(getattr(library, name)) is cast(HTTPXModule, library), name


async def test_httpx2_exception_matches_its_httpx_name_or_bases() -> None:
    class OwnConnectTimeout(httpx2.ConnectTimeout):
        pass

    assert is_httpx_error(httpx2.ReadTimeout(""), httpx.ReadTimeout)
    assert is_httpx_error(httpx2.ReadTimeout(""), httpx.TimeoutException)
    assert not is_httpx_error(httpx2.ReadTimeout(""), httpx.ConnectTimeout)
    assert is_httpx_error(OwnConnectTimeout(""), httpx.TimeoutException)
    assert is_httpx_error(httpx2.SSEError(""), httpx.RequestError)  # which httpx has not
    assert not is_httpx_error(TimeoutError(), httpx.TimeoutException)
    with pytest.raises(UpstreamConnectError), upstream_errors():
        raise httpx2.ConnectError("")


# In processes of their own, for these are about what is imported.

RELAYED = """
import asyncio
from unittest.mock import Mock
from asgi_upstream import StreamedResponse, client_lifespan, forward_request
from asgi_upstream.transport import AsyncioTransport
import httpx

async def main():
    lifespan = client_lifespan(transport=AsyncioTransport(), base_url="http://127.0.0.1:1")
    async with lifespan(None) as state:
        client = state["client"]
        try:
            response = StreamedResponse(client, client.build_request("GET", "/"))
            await response({"type": "http"}, Mock(), Mock())
        except Exception as exc:
            print(exc.status_code, type(exc.__cause__).__module__)
asyncio.run(main())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
async def test_httpx2_is_not_imported_for_who_does_not() -> None:
    assert run(RELAYED + "import sys; print('httpx2' in sys.modules)") == "502 httpx\nFalse\n"


@pytest.mark.process
async def test_httpx2_may_stand_in_for_httpx_in_the_whole_process() -> None:
    assert run("import httpx2; httpx2.alias_httpx()" + RELAYED) == "502 httpx2\n"
