"""Relayed WebSockets in one process: what needs no sockets. The rest is in tests/integration."""

import base64
import hashlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

import asgi_upstream._websockets
from asgi_upstream import (
    ExchangeRecord,
    Outcome,
    ReverseProxy,
    UpstreamError,
    UpstreamProtocolError,
    get_client,
    relay_websocket,
)
from asgi_upstream._websockets.handshake import build_handshake, validate_upgrade
from tests.support.flavor import ON_HTTPX2, client_lifespan, httpx
from tests.support.scripted_websocket import SCOPE, Scripted, called

pytestmark = pytest.mark.virtual_time

if TYPE_CHECKING or not ON_HTTPX2:
    from httpx_ws.transport import ASGIWebSocketTransport
else:
    from httpx2.websockets import ASGIWebSocketTransport


@pytest.fixture(autouse=True)
def short_closing_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ASGIWebSocketTransport` never answers a close, and TestClient's loop has no virtual time."""
    monkeypatch.setattr("asgi_upstream._websockets.upstream.CLOSING_HANDSHAKE_TIMEOUT", 0.1)


async def echo(websocket: WebSocket) -> None:
    """The upstream: says where it was asked for, and then what it hears."""
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    await websocket.send_text(websocket.url.path)
    try:
        while True:
            await websocket.send_text((await websocket.receive_text()).upper())
    except WebSocketDisconnect:
        pass


UPSTREAM = Starlette(routes=[WebSocketRoute("/{path:path}", echo)])


def in_front(*routes: Any, **options: Any) -> TestClient:
    lifespan = client_lifespan(
        base_url="http://inside", transport=ASGIWebSocketTransport(UPSTREAM), **options
    )
    return TestClient(Starlette(routes=list(routes), lifespan=lifespan))


def refusing(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def test_an_app_that_is_mounted_relays() -> None:
    with (
        in_front(Mount("/api", ReverseProxy())) as caller,
        caller.websocket_connect("/api/a/b", subprotocols=["one"]) as websocket,
    ):
        assert websocket.accepted_subprotocol == "one"
        assert websocket.receive_text() == "/a/b"
        websocket.send_text("here")
        assert websocket.receive_text() == "HERE"


def test_route_that_received_the_connect_relays_to_another_path() -> None:
    async def route(websocket: WebSocket) -> None:
        await websocket.receive()
        await relay_websocket(await get_client(websocket), websocket, "/elsewhere")

    with (
        in_front(WebSocketRoute("/live", route)) as caller,
        caller.websocket_connect("/live") as websocket,
    ):
        assert websocket.receive_text() == "/elsewhere"


def test_the_client_is_chosen_by_a_function_of_the_connection() -> None:
    async def name(connection: Any) -> str:
        assert connection.scope["type"] == "websocket"
        return "client"

    with (
        in_front(Mount("/api", ReverseProxy(name))) as caller,
        caller.websocket_connect("/api/x") as websocket,
    ):
        assert websocket.receive_text() == "/x"


def test_on_request_may_answer_instead() -> None:
    def answers(request: httpx.Request) -> Response:
        return PlainTextResponse(f"no {request.headers['upgrade']}", 418)

    with (
        in_front(Mount("/api", ReverseProxy(on_request=answers))) as caller,
        pytest.raises(WebSocketDenialResponse) as denied,
    ):
        caller.websocket_connect("/api/x").__enter__()
    assert (denied.value.status_code, denied.value.text) == (418, "no websocket")


def test_a_failure_at_the_handshake_is_for_the_apps_own_handler() -> None:
    async def handled(request: Request, exc: Exception) -> Response:
        return PlainTextResponse(type(exc).__name__, 555)

    app = Starlette(
        routes=[Mount("/api", ReverseProxy())],
        lifespan=client_lifespan(base_url="http://x", transport=httpx.MockTransport(refusing)),
        exception_handlers={UpstreamError: handled},
    )
    with TestClient(app) as caller, pytest.raises(WebSocketDenialResponse) as denied:
        caller.websocket_connect("/api/x").__enter__()
    assert (denied.value.status_code, denied.value.text) == (555, "UpstreamConnectError")


def test_a_path_outside_the_prefix_is_404_and_one_with_dots_400() -> None:
    routes = [WebSocketRoute("/{path:path}", ReverseProxy(prefix="/api"))]
    with in_front(*routes) as caller:
        for path, status in (("/other", 404), ("/api/%2e%2e/x", 400)):
            with pytest.raises(WebSocketDenialResponse) as denied:
                caller.websocket_connect(path).__enter__()
            assert denied.value.status_code == status


@pytest.mark.anyio
async def test_refusal_is_a_close_without_denial_response_extension() -> None:
    closed = [{"type": "websocket.close", "code": 1008, "reason": ""}]
    async with httpx.AsyncClient(
        base_url="http://x", transport=httpx.MockTransport(refusing)
    ) as client:
        state = {"client": client}
        assert await called(ReverseProxy(), state=state) == closed
        assert await called(ReverseProxy(), state=state, raw_path=b"/../x") == closed
        assert await called(ReverseProxy(prefix="/y"), state=state) == closed
    forbids = httpx.MockTransport(lambda request: httpx.Response(401, text="who?"))
    async with httpx.AsyncClient(base_url="http://x", transport=forbids) as client:
        assert await called(ReverseProxy(), state={"client": client}) == closed


@pytest.mark.anyio
async def test_handshake_without_websockets_installed_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("relay", "upstream"):
        monkeypatch.delattr(asgi_upstream._websockets, name)
        monkeypatch.delitem(sys.modules, f"asgi_upstream._websockets.{name}")
    for module in [name for name in sys.modules if name.partition(".")[0] == "websockets"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "websockets", None)
    with caplog.at_level(logging.WARNING, "asgi_upstream"):
        sent = await called(ReverseProxy())
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    assert "pip install websockets" in caplog.text


@pytest.mark.process
def test_websockets_is_imported_only_with_relay_websocket() -> None:
    code = "import sys, asgi_upstream; print('websockets' in sys.modules);"
    code += "from asgi_upstream import relay_websocket; print('websockets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "True"]
    code = "import sys; sys.modules['websockets'] = None; from asgi_upstream import relay_websocket"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "pip install websockets" in done.stderr
    with pytest.raises(AttributeError, match="no attribute 'relay_webhook'"):
        _ = asgi_upstream.relay_webhook


def test_observers_of_the_client_and_of_the_app_get_a_record() -> None:
    records: list[ExchangeRecord] = []
    mine: list[ExchangeRecord] = []
    app = ReverseProxy(observers=[mine.append])
    with (
        in_front(Mount("/api", app), observers=[records.append]) as caller,
        caller.websocket_connect("/api/x") as websocket,
    ):
        websocket.receive_text()
        websocket.send_text("four")
        websocket.receive_text()
    assert records == mine
    record = records[0]
    assert (record.outcome, record.status, record.client) == (Outcome.COMPLETED, 101, "client")
    assert (record.method, record.host) == ("GET", "inside")
    assert (record.bytes_sent, record.bytes_received) == (4, 6)


@pytest.mark.anyio
@pytest.mark.parametrize(("scheme", "said"), [("ws", "http"), ("wss", "https"), ("https", "https")])
async def test_a_handshake_says_by_which_scheme_the_caller_came(scheme: str, said: str) -> None:
    fields = [
        (b"sec_websocket_key", b"1"),
        (b"Sec-WebSocket-Extensions", b"x"),
        (b"content-length", b"3"),
        (b"transfer-encoding", b"chunked"),
        (b"x-kept", b"1"),
    ]
    scope = SCOPE | {"scheme": scheme, "headers": fields, "subprotocols": ["a", "b"]}
    async with httpx.AsyncClient(base_url="http://x") as client:
        request = build_handshake(client, HTTPConnection(scope), trust_forwarded_headers=False)
    key = request.headers.pop("sec-websocket-key")
    assert len(base64.b64decode(key)) == 16
    assert (request.method, request.extensions["target"]) == ("GET", b"/x")
    assert request.headers.raw == [
        (b"host", b"x"),
        (b"x-kept", b"1"),
        (b"x-forwarded-proto", said.encode()),
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-protocol", b"a, b"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("broken", [True, False])
async def test_the_record_of_a_refusal_says_how_the_refusal_went(broken: bool) -> None:
    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"who"
            if broken:
                raise httpx.ReadError("gone")
            left.set()
            await anyio.sleep_forever()

    async def receive() -> Message:
        if connecting:
            return connecting.pop()
        await left.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    left = anyio.Event()
    connecting: list[Message] = [{"type": "websocket.connect"}]
    records: list[ExchangeRecord] = []
    scope = SCOPE | {"extensions": {"websocket.http.response": {}}}
    transport = httpx.MockTransport(lambda request: httpx.Response(401, stream=Body()))
    async with httpx.AsyncClient(base_url="http://x", transport=transport) as client:
        relaying = relay_websocket(
            client, WebSocket(scope, receive, send), observers=[records.append]
        )
        with anyio.fail_after(60):
            if broken:
                with pytest.raises(UpstreamProtocolError):
                    await relaying
            else:
                await relaying
    (record,) = records
    assert record.status == 401
    if broken:
        assert record.outcome is Outcome.BODY_FAILED
        assert isinstance(record.exception, httpx.ReadError)
    else:
        assert record.outcome is Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS


def test_an_acceptance_must_be_of_this_handshake() -> None:
    def check(**changes: str | None) -> None:
        token = hashlib.sha1(b"KEY258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        fields: dict[str, str | None] = {
            "upgrade": "WebSocket",
            "connection": "keep-alive, upgrade",
            "sec-websocket-accept": base64.b64encode(token).decode(),
        }
        fields |= {name.replace("_", "-"): value for name, value in changes.items()}
        request = httpx.Request("GET", "http://x", headers={"sec-websocket-key": "KEY"})
        answer = {name: value for name, value in fields.items() if value is not None}
        validate_upgrade(httpx.Response(101, headers=answer, request=request), ["a", "b"])

    check()
    check(sec_websocket_protocol="b")
    for wrong in (
        {"upgrade": "h2c"},
        {"upgrade": None},
        {"connection": None},
        {"connection": "keep-alive"},
        {"sec_websocket_accept": "x"},
        {"sec_websocket_accept": None},
        {"sec_websocket_protocol": "c"},
        {"sec_websocket_protocol": "a, b"},
        {"sec_websocket_extensions": "permessage-deflate"},
    ):
        with pytest.raises(UpstreamProtocolError):
            check(**wrong)


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["accept", "close"])
async def test_accepted_websocket_is_refused_with_advice(ending: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        websocket = WebSocket(scope, receive, send)
        await getattr(websocket, ending)()
        await relay_websocket(client, websocket)

    async with httpx.AsyncClient(base_url="http://x", transport=Scripted()) as client:
        with pytest.raises(RuntimeError, match=r"before websocket\.accept\(\)"):
            await called(app)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "missing", ["scheme", "query_string", "raw_path", "http_version", "root_path", "subprotocols"]
)
async def test_optional_keys_of_the_scope_may_be_missing(missing: str) -> None:
    complete = {**SCOPE, "subprotocols": []}
    scope = {key: value for key, value in complete.items() if key != missing}
    async with httpx.AsyncClient(base_url="http://x") as client:
        request = build_handshake(client, HTTPConnection(scope))
    assert request.extensions["target"] == b"/x"
    assert request.headers["x-forwarded-proto"] == "http"


@pytest.mark.anyio
async def test_headers_of_the_scope_may_be_any_iterable() -> None:
    for headers in (((b"x-kept", b"1"),), iter([[b"x-kept", b"1"]])):
        scope = SCOPE | {"headers": headers}
        async with httpx.AsyncClient(base_url="http://x") as client:
            request = build_handshake(client, HTTPConnection(scope))
        assert request.headers["x-kept"] == "1"


@pytest.mark.anyio
async def test_refused_handshake_is_logged_with_advice(caplog: pytest.LogCaptureFixture) -> None:
    forbids = httpx.MockTransport(lambda request: httpx.Response(403))
    async with httpx.AsyncClient(base_url="http://x", transport=forbids) as client:
        with caplog.at_level(logging.INFO, "asgi_upstream"):
            await called(ReverseProxy(), state={"client": client})
    assert "preserve_host=True" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize(("preserve_host", "host"), [(True, "app.example"), (False, "x")])
async def test_preserve_host_sends_the_callers_host_in_a_handshake(
    preserve_host: bool, host: str
) -> None:
    hosts: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        hosts.append(request.headers["host"])
        return httpx.Response(404)

    headers = [(b"host", b"app.example")]
    transport = httpx.MockTransport(refuse)
    async with httpx.AsyncClient(base_url="http://x", transport=transport) as client:

        async def route(scope: Any, receive: Any, send: Any) -> None:
            websocket = WebSocket(scope, receive, send)
            await relay_websocket(client, websocket, preserve_host=preserve_host)

        await called(route, headers=headers)
        proxy = ReverseProxy(preserve_host=preserve_host)
        await called(proxy, state={"client": client}, headers=headers)
    assert hosts == [host, host]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "option", [{"max_message_bytes": 0}, {"ping_interval": 0}, {"ping_interval": "5"}], ids=str
)
async def test_invalid_option_is_refused_before_the_handshake(option: dict[str, Any]) -> None:
    async def unused(*message: Any) -> Any:
        raise AssertionError("the handshake has started")

    async with httpx.AsyncClient(base_url="http://upstream") as client:
        websocket = WebSocket(SCOPE, unused, unused)
        with pytest.raises(ValueError, match=f"{next(iter(option))}="):
            await relay_websocket(client, websocket, **option)
    with pytest.raises(ValueError, match=f"{next(iter(option))}="):
        ReverseProxy(**option)
