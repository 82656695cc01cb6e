"""What an upstream says of its own address, said of the app's: redirects and cookies.

Pure functions over header values. `base` is the client's base_url; `mount` the raw path, without a
slash at its end, under which callers reach it.
"""

import httpx

from .._headers import RawHeaders
from .target import strip_prefix

_PORTS = {"http": 80, "https": 443}
_LOCATIONS = frozenset((b"location", b"content-location"))


def rewrite_locations(fields: RawHeaders, base: httpx.URL, mount: bytes) -> RawHeaders:
    """`fields` with Location and Content-Location (RFC 9110 10.2.2, 8.7) mapped under the mount."""
    return [
        (name, _rewrite_location(value, base, mount) if name.lower() in _LOCATIONS else value)
        for name, value in fields
    ]


def rewrite_cookies(fields: RawHeaders, base: httpx.URL, mount: bytes) -> RawHeaders:
    """`fields` with the Domain and Path of each Set-Cookie (RFC 6265 4.1.2) made the app's own.

    A Domain goes, so that the cookie belongs to the host that the caller asked.
    """
    return [
        (name, _rewrite_cookie(value, base, mount) if name.lower() == b"set-cookie" else value)
        for name, value in fields
    ]


def _rewrite_location(value: bytes, base: httpx.URL, mount: bytes) -> bytes:
    rest = value
    if not value.startswith(b"/") or value.startswith(b"//"):
        try:
            if _origin(httpx.URL(value.decode("ascii")), base) != _origin(base, base):
                return value  # relative, or another's
        except (httpx.InvalidURL, ValueError):
            return value
        after_host = value.partition(b"//")[2]
        end = min((i for i in map(after_host.find, (b"/", b"?", b"#")) if i >= 0), default=-1)
        rest = after_host[end:] if end >= 0 else b""
        if not rest.startswith(b"/"):
            rest = b"/" + rest
    end = min((i for i in map(rest.find, (b"?", b"#")) if i >= 0), default=len(rest))
    mapped = _map_path(rest[:end], base, mount)
    return value if mapped is None else mapped + rest[end:]


def _origin(url: httpx.URL, base: httpx.URL) -> tuple[str, str, int | None]:
    scheme = url.scheme or base.scheme
    return scheme, url.host, url.port or _PORTS.get(scheme)


def _rewrite_cookie(value: bytes, base: httpx.URL, mount: bytes) -> bytes:
    first, *attributes = value.split(b";")
    kept = [first]
    for attribute in attributes:
        key, equals, path = attribute.partition(b"=")
        name, path = key.strip().lower(), path.strip()
        if name == b"domain":
            continue
        # A name that starts with __Host- asks for Path=/ (RFC 6265bis 4.1.3.2).
        if name == b"path" and path.startswith(b"/") and not first.strip().startswith(b"__Host-"):
            if mapped := _map_path(path, base, mount):
                attribute = key + equals + mapped
            elif strip_prefix(_path_of(base), path) is not None:  # all of the upstream's
                attribute = key + equals + (mount or b"/")
        kept.append(attribute)
    return b";".join(kept)


def _path_of(base: httpx.URL) -> bytes:
    return base.raw_path.partition(b"?")[0]


def _map_path(path: bytes, base: httpx.URL, mount: bytes) -> bytes | None:
    """A path of the upstream's under the mount; None if it is outside of what callers reach."""
    rest = strip_prefix(path, _path_of(base))
    if rest is None:
        return None
    mapped = mount + rest or b"/"
    # A path that starts with two slashes would name another host (RFC 3986 4.2).
    return b"/." + mapped if mapped[:2] in (b"//", b"/\\") else mapped
