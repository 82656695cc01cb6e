"""Where a caller's request goes: the path after a prefix under a client's base, and the query."""

import re
from urllib.parse import quote, unquote_plus, unquote_to_bytes

import httpx
from starlette.exceptions import HTTPException
from starlette.types import Scope

from .._httpx.flavors import HTTPXModule
from .paths import is_path_traversal, raw_path_of, strip_prefix

_PATH_REJECTED = "The path is not one that is forwarded"
_ILLEGAL = re.compile(rb"[^!-~]")  # in a request line (RFC 9112 3.2), though some servers pass it


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
