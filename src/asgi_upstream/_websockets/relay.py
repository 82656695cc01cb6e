"""Relays a WebSocket: the handshake, then messages in both directions, on the pooled client."""

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from .. import errors
from .._exchange.closing import close_upstream
from .._exchange.downstream import CallerDisconnected
from .._exchange.ending import Ending
from .._exchange.failure import log_ending, map_failure
from .._exchange.recording import ExchangeRecorder, RecordedExchange
from .._exchange.validation import validate_seconds, validate_size
from .._forwarding.request import MAX_MESSAGE_BYTES, HeaderOverrides
from .._httpx.cancellation import defer_cancellation
from .._httpx.flavors import match_library
from .._httpx.interfaces import URLT, HTTPXModule, RequestT, SupportsBuildRequest
from .._httpx.proxy_tunnels import prepare_handshake
from .._httpx.workarounds import clean_up_pool
from .._logging import logger
from ..records import ExchangeRecord, Observer, Outcome
from ..responses import BufferedResponse
from . import handshake as handshakes
from .upstream import CLOSING_HANDSHAKE_TIMEOUT, UpstreamWebSocket, byte_length


async def relay_websocket(
    client: SupportsBuildRequest[RequestT, URLT],
    websocket: WebSocket,
    url: URLT | str | None = None,
    *,
    prefix: str | None = None,
    headers: HeaderOverrides | None = None,
    trust_forwarded_headers: bool = False,
    preserve_host: bool = False,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    ping_interval: float | None = None,
    observers: Sequence[Observer] = (),
) -> None:
    """Connect the caller's WebSocket to the upstream's, until one of them closes.

        @app.websocket("/live/{path:path}")
        async def live(websocket: WebSocket, client: Client) -> None:
            await relay_websocket(client, websocket, prefix="/live")

    Call it before `websocket.accept()`, because the upstream decides about the handshake. Path,
    query and headers are forwarded as in `forward_request`. Subprotocols, messages, close codes
    and reasons are relayed.

    Arguments:
        client: The shared client.
        websocket: The caller's WebSocket, not accepted yet.
        url: Same as in `forward_request`.
        prefix: Same as in `forward_request`.
        headers: Same as in `forward_request`.
        trust_forwarded_headers: Same as in `forward_request`.
        preserve_host: Same as in `forward_request`.
        max_message_bytes: Maximum size of a message from the upstream, in bytes. A longer message
            closes the WebSocket with 1009. The server limits the caller's messages.
        ping_interval: Seconds without data from the upstream before it is pinged. After as many
            seconds without an answer the WebSocket closes with 1011. None sends no pings.
        observers: Called with the `ExchangeRecord` at the end, in addition to the client's.

    Raises:
        RuntimeError: If the WebSocket was accepted or closed before. For causes and fixes see
            [docs/errors.md][websocket-messages].
        HTTPException: 400, or an `UpstreamError` if the handshake fails, for the app to answer. A
            server without the denial response extension closes the handshake (403) instead.
        ValueError: Same as in `forward_request`, or if a number is not positive.
    """
    validate_size("max_message_bytes", max_message_bytes)
    validate_seconds("ping_interval", ping_interval)
    _raise_if_accepted(websocket)
    async with handshakes.close_on_http_exception(websocket):
        http_client: Any = client
        request = handshakes.build_handshake(
            http_client,
            websocket,
            url=url,
            prefix=prefix,
            headers=headers,
            trust_forwarded_headers=trust_forwarded_headers,
            preserve_host=preserve_host,
        )
        relay = WebSocketRelay(
            http_client,
            websocket,
            request,
            max_message_bytes=max_message_bytes,
            ping_interval=ping_interval,
            observers=observers,
        )
        await relay.run()


def _raise_if_accepted(websocket: WebSocket) -> None:
    if websocket.application_state is not WebSocketState.CONNECTING:
        raise RuntimeError(
            "call relay_websocket() before websocket.accept() or close(); it accepts the "
            "WebSocket itself when the upstream has accepted it"
        )


_CLOSE_CODES: dict[type[Exception], int] = {  # RFC 6455 7.4
    errors.UpstreamBodyTooLarge: 1009,
    errors.ExchangeCancelled: 1001,
}


