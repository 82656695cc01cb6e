"""A WebSocket relayed: the handshake, and then messages both ways, by the same pooled client."""

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from . import errors, handshakes
from .caller import CallerLeft
from .closing import close_upstream, uninterrupted
from .forwarding import HeaderChange
from .httpcore_pool import clear_up
from .libraries import URLT, AnyBuilder, Library, RequestT, common_library, is_a
from .records import Observer, Outcome, Record, Tally, ledger_of, route_of
from .responses import BufferedResponse
from .upstream_websocket import CLOSE_TIMEOUT, UpstreamWebSocket, size_of

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
PING_INTERVAL = 20.0


async def relay_websocket(
    client: AnyBuilder[RequestT, URLT],
    websocket: WebSocket,
    url: URLT | str | None = None,
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
        its: Any = client
        request = handshakes.handshake(
            its,
            websocket,
            url=url,
            prefix=prefix,
            headers=headers,
            trust_forwarded=trust_forwarded,
        )
        relay = WebSocketRelay(its, websocket, request, max_message_bytes, ping_interval, observers)
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
        self._library: Library = common_library(type(client), type(request))
        self._subprotocols: Sequence[str] = websocket.scope.get("subprotocols") or ()
        if "sec-websocket-key" not in request.headers:  # `on_request` made another request
            handshakes.ask_for_upgrade(request, self._subprotocols)
        self._max, self._ping_interval = max_message_bytes, ping_interval
        self._observers = observers
        self._left = False
        self._failure: Exception | None = None
        self._to_caller: tuple[int, str] = 1011, ""
        self._outcome = Outcome.CANCELLED
        self._tally: Tally | None = None

    async def run(self) -> None:
        """Relay until the end; nothing is open upstream after it.

        Raises:
            UpstreamError: before the caller was accepted.
        """
        ledger = ledger_of(self._client)
        if ledger.observers or self._observers:
            observers, scope = (*ledger.observers, *self._observers), self._websocket.scope
            self._tally = Tally(observers, ledger.name, self.request, self._library, scope)
        ledger.under_way.add(self)
        try:
            try:
                await self._both_ways()
                if self._response is not None and self._upstream is None and not self._failure:
                    await self._deny(self._response)
            finally:
                if self._response is not None:
                    await self._leave(self._response)
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
                if self._upstream is not None:
                    await self._from_upstream(self._upstream)
            except CallerLeft:
                self._caller_left(lost=True)
            except Exception as exc:  # raised in here, the group would make it a group
                self._failure = exc
            self._group.cancel_scope.cancel()
        if self._upstream is not None and self._upstream.failure is not None:
            self._failure = self._upstream.failure

    async def _open(self) -> None:
        try:
            response = await self._client.send(self.request, stream=True, follow_redirects=False)
        except BaseException:
            await uninterrupted(clear_up(self._client, self.request.url))
            raise
        self._response = response
        if response.http_version == "HTTP/2":  # to which it was a GET (RFC 9113 8.6)
            raise self._library.LocalProtocolError(
                "a handshake needs HTTP/1.1: give WebSockets a client without http2=True"
            )
        if self._tally is not None:
            reused = response.extensions.get("connection_reused")
            self._tally.answered(response.status_code, reused=reused)
        if response.status_code != 101:
            return
        handshakes.check_upgrade(response, self._subprotocols)
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
        fields = handshakes.answered(response)
        await self._tell(self._websocket.accept(self._upstream.subprotocol, fields))

    async def _deny(self, response: httpx.Response) -> None:
        """Answer the handshake as the upstream did."""

        def went(record: Record) -> None:
            self._outcome, failure = record.outcome, record.exception
            self._failure = failure if isinstance(failure, Exception) else None

        self._left, self._outcome = True, Outcome.COMPLETED
        response.headers = self._library.Headers(handshakes.answered(response))
        # In one part, for granian takes no other, and uvicorn collects them.
        whole = BufferedResponse.adopt(response, observers=[went])
        try:
            await self._tell(handshakes.deny(self._websocket, whole))
        except CallerLeft:
            self._failure = None
            self._caller_left(lost=True)

    async def _from_caller(self) -> None:
        """Pass on what the caller says. From the beginning: it may leave during the handshake."""
        message: Mapping[str, Any] = {}
        try:
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                assert self._upstream is not None  # for the caller was accepted
                text: str | None = message.get("text")
                data: str | bytes = message["bytes"] if text is None else text
                await self._upstream.send(data)
                if self._tally is not None:
                    self._tally.sent += size_of(data)
        except self._library.TimeoutException as exc:
            self._failure = exc
        except OSError:
            self._caller_left(lost=True)
        else:
            code, reason = message.get("code", 1005), message.get("reason")
            # So servers say that there was no Close, and uvicorn has 1005 for it, without a reason.
            lost = code == 1006 or (code == 1005 and reason is None)
            self._caller_left(lost=lost)
            if not lost and self._upstream is not None:
                self._upstream.farewell = code, reason or ""
        self._group.cancel_scope.cancel()

    async def _from_upstream(self, upstream: UpstreamWebSocket) -> None:
        """Pass on what the upstream says, until it closes."""
        while (data := await upstream.receive()) is not None:
            if self._tally is not None:
                self._tally.received(size_of(data))
            key = "text" if isinstance(data, str) else "bytes"
            await self._tell(self._websocket.send({"type": "websocket.send", key: data}))
        self._to_caller, self._outcome = upstream.farewell, Outcome.COMPLETED

    def _caller_left(self, *, lost: bool) -> None:
        self._left = True
        if self._upstream is None:
            self._outcome = Outcome.CALLER_LEFT_BEFORE_HEADERS
        else:
            self._outcome = Outcome.CALLER_LEFT_MID_BODY if lost else Outcome.COMPLETED

    async def _tell(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (OSError, RuntimeError, WebSocketDisconnect) as exc:  # servers differ in which
            raise CallerLeft from exc

    async def _leave(self, response: httpx.Response) -> None:
        try:
            if self._upstream is not None:
                await self._upstream.part()
        finally:
            await close_upstream(response)
            if response.http_version == "HTTP/2":
                await uninterrupted(clear_up(self._client, self.request.url))
        if self._upstream is not None:
            await self._upstream.close()

    async def _end(self) -> None:
        """Close the caller's side too, if it has not left."""
        failure, accepted = self._failure, self._upstream is not None
        if self._left and failure is None:
            return
        if failure is not None:
            if is_a(failure, httpx.RequestError):
                failure.request = self.request
            error = errors.as_upstream_error(failure) or failure
            if self._tally is not None:
                self._outcome = self._tally.outcome_of(error, Outcome.APP_FAILED)
            if isinstance(error, errors.UpstreamError):
                errors.log_failure(error, self.request, route_of(self._websocket.scope))
            if not accepted or not isinstance(error, errors.UpstreamError):
                raise error
            too_large = isinstance(error, errors.UpstreamBodyTooLarge)
            self._to_caller = 1009 if too_large else 1011, error.detail
        code, reason = self._to_caller
        with (
            anyio.move_on_after(CLOSE_TIMEOUT),
            suppress(CallerLeft, OSError, RuntimeError),  # it has left by now
        ):
            await self._tell(self._websocket.close(1000 if code == 1005 else code, reason))
            # What it still says is taken off the server, for hypercorn would wait with it for ever.
            while (await self._websocket.receive())["type"] != "websocket.disconnect":
                pass
