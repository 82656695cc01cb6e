"""A caller's path, byte for byte, and whether it holds a way out of its base.

It is taken as it stood in the caller's request line. It is never decoded and encoded again,
only decoded to compare it, and to see what an upstream might read into it.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

_ABSOLUTE_FORM = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]*")
# UTF-8 with more bytes than are needed, which lax decoders take.
_OVERLONG = (
    (re.compile(rb"\xc0\xae|\xe0\x80\xae|\xf0\x80\x80\xae"), b"."),
    (re.compile(rb"\xc0\xaf|\xe0\x80\xaf|\xf0\x80\x80\xaf"), b"/"),
    (re.compile(rb"\xc1\x9c|\xe0\x81\x9c|\xf0\x80\x81\x9c"), b"/"),
)
_SAFE_PATH = re.compile(rb"[\w/.~-]*")
_WHITESPACE = re.compile(rb"[\0-\x20\x7f+]")
_IIS_UNICODE = re.compile(rb"%u00([0-9a-fA-F]{2})")
_HEX = re.compile(rb"%[0-9a-fA-F]{2}")


def raw_path_of(scope: Mapping[str, Any]) -> bytes:
    """The path of the request line, still encoded, without its query.

    `raw_path` is optional in ASGI; without it, the decoded path is encoded anew. Some servers leave
    the scheme and the host of an absolute-form request line in it (RFC 9112 3.2.2).
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        raw = quote(scope["path"], safe="/:@!$&'()*+,;=~").encode("ascii")
    raw = raw.partition(b"?")[0]
    if not raw.startswith(b"/") and (match := _ABSOLUTE_FORM.match(raw)):
        raw = raw[match.end() :] or b"/"
    return raw


def strip_prefix(raw: bytes, prefix: bytes) -> bytes | None:
    """What follows a decoded prefix in a raw path; None where the path does not start with it."""
    prefix, position = prefix.rstrip(b"/"), 0
    if raw.startswith(prefix) and raw[len(prefix) : len(prefix) + 1] in (b"", b"/"):
        return raw[len(prefix) :]  # as it mostly is
    for byte in prefix:
        if _HEX.match(raw, position):
            value, step = int(raw[position + 1 : position + 3], 16), 3
        else:
            value, step = (raw[position] if position < len(raw) else -1), 1
        if value != byte:
            return None
        position += step
    rest = raw[position:]
    at_its_end = not rest or rest[:1] == b"/" or rest[:3].lower() == b"%2f"
    return rest if at_its_end else None


def is_path_traversal(path: bytes) -> bool:
    """Whether an upstream that decodes once, twice or not at all could read a `..` in a path."""
    if _SAFE_PATH.fullmatch(path) and b".." not in path:
        return False
    for _ in range(4):
        path = _IIS_UNICODE.sub(rb"%\1", path)  # as old servers of Microsoft's read it
        for overlong, plain in _OVERLONG:
            path = overlong.sub(plain, path)
        if not path.isascii():  # some take wide dots and slashes for narrow ones
            wide = path.decode("utf-8", "surrogateescape")
            path = unicodedata.normalize("NFKC", wide).encode("utf-8", "surrogateescape")
        for segment in path.replace(b"\\", b"/").split(b"/"):
            # Parameters (`..;a`) and what is behind a NUL are cut off by some, blanks left out.
            for ending in (rb"[;?#\0]", rb"[;?#]"):
                if _WHITESPACE.sub(b"", re.split(ending, segment)[0]) == b"..":
                    return True
        decoded = unquote_to_bytes(path)
        if decoded == path:
            return False
        path = decoded
    return b"." in path
