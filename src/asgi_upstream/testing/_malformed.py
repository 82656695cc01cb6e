"""Messages that no client can take, by what is wrong with them."""

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
    # Ends within the head.
    "head": _OK + b"content-ty",
    # A head that is longer than any client takes.
    "huge-head": _OK + b"x-big: " + b"h" * 2_000_000 + b"\r\ncontent-length: 0\r\n\r\n",
    # A number that is no status.
    "status": b"HTTP/1.1 777 Odd\r\ncontent-length: 0\r\n\r\n",
    # A change of protocols that nobody asked for.
    "switch": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
    # A second chunk without a size.
    "chunk": _OK + b"transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\nzz\r\nnot a chunk\r\n",
    # Two lengths, of which one is wrong.
    "length": _OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok",
    # The gzip breaks after its first block.
    "gzip": _OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(_GZIP) + _GZIP,
}
