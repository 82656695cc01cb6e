"""One upstream exchange: send, relay, close, cancel. Only here is an open response of one held.

The whole exchange is one structured block, `Exchange.run`. Nothing is open before it or after it,
however it ends: the upstream fails, the caller leaves, a deadline passes, the task is cancelled.
"""

import inspect
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Iterable,
)
from typing import cast

import anyio
import httpx
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import _headers as headers
from .. import errors
from .._clients import get_client_state
from .._httpx.fast_path import direct_transport, log_request
from .._httpx.flavors import is_httpx_error, subclass_for
from .._httpx.requests import ForwardedRequest, copy_with_headers
from .._httpx.workarounds import clean_up_pool
from .._logging import logger
from ..records import Outcome
from .body import (
    CountedBody,
    DecodedBody,
    ResumableBody,
    SingleChunk,
    StartTask,
    append_limited,
    ensure_bytes,
    read_limited,
    with_content,
)
from .closing import close_upstream, defer_cancellation
from .decoding import accept_whole_decodable, can_decode, content_encodings
from .downstream import Caller, CallerDisconnected
from .heartbeat import HeartbeatBody
from .options import ExchangeOptions, RawResponse, ResponseHook, SendRaw, StreamErrorHook
from .recording import ExchangeRecorder, route_template, was_ended_by_lifespan
from .response_head import (
    EVENT_STREAM,
    add_stream_headers,
    build_response_head,
    get_media_type,
    has_no_content,
    validate_status,
)
from .scope import ExchangeScope
from .sending import send_request, validate_head
from .upload import UploadStream

ERROR_CHUNK_TIMEOUT = 1.0
"""Seconds that the `on_stream_error` of an exchange may take that the server has cancelled."""


