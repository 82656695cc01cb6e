"""One upstream exchange: send, relay, close, cancel. Only here is an open response of one held.

The whole exchange is one structured block, `Exchange.run`. Nothing is open before it or after it,
however it ends: the upstream fails, the caller leaves, a deadline passes, the task is cancelled.
"""

import inspect
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
)
from typing import cast

import anyio
import httpx
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from . import errors, headers
from .bodies import as_bytes, as_read, grown, once, read
from .caller import Caller, CallerLeft
from .closing import close_upstream, uninterrupted
from .decoding import can_decode, codings_of, decoded
from .httpcore_pool import clear_up
from .libraries import derived, is_a
from .log import logger
from .records import Outcome, Tally, ledger_of, route_of
from .shortcut import sent, shortcut
from .terms import ErrorFrame, OnResponse, Relay, Relayed, Terms
from .uploads import Upload
from .watch import Watch

FRAME_TIMEOUT = 1.0
"""Seconds that the `error_frame` of an exchange may take that the server has cancelled."""


class Exchange:
    """One request to the upstream, and one response to the caller."""

    def __init__(self, terms: Terms, status: int | None, own_headers: headers.RawHeaders) -> None:
        self.terms = terms
        self.request: httpx.Request = terms.request
        self.status = status  # in place of the upstream's
        self.own_headers = own_headers
        self.outcome: Outcome = Outcome.CANCELLED  # unless it ends otherwise
        self.failure: Exception | None = None
        self.own: Outcome = Outcome.APP_FAILED  # what it is now that the app's own code raises
        self.tally: Tally | None = None
        self.last: bytes = b""
        self.replacement: Response | None = None
        self.bodies: list[AsyncIterator[bytes]] = []

    async def run(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Carry the exchange out. True where the server took the whole response.

        Raises:
            UpstreamError: the upstream failed. If the response had started, this cuts it off.
            Exception: whatever `on_response` or `transform` raised.
        """
        ledger, terms = ledger_of(self.terms.client), self.terms
        if ledger.observers or terms.observers:
            observers = (*ledger.observers, *terms.observers)
            self.tally = Tally(observers, ledger.name, self.request, terms.library, scope)
        ledger.under_way.add(self)
        try:
            return await self._carry_out(scope, receive, send)
        finally:
            ledger.under_way.discard(self)
            if self.tally is not None:
                self.tally.close(self.outcome, self.failure)

    async def _carry_out(self, scope: Scope, receive: Receive, send: Send) -> bool:
        terms, caller = self.terms, Caller(scope, receive, send)
        transport = None if terms.on_response else shortcut(terms.client, self.request)
        relay: Relay | None = getattr(transport, "relay", None)
        watch = Watch(receive, terms.deadline, plain=relay is not None)
        try:
            async with watch:
                try:
                    if (
                        relay is None
                        or terms.changes_body
                        or not await self._relay_as_it_is(relay, caller, watch)
                    ):
                        await self._open_and_relay(transport, caller, watch)
                except Exception as exc:
                    self.failure = exc  # raised in here, a task group would make it a group
        except anyio.get_cancelled_exc_class():  # not by the watch, which takes its own back
            if caller.started and terms.error_frame is not None and not watch.left:
                await self._end_with_frame(caller, terms.error_frame)
            raise
        # Here nothing is open upstream, and the caller is not watched any more: after the last
        # part of a body servers report a disconnect that did not happen.
        if watch.expired and not watch.left and (watch.cut or self.failure):
            self.failure, self.outcome = errors.deadline_passed(terms.deadline), Outcome.DEADLINE
        elif watch.left or isinstance(self.failure, CallerLeft | ClientDisconnect):
            self.failure, self.outcome = None, caller.outcome_of_leaving
            await caller.dismiss()
            return False
        if self.failure is not None:
            self.last = await self._last_words(scope, caller, self.failure)
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
            with watch.goes_on(FRAME_TIMEOUT if self.failure else 0):
                if watch.leaves_unread:
                    await caller.end_and_read_on(self.last)
                else:
                    await caller.body(self.last, more=False)
        except CallerLeft:
            if self.failure is None:
                self.outcome = caller.outcome_of_leaving
            return False
        except TimeoutError:
            if self.failure is None:
                self.failure = errors.deadline_passed(terms.deadline)
                self.outcome = Outcome.DEADLINE
                errors.log_failure(self.failure, self.request, route_of(scope))
            error = errors.as_upstream_error(self.failure) or self.failure
            raise error from error.__cause__
        if self.failure is None:
            self.outcome = Outcome.COMPLETED
        return True

    async def _relay_as_it_is(self, relay: Relay, caller: Caller, watch: Watch) -> bool:
        """The short way of the usual exchange, with nothing sent up and nothing changed.

        False, and nothing done, where it is not one.
        """
        library = self.terms.library
        if self.terms.decode or not isinstance(self.request.stream, library.ByteStream):
            return False
        watch.begin()
        opening = relay(self.request)
        if opening is None:
            return False
        upstream = await opening
        tally = self.tally
        try:
            head = upstream.head
            sent(library, self.request, head.version, head.status, head.reason)
            if tally is not None:
                tally.answered(head.status, reused=upstream.exchanges > 1)
            if self.terms.max_bytes is not None:
                _check_status(head.status)
                content = await self._read_whole(upstream, self.terms.max_bytes)
                await self._send_whole(
                    caller, *self._head(head.status, head.fields, caller), content
                )
                return True
            remaining = await self._start(caller, *self._head(head.status, head.fields, caller))
            if remaining != 0:
                while chunk := upstream.take() or await upstream.read():
                    if tally is not None:
                        tally.received(len(chunk))
                    if remaining is not None:
                        remaining -= len(chunk)
                    if remaining == 0:
                        self.last = chunk
                    else:
                        await caller.body(chunk, more=True)
                        watch.relayed(len(chunk))
        finally:
            if not upstream.keep():
                await upstream.finish()
        return True

    async def _read_whole(self, upstream: Relayed, max_bytes: int) -> bytes:
        content: bytes | bytearray = b""
        while chunk := upstream.take() or await upstream.read():
            if self.tally is not None:
                self.tally.received(len(chunk))
            content = grown(content, chunk, max_bytes)
        return bytes(content)

    async def _open_and_relay(
        self, transport: httpx.AsyncBaseTransport | None, caller: Caller, watch: Watch
    ) -> None:
        client, content, library = self.terms.client, self.request.stream, self.terms.library
        upload: Upload | None = None
        if isinstance(content, library.ByteStream):
            watch.begin()
        else:  # it may come from the caller
            body = cast(httpx.AsyncByteStream, content)
            kind = derived(Upload, library.AsyncByteStream)
            upload = kind(client, self.request.url, body, watch, self.tally)
            self.request.stream = upload
        try:
            if transport is not None:
                upstream = await transport.handle_async_request(self.request)
                upstream.request = self.request
                version, reason = upstream.http_version, upstream.reason_phrase
                status = upstream.status_code
                sent(library, self.request, version.encode(), status, reason.encode())
            else:
                # A forwarded request's redirects are the caller's to follow.
                relayed = {"follow_redirects": False} if "target" in self.request.extensions else {}
                upstream = await client.send(self.request, stream=True, **relayed)
        except library.StreamConsumed:
            raise RuntimeError(
                "the body of this request is a stream that was sent already, so it cannot be sent "
                "again: build the request with bytes, or make a new response for each call"
            ) from None
        except BaseException as exc:
            await uninterrupted(clear_up(client, self.request.url))
            if isinstance(exc, UnicodeError):  # httpx, of a Location that no URL is
                raise errors.UpstreamProtocolError from exc
            raise
        finally:
            self.request.stream = content
        try:
            if self.tally is not None:
                reused = upstream.extensions.get("connection_reused")
                self.tally.answered(upstream.status_code, reused=reused)
            if not (upload and upload.under_way):
                watch.begin(sparingly=upstream.status_code >= 300)  # an upload that was refused
            _check_status(upstream.status_code)
            if headers.has_controls(upstream.headers.raw):
                raise errors.invalid_response("a control character in a field")
            if self.terms.max_bytes is None:
                await self._stream(upstream, caller, watch)
            else:
                await self._buffer(upstream, caller, self.terms.max_bytes, watch)
        finally:
            if self.tally is not None:
                self.tally.read_by_others(upstream)
            if self.bodies or not upstream.is_closed:
                await close_upstream(upstream, *self.bodies)
                if upstream.http_version == "HTTP/2":
                    await uninterrupted(clear_up(client, self.request.url))

    async def _stream(self, upstream: httpx.Response, caller: Caller, watch: Watch) -> None:
        terms = self.terms
        if terms.on_response is not None and await self._is_replaced(terms.on_response, upstream):
            return
        body, changed = self._body_of(upstream, decode=terms.decode or terms.changes_body)
        if terms.transform is not None:
            self.own = Outcome.TRANSFORM_FAILED
            body, changed = self._read_from(terms.transform(body)), True
        status, fields = self._head_of(upstream, caller, changed=changed)
        if terms.error_frame is not None:
            fields = headers.without(fields, b"content-length")
        remaining = await self._start(caller, status, fields)
        if _has_no_content(caller.method, status):
            await self._read_no_content(upstream)
            return
        async for chunk in body:
            watch.check()
            chunk = as_bytes(chunk)  # granian would send nothing for a transform's str
            if remaining is not None:
                remaining -= len(chunk)
            if remaining == 0:
                self.last += chunk  # sent as the last part, when the upstream is closed
            elif chunk:
                await caller.body(chunk, more=True)
                watch.relayed(len(chunk))

    async def _start(self, caller: Caller, status: int, fields: headers.RawHeaders) -> int | None:
        """Send the head; the length of the body that is to follow, where it is known."""
        if self.own_headers:
            fields = headers.overlaid(fields, self.own_headers)
        values = dict(fields)
        if headers.may_be_sniffed(values):
            fields = [*fields, headers.NOSNIFF]
        await caller.start(status, fields)
        if _has_no_content(caller.method, status):
            return 0
        length = values.get(b"content-length", b"")
        if length.isdigit():
            return int(length)
        # Some servers hold the head back until there is a body, and a stream may be silent.
        await caller.body(b"", more=True)
        return None

    async def _buffer(
        self, upstream: httpx.Response, caller: Caller, max_bytes: int, watch: Watch
    ) -> None:
        terms = self.terms
        decode = terms.decode or terms.transform is not None
        if terms.on_response is not None:  # it may read `upstream.text`
            codings = codings_of(upstream)
            decode = decode or all(can_decode(coding, terms.library) for coding in codings)
        body, changed = self._body_of(upstream, decode=decode)
        content = await read(body, max_bytes, watch)
        # What follows may take its time, so the connection is given back before it.
        await close_upstream(upstream, *self.bodies)
        self.bodies.clear()
        if terms.on_response is not None:
            upstream = as_read(upstream, content, terms.library, decoded=changed)
            if await self._is_replaced(terms.on_response, upstream):
                return
        if terms.transform is not None:
            self.own = Outcome.TRANSFORM_FAILED
            body = self._read_from(terms.transform(self._read_from(once(content))))
            content, changed = await read(body, max_bytes, watch), True
        status, fields = self._head_of(upstream, caller, changed=changed)
        await self._send_whole(caller, status, fields, content)

    async def _send_whole(
        self, caller: Caller, status: int, fields: headers.RawHeaders, content: bytes
    ) -> None:
        fields = headers.overlaid(fields, self.own_headers)
        if not _has_no_content(self.request.method, status):
            fields = headers.without(fields, b"content-length")
            fields.append((b"content-length", str(len(content)).encode()))
        if not _has_no_content(caller.method, status):
            self.last = content
        await caller.start(status, fields)

    def _head(
        self, status: int, fields: headers.RawHeaders, caller: Caller
    ) -> tuple[int, headers.RawHeaders]:
        """Status and fields for the caller, from the upstream's."""
        _check_status(status)
        fields = headers.relayed_response_headers(fields)
        # RFC 9110 8.6: none with a 204. And what goes with no content is not true of a content.
        empty = _has_no_content(self.request.method, status)
        if self.status is not None:
            status = self.status
        if status in (204, 205) or (empty and not _has_no_content(caller.method, status)):
            fields = headers.without(fields, b"content-length")
        return status, fields

    def _head_of(
        self, upstream: httpx.Response, caller: Caller, *, changed: bool
    ) -> tuple[int, headers.RawHeaders]:
        status, fields = self._head(upstream.status_code, upstream.headers.raw, caller)
        return status, headers.of_a_changed_body(fields) if changed else fields

    def _body_of(
        self, upstream: httpx.Response, *, decode: bool
    ) -> tuple[AsyncIterator[bytes], bool]:
        """The body, and whether it is other than the upstream sent it."""
        if upstream.is_stream_consumed or upstream.is_closed:  # by an event hook or `on_response`
            if self.tally is not None:
                self.tally.read_by_others(upstream)
            try:
                content = upstream.content  # decoded
            except self.terms.library.ResponseNotRead:
                raise RuntimeError(
                    "the upstream's body is gone: on_response, an event hook or whoever adopted it "
                    "closed it or read it in parts; read it there with `await upstream.aread()`, "
                    "which keeps it, or return another response"
                ) from None
            return self._read_from(once(content)), bool(codings_of(upstream))
        body = self._read_from(cast(httpx.AsyncByteStream, upstream.stream))
        if self.tally is not None:
            body = self._read_from(self.tally.counted(body))
        if decode and (codings := codings_of(upstream)):
            return self._read_from(decoded(body, codings, self.terms.library)), True
        return body, False

    def _read_from(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        iterator = aiter(body)
        self.bodies.insert(0, iterator)
        return iterator

    async def _is_replaced(
        self, on_response: OnResponse[httpx.Response], upstream: httpx.Response
    ) -> bool:
        self.own = Outcome.REPLACED
        answer = on_response(upstream)
        self.replacement = await answer if inspect.isawaitable(answer) else answer
        if not isinstance(self.replacement, Response | None):  # pyright: ignore
            kind = type(self.replacement).__name__
            raise TypeError(f"on_response returned {kind}: return None or a JSONResponse(...)")
        self.own = Outcome.APP_FAILED
        return self.replacement is not None

    async def _read_no_content(self, upstream: httpx.Response) -> None:
        """Reach the end of a message without content, so that its connection can be reused."""
        if self.request.method == "HEAD" or upstream.status_code in (204, 304):
            async for _ in self._body_of(upstream, decode=False)[0]:
                pass

    async def _end_with_frame(self, caller: Caller, error_frame: ErrorFrame) -> None:
        """End a body properly that is cut short from outside; hold that up for a moment only."""
        with anyio.move_on_after(FRAME_TIMEOUT, shield=True):
            try:
                await caller.body(_frame(error_frame, errors.ExchangeCancelled()), more=False)
            except (CallerLeft, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # a middleware between has let go of the body
            except Exception:
                logger.warning("the error_frame of a cancelled exchange failed", exc_info=True)

    async def _last_words(self, scope: Scope, caller: Caller, failure: Exception) -> bytes:
        """What a caller still gets of an exchange that failed; raises where that is nothing."""
        if is_a(failure, httpx.RequestError):
            failure.request = self.request  # as httpx's client does
        error = errors.as_upstream_error(failure) or failure
        if self.tally is not None and self.outcome is Outcome.CANCELLED:
            self.outcome = self.tally.outcome_of(error, self.own)
        if isinstance(error, errors.UpstreamError):
            errors.log_failure(error, self.request, route_of(scope))
        if caller.started and self.terms.error_frame is not None:
            try:
                frame = _frame(self.terms.error_frame, error)
            except Exception as exc:
                error = exc
            else:
                if not isinstance(error, errors.UpstreamError):  # no server gets to log it
                    said = "the app failed in a body that its error_frame ended"
                    logger.error(said, exc_info=error)
                return frame
        if caller.started:
            await caller.abort()
        raise error


def _check_status(status: int) -> None:
    """Refuse a 101 that nobody asked for, and a number that is no status (RFC 9110 15)."""
    if not 200 <= status < 600:
        raise errors.invalid_response(f"status {status}")


def _has_no_content(method: str, status: int) -> bool:
    """RFC 9110 6.4.1, and 15.3.6 for 205."""
    return method == "HEAD" or status in (204, 205, 304)


def _frame(error_frame: ErrorFrame, error: Exception) -> bytes:
    frame = error_frame(error)
    if not isinstance(frame, bytes):  # pyright: ignore
        raise TypeError(f"error_frame returned {type(frame).__name__}, not bytes")
    return frame
