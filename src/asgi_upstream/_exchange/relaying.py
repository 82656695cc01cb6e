"""Relays the upstream's response to the caller, streamed or buffered."""

from collections.abc import AsyncIterator, Callable, Iterable

import httpx
from starlette.responses import Response

from .. import _headers as header_lists
from .._headers import RawHeaders
from .._hooks import maybe_await
from .._httpx.requests import ForwardedRequest
from ..records import Outcome
from .body import ChunkSource, IteratorSource, SingleChunk, read_all, read_limited, with_content
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
from .resumable import ResumableBody
from .scope import ExchangeScope
from .upstream_body import UpstreamBody


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

    async def relay(self, upstream: httpx.Response, body: UpstreamBody) -> None:
        """Relay a response that went through httpx."""
        if self._options.max_bytes is None:
            await self._relay_stream(upstream, body)
        else:
            await self._relay_buffered(upstream, body, self._options.max_bytes)

    async def _relay_stream(self, upstream: httpx.Response, body: UpstreamBody) -> None:
        options = self._options
        if options.on_response is not None and await self._call_on_response(
            options.on_response, upstream
        ):
            return
        chunks = self._open_stream(upstream, body)
        status, headers = self._build_head(
            upstream.status_code, upstream.headers.raw, modified=body.is_modified
        )
        if options.on_stream_error is not None:
            headers = header_lists.remove(headers, b"content-length")
        remaining = await self._send_head(status, headers)
        if has_no_content(self._caller.method, status):
            await body.drain_empty()
        else:
            source = IteratorSource(chunks, self._limits.raise_if_cancelled)
            await self._relay_chunks(source, remaining, None)

    def _open_stream(self, upstream: httpx.Response, body: UpstreamBody) -> AsyncIterator[bytes]:
        """Return the body for the caller: decoded, transformed and with a heartbeat if needed."""
        options, start_task = self._options, self._limits.start_task
        needs_heartbeat = self._needs_heartbeat(upstream)
        resumable = options.transform is not None or needs_heartbeat
        chunks = body.open(
            decode=options.decode or options.modifies_body or needs_heartbeat,
            start_task=start_task if resumable else None,
        )
        if options.transform is not None:
            self.outcome_if_app_raises = Outcome.TRANSFORM_FAILED
            chunks = body.transform(options.transform, chunks)
        if options.heartbeat is not None and needs_heartbeat:
            if options.transform is not None:
                chunks = body.track(ResumableBody(chunks, start_task, options.library))
            chunks, body.is_modified = HeartbeatBody(chunks, options.heartbeat), True
        return chunks

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

    async def _relay_buffered(
        self, upstream: httpx.Response, body: UpstreamBody, max_bytes: int
    ) -> None:
        options, check = self._options, self._limits.raise_if_cancelled
        decode = options.decode or options.transform is not None
        if options.on_response is not None:  # It may read `upstream.text`.
            codings = content_encodings(upstream)
            decode = decode or (upstream.status_code != 206 and all(map(can_decode, codings)))
        content = await read_limited(body.open(decode=decode), max_bytes, check)
        await body.release()  # before the hooks, which may take their time
        if options.on_response is not None:
            upstream = with_content(upstream, content, options.library, decoded=body.is_modified)
            if await self._call_on_response(options.on_response, upstream):
                return
        if options.transform is not None:
            self.outcome_if_app_raises = Outcome.TRANSFORM_FAILED
            chunks = body.transform(options.transform, SingleChunk(content))
            content = await read_limited(chunks, max_bytes, check)
        status, headers = self._build_head(
            upstream.status_code, upstream.headers.raw, modified=body.is_modified
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
