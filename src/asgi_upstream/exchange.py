"""One upstream exchange: send, relay, close, cancel. The only module that holds an open response.

The whole exchange is one structured block, `Exchange.run`. Nothing is open before it or after it,
however it ends: the upstream fails, the caller leaves, a deadline passes, the task is cancelled.
"""

import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, cast

import anyio
import httpx
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .caller import CLOSE_TIMEOUT, Caller, CallerLeft, Upload, Watch
from .decoding import can_decode, codings_of, decoded
from .errors import (
    UpstreamBodyTooLarge,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    as_upstream_error,
    log_failure,
)
from .headers import (
    RawHeaders,
    content_length,
    of_a_changed_body,
    overlaid,
    relayed_response_headers,
    with_nosniff,
    without,
)

logger = logging.getLogger("asgi_upstream")

Transform = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
OnResponse = Callable[[httpx.Response], Response | Awaitable[Response | None] | None]
ErrorFrame = Callable[[Exception], bytes]


class SendsRequests(Protocol):
    """All that an exchange needs of a client."""

    async def send(self, request: httpx.Request, *, stream: bool) -> httpx.Response: ...


@dataclass(slots=True, kw_only=True)
class Options:
    """What the endpoint's author asked for, beyond relaying what comes as it comes."""

    decode: bool
    transform: Transform | None
    on_response: OnResponse | None
    deadline: float | None
    error_frame: ErrorFrame | None = None
    max_bytes: int | None = None  # read the body, up to so many bytes, before anything is sent


