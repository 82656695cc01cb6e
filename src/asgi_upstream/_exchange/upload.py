"""The request body on its way to the upstream, which may refuse it before its end."""

from collections.abc import AsyncIterator

import anyio
import httpx

from .._httpx.flavors import ByteStreamBase
from .._httpx.workarounds import EarlyResponseDetector
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
        in_progress: Whether the body is being read. It may come from the caller's `receive`.
    """

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
        self._scope = scope
        self._recorder = recorder
        self.in_progress: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        detector = EarlyResponseDetector(self._client, self._url, self)
        read_scope = anyio.CancelScope()
        chunks = aiter(self._body)

        def continue_upload() -> bool:
            if detector.available():
                read_scope.cancel()
            return not read_scope.cancel_called

        self._scope.poll(POLL_INTERVAL, continue_upload)
        self.in_progress = True
        try:
            while continue_upload():
                chunk = None
                with read_scope:
                    chunk = await anext(chunks, None)
                if chunk is not None:
                    if self._recorder is not None:
                        self._recorder.sent += len(chunk)
                    yield chunk
                    read_scope = anyio.CancelScope()
                elif not read_scope.cancel_called:
                    self._scope.start_listening()
                    return
            raise detector.write_error("the upstream has answered")
        finally:
            self.in_progress = False

    async def aclose(self) -> None:
        await self._body.aclose()
