"""Keeps the response body until the exchange reads it."""

CHUNK_OVERHEAD = 64
"""Bytes of memory that each chunk in the buffer takes, beside its data."""

MAX_JOINED_SIZE = 32 * 1024
"""Chunks up to this size in bytes are joined before they are returned to the reader."""


class ReadBuffer:
    """Body bytes that the reader has not taken yet.

    Attributes:
        size: The memory that they take, in bytes.
    """

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.size = 0

    def append(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.size += len(chunk) + CHUNK_OVERHEAD

    def pop(self, max_bytes: int | None = None) -> bytes:
        """Remove and return the next bytes, at most `max_bytes`. There must be some."""
        chunks = self._chunks
        if len(chunks) == 1 or len(chunks[0]) > MAX_JOINED_SIZE:
            chunk = chunks.pop(0)
            self.size -= len(chunk) + CHUNK_OVERHEAD
        else:
            chunk = b"".join(chunks)
            self.clear()
        if max_bytes is not None and len(chunk) > max_bytes:
            chunks.insert(0, chunk[max_bytes:])
            self.size += len(chunk) - max_bytes + CHUNK_OVERHEAD
            chunk = chunk[:max_bytes]
        return chunk

    def clear(self) -> None:
        self._chunks.clear()
        self.size = 0
