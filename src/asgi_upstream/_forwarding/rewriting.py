"""Rewrites redirects and cookies that refer to the upstream so that they refer to the app.

These are pure functions over header values. `base` is the client's `base_url`. `mount` is the raw
path, without a slash at its end, under which callers reach it.
"""

import re
from collections.abc import Callable, Collection
from urllib.parse import unquote_to_bytes

import httpx

from .._headers import RawHeaders
from .target import strip_prefix

Origin = tuple[str, int | None]
"""A host and a port. A default port is None."""

_NO_ORIGIN: Origin = ("", None)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL_HEADERS = frozenset((b"location", b"content-location"))
# Browsers remove control characters, and read a backslash as a slash (WHATWG URL 4.4). So this is
# the start of another host, in a value that looks like a path.
_HOST_START = re.compile(rb"/[\0-\x20\x7f]*[/\\]")
_PATH_END = re.compile(rb"[?#]")
_AUTHORITY_END = re.compile(rb"[/?#]")
# `5; url=/a`, with several separators and quotes (WHATWG HTML 4.2.5.3).
_REFRESH = re.compile(
    rb"(?is)[\s\d.]*+[;,]?\s*+(?:url\s*+=\s*+)?"
    rb"(?:\"(?P<double>[^\"]*+)|'(?P<single>[^']*+)|(?P<plain>.*))"
)
# The target of a link, and quoted strings, in which there is none (RFC 8288 3).
_LINK_TARGET = re.compile(rb'(?s)"(?:[^"\\]|\\.)*+"?|<([^<>]*+)>')


def rewrite_locations(
    headers: RawHeaders, base: httpx.URL, mount: bytes, hosts: Collection[bytes] = ()
) -> RawHeaders:
    """Return `headers` with the URLs of redirects and links mapped under the mount.

    These are Location, Content-Location, Refresh and Link (RFC 9110 10.2.2, 8.7, RFC 8288). A path
    that is already under the mount stays as it is.

    Arguments:
        headers: The upstream's response headers.
        base: The client's base URL.
        mount: The raw path under which callers reach the upstream.
        hosts: Other names that the upstream knows itself by, such as the caller's Host.
    """
    origins = {_origin(base, base.scheme), *(_parse_host(host) for host in hosts)} - {_NO_ORIGIN}

    def map_url(url: bytes) -> bytes:
        return _rewrite_url(url, origins, base, mount)

    rewritten: RawHeaders = []
    for name, value in headers:
        key = name.lower()
        if key in _URL_HEADERS:
            value = map_url(value)
        elif key == b"refresh":
            value = _rewrite_refresh(value, map_url)
        elif key == b"link":
            value = _LINK_TARGET.sub(lambda match: _rewrite_link(match, map_url), value)
        rewritten.append((name, value))
    return rewritten


def rewrite_cookies(headers: RawHeaders, base: httpx.URL, mount: bytes) -> RawHeaders:
    """Return `headers` with the Path of each cookie mapped, and its Domain removed.

    Without a Domain, the cookie belongs to the host that the caller asked (RFC 6265 4.1.2). A path
    that is already under the mount stays as it is.
    """
    return [
        (name, _rewrite_cookie(value, base, mount) if name.lower() == b"set-cookie" else value)
        for name, value in headers
    ]


def _rewrite_url(url: bytes, origins: Collection[Origin], base: httpx.URL, mount: bytes) -> bytes:
    rest = url
    if not url.startswith(b"/") or url.startswith(b"//"):
        if not _names_upstream(url, origins, base):
            return url  # relative, or on another host
        after_scheme = url.partition(b"//")[2]
        end = _AUTHORITY_END.search(after_scheme)
        rest = after_scheme[end.start() :] if end else b""
        if not rest.startswith(b"/"):
            rest = b"/" + rest
    end = _PATH_END.search(rest)
    path = rest[: end.start()] if end else rest
    mapped = _map_path(path, base, mount)
    if mapped is None or not mapped.startswith(b"/"):
        return url
    if _HOST_START.match(mapped):  # A dot segment before it keeps it a path (RFC 3986 4.2).
        mapped = b"/." + mapped
    return mapped + rest[len(path) :]


def _names_upstream(url: bytes, origins: Collection[Origin], base: httpx.URL) -> bool:
    """Return whether a URL names the upstream, with either scheme."""
    try:
        parsed = httpx.URL(url.decode("ascii"))
        if parsed.scheme not in ("", "http", "https"):
            return False
        return _origin(parsed, parsed.scheme or base.scheme) in origins
    except (httpx.InvalidURL, ValueError):
        return False


def _origin(url: httpx.URL, scheme: str) -> Origin:
    """Return the host and the port. The scheme's default port is None."""
    return url.host, None if url.port == _DEFAULT_PORTS.get(scheme) else url.port


def _parse_host(host: bytes) -> Origin:
    """Return the host and the port of a Host header. The default port of either scheme is None."""
    try:
        url = httpx.URL("//" + host.strip().decode("ascii"))
    except (httpx.InvalidURL, ValueError):
        return _NO_ORIGIN
    return url.host, None if url.port in _DEFAULT_PORTS.values() else url.port


def _rewrite_refresh(value: bytes, map_url: Callable[[bytes], bytes]) -> bytes:
    match = _REFRESH.match(value)
    assert match is not None  # The pattern matches any value.
    assert match.lastgroup is not None
    start, end = match.span(match.lastgroup)
    return value[:start] + map_url(value[start:end]) + value[end:]


def _rewrite_link(match: re.Match[bytes], map_url: Callable[[bytes], bytes]) -> bytes:
    return match[0] if match[1] is None else b"<" + map_url(match[1]) + b">"


def _rewrite_cookie(value: bytes, base: httpx.URL, mount: bytes) -> bytes:
    pair, *attributes = value.split(b";")
    # Browsers refuse a name that starts with __Host-, in any case, without Path=/ (RFC 6265bis
    # 4.1.3.2).
    keeps_path = pair.strip().lower().startswith(b"__host-")
    kept = [pair]
    for attribute in attributes:
        key, equals, path = attribute.partition(b"=")
        name, path = key.strip().lower(), path.strip()
        if name == b"domain":
            continue
        if name == b"path" and path.startswith(b"/") and not keeps_path:
            if mapped := _map_path(path, base, mount):
                attribute = key + equals + mapped
            elif strip_prefix(_base_path(base), path) is not None:  # the whole upstream
                attribute = key + equals + (mount or b"/")
        kept.append(attribute)
    return b";".join(kept)


def _base_path(base: httpx.URL) -> bytes:
    return unquote_to_bytes(base.raw_path.partition(b"?")[0]).rstrip(b"/")


def _map_path(path: bytes, base: httpx.URL, mount: bytes) -> bytes | None:
    """Return the upstream's path under the mount, or None if callers cannot reach it.

    Many upstreams know their prefix. So a path that is already under the mount stays as it is,
    unless the base is the longer match.
    """
    base_path, decoded_mount = _base_path(base), unquote_to_bytes(mount)
    if len(decoded_mount) > len(base_path) and strip_prefix(path, decoded_mount) is not None:
        return path
    rest = strip_prefix(path, base_path)
    if rest is not None:
        return mount + rest or b"/"
    return path if mount and strip_prefix(path, decoded_mount) is not None else None
