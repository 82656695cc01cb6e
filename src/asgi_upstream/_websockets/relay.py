"""A WebSocket relayed: the handshake, and then messages both ways, by the same pooled client."""

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from .. import errors
from .._clients import get_client_state
from .._exchange.closing import close_upstream, defer_cancellation
from .._exchange.downstream import CallerDisconnected
from .._exchange.recording import ExchangeRecorder, route_template
from .._forwarding.request import HeaderOverrides
from .._httpx.flavors import (
    URLT,
    HTTPXModule,
    RequestT,
    SupportsBuildRequest,
    is_httpx_error,
    match_library,
)
from .._httpx.workarounds import clean_up_pool
from ..records import ExchangeRecord, Observer, Outcome
from ..responses import BufferedResponse
from . import handshake as handshakes
from .upstream import CLOSE_TIMEOUT, UpstreamWebSocket, byte_length

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
PING_INTERVAL = 20.0


async def relay_websocket(
    client: SupportsBuildRequest[RequestT, URLT],
    websocket: WebSocket,
    url: URLT | str | None = None,
    *,
    prefix: str | None = None,
    headers: HeaderOverrides | None = None,
    trust_forwarded_headers: bool = False,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    ping_interval: float | None = PING_INTERVAL,
    observers: Sequence[Observer] = (),
) -> None:
    """Connect a caller's WebSocket to the upstream's, until one of both closes it.

        @app.websocket("/live/{path:path}")
        async def live(websocket: WebSocket, client: Client) -> None:
            await relay_websocket(client, websocket, prefix="/live")

    Call it before `websocket.accept()`: the upstream decides. Path, query and headers are passed on
    as by `forward_request`, and so are subprotocols, messages, close codes and reasons.

    Arguments:
        url, prefix, headers, trust_forwarded_headers: as of `forward_request`.
        max_message_bytes: the longest message that is taken of the upstream. The server bounds the
            caller's.
        ping_interval: seconds of the upstream's silence until it is pinged; after as many again it
            counts as gone. None for no pings.
        observers: functions that get the `ExchangeRecord` at the end, besides those of the client.

    Raises:
        HTTPException: 400, or an `UpstreamError` before the WebSocket was accepted, for the app to
            answer. Where the server has no denial response it is a close instead, which is a 403.
        ValueError: as of `forward_request`. Causes and fixes: [docs/errors.md][on-websockets].
    """
    async with handshakes.close_on_http_exception(websocket):
        http_client: Any = client
        request = handshakes.build_handshake(
            http_client,
            websocket,
            url=url,
            prefix=prefix,
            headers=headers,
            trust_forwarded_headers=trust_forwarded_headers,
        )
        relay = WebSocketRelay(
            http_client, websocket, request, max_message_bytes, ping_interval, observers
        )
        await relay.run()


