"""Relays a WebSocket: the handshake, then messages in both directions, on the pooled client."""

from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketState

from .. import errors
from .._exchange.closing import close_upstream
from .._exchange.downstream import CallerDisconnected
from .._exchange.ending import Ending
from .._exchange.failure import log_ending, map_failure
from .._exchange.recording import ExchangeRecorder, RecordedExchange
from .._exchange.validation import validate_seconds, validate_size
from .._forwarding.request import MAX_MESSAGE_BYTES, HeaderOverrides
from .._httpx.flavors import match_library
from .._httpx.interfaces import URLT, HTTPXModule, RequestT, SupportsBuildRequest
from ..records import ExchangeRecord, Observer, Outcome
from . import handshake as handshakes
from .caller import CallerWebSocket
from .upstream import UpstreamWebSocket, byte_length


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
        self._scope = websocket.scope
        self._caller = CallerWebSocket(websocket)
        self.request: httpx.Request = request
        self._library: HTTPXModule = match_library(type(client), type(request))
        if "sec-websocket-key" not in request.headers:  # if `on_request` made another request
            handshakes.set_upgrade_headers(request, self._caller.subprotocols)
        self._max_message_bytes = max_message_bytes
        self._ping_interval = ping_interval
        self._observers = observers
        self._failure: Exception | None = None
        self._outcome = Outcome.CANCELLED
        self._recorder: ExchangeRecorder | None = None

    async def run(self) -> None:
        """Relay until the end. Nothing is open at the upstream afterwards.

        Raises:
            UpstreamError: If the handshake fails.
        """
        with RecordedExchange(
            self, self._client, self._observers, self._library, self._scope
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
                log_ending(recorded.ending, self.request, self._scope)
            await self._close_caller(recorded.ending.error)

    async def _relay_messages(self) -> None:
        try:
            await self._caller.receive_connect()
        except CallerDisconnected:
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
        self._response = response = await handshakes.send_handshake(self._client, self.request)
        if response.http_version == "HTTP/2":  # HTTP/2 takes it as a plain GET (RFC 9113 8.6).
            raise self._library.LocalProtocolError(
                "a WebSocket handshake needs HTTP/1.1; use a client without http2=True"
            )
        if self._recorder is not None:
            self._recorder.response_received(response)
        if response.status_code != 101:
            return
        handshakes.validate_upgrade(response, self._caller.subprotocols)
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
        await self._caller.accept(response)

    async def _deny(self, response: httpx.Response) -> None:
        """Answer the handshake with the upstream's refusal."""

        def on_record(record: ExchangeRecord) -> None:
            self._outcome, failure = record.outcome, record.exception
            self._failure = failure if isinstance(failure, Exception) else None

        self._outcome = Outcome.COMPLETED
        try:
            await self._caller.refuse(handshakes.build_denial_response(response, on_record))
        except CallerDisconnected:
            self._failure = None
            self._note_disconnect(abnormal=True)

    async def _caller_to_upstream(self) -> None:
        """Relay the caller's messages. Reads from the start, to see a disconnect early."""
        try:
            while (data := await self._caller.receive()) is not None:
                assert self._upstream is not None  # because the caller was accepted
                await self._upstream.send(data)
                if self._recorder is not None:
                    self._recorder.sent += byte_length(data)
        except CallerDisconnected:
            self._note_disconnect(abnormal=True)
        except Exception as exc:  # If it left the group, it would become an ExceptionGroup.
            self._failure = exc
        else:
            self._note_disconnect(abnormal=False)
            if self._upstream is not None:
                self._upstream.close_code = self._caller.close_code
                self._upstream.close_reason = self._caller.close_reason
        self._group.cancel_scope.cancel()

    async def _upstream_to_caller(self, upstream: UpstreamWebSocket) -> None:
        """Relay the upstream's messages until it closes."""
        while (data := await upstream.receive()) is not None:
            if self._recorder is not None:
                self._recorder.bytes_received(byte_length(data))
            await self._caller.send(data)
        self._caller.close_code = upstream.close_code
        self._caller.close_reason = upstream.close_reason
        self._outcome = Outcome.COMPLETED

    def _note_disconnect(self, *, abnormal: bool) -> None:
        if self._upstream is None:
            self._outcome = Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
        else:
            self._outcome = Outcome.CALLER_DISCONNECTED_MID_BODY if abnormal else Outcome.COMPLETED

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
        if error is not None:
            if self._upstream is None or not isinstance(error, errors.UpstreamError):
                raise error
            self._caller.close_code = _CLOSE_CODES.get(type(error), 1011)
            self._caller.close_reason = error.detail
        elif self._caller.is_closed:
            return
        await self._caller.close()
