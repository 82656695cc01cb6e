"""Where a caller's request goes: the path after a prefix under a client's base, and the query."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote_plus, unquote_to_bytes

import httpx
from starlette.exceptions import HTTPException
from starlette.types import Scope

from .._httpx.flavors import HTTPXModule

_PATH_REJECTED = "Invalid path"
_ILLEGAL = re.compile(rb"[^!-~]")  # in a request line (RFC 9112 3.2), though some servers pass it

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


class PrefixMismatch(ValueError):
    """A path that does not start with the prefix."""


def build_target(
    library: HTTPXModule,
    client: httpx.AsyncClient,
    scope: Scope,
    prefix: str | None,
    url: httpx.URL | str | None,
) -> tuple[bytes, httpx.URL]:
    """Path and query to send, and the URL whose host they are sent to.

    Raises:
        HTTPException: 400 for what is never forwarded.
        ValueError: the path does not start with the prefix, or `url` leaves the base.
    """
    base = client.base_url
    base_path = base.raw_path.partition(b"?")[0].rstrip(b"/")
    query: bytes = scope["query_string"]
    if url is None:
        path = split_prefix(scope, prefix)[1]
        if path[:1] not in (b"", b"/") or is_path_traversal(path):
            raise HTTPException(400, _PATH_REJECTED)
        path = base_path + path
    else:
        other = library.URL(url)
        path, _, own_query = other.raw_path.partition(b"?")
        if is_path_traversal(path):
            raise ValueError(f"url={url!r} has a dot segment: give the path that you mean")
        if other.scheme or other.host:
            if isinstance(url, str) and not _is_under(other, base, base_path):
                raise ValueError(
                    f"url={url!r} is not under the client's base_url {str(base)!r}: give an "
                    f"{library.__name__}.URL if you mean to leave it, or share another client"
                )
            base = other
        else:
            path = base_path + b"/" + path.lstrip(b"/")
        query = own_query if b"?" in other.raw_path else query
    query = _merge_params(query, client.params)
    target = (path or b"/") + (b"?" + query if query else b"")
    if _ILLEGAL.search(target):
        raise HTTPException(400, _PATH_REJECTED)
    return target, base


def split_prefix(scope: Scope, prefix: str | None) -> tuple[bytes, bytes]:
    """The raw path: the part under which callers reach the upstream, and what is behind it."""
    raw = raw_path_of(scope)
    # With a root_path of the server's, some servers put that before the path and some do not.
    root: str = scope.get("root_path", "")
    servers: str = scope.get("app_root_path", root).rstrip("/")
    own = root.removeprefix(servers).encode() if prefix is None else unquote_to_bytes(prefix)
    if prefix in ("", "/"):
        servers = ""
    before = b""
    rest = strip_prefix(raw, servers.encode() + own)
    if rest is None and servers:
        before, rest = quote(servers).encode(), strip_prefix(raw, own)
    if rest is not None:
        return before + raw[: len(raw) - len(rest)].rstrip(b"/"), rest
    if not raw.startswith(b"/"):
        raise HTTPException(400, _PATH_REJECTED)
    raise PrefixMismatch(
        f"the path {raw!r} does not start with the prefix {own.decode(errors='replace')!r}: give "
        f"prefix= as the part of the path that is your app's own"
    )


def _is_under(url: httpx.URL, base: httpx.URL, base_path: bytes) -> bool:
    same = (url.scheme, url.host, url.port) == (base.scheme, base.host, base.port)
    return same and strip_prefix(url.raw_path.partition(b"?")[0], base_path) is not None


def _merge_params(query: bytes, params: httpx.QueryParams) -> bytes:
    """The caller's query less what the author's names, and the author's."""
    if not params:
        return query
    own = str(params).encode()
    if not query:
        return own
    kept = [
        pair
        for pair in query.split(b"&")
        if unquote_plus(pair.partition(b"=")[0].decode("latin-1")) not in params
    ]
    return b"&".join([*kept, own])


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
