"""A WebSocket relayed: the handshake, and then messages both ways, by the same pooled client.

httpx-ws frames and sends. Its session is never entered, though, for its own reading has no bound on
a message, answers no ping while a write waits, fails on a pong nobody asked for, and loses the
upstream's close code. So this reads by itself, in the one task that needs to.
"""

from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import anyio
import httpcore
import httpx
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

try:
    from httpx_ws import AsyncWebSocketSession, WebSocketNetworkError
    from wsproto.connection import ConnectionState
    from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage
    from wsproto.frame_protocol import CloseReason
    from wsproto.utilities import LocalProtocolError
except ImportError as exc:
    if exc.name not in ("httpx_ws", "wsproto"):
        raise
    raise ImportError(
        "relaying WebSockets needs httpx-ws: pip install 'asgi-upstream[ws]'", name=exc.name
    ) from exc

from . import errors, handshakes
from .caller import CallerLeft
from .exchange import close_upstream, uninterrupted
from .forwarding import HeaderChange
from .httpcore_pool import clear_up
from .records import Observer, Outcome, Tally, ledger_of, route_of
from .responses import BufferedResponse

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
PING_INTERVAL = 20.0
CLOSE_TIMEOUT = 1.0
"""Seconds that the upstream may take for its part of the closing handshake (RFC 6455 7.1.1)."""

_PIECE = 65536  # bytes in one read or write
_PONGS = 16  # that wait for a write to end; of more, the first are left out (RFC 6455 5.5.3)
_GONE = (WebSocketNetworkError, httpcore.NetworkError, httpx.NetworkError, LocalProtocolError)
_LATE = (httpcore.TimeoutException, httpx.TimeoutException)