class WebSocketRelay:
    """Relays one WebSocket between the caller and the upstream."""

    _group: TaskGroup
    _response: httpx.Response | None = None
    _upstream: UpstreamWebSocket | None = None

    def __init__(
        self,
        client: httpx.AsyncClient,
        websocket: WebSocket,
        request: httpx.Request,
        *,
        max_message_bytes: int,
        ping_interval: float | None,
        observers: Sequence[Observer],
    ) -> None:
        self._client = client
        self._websocket = websocket
        self.request: httpx.Request = request
        self._library: HTTPXModule = match_library(type(client), type(request))
        self._subprotocols: Sequence[str] = websocket.scope.get("subprotocols") or ()
        if "sec-websocket-key" not in request.headers:  # if `on_request` made another request
            handshakes.set_upgrade_headers(request, self._subprotocols)
        self._max_message_bytes = max_message_bytes
        self._ping_interval = ping_interval
        self._observers = observers
        self._caller_gone = False
        self._failure: Exception | None = None
        self._caller_close: tuple[int, str] = 1011, ""
        self._outcome = Outcome.CANCELLED
        self._recorder: ExchangeRecorder | None = None

    async def run(self) -> None:
        """Relay until the end. Nothing is open at the upstream afterwards.

        Raises:
            UpstreamError: If the handshake fails.
        """
        with RecordedExchange(
            self, self._client, self._observers, self._library, self._websocket.scope
        ) as recorded:
            self._recorder = recorded.recorder
            try:
                await self._relay_messages()
                if self._response is not None and self._upstream is None and not self._failure:
                    await self._deny(self._response)
            finally:
                if self._response is not None:
                    await self._close_upstream(self._response)
                recorded.ending = Ending(self._outcome, self._failure)
            if self._failure is not None:
                recorded.ending = map_failure(
                    self._failure,
                    self._client,
                    self.request,
                    recorded.recorder,
                    Outcome.APP_FAILED,
                )
                log_ending(recorded.ending, self.request, self._websocket.scope)
            await self._close_caller(recorded.ending.error)

    async def _relay_messages(self) -> None:
        if self._websocket.client_state is WebSocketState.CONNECTING:
            try:
                await self._websocket.receive()  # websocket.connect
            except OSError:
                self._note_disconnect(abnormal=True)
                return
        async with anyio.create_task_group() as self._group:
            self._group.start_soon(self._caller_to_upstream)
            try:
                await self._connect()
                if self._upstream is not None:
                    await self._upstream_to_caller(self._upstream)
            except CallerDisconnected:
                self._note_disconnect(abnormal=True)
            except Exception as exc:  # If it left the group, it would become an ExceptionGroup.
                self._failure = exc
            self._group.cancel_scope.cancel()
        if self._upstream is not None and self._upstream.failure is not None:
            self._failure = self._upstream.failure

    async def _connect(self) -> None:
        """Send the handshake, and accept the caller if the upstream accepts."""
        try:
            prepare_handshake(self._client, self.request)
            response = await self._client.send(self.request, stream=True, follow_redirects=False)
        except BaseException as exc:
            await defer_cancellation(clean_up_pool(self._client, self.request.url, exc))
            raise
        self._response = response
        if response.http_version == "HTTP/2":  # HTTP/2 takes it as a plain GET (RFC 9113 8.6).
            raise self._library.LocalProtocolError(
                "a WebSocket handshake needs HTTP/1.1; use a client without http2=True"
            )
        if self._recorder is not None:
            self._recorder.response_received(response)
        if response.status_code != 101:
            return
        handshakes.validate_upgrade(response, self._subprotocols)
        self.request.stream = self._library.AsyncByteStream()  # The recorder counts messages now.
        timeouts: Mapping[str, float | None] = self.request.extensions.get("timeout", {})
        self._upstream = UpstreamWebSocket(
            self._library,
            response,
            self._group,
            write_timeout=timeouts.get("write"),
            max_message_bytes=self._max_message_bytes,
            ping_interval=self._ping_interval,
        )
        headers = handshakes.handshake_response_headers(response)
        subprotocol = response.headers.get("sec-websocket-protocol")
        await self._send_to_caller(self._websocket.accept(subprotocol, headers))

    async def _deny(self, response: httpx.Response) -> None:
        """Answer the handshake with the upstream's refusal."""

        def on_record(record: ExchangeRecord) -> None:
            self._outcome, failure = record.outcome, record.exception
            self._failure = failure if isinstance(failure, Exception) else None

        if response.status_code == 403:
            logger.info(
                "the upstream refused a WebSocket handshake with 403 (%s); if it compares Origin "
                "with Host, use preserve_host=True",
                self.request.url.path,
            )
        self._caller_gone, self._outcome = True, Outcome.COMPLETED
        response.headers = self._library.Headers(handshakes.handshake_response_headers(response))
        # In one chunk, because granian accepts no more and uvicorn collects them.
        denial = BufferedResponse.from_response(response, observers=[on_record])
        try:
            await self._send_to_caller(handshakes.send_denial_response(self._websocket, denial))
        except CallerDisconnected:
            self._failure = None
            self._note_disconnect(abnormal=True)

    async def _caller_to_upstream(self) -> None:
        """Relay the caller's messages. Reads from the start, to see a disconnect early."""
        message: Mapping[str, Any] = {}
        try:
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                assert self._upstream is not None  # because the caller was accepted
                text: str | None = message.get("text")
                data: str | bytes = message["bytes"] if text is None else text
                await self._upstream.send(data)
                if self._recorder is not None:
                    self._recorder.sent += byte_length(data)
        except OSError:
            self._note_disconnect(abnormal=True)
        except Exception as exc:  # If it left the group, it would become an ExceptionGroup.
            self._failure = exc
        else:
            code, reason = message.get("code", 1005), message.get("reason")
            # Servers report a missing Close frame so. uvicorn sends 1005 without a reason for it.
            abnormal = code == 1006 or (code == 1005 and reason is None)
            self._note_disconnect(abnormal=abnormal)
            if not abnormal and self._upstream is not None:
                self._upstream.close_code, self._upstream.close_reason = code, reason or ""
        self._group.cancel_scope.cancel()

    async def _upstream_to_caller(self, upstream: UpstreamWebSocket) -> None:
        """Relay the upstream's messages until it closes."""
        while (data := await upstream.receive()) is not None:
            if self._recorder is not None:
                self._recorder.bytes_received(byte_length(data))
            key = "text" if isinstance(data, str) else "bytes"
            await self._send_to_caller(self._websocket.send({"type": "websocket.send", key: data}))
        self._caller_close = upstream.close_code, upstream.close_reason
        self._outcome = Outcome.COMPLETED

    def _note_disconnect(self, *, abnormal: bool) -> None:
        self._caller_gone = True
        if self._upstream is None:
            self._outcome = Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
        else:
            self._outcome = Outcome.CALLER_DISCONNECTED_MID_BODY if abnormal else Outcome.COMPLETED

    async def _send_to_caller(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (OSError, RuntimeError, WebSocketDisconnect) as exc:  # Servers differ in the error.
            raise CallerDisconnected from exc

    async def _close_upstream(self, response: httpx.Response) -> None:
        try:
            if self._upstream is not None:
                await self._upstream.close()
        finally:
            await close_upstream(response)
        if self._upstream is not None:
            await self._upstream.aclose()

    async def _close_caller(self, error: Exception | None) -> None:
        """Close the caller's WebSocket unless the caller has disconnected, or raise the error."""
        code, reason = self._caller_close
        if error is None:
            if self._caller_gone:
                return
        elif self._upstream is None or not isinstance(error, errors.UpstreamError):
            raise error
        else:
            code, reason = _CLOSE_CODES.get(type(error), 1011), error.detail
        with (
            anyio.move_on_after(CLOSING_HANDSHAKE_TIMEOUT),
            suppress(CallerDisconnected, OSError, RuntimeError),
        ):
            await self._send_to_caller(
                self._websocket.close(1000 if code == 1005 else code, reason)
            )
            # Read the remaining messages. hypercorn waits forever otherwise.
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass
