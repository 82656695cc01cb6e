"""The upgraded connection of a WebSocket."""

import anyio
import httpcore

from .._httpx.exceptions import map_httpcore_error
from .._httpx.interfaces import HTTPXModule

IO_SIZE = 65536
"""Bytes in one read or write."""


class WebSocketStream:
    """The upgraded connection. Raises httpx's errors, and keeps frames of several tasks apart.

    Attributes:
        is_mid_frame: Whether a write is in progress, or was cancelled within a frame.
        last_long_write: When the last write of more than one chunk made progress, in loop time.
    """

    def __init__(
        self,
        library: HTTPXModule,
        stream: httpcore.AsyncNetworkStream,
        write_timeout: float | None,
    ) -> None:
        self._library = library
        self._stream = stream
        self._write_timeout = write_timeout
        self._lock = anyio.Lock()
        self.is_mid_frame: bool = False
        self.last_long_write: float = 0.0

    @property
    def is_writing(self) -> bool:
        return self._lock.locked()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self._stream.read(max_bytes, timeout)
        except Exception as exc:
            self._raise_mapped(exc)
            raise

    async def write(self, data: bytes) -> None:
        """Write `data` in chunks. The write timeout applies to each of them."""
        async with self._lock:
            self.is_mid_frame = True
            try:
                for start in range(0, len(data), IO_SIZE):
                    await self._stream.write(data[start : start + IO_SIZE], self._write_timeout)
                    if len(data) > IO_SIZE:
                        self.last_long_write = anyio.current_time()
            except Exception as exc:
                self._raise_mapped(exc)
                raise
            self.is_mid_frame = False

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        except Exception as exc:
            self._raise_mapped(exc)
            raise

    def _raise_mapped(self, exc: Exception) -> None:
        mapped = map_httpcore_error(type(exc), self._library)
        if mapped is not None:
            raise mapped(str(exc)) from exc
