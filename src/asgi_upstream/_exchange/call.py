"""Runs the exchange of `fetch`: send the request, and read the whole response."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import anyio
import httpx

from .. import errors
from .._httpx.interfaces import HTTPXModule
from .._httpx.requests import copy_with_headers
from .._httpx.workarounds import holds_pool_place
from ..records import Observer, Outcome
from .block import current_block
from .body import build_body, read_limited, with_content
from .closing import close_upstream
from .decoding import accept_decodable, content_encodings
from .ending import COMPLETED, Ending
from .failure import log_ending, map_failure
from .options import SupportsSend
from .recording import ExchangeRecorder, RecordedExchange
from .sending import send_request, validate_head


class Call:
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
        self._block = current_block.get()
        self._recorder: ExchangeRecorder | None = None
        self._observers = observers
        self._scope = anyio.CancelScope()

    async def run(self) -> httpx.Response:
        """Send the request, and return the response with its whole body.

        Raises:
            UpstreamError: If the upstream failed or the deadline passed.
        """
        block, started = self._block, anyio.current_time()
        scope: Mapping[str, Any] = {} if block is None else block.connection.scope
        with RecordedExchange(
            self, self._client, self._observers, self._library, scope
        ) as recorded:
            self._recorder = recorded.recorder
            try:
                response = await self._send_and_read()
            except anyio.get_cancelled_exc_class():
                if block is not None:
                    recorded.ending = Ending(block.outcome)
                raise
            except Exception as exc:
                recorded.ending = ending = self._determine_ending(exc)
                log_ending(ending, self.request, scope)
                if ending.error is None or ending.error is exc:
                    raise
                raise ending.error from ending.error.__cause__
            recorded.ending = COMPLETED
        response.elapsed = timedelta(seconds=anyio.current_time() - started)
        return response

    def _determine_ending(self, failure: Exception) -> Ending:
        if isinstance(failure, _DeadlinePassed):
            return Ending(Outcome.DEADLINE, errors.deadline_error(self._deadline))
        return map_failure(failure, self._client, self.request, self._recorder, Outcome.APP_FAILED)

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
                self._recorder.response_received(upstream)
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
        # A part cannot be decoded.
        codings = content_encodings(upstream) if upstream.status_code != 206 else []
        body = build_body(upstream, stream, codings, self._library, self._recorder)
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