class WebSocketRelay:
    """One WebSocket to the caller, one to the upstream, and what is said between them."""

    _group: TaskGroup
    _response: httpx.Response | None = None
    _upstream: UpstreamWebSocket | None = None

    def __init__(
        self,
        client: httpx.AsyncClient,
        websocket: WebSocket,
        request: httpx.Request,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        ping_interval: float | None = PING_INTERVAL,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._client, self._websocket = client, websocket
        self.request: httpx.Request = request
        self._library: HTTPXModule = match_library(type(client), type(request))
        self._subprotocols: Sequence[str] = websocket.scope.get("subprotocols") or ()
        if "sec-websocket-key" not in request.headers:  # `on_request` made another request
            handshakes.set_upgrade_headers(request, self._subprotocols)
        self._max, self._ping_interval = max_message_bytes, ping_interval
        self._observers = observers
        self._caller_gone = False
        self._failure: Exception | None = None
        self._caller_close: tuple[int, str] = 1011, ""
        self._outcome = Outcome.CANCELLED
        self._tally: ExchangeRecorder | None = None

    async def run(self) -> None:
        """Relay until the end; nothing is open upstream after it.

        Raises:
            UpstreamError: before the caller was accepted.
        """
        ledger = get_client_state(self._client)
        if ledger.observers or self._observers:
            observers, scope = (*ledger.observers, *self._observers), self._websocket.scope
            self._tally = ExchangeRecorder(
                observers, ledger.name, self.request, self._library, scope
            )
        ledger.open_exchanges.add(self)
        try:
            try:
                await self._relay_messages()
                if self._response is not None and self._upstream is None and not self._failure:
                    await self._deny(self._response)
            finally:
                if self._response is not None:
                    await self._close_upstream(self._response)
            await self._close_caller()
        finally:
            ledger.open_exchanges.discard(self)
            if self._tally is not None:
                self._tally.emit(self._outcome, self._failure)

    async def _relay_messages(self) -> None:
        if self._websocket.client_state is WebSocketState.CONNECTING:
            await self._websocket.receive()  # websocket.connect
        async with anyio.create_task_group() as self._group:
            self._group.start_soon(self._caller_to_upstream)
            try:
                await self._connect()
                if self._upstream is not None:
                    await self._upstream_to_caller(self._upstream)
            except CallerDisconnected:
                self._note_disconnect(abnormal=True)
            except Exception as exc:  # raised in here, the group would make it a group
                self._failure = exc
            self._group.cancel_scope.cancel()
        if self._upstream is not None and self._upstream.failure is not None:
            self._failure = self._upstream.failure

    async def _connect(self) -> None:
        try:
            response = await self._client.send(self.request, stream=True, follow_redirects=False)
        except BaseException:
            await defer_cancellation(clean_up_pool(self._client, self.request.url))
            raise
        self._response = response
        if response.http_version == "HTTP/2":  # to which it was a GET (RFC 9113 8.6)
            raise self._library.LocalProtocolError(
                "a handshake needs HTTP/1.1: give WebSockets a client without http2=True"
            )
        if self._tally is not None:
            reused = response.extensions.get("connection_reused")
            self._tally.headers_received(response.status_code, reused=reused)
        if response.status_code != 101:
            return
        handshakes.validate_upgrade(response, self._subprotocols)
        self.request.stream = self._library.AsyncByteStream()  # what is sent counts from here on
        timeouts: Mapping[str, float | None] = self.request.extensions.get("timeout", {})
        self._upstream = UpstreamWebSocket(
            self._library,
            response,
            self._group,
            timeouts.get("write"),
            self._max,
            self._ping_interval,
        )
        fields = handshakes.handshake_response_headers(response)
        await self._send_to_caller(self._websocket.accept(self._upstream.subprotocol, fields))

    async def _deny(self, response: httpx.Response) -> None:
        """Answer the handshake as the upstream did."""

        def on_record(record: ExchangeRecord) -> None:
            self._outcome, failure = record.outcome, record.exception
            self._failure = failure if isinstance(failure, Exception) else None

        self._caller_gone, self._outcome = True, Outcome.COMPLETED
        response.headers = self._library.Headers(handshakes.handshake_response_headers(response))
        # In one part, for granian takes no other, and uvicorn collects them.
        whole = BufferedResponse.from_response(response, observers=[on_record])
        try:
            await self._send_to_caller(handshakes.send_denial_response(self._websocket, whole))
        except CallerDisconnected:
            self._failure = None
            self._note_disconnect(abnormal=True)

    async def _caller_to_upstream(self) -> None:
        """Pass on what the caller says. From the beginning: it may leave during the handshake."""
        message: Mapping[str, Any] = {}
        try:
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                assert self._upstream is not None  # for the caller was accepted
                text: str | None = message.get("text")
                data: str | bytes = message["bytes"] if text is None else text
                await self._upstream.send(data)
                if self._tally is not None:
                    self._tally.sent += byte_length(data)
        except self._library.TimeoutException as exc:
            self._failure = exc
        except OSError:
            self._note_disconnect(abnormal=True)
        else:
            code, reason = message.get("code", 1005), message.get("reason")
            # So servers say that there was no Close, and uvicorn has 1005 for it, without a reason.
            abnormal = code == 1006 or (code == 1005 and reason is None)
            self._note_disconnect(abnormal=abnormal)
            if not abnormal and self._upstream is not None:
                self._upstream.farewell = code, reason or ""
        self._group.cancel_scope.cancel()

    async def _upstream_to_caller(self, upstream: UpstreamWebSocket) -> None:
        """Pass on what the upstream says, until it closes."""
        while (data := await upstream.receive()) is not None:
            if self._tally is not None:
                self._tally.bytes_received(byte_length(data))
            key = "text" if isinstance(data, str) else "bytes"
            await self._send_to_caller(self._websocket.send({"type": "websocket.send", key: data}))
        self._caller_close, self._outcome = upstream.farewell, Outcome.COMPLETED

    def _note_disconnect(self, *, abnormal: bool) -> None:
        self._caller_gone = True
        if self._upstream is None:
            self._outcome = Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
        else:
            self._outcome = Outcome.CALLER_DISCONNECTED_MID_BODY if abnormal else Outcome.COMPLETED

    async def _send_to_caller(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (OSError, RuntimeError, WebSocketDisconnect) as exc:  # servers differ in which
            raise CallerDisconnected from exc

    async def _close_upstream(self, response: httpx.Response) -> None:
        try:
            if self._upstream is not None:
                await self._upstream.close_handshake()
        finally:
            await close_upstream(response)
            if response.http_version == "HTTP/2":
                await defer_cancellation(clean_up_pool(self._client, self.request.url))
        if self._upstream is not None:
            await self._upstream.aclose()

    async def _close_caller(self) -> None:
        """Close the caller's side too, if it has not left."""
        failure, accepted = self._failure, self._upstream is not None
        if self._caller_gone and failure is None:
            return
        if failure is not None:
            if is_httpx_error(failure, httpx.RequestError):
                failure.request = self.request
            error = errors.map_exception(failure) or failure
            if self._tally is not None:
                self._outcome = self._tally.classify_failure(error, Outcome.APP_FAILED)
            if isinstance(error, errors.UpstreamError):
                errors.log_failure(error, self.request, route_template(self._websocket.scope))
            if not accepted or not isinstance(error, errors.UpstreamError):
                raise error
            too_large = isinstance(error, errors.UpstreamBodyTooLarge)
            self._caller_close = 1009 if too_large else 1011, error.detail
        code, reason = self._caller_close
        with (
            anyio.move_on_after(CLOSE_TIMEOUT),
            suppress(CallerDisconnected, OSError, RuntimeError),  # it has left by now
        ):
            await self._send_to_caller(
                self._websocket.close(1000 if code == 1005 else code, reason)
            )
            # What it still says is taken off the server, for hypercorn would wait with it for ever.
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass
