"""The request body on its way to the upstream, which may refuse it before its end."""

import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import anyio
import httpx

from .._httpx.flavors import ByteStreamBase
from .._httpx.workarounds import EarlyResponseDetector
from .closing import close_generator
from .recording import ExchangeRecorder
from .scope import ExchangeScope

POLL_INTERVAL = 0.1
"""Seconds between two checks for an early response of httpx's transport."""


class UploadStream(ByteStreamBase):
    """Counts the bytes of a request body, and starts to listen for a disconnect after its end.

    On httpx's transport it also ends early if the upstream has refused the request. Then the rest
    is not read from the caller, and the connection is not used again (RFC 9112 9.5).
    AsyncioTransport does that itself.

    Attributes:
        finished: Whether no more is read from the body.
        read_completely: Whether it was read to its end.
    """

    _iterator: "weakref.ref[_UploadIterator] | None" = None
    _chunks: AsyncIterator[bytes] | None = None

    def __init__(
        self,
        client: object,
        url: httpx.URL,
        body: httpx.AsyncByteStream,
        scope: ExchangeScope,
        recorder: ExchangeRecorder | None,
    ) -> None:
        self._client = client
        self._url = url
        self._body = body
        self.scope: ExchangeScope = scope
        self.recorder: ExchangeRecorder | None = recorder
        self.finished: bool = False
        self.read_completely: bool = False

    @property
    def in_progress(self) -> bool:
        """Whether the body may still be read. It may come from the caller's `receive`.

        A transport drops the iterator if it gives up the upload.
        """
        return not self.finished and self._iterator is not None and self._iterator() is not None

    def __aiter__(self) -> AsyncIterator[bytes]:
        detector = EarlyResponseDetector(self._client, self._url, self)
        reader = _InterruptibleReader(detector) if detector.can_detect else None
        self._chunks = aiter(self._body)
        iterator = _UploadIterator(self, self._chunks, reader)
        self._iterator = weakref.ref(iterator)
        if reader is not None:
            self.scope.poll(POLL_INTERVAL, reader.check)
        return iterator

    async def close_body(self) -> None:
        """Close the body's generator if the transport has not read it to its end.

        Otherwise the garbage collector would do that later, in a task of its own.
        """
        chunks: object = self._chunks
        if not self.read_completely and isinstance(chunks, AsyncGenerator):
            await close_generator(cast("AsyncGenerator[bytes]", chunks))

    async def aclose(self) -> None:
        await self._body.aclose()


class _UploadIterator(AsyncIterator[bytes]):
    """One pass over the body. It is an object, because transports leave generators unclosed."""

    def __init__(
        self,
        stream: UploadStream,
        chunks: AsyncIterator[bytes],
        reader: "_InterruptibleReader | None",
    ) -> None:
        self._stream = stream
        self._chunks = chunks
        self._reader = reader

    async def __anext__(self) -> bytes:
        stream = self._stream
        try:
            if self._reader is None:
                chunk = await anext(self._chunks, None)
            else:
                chunk = await self._reader.read(self._chunks)
        except BaseException:
            self._finish()
            raise
        if chunk is None:
            self._finish()
            stream.read_completely = True
            stream.scope.start_listening()
            raise StopAsyncIteration
        if stream.recorder is not None:
            stream.recorder.sent += len(chunk)
        return chunk

    def _finish(self) -> None:
        self._stream.finished = True
        if self._reader is not None:
            self._reader.stopped = True


class _InterruptibleReader:
    """Cancels a read of the caller's body if the upstream has refused the request.

    Attributes:
        stopped: Whether the upload has ended.
    """

    def __init__(self, detector: EarlyResponseDetector) -> None:
        self._detector = detector
        self._read_scope = anyio.CancelScope()
        self.stopped: bool = False

    def check(self) -> bool:
        """Look for a response, and return whether the upload may go on."""
        if self.stopped:
            return False
        if self._detector.available():
            self._read_scope.cancel()
        return not self._read_scope.cancel_called

    async def read(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """Return the next chunk, or None at the end.

        Raises:
            httpcore.WriteError: If there is a response. httpcore then reads it.
        """
        self._read_scope = anyio.CancelScope()
        if self.check():
            with self._read_scope:
                return await anext(chunks, None)
        raise self._detector.write_error("the upstream has answered")
