"""The body of a request on its way to the upstream, which may refuse it before its end."""

from collections.abc import AsyncIterator

import anyio
import httpx

from .httpcore_pool import EarlyAnswer
from .libraries import ByteStreamOfEither
from .records import Tally
from .watch import Watch

LOOK_EVERY = 0.1
"""Seconds between two looks for an early answer while the caller is slow to send."""


class Upload(ByteStreamOfEither):
    """Begins the watch when the last byte was read; ends early when the upstream has refused.

    Then the rest is not read from the caller, and the connection is not used again (RFC 9112 9.5).
    """

    def __init__(
        self,
        client: object,
        url: httpx.URL,
        body: httpx.AsyncByteStream,
        watch: Watch,
        tally: Tally | None,
    ) -> None:
        self._client = client
        self._url = url
        self._body = body
        self._watch = watch
        self._tally = tally
        self.under_way: bool = False  # so that nobody else may read `receive`

    async def __aiter__(self) -> AsyncIterator[bytes]:
        early = EarlyAnswer(self._client, self._url, self)
        waiting = anyio.CancelScope()
        parts = aiter(self._body)

        def look() -> bool:
            if early.has_come():
                waiting.cancel()
            return not waiting.cancel_called

        self._watch.every(LOOK_EVERY, look)
        self.under_way = True
        try:
            while look():
                part = None
                with waiting:
                    part = await anext(parts, None)
                if part is not None:
                    if self._tally is not None:
                        self._tally.sent += len(part)
                    yield part
                    waiting = anyio.CancelScope()
                elif not waiting.cancel_called:
                    self._watch.begin()
                    return
            raise early.stops_sending("the upstream has answered")
        finally:
            self.under_way = False

    async def aclose(self) -> None:
        await self._body.aclose()