class Exchange:
    """One request to the upstream, and one response to the caller."""

    def __init__(
        self, options: ExchangeOptions, status: int | None, own_headers: headers.RawHeaders
    ) -> None:
        self.options = options
        self.request: httpx.Request = (
            copy_with_headers(
                options.request,
                accept_whole_decodable(options.request.headers.raw),
                options.library,
            )
            if options.decodes_body
            else options.request
        )
        self.status = status  # in place of the upstream's
        self.header_overrides = own_headers
        self.outcome: Outcome = Outcome.CANCELLED  # unless it ends otherwise
        self.failure: Exception | None = None
        self.outcome_if_app_raises: Outcome = (
            Outcome.APP_FAILED
        )  # what it is now that the app's own code raises
        self.recorder: ExchangeRecorder | None = None
        self.final_chunk: bytes = b""
        self.replacement: Response | None = None
        self.open_iterators: list[AsyncIterator[bytes]] = []

    async def run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Carry the exchange out. True where the server took the whole response.

        Raises:
            UpstreamError: the upstream failed. If the response had started, this cuts it off.
            Exception: whatever `on_response` or `transform` raised.
        """
        ledger, terms = get_client_state(self.options.client), self.options
        if ledger.observers or terms.observers:
            observers = (*ledger.observers, *terms.observers)
            self.recorder = ExchangeRecorder(
                observers, ledger.name, self.request, terms.library, scope
            )
        ledger.open_exchanges.add(self)
        try:
            return await self._run(scope, receive, send)
        finally:
            ledger.open_exchanges.discard(self)
            if self.recorder is not None:
                self.recorder.emit(self.outcome, self.failure)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        terms, caller = self.options, Caller(scope, receive, send)
        transport = None if terms.on_response else direct_transport(terms.client, self.request)
        relay: SendRaw | None = getattr(transport, "send_raw", None)
        watch = ExchangeScope(receive, terms.deadline, plain=relay is not None)
        try:
            async with watch:
                try:
                    if (
                        relay is None
                        or terms.decodes_body
                        or not await self._relay_unmodified(relay, caller, watch)
                    ):
                        await self._send_and_relay(transport, caller, watch)
                except Exception as exc:
                    self.failure = exc  # raised in here, a task group would make it a group
        except anyio.get_cancelled_exc_class():  # not by the watch, which takes its own back
            if caller.started and terms.on_stream_error is not None and not watch.disconnected:
                await self._send_error_chunk(caller, terms.on_stream_error)
            raise
        # Here nothing is open upstream, and the caller is not watched any more: after the last
        # part of a body servers report a disconnect that did not happen.
        if (
            watch.deadline_passed
            and not watch.disconnected
            and (watch.cancelled_caught or self.failure)
        ):
            self.failure, self.outcome = errors.deadline_error(terms.deadline), Outcome.DEADLINE
        elif watch.disconnected or isinstance(self.failure, CallerDisconnected | ClientDisconnect):
            self.failure, self.outcome = None, caller.disconnect_outcome
            await caller.send_client_closed()
            return False
        if self.failure is not None:
            self.final_chunk = await self._handle_failure(scope, caller, self.failure)
        elif self.replacement is not None:
            self.outcome = Outcome.REPLACED
            try:
                await self.replacement(scope, receive, send)
            except Exception as exc:
                self.failure = exc
                raise
            return True
        try:
            # What failed by the deadline itself has still a moment for its last words.
            with watch.goes_on(ERROR_CHUNK_TIMEOUT if self.failure else 0):
                if watch.has_unread_request:
                    await caller.send_last_chunk_and_drain(self.final_chunk)
                else:
                    await caller.send_body(self.final_chunk, more=False)
        except CallerDisconnected:
            if self.failure is None:
                self.outcome = caller.disconnect_outcome
            return False
        except TimeoutError:
            if self.failure is None:
                self.failure = errors.deadline_error(terms.deadline)
                self.outcome = Outcome.DEADLINE
                errors.log_failure(self.failure, self.request, route_template(scope))
            error = errors.map_exception(self.failure) or self.failure
            raise error from error.__cause__
        if self.failure is None:
            self.outcome = Outcome.COMPLETED
        return True

    async def _relay_unmodified(self, relay: SendRaw, caller: Caller, watch: ExchangeScope) -> bool:
        """The short way of the usual exchange, with nothing sent up and nothing changed.

        False, and nothing done, where it is not one.
        """
        library = self.options.library
        if not isinstance(self.request.stream, library.ByteStream):
            return False
        watch.start_listening()
        opening = relay(self.request)
        if opening is None:
            return False
        upstream = await opening
        tally = self.recorder
        try:
            head = upstream.head
            log_request(library, self.request, head.version, head.status, head.reason)
            if tally is not None:
                tally.headers_received(head.status, reused=upstream.request_count > 1)
            if self.options.max_bytes is not None:
                validate_status(head.status)
                content = await self._read_all(upstream, self.options.max_bytes)
                await self._send_buffered(
                    caller, *self._head(head.status, head.headers, caller), content
                )
                return True
            remaining = await self._send_head(
                caller, *self._head(head.status, head.headers, caller)
            )
            if remaining != 0:
                while chunk := upstream.read_nowait() or await upstream.read():
                    if tally is not None:
                        tally.bytes_received(len(chunk))
                    if remaining is not None:
                        remaining -= len(chunk)
                    if remaining == 0:
                        self.final_chunk = chunk
                    else:
                        await caller.send_body(chunk, more=True)
                        watch.count_sent(len(chunk))
        finally:
            if not upstream.release():
                await upstream.aclose()
        return True

    async def _read_all(self, upstream: RawResponse, max_bytes: int) -> bytes:
        content: bytes | bytearray = b""
        while chunk := upstream.read_nowait() or await upstream.read():
            if self.recorder is not None:
                self.recorder.bytes_received(len(chunk))
            content = append_limited(content, chunk, max_bytes)
        return bytes(content)

    async def _send_and_relay(
        self, transport: httpx.AsyncBaseTransport | None, caller: Caller, watch: ExchangeScope
    ) -> None:
        client, content, library = self.options.client, self.request.stream, self.options.library
        upload: UploadStream | None = None
        if isinstance(content, library.ByteStream):
            watch.start_listening()
        else:  # it may come from the caller
            body = cast(httpx.AsyncByteStream, content)
            kind = subclass_for(UploadStream, library.AsyncByteStream)
            upload = kind(client, self.request.url, body, watch, self.recorder)
            self.request.stream = upload
        try:
            upstream = await send_request(client, self.request, library, transport)
        finally:
            self.request.stream = content
        try:
            if self.recorder is not None:
                reused = upstream.extensions.get("connection_reused")
                self.recorder.headers_received(upstream.status_code, reused=reused)
            if not (upload and upload.in_progress):
                watch.start_listening(
                    sparingly=upstream.status_code >= 300
                )  # an upload that was refused
            validate_head(upstream)
            if self.options.max_bytes is None:
                await self._relay_stream(upstream, caller, watch)
            else:
                await self._relay_buffered(upstream, caller, self.options.max_bytes, watch)
        finally:
            if self.recorder is not None:
                self.recorder.count_hook_read(upstream)
            if self.open_iterators or not upstream.is_closed:
                await close_upstream(upstream, *self.open_iterators)
                if upstream.http_version == "HTTP/2":
                    await defer_cancellation(clean_up_pool(client, self.request.url))

    async def _relay_stream(
        self, upstream: httpx.Response, caller: Caller, watch: ExchangeScope
    ) -> None:
        terms = self.options
        if terms.on_response is not None and await self._call_on_response(
            terms.on_response, upstream
        ):
            return
        beats = self._needs_heartbeat(upstream)
        start_task = watch.start_task if terms.transform is not None or beats else None
        decode = terms.decode or terms.modifies_body or beats
        body, changed = self._open_body(upstream, decode=decode, start_task=start_task)
        if terms.transform is not None:
            self.outcome_if_app_raises = Outcome.TRANSFORM_FAILED
            body, changed = self._track_iterator(terms.transform(body)), True
        if terms.heartbeat is not None and beats:
            if terms.transform is not None:
                body = self._track_iterator(ResumableBody(body, watch.start_task, terms.library))
            body, changed = HeartbeatBody(body, terms.heartbeat), True
        status, fields = self._head(
            upstream.status_code, upstream.headers.raw, caller, modified=changed
        )
        if terms.on_stream_error is not None:
            fields = headers.remove(fields, b"content-length")
        remaining = await self._send_head(caller, status, fields)
        if has_no_content(caller.method, status):
            await self._drain_empty_body(upstream)
            return
        async for chunk in body:
            watch.raise_if_cancelled()
            chunk = ensure_bytes(chunk)  # granian would send nothing for a transform's str
            if remaining is not None:
                remaining -= len(chunk)
            if remaining == 0:
                self.final_chunk += chunk  # sent as the last part, when the upstream is closed
            elif chunk:
                await caller.send_body(chunk, more=True)
                watch.count_sent(len(chunk))

    async def _send_head(
        self, caller: Caller, status: int, fields: headers.RawHeaders
    ) -> int | None:
        """Send the head; the length of the body that is to follow, where it is known."""
        if self.header_overrides:
            fields = headers.override(fields, self.header_overrides)
        forwarded = isinstance(self.request, ForwardedRequest)
        fields = add_stream_headers(fields, forwarded=forwarded)
        await caller.send_head(status, fields)
        if has_no_content(caller.method, status):
            return 0
        if (length := headers.parse_content_length(fields)) is not None:
            return length
        # Some servers hold the head back until there is a body, and a stream may be silent.
        await caller.send_body(b"", more=True)
        return None

    def _needs_heartbeat(self, upstream: httpx.Response) -> bool:
        if self.options.heartbeat is None or upstream.status_code == 206:
            return False
        sent = headers.override(
            [(name.lower(), value) for name, value in upstream.headers.raw], self.header_overrides
        )
        return get_media_type(dict(sent)) == EVENT_STREAM

    async def _relay_buffered(
        self, upstream: httpx.Response, caller: Caller, max_bytes: int, watch: ExchangeScope
    ) -> None:
        terms = self.options
        decode = terms.decode or terms.transform is not None
        if terms.on_response is not None:  # it may read `upstream.text`
            codings = content_encodings(upstream)
            decode = decode or (upstream.status_code != 206 and all(map(can_decode, codings)))
        body, changed = self._open_body(upstream, decode=decode)
        content = await read_limited(body, max_bytes, watch.raise_if_cancelled)
        # What follows may take its time, so the connection is given back before it.
        await close_upstream(upstream, *self.open_iterators)
        self.open_iterators.clear()
        if terms.on_response is not None:
            upstream = with_content(upstream, content, terms.library, decoded=changed)
            if await self._call_on_response(terms.on_response, upstream):
                return
        if terms.transform is not None:
            self.outcome_if_app_raises = Outcome.TRANSFORM_FAILED
            body = self._track_iterator(terms.transform(SingleChunk(content)))
            content, changed = await read_limited(body, max_bytes, watch.raise_if_cancelled), True
        status, fields = self._head(
            upstream.status_code, upstream.headers.raw, caller, modified=changed
        )
        await self._send_buffered(caller, status, fields, content)

    async def _send_buffered(
        self, caller: Caller, status: int, fields: headers.RawHeaders, content: bytes
    ) -> None:
        fields = headers.override(fields, self.header_overrides)
        if not has_no_content(self.request.method, status):
            fields = headers.remove(fields, b"content-length")
            fields.append((b"content-length", str(len(content)).encode()))
        if not has_no_content(caller.method, status):
            self.final_chunk = content
        await caller.send_head(status, fields)

    def _head(
        self,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        caller: Caller,
        *,
        modified: bool = False,
    ) -> tuple[int, headers.RawHeaders]:
        return build_response_head(
            status,
            headers,
            request_method=self.request.method,
            caller_method=caller.method,
            status_override=self.status,
            body_modified=modified,
        )

    def _open_body(
        self, upstream: httpx.Response, *, decode: bool, start_task: StartTask | None = None
    ) -> tuple[AsyncIterator[bytes], bool]:
        """Return the body, and whether it differs from what the upstream sent.

        Arguments:
            start_task: If given, a cancelled read of the body loses nothing.
        """
        codings = content_encodings(upstream) if decode else []
        if upstream.status_code == 206 and (codings or self.options.transform is not None):
            raise errors.protocol_error("unexpected 206 Partial Content")
        if upstream.is_stream_consumed or upstream.is_closed:  # by an event hook or `on_response`
            if self.recorder is not None:
                self.recorder.count_hook_read(upstream)
            try:
                content = upstream.content  # decoded
            except self.options.library.ResponseNotRead:
                raise RuntimeError(
                    "the upstream's body is gone: on_response, an event hook or whoever adopted it "
                    "closed it or read it in parts; read it there with `await upstream.aread()`, "
                    "which keeps it, or return another response"
                ) from None
            return SingleChunk(content), bool(content_encodings(upstream))
        body = self._track_iterator(cast(httpx.AsyncByteStream, upstream.stream))
        if start_task is not None:
            body = self._track_iterator(ResumableBody(body, start_task, self.options.library))
        if self.recorder is not None:
            body = CountedBody(body, self.recorder.bytes_received)
        if codings:
            return DecodedBody(body, codings, self.options.library), True
        return body, False

    def _track_iterator(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        iterator = aiter(body)
        self.open_iterators.insert(0, iterator)
        return iterator

    async def _call_on_response(
        self, on_response: ResponseHook[httpx.Response], upstream: httpx.Response
    ) -> bool:
        self.outcome_if_app_raises = Outcome.REPLACED
        answer = on_response(upstream)
        self.replacement = await answer if inspect.isawaitable(answer) else answer
        if not isinstance(self.replacement, Response | None):  # pyright: ignore
            kind = type(self.replacement).__name__
            raise TypeError(f"on_response returned {kind}: return None or a JSONResponse(...)")
        self.outcome_if_app_raises = Outcome.APP_FAILED
        return self.replacement is not None

    async def _drain_empty_body(self, upstream: httpx.Response) -> None:
        """Reach the end of a message without content, so that its connection can be reused."""
        if self.request.method == "HEAD" or upstream.status_code in (204, 304):
            async for _ in self._open_body(upstream, decode=False)[0]:
                pass

    async def _send_error_chunk(self, caller: Caller, on_stream_error: StreamErrorHook) -> None:
        """End a body properly that is cut short from outside; hold that up for a moment only."""
        with anyio.move_on_after(ERROR_CHUNK_TIMEOUT, shield=True):
            try:
                await caller.send_body(
                    _call_on_stream_error(on_stream_error, errors.ExchangeCancelled()), more=False
                )
            except (CallerDisconnected, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # a middleware between has let go of the body
            except Exception:
                logger.warning("the on_stream_error of a cancelled exchange failed", exc_info=True)

    async def _handle_failure(self, scope: Scope, caller: Caller, failure: Exception) -> bytes:
        """What a caller still gets of an exchange that failed; raises where that is nothing."""
        if is_httpx_error(failure, httpx.RequestError):
            failure.request = self.request  # as httpx's client does
        error = errors.map_exception(failure) or failure
        if cancelled := was_ended_by_lifespan(self.options.client, failure):
            error = self.failure = errors.ExchangeCancelled()
        elif self.recorder is not None and self.outcome is Outcome.CANCELLED:
            self.outcome = self.recorder.classify_failure(error, self.outcome_if_app_raises)
        if isinstance(error, errors.UpstreamError) and not cancelled:
            errors.log_failure(error, self.request, route_template(scope))
        if caller.started and self.options.on_stream_error is not None:
            try:
                frame = _call_on_stream_error(self.options.on_stream_error, error)
            except Exception as exc:
                error = exc
            else:
                if not isinstance(error, errors.UpstreamError):  # no server gets to log it
                    said = "the app failed in a body that its on_stream_error ended"
                    logger.error(said, exc_info=error)
                return frame
        if caller.started:
            await caller.abort()
        raise error


def _call_on_stream_error(on_stream_error: StreamErrorHook, error: Exception) -> bytes:
    frame = on_stream_error(error)
    if not isinstance(frame, bytes):  # pyright: ignore
        raise TypeError(f"on_stream_error returned {type(frame).__name__}, not bytes")
    return frame
