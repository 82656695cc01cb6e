"""Content codings that clients and servers use and libraries do not offer."""

import zlib


def raw_deflate(data: bytes) -> bytes:
    """Compress as Microsoft's servers do for `deflate`, without zlib's header."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()
