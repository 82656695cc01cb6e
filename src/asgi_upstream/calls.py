"""Calls of your own: `fetch` reads one upstream, `cancel_on_disconnect` bounds several calls."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from datetime import timedelta
from types import TracebackType
from typing import Any, cast, overload

import anyio
import httpx
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Receive

from . import errors
from ._clients import get_client_state
from ._exchange.body import CountedBody, DecodedBody, read_limited, with_content
from ._exchange.closing import close_upstream
from ._exchange.decoding import accept_decodable, content_encodings
from ._exchange.disconnect import wait_for_disconnect
from ._exchange.downstream import CLIENT_CLOSED_REQUEST
from ._exchange.inbox import Inbox
from ._exchange.options import SupportsSend
from ._exchange.recording import ExchangeRecorder, route_template, was_ended_by_lifespan
from ._exchange.sending import send_request, validate_head
from ._exchange.undelimited import check_end
from ._exchange.validation import validate_request, validate_seconds, validate_size, validate_values
from ._httpx.exceptions import is_httpx_error
from ._httpx.flavors import describe_type, match_library
from ._httpx.interfaces import AnyClient, HTTPXModule, RequestT, ResponseT
from ._httpx.requests import copy_with_headers
from ._httpx.workarounds import holds_pool_place
from .records import Observer, Outcome


@overload
async def fetch(
    client: httpx.AsyncClient,
    request: httpx.Request,
    *,
    max_bytes: int = ...,
    deadline: float | None = ...,
    observers: Sequence[Observer] = ...,
) -> httpx.Response: ...
@overload
async def fetch(
    client: AnyClient[RequestT, ResponseT],
    request: RequestT,
    *,
    max_bytes: int = ...,
    deadline: float | None = ...,
    observers: Sequence[Observer] = ...,
) -> ResponseT: ...
async def fetch(
    client: AnyClient[Any, Any],
    request: Any = None,  # the default is only for the error that says what is missing
    *,
    max_bytes: int = 10 * 1024 * 1024,
    deadline: float | None = None,
    observers: Sequence[Observer] = (),
) -> Any:
    """Send a request, read the whole body, and return the response.

        response = await fetch(client, client.build_request("GET", "/item"), deadline=2)

    The call is counted and recorded like any other exchange. The response is read and closed, and
    its body is decoded. An error status is not an exception: call `raise_for_status()` yourself.

    Arguments:
        client: The shared client. Its auth, event hooks, mounts and proxies apply.
        request: The request, from `client.build_request(...)`.
        max_bytes: Maximum body size, after decoding.
        deadline: Seconds for the whole call.
        observers: Functions that get the `ExchangeRecord` of the call, besides those of the client.

    Returns:
        httpx's response, or httpx2's if the client is from httpx2.

    Raises:
        UpstreamError: If the upstream failed. It is an `HTTPException` with the status 502, 503 or
            504. A deadline that passes is `UpstreamTimeout`, a large body `UpstreamBodyTooLarge`.
        TypeError, ValueError: If an argument is invalid. Causes and fixes:
            [docs/errors.md][when-the-app-is-written-or-started].
        RuntimeError: If the request's body was sent before and cannot be sent again.
    """
    validate_request("fetch", client, request)
    validate_values(None, deadline, None, observers)
    validate_size("max_bytes", max_bytes)
    library = match_library(type(client), type(request))  # pyright: ignore
    call = _Call(cast(SupportsSend, client), request, library, max_bytes, deadline, observers)
    return await call.run()


class _Call:
    """One exchange whose response goes to the endpoint."""

    def __init__(
        self,
        client: SupportsSend,
        request: httpx.Request,
        library: HTTPXModule,
        max_bytes: int,
        deadline: float | None,
        observers: Sequence[Observer],
    ) -> None:
        self.request = request
        self._client = client
        self._library = library
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._block = _current_block.get()
        self._recorder: ExchangeRecorder | None = None
        self._observers = observers
        self._scope = anyio.CancelScope()

    async def run(self) -> httpx.Response:
        state = get_client_state(self._client)
        if state.observers or self._observers:
            scope: Mapping[str, Any] = {} if self._block is None else self._block.connection.scope
            observers = (*state.observers, *self._observers)
            self._recorder = ExchangeRecorder(
                observers, state.name, self.request, self._library, scope
            )
        outcome, failure = Outcome.CANCELLED, None
        state.open_exchanges.add(self)
        started = anyio.current_time()
        try:
            response = await self._send_and_read()
            outcome = Outcome.COMPLETED
        except anyio.get_cancelled_exc_class():
            if self._block is not None:
                outcome = self._block.outcome
            raise
        except Exception as exc:
            failure = self._map_failure(exc)
            if isinstance(exc, _DeadlinePassed):
                outcome = Outcome.DEADLINE
            elif self._recorder is not None and not isinstance(failure, errors.ExchangeCancelled):
                outcome = self._recorder.classify_failure(failure, Outcome.APP_FAILED)
            if failure is exc:
                raise
            raise failure from failure.__cause__
        finally:
            state.open_exchanges.discard(self)
            if self._recorder is not None:
                self._recorder.emit(outcome, failure)
        response.elapsed = timedelta(seconds=anyio.current_time() - started)
        return response

    def _map_failure(self, exc: Exception) -> Exception:
        """Return the `UpstreamError` for an exception and log it, or return the exception."""
        if is_httpx_error(exc, httpx.RequestError):
            exc.request = self.request  # as httpx's client does
        if was_ended_by_lifespan(self._client, exc):
            return errors.ExchangeCancelled()
        error: Exception | None = errors.map_exception(exc)
        if isinstance(exc, _DeadlinePassed):
            error = errors.deadline_error(self._deadline)
        if isinstance(error, errors.UpstreamError):
            route = None if self._block is None else route_template(self._block.connection.scope)
            errors.log_failure(error, self.request, route)
        return error or exc

    async def _send_and_read(self) -> httpx.Response:
        response: httpx.Response | None = None
        failure: Exception | None = None
        if self._deadline is not None:
            self._scope.deadline = anyio.current_time() + self._deadline
        with self._scope:
            try:
                response = await self._exchange()
            except Exception as exc:
                failure = exc
        if response is not None:
            return response
        if self._scope.cancel_called:
            raise _DeadlinePassed from failure
        assert failure is not None
        raise failure

    async def _exchange(self) -> httpx.Response:
        library, request = self._library, self.request
        headers = request.headers.raw
        if (accepted := accept_decodable(headers)) is not headers:
            request = copy_with_headers(request, accepted, library)
        upstream = await send_request(self._client, request, library)
        try:
            if self._recorder is not None:
                reused = upstream.extensions.get("connection_reused")
                self._recorder.headers_received(upstream.status_code, reused=reused)
            validate_head(upstream)
            content = await self._read(upstream)
        finally:
            if self._recorder is not None:
                self._recorder.count_hook_read(upstream)
            if not upstream.is_closed or holds_pool_place(upstream):
                await close_upstream(upstream)
        response = with_content(upstream, content, library, decoded=False)
        if upstream.request is request:
            response.request = self.request
        return response

    async def _read(self, upstream: httpx.Response) -> bytes:
        if upstream.is_stream_consumed or upstream.is_closed:  # by an event hook, or a mock
            content = upstream.content
            if len(content) > self._max_bytes:
                raise errors.UpstreamBodyTooLarge
            return content
        stream = aiter(cast(httpx.AsyncByteStream, upstream.stream))
        body = check_end(upstream, stream, self._library)
        if self._recorder is not None:
            body = CountedBody(body, self._recorder.bytes_received)
        codings = content_encodings(upstream)
        if codings and upstream.status_code != 206:  # a part cannot be decoded
            body = DecodedBody(body, codings, self._library)
        try:
            return await read_limited(body, self._max_bytes, self._raise_if_cancelled)
        finally:
            await close_upstream(upstream, stream)

    def _raise_if_cancelled(self) -> None:
        """Notice the deadline even if the body arrives so fast that no read waits."""
        if self._scope.cancel_called:
            raise _DeadlinePassed


class _DeadlinePassed(Exception):
    """The deadline of a call passed."""


def cancel_on_disconnect(
    request: HTTPConnection, *, deadline: float | None = None
) -> AbstractAsyncContextManager[None]:
    """Cancel the block if the caller disconnects, or if the deadline passes.

        async with cancel_on_disconnect(request, deadline=5):
            user, orders = await asyncio.gather(fetch(...), fetch(...))

    Everything in the block is cancelled, including child tasks. A disconnect ends the request with
    the status 499, which only logs and middleware see. Nothing is logged as an error.

    The block reads the caller's messages ahead to notice the disconnect, and keeps them: use
    `request` in the block and after it as usual, for example `await request.body()` or
    `websocket.receive_text()`. It keeps at most 1 MiB. While more than that is unread, a disconnect
    is noticed only when the endpoint reads on.

    Arguments:
        request: The caller's `Request`, or a `WebSocket`.
        deadline: Seconds for the block.

    Raises:
        UpstreamTimeout: If the deadline passes. It is an `HTTPException` with the status 504.
        HTTPException: With the status 499, if the caller disconnects.
        TypeError, ValueError: At once, if an argument is invalid. Causes and fixes:
            [docs/errors.md][when-the-app-is-written-or-started].
    """
    if not hasattr(request, "_receive"):
        raise TypeError(
            f"cancel_on_disconnect needs the caller's Request or WebSocket, not "
            f"{describe_type(request)}"
        )
    validate_seconds("deadline", deadline)
    return _CancelOnDisconnect(request, deadline)


class _ClientClosedRequest(HTTPException):
    """Ends a request after its caller has disconnected."""

    def __init__(self) -> None:
        super().__init__(CLIENT_CLOSED_REQUEST, "The caller disconnected")


class _CancelOnDisconnect(AbstractAsyncContextManager[None]):
    """The block of `cancel_on_disconnect`: a cancel scope around a task group with a listener."""

    def __init__(self, connection: HTTPConnection, deadline: float | None) -> None:
        self.connection = connection
        self._deadline = deadline
        self._disconnected = False
        self._scope = anyio.CancelScope()
        self._listener_scope = anyio.CancelScope()

    @property
    def outcome(self) -> Outcome:
        """The outcome of a call that is cancelled in the block."""
        if self._disconnected:
            return Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
        return Outcome.DEADLINE if self._scope.cancel_called else Outcome.CANCELLED

    async def __aenter__(self) -> None:
        if self._deadline is not None:
            self._scope.deadline = anyio.current_time() + self._deadline
        connection: Any = self.connection
        self._receive: Receive = connection._receive
        self._inbox = Inbox(self._receive)
        self._scope.__enter__()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._listen)
        connection._receive = self._inbox.receive
        self._outer_block = _current_block.get()
        _current_block.set(self)

    async def _listen(self) -> None:
        with self._listener_scope:
            try:
                self._disconnected = await wait_for_disconnect(self._inbox.receive_ahead)
            finally:
                self._inbox.stop()
            if self._disconnected:
                self._scope.cancel()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        _current_block.set(self._outer_block)
        interruption = await self._stop_listener(gently=exc is None)
        self._inbox.release(self.connection)
        error = exc
        if interruption is not None and (exc is None or isinstance(exc, Exception)):
            error = interruption
        cancelled = self._exit_scope(error)
        if exc is None:
            if error is not None and not cancelled:
                raise error
            return False
        if cancelled or isinstance(error, Exception):
            cause = exc if isinstance(exc, Exception) else None
            if self._disconnected:
                raise _ClientClosedRequest from cause
            if self._scope.cancel_called:
                timeout = errors.deadline_error(self._deadline)
                errors.log_failure(timeout, None, route_template(self.connection.scope))
                raise timeout from cause
        if error is exc or error is None:
            return False
        raise error

    async def _stop_listener(self, *, gently: bool) -> BaseException | None:
        """End the listener and its group, and return a cancellation that arrives meanwhile."""
        interruption: BaseException | None = None
        try:
            if gently:
                await self._inbox.stop_gently()
        except BaseException as exc:
            interruption = exc
        self._listener_scope.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        except BaseException as exc:
            interruption = exc
        return interruption

    def _exit_scope(self, error: BaseException | None) -> bool:
        """Leave the scope, and return whether it was the reason for the cancellation."""
        if error is None:
            self._scope.__exit__(None, None, None)
            return False
        return bool(self._scope.__exit__(type(error), error, error.__traceback__))


_current_block: ContextVar[_CancelOnDisconnect | None] = ContextVar(
    "asgi_upstream.cancel_on_disconnect", default=None
)
