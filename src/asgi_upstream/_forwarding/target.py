"""Builds the request target: base path, the caller's path without the prefix, and the query."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus, unquote_to_bytes

import httpx
from starlette.exceptions import HTTPException
from starlette.types import Scope

from .._caching import BoundedCache
from .._httpx.interfaces import HTTPXModule

_PATH_REJECTED = "Invalid path"
# Illegal in a request line (RFC 9112 3.2), but some servers let it pass.
_ILLEGAL = re.compile(rb"[^!-~]")
_ABSOLUTE_FORM = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]*")
_HEX = re.compile(rb"%[0-9a-fA-F]{2}")

# No known upstream decodes more often.
_MAX_DECODINGS = 4
_SAFE_PATH = re.compile(rb"[\w/.~:@,=!$&'()*-]*")
_IIS_ESCAPE = re.compile(rb"%[uU]([0-9a-fA-F]{4})")
# ASCII in more bytes than are needed, which lax decoders of UTF-8 accept.
_OVERLONG = re.compile(
    rb"[\xc0\xc1][\x80-\xbf]|(?:\xe0|\xf0\x80|\xf8\x80\x80|\xfc\x80\x80\x80)[\x80\x81][\x80-\xbf]"
)
# Characters that some normalizers turn into a dot or a slash, beside those of NFKC.
_LOOKALIKES = str.maketrans("\u3002\u2044\u2215\u29f8\u2216\u29f5\u29f9", r".///\\\ ".strip())
# Decoders drop NUL and bytes that are not UTF-8 (lone surrogates here), or cut the path there.
_CUT_OR_DROPPED = re.compile("[\0\udc80-\udcff\ufffd]")
_WHITESPACE = bytes(range(0x21)) + b"\x7f+"
# The Hangul fillers are letters, and the replacement character stands for an invalid byte.
_INVISIBLE = frozenset("\u115f\u1160\ufffd")
_DOT_SEGMENT = re.compile(r"\.\.(?<![^/\\]\.\.)(?![^/\\;?#])")


class PrefixMismatch(ValueError):
    """A path that does not start with the prefix."""


class Base(NamedTuple):
    """The parts of a client's `base_url` that each request needs.

    Attributes:
        url: The base URL.
        path: Its path, without a slash at its end.
        netloc: The value of a Host header.
    """

    url: httpx.URL
    path: bytes
    netloc: bytes


_bases: BoundedCache[int, Base] = BoundedCache(64)


def find_base(url: httpx.URL) -> Base:
    """Return the parts of a client's `base_url`, which httpx would derive again each time.

    Raises:
        ValueError: If the URL has a query.
    """
    base = _bases.get(id(url))
    if base is None or base.url is not url:
        path, _, query = url.raw_path.partition(b"?")
        if query:
            raise ValueError(
                f"base_url={str(url)!r} has a query, which would be lost: pass it as "
                f"client_lifespan(params=...)"
            )
        base = Base(url, path.rstrip(b"/"), url.netloc)
        if not url.userinfo:  # it may be a secret
            _bases.keep(id(url), base)
    return base


def build_target(
    library: HTTPXModule,
    client: httpx.AsyncClient,
    scope: Scope,
    prefix: str | None,
    url: httpx.URL | str | None,
) -> tuple[bytes, httpx.URL, bytes, bytes]:
    """Return where the request to the upstream goes.

    Returns:
        Path and query as in the request line, a URL of the upstream's scheme, host and port, its
        Host header, and the mount: the raw path under which callers reach the upstream, without a
        slash at its end.

    Raises:
        HTTPException: 400 for a path that is never forwarded.
        ValueError: If the path does not start with the prefix, `url` is invalid or leaves the base,
            or `base_url` has a query.
    """
    origin, base_path, host = base = find_base(client.base_url)
    query: bytes = scope.get("query_string") or b""
    mount = b""
    if url is None:
        mount, path = split_prefix(scope, prefix)
        if path[:1] not in (b"", b"/") or is_path_traversal(path):
            raise HTTPException(400, _PATH_REJECTED)
        path = base_path + path
    else:
        origin, path, url_query = _resolve_url(library, base, url)
        host = origin.netloc
        query = query if url_query is None else url_query
    query = _merge_params(query, client.params)
    target = (path or b"/") + (b"?" + query if query else b"")
    if _ILLEGAL.search(target):
        raise HTTPException(400, _PATH_REJECTED)
    return target, origin, host, mount


def _resolve_url(
    library: HTTPXModule, base: Base, url: httpx.URL | str
) -> tuple[httpx.URL, bytes, bytes | None]:
    """Return the origin, the path, and the query if `url` has one.

    Raises:
        ValueError: If `url` is invalid, has a dot segment, or is a str that leaves the base.
    """
    try:
        parsed = library.URL(url)
    except library.InvalidURL as exc:
        raise ValueError(f"url={url!r} is not a valid URL: {exc}") from exc
    path, question_mark, query = parsed.raw_path.partition(b"?")
    if is_path_traversal(path):
        raise ValueError(f"url={url!r} has a dot segment: give the path that you mean")
    if not (parsed.scheme or parsed.host):
        return base.url, base.path + b"/" + path.lstrip(b"/"), query if question_mark else None
    if isinstance(url, str) and not _is_under(parsed, base):
        raise ValueError(
            f"url={url!r} is not under the client's base_url {str(base.url)!r}: give an "
            f"{library.__name__}.URL if you mean to leave it, or share another client"
        )
    return parsed, path, query if question_mark else None


# Servers disagree on the server's own root path. `GET /api/a` to a mount at `/api`, behind a proxy
# that removes `/gw`:
#
#     server and option                   raw_path    root_path
#     uvicorn --root-path /gw             /gw/api/a   /gw/api
#     hypercorn --root-path /gw           /api/a      /gw/api
#     granian --url-path-prefix /gw       /api/a      /gw/api
#     httpx.ASGITransport(root_path=...)  /api/a      /gw/api
#     TestClient(root_path=...)           /api/a      /gw/api
def split_prefix(scope: Scope, prefix: str | None) -> tuple[bytes, bytes]:
    """Split the raw path into the mount and the rest.

    The mount is the path under which callers reach the upstream.

    Raises:
        HTTPException: 400 if the path does not start with a slash.
        PrefixMismatch: If the path does not start with the prefix.
    """
    raw = get_raw_path(scope)
    root_path: str = scope.get("root_path") or ""
    if not root_path and prefix is None and raw[:1] == b"/":
        return b"", raw  # the usual case
    server_root: str = (scope.get("app_root_path", root_path) or "").rstrip("/")
    if prefix is None:
        own_prefix = root_path.removeprefix(server_root).encode()
    else:
        own_prefix = unquote_to_bytes(prefix)
    if prefix in ("", "/"):
        server_root = ""
    hidden_root = b""
    rest = strip_prefix(raw, server_root.encode() + own_prefix)
    if rest is None and server_root:
        hidden_root = quote(server_root).encode()
        rest = strip_prefix(raw, own_prefix)
    if rest is not None:
        return hidden_root + raw[: len(raw) - len(rest)], rest
    if not raw.startswith(b"/"):
        raise HTTPException(400, _PATH_REJECTED)
    raise PrefixMismatch(
        f"the path {raw!r} does not start with the prefix "
        f"{own_prefix.decode(errors='replace')!r}: give prefix= as the part of the path that is "
        f"your app's own"
    )


def _is_under(url: httpx.URL, base: Base) -> bool:
    same = (url.scheme, url.host, url.port) == (base.url.scheme, base.url.host, base.url.port)
    return same and strip_prefix(url.raw_path.partition(b"?")[0], base.path) is not None


def _merge_params(query: bytes, params: httpx.QueryParams) -> bytes:
    """Merge the client's params into the caller's query. The client's params win."""
    if not params:
        return query
    client_query = str(params).encode()
    if not query:
        return client_query
    kept = [
        pair
        for pair in query.split(b"&")
        if unquote_plus(pair.partition(b"=")[0].decode("latin-1")) not in params
    ]
    return b"&".join([*kept, client_query])