async def relay_websocket(
    client: httpx.AsyncClient,
    websocket: WebSocket,
    url: httpx.URL | str | None = None,
    *,
    prefix: str | None = None,
    headers: HeaderChange | None = None,
    trust_forwarded: bool = False,
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
        url, prefix, headers, trust_forwarded: as of `forward_request`.
        max_message_bytes: the longest message that is taken of the upstream. The server bounds the
            caller's.
        ping_interval: seconds of the upstream's silence until it is pinged; after as many again it
            counts as gone. None for no pings.
        observers: functions that get the `Record` at the end, besides those of the client.

    Raises:
        HTTPException: 400, or an `UpstreamError` before the WebSocket was accepted, for the app to
            answer. Where the server has no denial response it is a close instead, which is a 403.
        ValueError: as of `forward_request`. Causes and fixes: [docs/errors.md][on-websockets].
    """
    async with handshakes.refusals(websocket):
        request = handshakes.handshake(
            client,
            websocket,
            url=url,
            prefix=prefix,
            headers=headers,
            trust_forwarded=trust_forwarded,
        )
        relay = Relay(client, websocket, request, max_message_bytes, ping_interval, observers)
        await relay.run()


class _Stream(httpcore.AsyncNetworkStream):
    """The upgraded connection, which httpx-ws does not close."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, write_timeout: float | None) -> None:
        self._stream, self._write_timeout = stream, write_timeout
        self.in_frame = False  # a write is under way, or was cancelled

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """In pieces: the timeout is for an upstream that takes none, not for a long message."""
        self.in_frame = True
        if len(buffer) <= _PIECE:
            await self._stream.write(buffer, self._write_timeout)
        else:
            for at in range(0, len(buffer), _PIECE):
                await self._stream.write(buffer[at : at + _PIECE], self._write_timeout)
        self.in_frame = False

    async def aclose(self) -> None:
        """Nothing: what the upstream said last is still to be read."""

    async def close(self) -> None:
        await self._stream.aclose()


class Relay:
    """One WebSocket to the caller, one to the upstream, and what is said between them."""

    _group: TaskGroup
    _upstream: httpx.Response | None = None
    _session: AsyncWebSocketSession | None = None
    _stream: _Stream

    def __init__(
        self,
        client: httpx.AsyncClient,
        websocket: WebSocket,
        request: httpx.Request,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        ping_interval: float | None = PING_INTERVAL,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._client, self._websocket, self.request = client, websocket, request
        self._subprotocols: Sequence[str] = websocket.scope.get("subprotocols") or ()
        if "sec-websocket-key" not in request.headers:  # `on_request` made another request
            handshakes.ask_for_upgrade(request, self._subprotocols)
        self._max, self._ping_interval = max_message_bytes, ping_interval
        self._observers = observers
        self._pongs: deque[Event] = deque(maxlen=_PONGS)
        self._answering = self._left = False
        self._failure: Exception | None = None
        self._to_upstream: tuple[int, str] = CloseReason.GOING_AWAY, ""  # unless it ends otherwise
        self._to_caller: tuple[int, str] = CloseReason.INTERNAL_ERROR, ""
        self._outcome = Outcome.CANCELLED
        self._tally: Tally | None = None

    async def run(self) -> None:
        """Relay until the end; nothing is open upstream after it.

        Raises:
            UpstreamError: before the caller was accepted.
        """
        ledger = ledger_of(self._client)
        if ledger.observers or self._observers:
            observers = (*ledger.observers, *self._observers)
            self._tally = Tally(observers, ledger.name, self.request, httpx, self._websocket.scope)
        ledger.under_way.add(self)
        try:
            try:
                await self._both_ways()
                if self._upstream is not None and self._session is None and not self._failure:
                    self._left, self._outcome = True, Outcome.COMPLETED
                    self._upstream.headers = httpx.Headers(handshakes.answered(self._upstream))
                    # In one part, for granian takes no other, and uvicorn collects them.
                    await handshakes.deny(self._websocket, BufferedResponse.adopt(self._upstream))
            finally:
                if self._upstream is not None:
                    await self._leave(self._upstream)
            await self._end()
        finally:
            ledger.under_way.discard(self)
            if self._tally is not None:
                self._tally.close(self._outcome, self._failure)

    async def _both_ways(self) -> None:
        if self._websocket.client_state is WebSocketState.CONNECTING:
            await self._websocket.receive()  # websocket.connect
        async with anyio.create_task_group() as self._group:
            self._group.start_soon(self._from_caller)
            try:
                await self._open()
                if self._session is not None:
                    await self._from_upstream(self._session)
            except CallerLeft:
                self._caller_left(lost=True)
            except Exception as exc:  # raised in here, the group would make it a group
                self._failure = exc
            self._group.cancel_scope.cancel()

    async def _open(self) -> None:
        try:
            upstream = await self._client.send(self.request, stream=True, follow_redirects=False)
        except BaseException:
            await uninterrupted(clear_up(self._client, self.request.url))
            raise
        self._upstream = upstream
        if self._tally is not None:
            reused = upstream.extensions.get("connection_reused")
            self._tally.answered(upstream.status_code, reused=reused)
            self.request.stream = httpx.AsyncByteStream()  # what is sent is counted from here on
        if upstream.status_code != 101:
            return
        handshakes.check_upgrade(upstream, self._subprotocols)
        timeouts: Mapping[str, float | None] = self.request.extensions.get("timeout", {})
        self._stream = _Stream(upstream.extensions["network_stream"], timeouts.get("write"))
        self._session = AsyncWebSocketSession(self._stream, response=upstream)
        fields = handshakes.answered(upstream)
        await self._tell(self._websocket.accept(self._session.subprotocol, fields))

    async def _from_caller(self) -> None:
        """Pass on what the caller says. From the beginning: it may leave during the handshake."""
        message: Mapping[str, Any] = {}
        try:
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                text = message.get("text")
                data = message["bytes"] if text is None else text
                await self._send(BytesMessage(data) if text is None else TextMessage(text))
                if self._tally is not None:
                    self._tally.sent += _size(data)
        except _LATE as exc:
            self._failure = httpx.WriteTimeout(str(exc))
        except OSError:
            self._caller_left(lost=True)
        else:
            code, reason = message.get("code", 1005), message.get("reason")
            # So servers say that there was no Close, and uvicorn has 1005 for it, without a reason.
            lost = code == 1006 or (code == 1005 and reason is None)
            self._caller_left(lost=lost)
            if not lost:
                code = CloseReason.NO_STATUS_RCVD if code == 1005 else code
                self._to_upstream = code, reason or ""
        self._group.cancel_scope.cancel()

    def _caller_left(self, *, lost: bool) -> None:
        self._left = True
        if self._session is None:
            self._outcome = Outcome.CALLER_LEFT_BEFORE_HEADERS
        else:
            self._outcome = Outcome.CALLER_LEFT_MID_BODY if lost else Outcome.COMPLETED

    async def _tell(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (OSError, RuntimeError, WebSocketDisconnect) as exc:  # servers differ in which
            raise CallerLeft from exc

    async def _send(self, event: Event) -> None:
        assert self._session is not None
        with suppress(*_GONE):  # how it ended is for whoever reads to find
            await self._session.send(event)

    def _answer(self, event: Event) -> None:
        """Send a ping or pong, and read on: the write may wait for the upstream to be read."""
        self._pongs.append(event)
        if not self._answering:
            self._answering = True
            self._group.start_soon(self._send_pongs)

    async def _send_pongs(self) -> None:
        try:
            while self._pongs:
                await self._send(self._pongs.popleft())
        except _LATE as exc:
            self._failure = httpx.WriteTimeout(str(exc))
            self._group.cancel_scope.cancel()
        self._answering = False

    async def _from_upstream(self, session: AsyncWebSocketSession) -> None:
        """Pass on what the upstream says, until it closes."""
        parts: list[Any] = []
        size = 0
        while True:
            for event in await self._read(session):
                if isinstance(event, Ping):
                    self._answer(event.response())
                elif isinstance(event, CloseConnection):
                    self._to_upstream = event.code, event.reason or ""
                    if session.connection.state is ConnectionState.OPEN:  # it is wsproto's verdict
                        raise httpx.RemoteProtocolError(event.reason or "no WebSocket frame")
                    self._to_caller, self._outcome = self._to_upstream, Outcome.COMPLETED
                    return
                elif isinstance(event, Message):
                    part = cast(str | bytes, event.data)  # pyright: ignore[reportUnknownMemberType]
                    parts.append(part)
                    size += _size(part)
                    if size > self._max:
                        self._to_upstream = self._to_caller = CloseReason.MESSAGE_TOO_BIG, ""
                        raise errors.UpstreamBodyTooLarge
                    if event.message_finished:
                        if self._tally is not None:
                            self._tally.received(size)
                        is_text = isinstance(event, TextMessage)
                        data: str | bytes = "".join(parts) if is_text else b"".join(parts)
                        parts, size = [], 0
                        key = "text" if is_text else "bytes"
                        message = {"type": "websocket.send", key: data}
                        await self._tell(self._websocket.send(message))

    async def _read(self, session: AsyncWebSocketSession) -> list[Event]:
        """What the upstream says next. No more is read before all of it is dealt with."""
        pinged = False
        while True:
            try:
                data = await self._stream.read(_PIECE, self._ping_interval)
            except _LATE as exc:
                if pinged:
                    raise httpx.ReadTimeout("it answers no ping") from exc
                pinged = True
                self._answer(Ping())
                continue
            except _GONE as exc:
                raise httpx.ReadError(str(exc)) from exc
            if not data:
                raise httpx.RemoteProtocolError("it left without a Close frame")
            session.connection.receive_data(data)
            return list(session.connection.events())

    async def _leave(self, upstream: httpx.Response) -> None:
        try:
            if self._session is not None:
                await self._part(self._session)
        finally:
            await close_upstream(upstream)
        if self._session is not None:  # with a response httpx-ws's transport for tests closes none
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True), suppress(*_GONE):
                await self._stream.close()

    async def _part(self, session: AsyncWebSocketSession) -> None:
        """Say why, and wait for the upstream's Close: a close with bytes unread is a reset."""
        connection = session.connection
        with (
            anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope,
            suppress(*_GONE, *_LATE, httpx.RemoteProtocolError),
        ):
            if not self._stream.in_frame:
                await session.close(*self._to_upstream)
            # By the clock too, for no scope ends a loop that never has to wait.
            while (
                connection.state is ConnectionState.LOCAL_CLOSING
                and anyio.current_time() < scope.deadline
            ):
                connection.receive_data(await self._stream.read(_PIECE) or None)
                for _ in connection.events():
                    pass

    async def _end(self) -> None:
        """Close the caller's side too, if it has not left."""
        failure, accepted = self._failure, self._session is not None
        if self._left and failure is None:
            return
        if failure is not None:
            if isinstance(failure, httpx.RequestError):
                failure.request = self.request
            error = errors.as_upstream_error(failure) or failure
            if self._tally is not None:
                self._outcome = self._tally.outcome_of(error, Outcome.APP_FAILED)
            if isinstance(error, errors.UpstreamError):
                errors.log_failure(error, self.request, route_of(self._websocket.scope))
            if not accepted or not isinstance(error, errors.UpstreamError):
                raise error
            self._to_caller = self._to_caller[0], error.detail
        code, reason = self._to_caller
        with (
            anyio.move_on_after(CLOSE_TIMEOUT),
            suppress(CallerLeft, OSError, RuntimeError),  # it has left by now
        ):
            await self._tell(self._websocket.close(1000 if code == 1005 else code, reason))
            # What it still says is taken off the server, for hypercorn would wait with it for ever.
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass


def _size(data: str | bytes) -> int:
    """In bytes, as sent."""
    return (
        len(data) if isinstance(data, bytes | bytearray) or data.isascii() else len(data.encode())
    )
