"""The body of a response that went through httpx: opens it, and closes everything of it."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import cast

import httpx

from .. import errors
from .._httpx.workarounds import holds_pool_place
from .body import SingleChunk, build_body
from .closing import close_upstream
from .decoding import content_encodings
from .options import BodyTransform, ExchangeOptions
from .recording import ExchangeRecorder
from .resumable import ResumableBody, StartTask


class UpstreamBody:
    """Reads the body of one response, through iterators that it closes at the end.

    Arguments:
        recorder: Counts the bytes, if there are observers.

    Attributes:
        is_modified: Whether the body for the caller differs from the upstream's.
    """

    def __init__(
        self,
        upstream: httpx.Response,
        options: ExchangeOptions,
        request: httpx.Request,
        recorder: ExchangeRecorder | None,
    ) -> None:
        self.is_modified: bool = False
        self._upstream = upstream
        self._options = options
        self._request = request
        self._recorder = recorder
        self._open_iterators: list[AsyncIterator[bytes]] = []

    def open(self, *, decode: bool, start_task: StartTask | None = None) -> AsyncIterator[bytes]:
        """Return the body.

        Arguments:
            decode: Whether to decode the body.
            start_task: If given, a cancelled read of the body loses nothing.

        Raises:
            UpstreamProtocolError: If the body is a part that must not be decoded or transformed, or
                has a coding that cannot be decoded.
            RuntimeError: If the body was read before and not kept.
        """
        upstream, library = self._upstream, self._options.library
        codings = content_encodings(upstream) if decode else []
        if upstream.status_code == 206 and (codings or self._options.transform is not None):
            raise errors.protocol_error("unexpected 206 Partial Content")
        if upstream.is_stream_consumed or upstream.is_closed:
            self.is_modified = bool(content_encodings(upstream))
            return self._get_read_content()
        if codings:
            self.is_modified = True
        stream = self.track(cast(httpx.AsyncByteStream, upstream.stream))
        if start_task is not None:
            stream = self.track(ResumableBody(stream, start_task, library))
        return build_body(upstream, stream, codings, library, self._recorder)

    def transform(
        self, transform: BodyTransform, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """Return the transformed body."""
        self.is_modified = True
        return self.track(transform(chunks))

    def track(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Return the iterator of `body`, which is closed at the end."""
        iterator = aiter(body)
        self._open_iterators.insert(0, iterator)
        return iterator

    def _get_read_content(self) -> SingleChunk:
        """Return the decoded body that an event hook or `on_response` has read."""
        if self._recorder is not None:
            self._recorder.count_hook_read(self._upstream)
        try:
            return SingleChunk(self._upstream.content)
        except self._options.library.ResponseNotRead:
            raise RuntimeError(
                "the upstream's body is gone; read it with `await upstream.aread()`, which keeps "
                "it, in on_response, an event hook or the code that opened the response"
            ) from None

    async def drain_empty(self) -> None:
        """Read to the end of a response without content, so that its connection can be reused."""
        if self._request.method == "HEAD" or self._upstream.status_code in (204, 304):
            async for _ in self.open(decode=False):
                pass

    async def release(self) -> None:
        """Close the response and every iterator."""
        await close_upstream(self._upstream, *self._open_iterators)
        self._open_iterators.clear()

    async def aclose(self) -> None:
        """Close what is still open."""
        upstream = self._upstream
        if self._recorder is not None:
            self._recorder.count_hook_read(upstream)
        if self._open_iterators or not upstream.is_closed or holds_pool_place(upstream):
            await self.release()