def get_raw_path(scope: Mapping[str, Any]) -> bytes:
    """Return the path of the request line, still encoded, without its query.

    `raw_path` is optional in ASGI. Without it, the decoded path is encoded again. Some servers
    leave the scheme and the host of an absolute-form request line in it (RFC 9112 3.2.2).
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        raw = quote(scope["path"], safe="/:@!$&'()*+,;=~").encode("ascii")
    raw = raw.partition(b"?")[0]
    if not raw.startswith(b"/") and (match := _ABSOLUTE_FORM.match(raw)):
        raw = raw[match.end() :] or b"/"
    return raw


def strip_prefix(raw: bytes, prefix: bytes) -> bytes | None:
    """Return the raw path after a decoded prefix, or None if it does not start with the prefix."""
    prefix, position = prefix.rstrip(b"/"), 0
    is_literal = b"%" not in prefix and raw.startswith(prefix)
    if is_literal and raw[len(prefix) : len(prefix) + 1] in (b"", b"/"):
        return raw[len(prefix) :]  # the usual case
    for byte in prefix:
        if _HEX.match(raw, position):
            value, step = int(raw[position + 1 : position + 3], 16), 3
        else:
            value, step = (raw[position] if position < len(raw) else -1), 1
        if value != byte:
            return None
        position += step
    rest = raw[position:]
    ends_segment = not rest or rest[:1] == b"/" or rest[:3].lower() == b"%2f"
    return rest if ends_segment else None


def is_path_traversal(path: bytes) -> bool:
    """Return whether an upstream could read a `..` segment in a path.

    Upstreams decode a path several times, once or not at all. Some drop or replace characters, and
    some of these decode the rest again. So each decoding is searched twice, with and without them.
    """
    if _SAFE_PATH.fullmatch(path) and b".." not in path:
        return False
    kept = dropped = path
    for _ in range(_MAX_DECODINGS):
        text = _normalize_characters(kept)
        rest = text if dropped == kept else _normalize_characters(dropped)
        if _has_dot_segment(text) or (rest != text and _has_dot_segment(rest)):
            return True
        text_bytes = text.encode("utf-8", "surrogateescape")
        rest_bytes = _drop_invisible(rest).encode()
        kept = unquote_to_bytes(text_bytes)
        dropped = kept if rest_bytes == text_bytes else unquote_to_bytes(rest_bytes)
        if kept == text_bytes and dropped in (rest_bytes, text_bytes):
            return False
    return b"." in kept + dropped


def _has_dot_segment(text: str) -> bool:
    if "." not in text:
        return False
    if _DOT_SEGMENT.search(_drop_invisible(text)):
        return True
    # If an upstream cuts the path at such a character, the effect is that of a question mark.
    cut = _CUT_OR_DROPPED.sub("?", text)
    return cut != text and _DOT_SEGMENT.search(_drop_invisible(cut)) is not None


def _normalize_characters(path: bytes) -> str:
    """Return the path with other forms of dots and slashes as dots and slashes."""
    if b"%u" in path or b"%U" in path:
        path = _IIS_ESCAPE.sub(_decode_iis_escape, path)
    if path.isascii():
        return path.decode("ascii")
    text = _OVERLONG.sub(_decode_overlong, path).decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)


def _decode_iis_escape(match: re.Match[bytes]) -> bytes:
    return chr(int(match[1], 16)).encode("utf-8", "surrogatepass")


def _decode_overlong(match: re.Match[bytes]) -> bytes:
    *_, high, low = match[0]
    return bytes([(high & 1) << 6 | low & 0x3F])


def _drop_invisible(text: str) -> str:
    """Drop blanks, control characters, marks, and characters that are ignored or invalid."""
    visible = text.encode("utf-8", "ignore").translate(None, _WHITESPACE).decode()
    if visible.isascii():
        return visible
    invisible = [
        character
        for character in set(visible)
        if character in _INVISIBLE or unicodedata.category(character)[0] in "CZM"
    ]
    return visible.translate(dict.fromkeys(map(ord, invisible))) if invisible else visible
