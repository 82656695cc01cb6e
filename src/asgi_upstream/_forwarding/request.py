"""Builds a request to the upstream from a caller's request."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Scope

from .._exchange.validation import validate_seconds
from .._headers import RawHeaders
from .._httpx.cookies import is_empty
from .._httpx.flavors import describe_type, get_library, small_cache, subclass_for
from .._httpx.interfaces import URLT, HTTPXModule, RequestT, SupportsBuildRequest
from .._httpx.requests import ForwardedRequest
from .._methods import USUAL
from .body import choose_body
from .headers import apply_changes, build_request_headers, merge_cookies, validate_headers
from .target import build_target

HeaderOverrides = Mapping[str, str | None] | Callable[[RawHeaders], Iterable[tuple[bytes, bytes]]]

BODY_TIMEOUT = 60.0
"""Longest wait for the next chunk of the caller's body, in seconds."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Default maximum size of a WebSocket message from the upstream."""

_METHOD = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")


def forward_request(
    client: SupportsBuildRequest[RequestT, URLT],
    request: HTTPConnection,
    *,
    prefix: str | None = None,
    url: URLT | str | None = None,
    headers: HeaderOverrides | None = None,
    trust_forwarded_headers: bool = False,
    preserve_host: bool = False,
    body_timeout: float | None = BODY_TIMEOUT,
) -> RequestT:
    """Return the caller's request as a request to the upstream under the client's `base_url`.

        return StreamedResponse(client, forward_request(client, request, prefix="/api"))

    Method, path after the prefix, query, end-to-end headers (RFC 9110 7.6.1) and body are forwarded
    unchanged. The body is sent while it arrives. If the endpoint has already read it with
    `await request.body()`, it is sent with a Content-Length.

    The client's own `headers=`, `auth=`, `params=` and `cookies=` replace the caller's values of
    the same name. The headers that httpx adds to every client are not sent. Redirects are relayed,
    not followed.

    Arguments:
        client: The shared client.
        request: The caller's request, from the endpoint.
        prefix: The part of the path that belongs to the app, encoded or not. Default: the mount's.
        url: Another target. A str is a path or URL under `base_url`. An absolute `httpx.URL` may
            leave it. A URL without a query gets the caller's query.
        headers: Headers to set, or to remove if the value is None. Or a function that gets the raw
            header list and returns the list to send.
        trust_forwarded_headers: Whether to keep the caller's X-Forwarded-* and Forwarded headers,
            and append to them. Use it only behind a proxy of your own that sets them.
        preserve_host: Whether to send the caller's Host instead of the upstream's.
        body_timeout: Longest wait for the next chunk of the caller's body, in seconds. Then the
            caller gets 408. None waits without limit.

    Returns:
        The request to send with `StreamedResponse` or `BufferedResponse`.

    Raises:
        HTTPException: 400 for a path with a dot segment in any disguise, an invalid header or an
            invalid method.
        ValueError: If the path does not start with the prefix, `url` leaves the base, or
            `body_timeout` is not positive.
        TypeError: If `client` is not a client, or `request` is not the caller's request.
        RuntimeError: If the endpoint has consumed the body. For causes and fixes see
            [docs/errors.md][runtimeerrors].
    """
    if not (hasattr(client, "base_url") and hasattr(request, "scope")):
        raise TypeError(
            f"forward_request needs an httpx.AsyncClient and the caller's Request, not "
            f"{describe_type(client)} and {describe_type(request)}: write "
            f"forward_request(client, request)"
        )
    validate_seconds("body_timeout", body_timeout)
    httpx_client: Any = client
    target_url: Any = url
    scope, library = request.scope, get_library(type(client))
    method: str = scope["method"]
    if method not in USUAL and not _METHOD.fullmatch(method):
        raise HTTPException(400, "Invalid method")
    target, origin, host, mount = build_target(library, httpx_client, scope, prefix, target_url)
    raw = build_request_headers(scope, mount, trust_forwarded_headers=trust_forwarded_headers)
    if preserve_host:
        host = _get_host(scope) or host
    raw = _apply_client_defaults(library, httpx_client, raw, origin, host)
    if headers is not None:
        raw = apply_overrides(raw, headers)
        validate_headers(raw)
    raw, stream, pending = choose_body(library, request, raw, body_timeout)
    cls, timeout = subclass_for(ForwardedRequest, library.Request), httpx_client.timeout.as_dict()
    outgoing = cls(library, method, origin, target, raw, stream, timeout)
    outgoing.pending_body = pending
    return cast(RequestT, outgoing)


def apply_overrides(raw: RawHeaders, overrides: HeaderOverrides) -> RawHeaders:
    """Return `raw` after the endpoint's `headers=`, a mapping or a function."""
    if callable(overrides):
        return [(name.lower(), value) for name, value in overrides(raw)]
    return apply_changes(raw, overrides)


def _get_host(scope: Scope) -> bytes | None:
    """Return the caller's Host, or None. HTTP/1.0 callers may send none."""
    return next((value for name, value in scope["headers"] if name.lower() == b"host"), None)


def _apply_client_defaults(
    library: HTTPXModule, client: httpx.AsyncClient, raw: RawHeaders, url: httpx.URL, host: bytes
) -> RawHeaders:
    """Add the client's own headers and cookies. They replace the caller's, in any spelling."""
    client_headers, defaults = client.headers.raw, _httpx_default_headers(library)
    names: set[bytes] = set()
    if client_headers != defaults:
        added = [
            (name.lower(), value) for name, value in client_headers if (name, value) not in defaults
        ]
        names = {name.replace(b"_", b"-") for name, _ in added}
        raw = [header for header in raw if header[0].replace(b"_", b"-") not in names] + added
    if b"host" not in names:
        raw.insert(0, (b"host", host))
    if not is_empty(client.cookies.jar):
        probe = library.Request("GET", url)
        client.cookies.set_cookie_header(probe)
        if cookie := probe.headers.get("cookie"):
            raw = merge_cookies(raw, cookie.encode("latin-1"))
    return raw


@small_cache
def _httpx_default_headers(library: HTTPXModule) -> RawHeaders:
    """Return the headers that httpx adds to every client."""
    nowhere = library.MockTransport(lambda request: library.Response(200))
    return library.Client(transport=nowhere).headers.raw