class Exchange:
    """One request to the upstream, and one response to the caller."""

    def __init__(
        self,
        client: SendsRequests,
        request: httpx.Request,
        status: int | None,
        headers: RawHeaders,
        options: Options,
    ) -> None:
        self._client = client
        self._request = request
        self._status = status
        self._headers = headers
        self._options = options
        self._body: AsyncIterator[bytes] | None = None
        self._last = b""
        self._replacement: Response | None = None

    async def run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Carry the exchange out. True where the server took the whole response.

        Raises:
            UpstreamError: the upstream failed. If the response had started, this cuts it off.
            Exception: whatever `on_response` or `transform` raised.
        """
        caller = Caller(scope, receive, send)
        failure: Exception | None = None
        deadline = self._options.deadline
        with anyio.CancelScope(
            deadline=float("inf") if deadline is None else anyio.current_time() + deadline
        ) as cancel_scope:
            async with caller.watch(cancel_scope) as watch:
                try:
                    await self._open_and_relay(caller, watch)
                except Exception as exc:
                    failure = exc  # raised in here, a task group would make it a group
        # From here on nothing is open upstream, and the caller is not watched any more: after the
        # last part of a body, servers report a disconnect that is none.
        if watch.left or isinstance(failure, CallerLeft | ClientDisconnect):
            await caller.dismiss()
            return False
        if cancel_scope.cancelled_caught or (failure and cancel_scope.cancel_called):
            failure = UpstreamTimeout()
        if failure is not None:
            self._last = await self._last_words(caller, failure)
        elif self._replacement is not None:
            await self._replacement(scope, receive, send)
            return True
        try:
            await caller.body(self._last, more=False)
        except CallerLeft:
            return False
        return True

    async def _open_and_relay(self, caller: Caller, watch: Watch) -> None:
        upstream = await self._open(caller, watch)
        try:
            # A 101 that nobody asked for; or a number that is no status (RFC 9110 15).
            if not 200 <= upstream.status_code < 600:
                raise UpstreamProtocolError
            if self._options.max_bytes is None:
                await self._stream(upstream, caller)
            else:
                await self._buffer(upstream, caller, self._options.max_bytes)
        finally:
            await _close(upstream, self._body)

    async def _open(self, caller: Caller, watch: Watch) -> httpx.Response:
        body = self._request.stream
        if caller.has_body and not isinstance(body, httpx.ByteStream):
            self._request.stream = Upload(cast(httpx.AsyncByteStream, body), watch)
        else:
            watch.begin()
        try:
            upstream = await self._client.send(self._request, stream=True)
        except httpx.StreamConsumed:
            raise RuntimeError(
                "the body of this request is a stream that was sent already, so it cannot be sent "
                "again: build the request with bytes, or make a new response for each call"
            ) from None
        finally:
            self._request.stream = body
        watch.begin()
        return upstream

    async def _stream(self, upstream: httpx.Response, caller: Caller) -> None:
        options = self._options
        if await self._is_replaced(upstream):
            return None
        # Bytes that the author adds can be read only in a body that is not compressed.
        decode = options.decode or bool(options.transform or options.error_frame)
        body, changed = _body_of(upstream, decode=decode)
        if options.transform is not None:
            body, changed = options.transform(aiter(body)), True
        self._body = aiter(body)
        status, headers = self._head(upstream, caller, changed=changed)
        if options.error_frame is not None:
            headers = without(headers, b"content-length")
        headers = with_nosniff(overlaid(headers, self._headers))
        await caller.start(status, headers)
        if _has_no_content(caller.method, status):
            return await self._read_no_content(upstream)
        remaining = content_length(headers)
        if remaining is None:
            # Some servers hold the head back until there is a body, and a stream may be silent.
            await caller.body(b"", more=True)
        async for chunk in self._body:
            if remaining is not None:
                remaining -= len(chunk)
            if remaining == 0:
                self._last += chunk  # sent as the last one, when the upstream is closed
            elif chunk:
                await caller.body(chunk, more=True)
        return None

    async def _buffer(self, upstream: httpx.Response, caller: Caller, max_bytes: int) -> None:
        options = self._options
        decode = options.decode or options.transform is not None
        if options.on_response is not None and all(map(can_decode, codings_of(upstream))):
            decode = True  # `upstream.json()` and `.text` need it
        body, changed = _body_of(upstream, decode=decode)
        if _has_no_content(caller.method, upstream.status_code):
            await self._read_no_content(upstream)
            content = b""
        else:
            self._body = aiter(body)
            content = await _read(self._body, max_bytes)
        stream, upstream.stream = upstream.stream, httpx.ByteStream(content)
        await _close(
            cast(httpx.AsyncByteStream, stream), self._body
        )  # from here on the connection is free for others
        if options.on_response is not None:
            if changed:
                upstream.headers.pop("content-encoding", None)
            await upstream.aread()
            if await self._is_replaced(upstream):
                return
        if options.transform is not None:
            self._body = aiter(options.transform(_once(content)))
            content, changed = await _read(self._body, max_bytes), True
        status, headers = self._head(upstream, caller, changed=changed)
        headers = overlaid(headers, self._headers)
        if _has_no_content(caller.method, status):
            content = b""
        else:
            length = str(len(content)).encode()
            headers = [*without(headers, b"content-length"), (b"content-length", length)]
        await caller.start(status, headers)
        self._last = content

    def _head(
        self, upstream: httpx.Response, caller: Caller, *, changed: bool
    ) -> tuple[int, RawHeaders]:
        status = self._status or upstream.status_code
        headers = relayed_response_headers(upstream.headers.raw)
        if changed:
            headers = of_a_changed_body(headers)
        # RFC 9110 8.6: none with a 204. What the upstream says to HEAD is not true of a GET.
        if status in (204, 205) or (self._request.method == "HEAD" != caller.method):
            headers = without(headers, b"content-length")
        return status, headers

    async def _is_replaced(self, upstream: httpx.Response) -> bool:
        if self._options.on_response is None:
            return False
        answer = self._options.on_response(upstream)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is not None and not isinstance(answer, Response):
            raise TypeError(
                f"on_response returned {type(answer).__name__}; return None to relay the "
                f"upstream's response, or a Starlette Response, such as JSONResponse(...)"
            )
        self._replacement = answer
        return answer is not None

    async def _read_no_content(self, upstream: httpx.Response) -> None:
        """Reach the end of a message without content, so that its connection can be reused."""
        if self._request.method == "HEAD" or upstream.status_code in (204, 304):
            async for _ in _body_of(upstream, decode=False)[0]:
                pass

    async def _last_words(self, caller: Caller, failure: Exception) -> bytes:
        """What a caller still gets of an exchange that failed; raises where that is nothing."""
        error = as_upstream_error(failure) or failure
        if isinstance(error, UpstreamError):
            log_failure(error, self._request.url.host)
        if caller.started and self._options.error_frame is not None:
            return self._options.error_frame(error)
        if caller.started:
            await caller.abort()
        raise error


def _has_no_content(method: str, status: int) -> bool:
    """RFC 9110 6.4.1, and 15.3.6 for 205."""
    return method == "HEAD" or status in (204, 205, 304)


def _body_of(upstream: httpx.Response, *, decode: bool) -> tuple[AsyncIterable[bytes], bool]:
    """The body, and whether it is other than the upstream sent it."""
    codings = codings_of(upstream)
    if upstream.is_stream_consumed:  # an event hook or `on_response` has read, and so decoded, it
        return _once(upstream.content), bool(codings)
    stream = cast(httpx.AsyncByteStream, upstream.stream)
    if decode and codings:
        return decoded(stream, codings), True
    return stream, False


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _read(body: AsyncIterator[bytes], max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in body:
        size += len(chunk)
        if size > max_bytes:
            raise UpstreamBodyTooLarge
        chunks.append(chunk)
    return b"".join(chunks)


async def _close(
    upstream: httpx.Response | httpx.AsyncByteStream, body: AsyncIterator[bytes] | None
) -> None:
    """Close both, also in a task that is being cancelled, but never wait for long."""
    with anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
        try:
            await upstream.aclose()
            if isinstance(body, AsyncGenerator):
                await body.aclose()
        except Exception:
            logger.warning("closing an upstream response failed", exc_info=True)
    if scope.cancelled_caught:
        logger.warning("closing an upstream response took more than %g s", CLOSE_TIMEOUT)
