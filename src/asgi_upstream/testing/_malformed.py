"""Malformed messages, by kind."""

import zlib
from collections.abc import Mapping
from typing import Literal, TypeAlias

MalformedKind: TypeAlias = Literal[
    "not-http", "head", "huge-head", "status", "switch", "chunk", "length", "gzip"
]

_OK = b"HTTP/1.1 200 OK\r\n"
_packer = zlib.compressobj(wbits=31)
_GZIP = _packer.compress(b"first") + _packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 100

MALFORMED: Mapping[MalformedKind, bytes] = {
    # Another protocol.
    "not-http": b"220 mail.example ESMTP\r\n",
    # The connection ends within the head.
    "head": _OK + b"content-ty",
    # The head is longer than any client accepts.
    "huge-head": _OK + b"x-big: " + b"h" * 2_000_000 + b"\r\ncontent-length: 0\r\n\r\n",
    # The number is not a status.
    "status": b"HTTP/1.1 777 Odd\r\ncontent-length: 0\r\n\r\n",
    # An unexpected change of protocols.
    "switch": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
    # The second chunk has no size.
    "chunk": _OK + b"transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\nzz\r\nnot a chunk\r\n",
    # Two lengths differ.
    "length": _OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok",
    # The gzip data is damaged after its first block.
    "gzip": _OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(_GZIP) + _GZIP,
}
