"""A caller's whole request, as a request to an upstream."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import httpx
from starlette.requests import HTTPConnection

from .._headers import RawHeaders, parse_content_length
from .._httpx.flavors import (
    URLT,
    HTTPXModule,
    RequestT,
    SupportsBuildRequest,
    describe_type,
    get_library,
    small_cache,
    subclass_for,
)
from .._httpx.requests import ForwardedRequest, RequestBodyStream
from .headers import apply_changes, build_request_headers, merge_cookies, validate_headers
from .target import build_target

HeaderOverrides = Mapping[str, str | None] | Callable[[RawHeaders], Iterable[tuple[bytes, bytes]]]

_BODYLESS = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))


def forward_request(
    client: SupportsBuildRequest[RequestT, URLT],
    request: HTTPConnection,
    *,
    prefix: str | None = None,
    url: URLT | str | None = None,
    headers: HeaderOverrides | None = None,
    trust_forwarded_headers: bool = False,
) -> RequestT:
    """The caller's request as a request to the upstream under the client's `base_url`.

        return StreamedResponse(client, forward_request(client, request, prefix="/api"))

    Method, path after the prefix, query, end-to-end headers (RFC 9110 7.6.1) and body are passed on
    byte for byte; the body while it arrives. What the author put on the client (`headers=`,
    `auth=`, `params=`, `cookies=`) wins over the caller's of that name; what httpx adds by itself
    is not sent. Redirects are relayed, not followed.

    Arguments:
        request: the caller's, from the endpoint.
        prefix: the part of the path that is the app's own, encoded or not. Default: the mount's.
        url: another target: under `base_url` as a str, or anywhere, on purpose, as an absolute
            `httpx.URL`. Without a query of its own it gets the caller's.
        headers: sets fields, or with None removes them; or a function from the raw header list
            that would be sent to the one to send.
        trust_forwarded_headers: believe the caller's X-Forwarded-* and Forwarded, and append to
            them. Only behind a proxy of your own that sets them.

    Raises:
        HTTPException: 400 for a path with a dot segment in any disguise, or a field with a line
            break or NUL in it.
        ValueError: the path does not start with the prefix, or `url` leaves the base.
        TypeError: this is no client, or no request of a caller's. Causes and fixes of both:
            [docs/errors.md][when-the-app-is-written-or-started].
    """
    if not (hasattr(client, "base_url") and hasattr(request, "scope")):
        raise TypeError(
            f"forward_request needs an httpx.AsyncClient and the caller's Request, not "
            f"{describe_type(client)} and {describe_type(request)}: write "
            f"forward_request(client, request)"
        )
    its: Any = client
    other: Any = url
    scope, library = request.scope, get_library(type(client))
    target, base, mount = build_target(library, its, scope, prefix, other)
    fields = build_request_headers(scope, mount, trust_forwarded_headers=trust_forwarded_headers)
    fields = _apply_client_defaults(library, its, fields, base)
    if headers is not None:
        if callable(headers):
            fields = [(name.lower(), value) for name, value in headers(fields)]
        else:
            fields = apply_changes(fields, headers)
        validate_headers(fields)
    stream: httpx.AsyncByteStream
    names = dict(fields)
    if b"content-length" in names or b"transfer-encoding" in names:
        stream = _body_class(library)(library, request, parse_content_length(fields))
    elif scope.get("http_version") in ("2", "3") and scope["method"] not in _BODYLESS:
        fields.append((b"transfer-encoding", b"chunked"))
        stream = _body_class(library)(library, request, None)
    else:
        stream = _empty_body(library)
    kind, timeout = subclass_for(ForwardedRequest, library.Request), its.timeout.as_dict()
    outgoing = kind(library, scope["method"], base, target, fields, stream, timeout)
    return cast(RequestT, outgoing)


@small_cache
def _empty_body(library: HTTPXModule) -> httpx.ByteStream:
    return library.ByteStream(b"")


def _body_class(library: HTTPXModule) -> type[RequestBodyStream]:
    return subclass_for(RequestBodyStream, library.AsyncByteStream)


def _apply_client_defaults(
    library: HTTPXModule, client: httpx.AsyncClient, fields: RawHeaders, url: httpx.URL
) -> RawHeaders:
    """What the author put on the client on purpose wins, also over an underscore twin."""
    own, defaults = client.headers.raw, _httpx_default_headers(library)
    names: set[bytes] = set()
    if own != defaults:
        own = [(name.lower(), value) for name, value in own if (name, value) not in defaults]
        names = {name.replace(b"_", b"-") for name, _ in own}
        fields = [field for field in fields if field[0].replace(b"_", b"-") not in names]
        fields += own
    if b"host" not in names:
        fields.insert(0, (b"host", url.netloc))
    if len(client.cookies.jar):
        probe = library.Request("GET", url)
        client.cookies.set_cookie_header(probe)
        if cookie := probe.headers.get("cookie"):
            fields = merge_cookies(fields, cookie.encode("latin-1"))
    return fields


@small_cache
def _httpx_default_headers(library: HTTPXModule) -> RawHeaders:
    """The fields that httpx puts on every client by itself."""
    nowhere = library.MockTransport(lambda request: library.Response(200))
    return library.Client(transport=nowhere).headers.raw
