"""The body of a request on its way to the upstream, which may refuse it before its end."""

from collections.abc import AsyncIterator

import anyio
import httpx

from .._httpx.flavors import ByteStreamBase
from .._httpx.workarounds import EarlyResponseDetector
from .recording import ExchangeRecorder
from .scope import ExchangeScope

POLL_INTERVAL = 0.1
"""Seconds between two looks for an early answer while the caller is slow to send."""


class UploadStream(ByteStreamBase):
    """Begins the watch when the last byte was read; ends early when the upstream has refused.

    Then the rest is not read from the caller, and the connection is not used again (RFC 9112 9.5).
    """

    def __init__(
        self,
        client: object,
        url: httpx.URL,
        body: httpx.AsyncByteStream,
        watch: ExchangeScope,
        tally: ExchangeRecorder | None,
    ) -> None:
        self._client = client
        self._url = url
        self._body = body
        self._watch = watch
        self._tally = tally
        self.in_progress: bool = False  # so that nobody else may read `receive`

    async def __aiter__(self) -> AsyncIterator[bytes]:
        detector = EarlyResponseDetector(self._client, self._url, self)
        read_scope = anyio.CancelScope()
        parts = aiter(self._body)

        def check_early_response() -> bool:
            if detector.available():
                read_scope.cancel()
            return not read_scope.cancel_called

        self._watch.poll(POLL_INTERVAL, check_early_response)
        self.in_progress = True
        try:
            while check_early_response():
                part = None
                with read_scope:
                    part = await anext(parts, None)
                if part is not None:
                    if self._tally is not None:
                        self._tally.sent += len(part)
                    yield part
                    read_scope = anyio.CancelScope()
                elif not read_scope.cancel_called:
                    self._watch.start_listening()
                    return
            raise detector.write_error("the upstream has answered")
        finally:
            self.in_progress = False

    async def aclose(self) -> None:
        await self._body.aclose()
