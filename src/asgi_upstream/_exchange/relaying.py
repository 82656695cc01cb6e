"""Relays the upstream's response to the caller, streamed or buffered."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import cast

import httpx
from starlette.responses import Response

from .. import _headers as header_lists
from .. import errors
from .._headers import RawHeaders
from .._hooks import maybe_await
from .._httpx.requests import ForwardedRequest
from .._httpx.workarounds import holds_pool_place
from ..records import Outcome
from .body import (
    ChunkSource,
    CountedBody,
    DecodedBody,
    IteratorSource,
    ResumableBody,
    SingleChunk,
    StartTask,
    read_all,
    read_limited,
    with_content,
)
from .closing import close_upstream
from .decoding import can_decode, content_encodings
from .downstream import Caller
from .heartbeat import HeartbeatBody
from .options import ExchangeOptions, RawResponse, ResponseHead, ResponseHook
from .recording import ExchangeRecorder
from .response_head import (
    EVENT_STREAM,
    add_stream_headers,
    build_plain_head,
    build_response_head,
    get_media_type,
    has_no_content,
)
from .scope import ExchangeScope
from .undelimited import check_end


class ResponseRelay:
    """Sends the upstream's response to the caller, except for the last chunk.

    The last chunk is sent after the upstream response is closed, so that nothing upstream is open
    when the caller has the complete response.

    Attributes:
        final_chunk: The last chunk.
        replacement: The response that `on_response` returned instead.
        outcome_if_app_raises: The outcome if the app's own code, which runs now, fails.
    """

    final_chunk: bytes = b""
    replacement: Response | None = None
    outcome_if_app_raises: Outcome = Outcome.APP_FAILED

    def __init__(
        self,
        options: ExchangeOptions,
        request: httpx.Request,
        status: int | None,
        header_overrides: RawHeaders,
        caller: Caller,
        limits: ExchangeScope,
        recorder: ExchangeRecorder | None,
    ) -> None:
        self._options = options
        self._request = request
        self._status = status
        self._header_overrides = header_overrides
        self._caller = caller
        self._limits = limits
        self.recorder = recorder
        self._open_iterators: list[AsyncIterator[bytes]] = []

    async def relay_raw(self, upstream: RawResponse) -> None:
        """Relay a response unchanged, over the fast path."""
        head, count = upstream.head, None
        if self.recorder is not None:
            self.recorder.headers_received(head.status, reused=upstream.request_count > 1)
            count = self.recorder.bytes_received
        if self._options.max_bytes is not None:
            status, headers = self._build_head(head.status, head.headers)
            content = await read_all(upstream, self._options.max_bytes, count)
            await self._send_buffered(status, headers, content)
        elif (remaining := await self._send_raw_head(head)) != 0:
            await self._relay_chunks(upstream, remaining, count)

    async def _send_raw_head(self, head: ResponseHead) -> int | None:
        """Send the upstream's head. Return the length of the body if it is known."""
        is_plain = self._status is None and not self._header_overrides
        if not is_plain or self._request.method == "HEAD" or self._caller.method == "HEAD":
            return await self._send_head(*self._build_head(head.status, head.headers))
        forwarded = isinstance(self._request, ForwardedRequest)
        headers, length = build_plain_head(head, forwarded=forwarded)
        await self._caller.send_head(head.status, headers)
        if length is None:
            await self._caller.send_body(b"", more=True)  # as in `_send_head`
        return length

    def note_head(self, upstream: httpx.Response) -> None:
        """Record that the upstream's headers have arrived."""
        if self.recorder is not None:
            reused = upstream.extensions.get("connection_reused")
            self.recorder.headers_received(upstream.status_code, reused=reused)

    async def relay(self, upstream: httpx.Response) -> None:
        """Relay a response that went through httpx."""
        if self._options.max_bytes is None:
            await self._relay_stream(upstream)
        else:
            await self._relay_buffered(upstream, self._options.max_bytes)

    async def close(self, upstream: httpx.Response) -> None:
        """Close the response and every iterator of its body."""
        if self.recorder is not None:
            self.recorder.count_hook_read(upstream)
        if self._open_iterators or not upstream.is_closed or holds_pool_place(upstream):
            await close_upstream(upstream, *self._open_iterators)

    async def _relay_stream(self, upstream: httpx.Response) -> None:
        options = self._options
        if options.on_response is not None and await self._call_on_response(
            options.on_response, upstream
        ):
            return
        body, modified = self._transform_stream(upstream)
        status, headers = self._build_head(
            upstream.status_code, upstream.headers.raw, modified=modified
        )
        if options.on_stream_error is not None:
            headers = header_lists.remove(headers, b"content-length")
        remaining = await self._send_head(status, headers)
        if has_no_content(self._caller.method, status):
            await self._drain_empty_body(upstream)
        else:
            source = IteratorSource(body, self._limits.raise_if_cancelled)
            await self._relay_chunks(source, remaining, None)

    def _transform_stream(self, upstream: httpx.Response) -> tuple[AsyncIterator[bytes], bool]:
        """Return the body for the caller, and whether it differs from the upstream's."""
        options, start_task = self._options, self._limits.start_task
        needs_heartbeat = self._needs_heartbeat(upstream)
        resumable = options.transform is not None or needs_heartbeat
        body, modified = self._open_body(
            upstream,
            decode=options.decode or options.modifies_body or needs_heartbeat,
            start_task=start_task if resumable else None,
        )
        if options.transform is not None:
            self.outcome_if_app_raises = Outcome.TRANSFORM_FAILED
            body, modified = self._track_iterator(options.transform(body)), True
        if options.heartbeat is not None and needs_heartbeat:
            if options.transform is not None:
                body = self._track_iterator(ResumableBody(body, start_task, options.library))
            body, modified = HeartbeatBody(body, options.heartbeat), True
        return body, modified

    async def _relay_chunks(
        self, source: ChunkSource, remaining: int | None, count: Callable[[int], None] | None
    ) -> None:
        """Send the chunks, and keep the last one if the length of the body is known."""
        while True:
            while (chunk := source.read_nowait()) is None:
                await source.wait_readable()
            if not chunk:
                return
            if count is not None:
                count(len(chunk))
            if remaining is not None:
                remaining -= len(chunk)
            if remaining == 0:
                self.final_chunk = chunk
            else:
                await self._caller.send_body(chunk, more=True)
                self._limits.count_sent(len(chunk))

    async def _relay_buffered(self, upstream: httpx.Response, max_bytes: int) -> None:
        options, check = self._options, self._limits.raise_if_cancelled
        decode = options.decode or options.transform is not None
        if options.on_response is not None:  # It may read `upstream.text`.
            codings = content_encodings(upstream)
            decode = decode or (upstream.status_code != 206 and all(map(can_decode, codings)))
        body, modified = self._open_body(upstream, decode=decode)
        content = await read_limited(body, max_bytes, check)
        # Release the connection before the hooks, which may take their time.
        await close_upstream(upstream, *self._open_iterators)
        self._open_iterators.clear()
        if options.on_response is not None:
            upstream = with_content(upstream, content, options.library, decoded=modified)
            if await self._call_on_response(options.on_response, upstream):
                return
        if options.transform is not None:
            self.outcome_if_app_raises = Outcome.TRANSFORM_FAILED
            body = self._track_iterator(options.transform(SingleChunk(content)))
            content, modified = await read_limited(body, max_bytes, check), True
        status, headers = self._build_head(
            upstream.status_code, upstream.headers.raw, modified=modified
        )
        await self._send_buffered(status, headers, content)

    def _build_head(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], *, modified: bool = False
    ) -> tuple[int, RawHeaders]:
        return build_response_head(
            status,
            headers,
            request_method=self._request.method,
            caller_method=self._caller.method,
            status_override=self._status,
            body_modified=modified,
        )

    async def _send_head(self, status: int, headers: RawHeaders) -> int | None:
        """Send status and headers. Return the length of the body if it is known."""
        if self._header_overrides:
            headers = header_lists.override(headers, self._header_overrides)
        forwarded = isinstance(self._request, ForwardedRequest)
        headers = add_stream_headers(headers, forwarded=forwarded)
        await self._caller.send_head(status, headers)
        if has_no_content(self._caller.method, status):
            return 0
        length = header_lists.parse_content_length(headers)
        if length is None:
            # Some servers hold the head back until the body starts, and a stream may be silent.
            await self._caller.send_body(b"", more=True)
        return length

    async def _send_buffered(self, status: int, headers: RawHeaders, content: bytes) -> None:
        headers = header_lists.override(headers, self._header_overrides)
        if not has_no_content(self._request.method, status):
            headers = header_lists.remove(headers, b"content-length")
            headers.append((b"content-length", str(len(content)).encode()))
        if not has_no_content(self._caller.method, status):
            self.final_chunk = content
        await self._caller.send_head(status, headers)

    def _needs_heartbeat(self, upstream: httpx.Response) -> bool:
        if self._options.heartbeat is None or upstream.status_code == 206:
            return False
        headers = [(name.lower(), value) for name, value in upstream.headers.raw]
        sent = header_lists.override(headers, self._header_overrides)
        return get_media_type(dict(sent)) == EVENT_STREAM

    def _open_body(
        self, upstream: httpx.Response, *, decode: bool, start_task: StartTask | None = None
    ) -> tuple[AsyncIterator[bytes], bool]:
        """Return the body, and whether it differs from the upstream's.

        Arguments:
            upstream: The response.
            decode: Whether to decode the body.
            start_task: If given, a cancelled read of the body loses nothing.
        """
        codings = content_encodings(upstream) if decode else []
        if upstream.status_code == 206 and (codings or self._options.transform is not None):
            raise errors.protocol_error("unexpected 206 Partial Content")
        if upstream.is_stream_consumed or upstream.is_closed:
            return self._get_read_content(upstream), bool(content_encodings(upstream))
        body = self._track_iterator(cast(httpx.AsyncByteStream, upstream.stream))
        body = check_end(upstream, body, self._options.library)
        if start_task is not None:
            body = self._track_iterator(ResumableBody(body, start_task, self._options.library))
        if self.recorder is not None:
            body = CountedBody(body, self.recorder.bytes_received)
        if codings:
            return DecodedBody(body, codings, self._options.library), True
        return body, False

    def _get_read_content(self, upstream: httpx.Response) -> SingleChunk:
        """Return the decoded body that an event hook or `on_response` has read."""
        if self.recorder is not None:
            self.recorder.count_hook_read(upstream)
        try:
            return SingleChunk(upstream.content)
        except self._options.library.ResponseNotRead:
            raise RuntimeError(
                "the upstream's body is gone; read it with `await upstream.aread()`, which keeps "
                "it, in on_response, an event hook or the code that opened the response"
            ) from None

    def _track_iterator(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        iterator = aiter(body)
        self._open_iterators.insert(0, iterator)
        return iterator

    async def _call_on_response(
        self, on_response: ResponseHook[httpx.Response], upstream: httpx.Response
    ) -> bool:
        """Call the hook. Return whether it replaces the response."""
        self.outcome_if_app_raises = Outcome.REPLACED
        self.replacement = await maybe_await(on_response(upstream))
        if not isinstance(self.replacement, Response | None):  # pyright: ignore
            name = type(self.replacement).__name__
            raise TypeError(f"on_response returned {name}: return None or a JSONResponse(...)")
        self.outcome_if_app_raises = Outcome.APP_FAILED
        return self.replacement is not None

    async def _drain_empty_body(self, upstream: httpx.Response) -> None:
        """Read to the end of a response without content, so that its connection can be reused."""
        if self._request.method == "HEAD" or upstream.status_code in (204, 304):
            async for _ in self._open_body(upstream, decode=False)[0]:
                pass
