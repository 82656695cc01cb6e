"""Builds the headers of a forwarded request from the caller's headers."""

import re
from collections.abc import Iterable, Mapping

from starlette.exceptions import HTTPException
from starlette.types import Scope

from .._caching import BoundedCache
from .._headers import (
    HOP_BY_HOP,
    RawHeaders,
    are_names_valid,
    parse_connection,
    parse_content_length,
    remove,
)

# Proxies describe their caller in these headers (RFC 7239). Upstreams believe them, so only a
# trusted proxy may send them. docs/header-rules.md has the list. The pattern searches in a name
# between colons.
_PROXY_HEADER = re.compile(
    rb"""
    : (?: forwarded(?:-(?:for|host|port|proto|scheme))?
        | x-(?:
            (?:[^-:]+-)?forwarded(?:-[^:]+)?  # x-original-forwarded-for too
            | (?:original|originating|rewrite|remote|ssl|authentik|pomerium|vouch)-[^:]+
            | (?:url-)?scheme | proto | front-end-https | arr-ssl | http-host-override
            | consumer-[^:]+ | anonymous-consumer | credential-identifier  # Kong
            | (?:host|script|webauth|auth-request|amzn-oidc|amzn-mtls)(?:-[^:]+)?
            | (?:authenticated|auth)-(?:user|email|groups?|roles)
            | goog-authenticated-[^:]+ | ms-client-principal(?:-[^:]+)?
            | envoy-(?:external-address|internal|original-[^:]+)
            | (?:real|client)-(?:port|addr|address|host)
            | (?:arr-|tls-)?client-?(?:cert(?:ificate)?|verify|dn)(?:-[^:]+)? )
        | ssl-client-[^:]+ | client-cert(?:-chain)? | front-end-https
        | remote-(?:addr|host|port|user|name|email|groups?)
        | cf-access-authenticated-[^:]+ | tailscale-user-[^:]+ ) (?= : )
    | [:-] (?:client|real|connecting|remote|source|socket|(?:proxy)?user) -?ip(?:v[46])? (?= : )
    """,
    re.VERBOSE,
)
# The server handles Expect, and Host names the upstream (RFC 9110 10.1.1, 7.2). Proxy is not an
# HTTP header, but CGI programs get it as HTTP_PROXY (https://httpoxy.org).
_NOT_FORWARDED = HOP_BY_HOP | {b"host", b"expect", b"http2-settings", b"proxy"}
# CGI, WSGI and some servers read any other character in a name as a hyphen or underscore, so other
# spellings of a header are treated like the header itself.
_CANONICAL = bytes(byte if chr(byte).isalnum() else ord("-") for byte in range(256))
# With these schemes, a server may authenticate the whole connection (RFC 4559 6).
_CONNECTION_AUTH_SCHEMES = (b"negotiate", b"ntlm")
_ILLEGAL_IN_PATH = re.compile(rb"[^!-~]")

# A header is sent if the rule of its name is low enough.
_ALLOWED, _FROM_PROXY, _BLOCKED, _INVALID = 1, 2, 3, 4
# `build_request_headers` reads the values of these.
_NOTED = frozenset(b"authorization connection content-length host transfer-encoding".split())
_MAX_KEPT_NAME_SIZE = 64
_rules: BoundedCache[bytes, tuple[bytes, int, bool]] = BoundedCache(512)
"""For each name: the name in lower case, its rule, and whether it is noted."""


def build_request_headers(
    scope: Scope, mount: bytes = b"", *, trust_forwarded_headers: bool
) -> RawHeaders:
    """Return the headers for the upstream: the end-to-end headers, and X-Forwarded-*.

    The caller's framing is kept: Content-Length or chunked Transfer-Encoding.

    Arguments:
        mount: The raw path under which callers reach the upstream.
        trust_forwarded_headers: Whether a trusted proxy wrote the caller's forwarded headers.

    Raises:
        HTTPException: 400 for an invalid name, and for a line break or NUL in a value.
    """
    raw = read_headers(scope)
    _refuse_line_breaks(raw)
    headers, noted = _select_headers(raw, _FROM_PROXY if trust_forwarded_headers else _ALLOWED)
    if scope.get("http_version") not in ("1.1", None):
        headers = _join_cookies(headers)
    # The first of each name counts. Some servers append trailers (RFC 9110 6.5.1).
    by_name = dict(reversed(noted))
    headers = _normalize_framing(headers, by_name)
    if b"authorization" in by_name:
        headers = _close_authenticated_connection(headers)
    described = _describe_caller(scope, by_name.get(b"host"), mount)
    if trust_forwarded_headers:
        return _extend_forwarded(headers, described, _server_root(scope))
    return headers + described


def read_headers(scope: Scope) -> RawHeaders:
    """Return the scope's headers.

    ASGI allows any iterable. One that can be read only once is replaced in the scope by a list, as
    Starlette does.
    """
    raw: Iterable[tuple[bytes, bytes]] = scope["headers"]
    if not isinstance(raw, list):
        raw = scope["headers"] = list(raw)
    return raw


def validate_headers(headers: RawHeaders) -> None:
    """Refuse an invalid name, and a value that would end or split its header.

    Raises:
        HTTPException: 400 (RFC 9110 5.1, 5.5).
    """
    _refuse_line_breaks(headers)
    if not are_names_valid(headers):
        raise _malformed_header_error()


def _refuse_line_breaks(headers: RawHeaders) -> None:
    values = b"".join([value for _, value in headers])
    if b"\r" in values or b"\n" in values or b"\0" in values:
        raise _malformed_header_error()


def _malformed_header_error() -> HTTPException:
    return HTTPException(400, "Malformed header")


def _select_headers(raw: RawHeaders, highest_rule: int) -> tuple[RawHeaders, RawHeaders]:
    """Return the end-to-end headers that a caller may send to the upstream, and the noted headers.

    Some servers keep the blanks around a value, which are not part of it (RFC 9110 5.5).
    """
    headers: RawHeaders = []
    noted: RawHeaders = []
    named: set[bytes] = set()
    for key, value in raw:
        name, rule, is_noted = _rules.get(key) or _find_rule(key)
        if rule <= highest_rule:
            headers.append((name, value.strip(b" \t")))
        elif rule == _INVALID:
            raise _malformed_header_error()
        if is_noted:
            noted.append((name, value))
            if name == b"connection":
                named |= parse_connection(value)
    if named:
        headers = [header for header in headers if header[0] not in named]
    return headers, noted


def _find_rule(name: bytes) -> tuple[bytes, int, bool]:
    """Return the rule for a name that has none yet, and keep it. Callers repeat their names."""
    lower = name.lower()
    rule = lower, _choose_rule(lower), lower in _NOTED
    if len(name) <= _MAX_KEPT_NAME_SIZE:
        _rules.keep(name, rule)
    return rule


def _choose_rule(name: bytes) -> int:
    if not are_names_valid([(name, b"")]):
        return _INVALID
    canonical = name.translate(_CANONICAL)
    if _PROXY_HEADER.search(b":%b:" % canonical):
        return _FROM_PROXY if canonical == name else _BLOCKED
    if canonical in _NOT_FORWARDED or (canonical == b"content-length" and canonical != name):
        return _BLOCKED
    return _ALLOWED


def _join_cookies(headers: RawHeaders) -> RawHeaders:
    """Join the cookie headers of HTTP/2 and HTTP/3 callers into one (RFC 9113 8.2.3)."""
    cookies = [value for name, value in headers if name == b"cookie"]
    if len(cookies) < 2:
        return headers
    return [*remove(headers, b"cookie"), (b"cookie", b"; ".join(filter(None, cookies)))]


def _normalize_framing(headers: RawHeaders, by_name: Mapping[bytes, bytes]) -> RawHeaders:
    """Keep exactly one way to find the end of the body (RFC 9112 6.3).

    Raises:
        HTTPException: 400 for an invalid Content-Length.
    """
    if b"transfer-encoding" in by_name:
        return [*remove(headers, b"content-length"), (b"transfer-encoding", b"chunked")]
    if b"content-length" not in by_name:
        return headers
    if parse_content_length(headers) is None:
        raise _malformed_header_error()
    length = dict(headers)[b"content-length"]
    return [*remove(headers, b"content-length"), (b"content-length", length)]


def _close_authenticated_connection(headers: RawHeaders) -> RawHeaders:
    """Close the connection after a request that may authenticate it.

    Otherwise the next caller on this connection would be authenticated as this one.
    """
    schemes = [value.lstrip().lower() for name, value in headers if name == b"authorization"]
    if any(scheme.startswith(_CONNECTION_AUTH_SCHEMES) for scheme in schemes):
        return [*headers, (b"connection", b"close")]
    return headers


def _describe_caller(scope: Scope, host: bytes | None, mount: bytes) -> RawHeaders:
    """Return X-Forwarded-*: the peer, the Host, the scheme and the mount that this server saw."""
    described: RawHeaders = []
    client = scope.get("client")  # None on a Unix socket
    if client and client[0]:
        described.append((b"x-forwarded-for", str(client[0]).encode("latin-1", "replace")))
    if host is not None:
        described.append((b"x-forwarded-host", host))
    described.append((b"x-forwarded-proto", (scope.get("scheme") or "http").encode("latin-1")))
    if mount:
        prefix = _ILLEGAL_IN_PATH.sub(lambda match: b"%%%02X" % match[0][0], mount)
        # Two slashes at the start would name another host in the upstream's links.
        described.append((b"x-forwarded-prefix", b"/" + prefix.lstrip(b"/\\")))
    return described


def _extend_forwarded(headers: RawHeaders, described: RawHeaders, root: bytes) -> RawHeaders:
    """Extend what a trusted proxy wrote. The lists of peers and prefixes grow, the rest stays.

    Arguments:
        described: What this server saw.
        root: The server's own root path. A mount that includes it is complete.
    """
    sent = dict(headers)
    for name, value in described:
        if name == b"x-forwarded-for":
            peers = [peer for key, peer in headers if key == name]
            headers = [*remove(headers, name), (name, b", ".join([*peers, value]))]
            if b"forwarded" in sent:
                node = b'"[%s]"' % value if b":" in value else value
                headers = [*headers, (b"forwarded", b"for=" + node)]
        elif name not in sent:
            headers = [*headers, (name, value)]
        elif name == b"x-forwarded-prefix":
            outer = sent[name].rstrip(b"/")
            prefix = value if outer == root else outer + value
            headers = [*remove(headers, name), (name, prefix)]
    return headers


def _server_root(scope: Scope) -> bytes:
    """Return the root path that the server was started with, without the mounts."""
    root: str = scope.get("app_root_path", scope.get("root_path")) or ""
    return root.rstrip("/").encode()


def apply_changes(headers: RawHeaders, changes: Mapping[str, str | None]) -> RawHeaders:
    """Return `headers` with each change set, or removed if it is None.

    A change applies to the spelling with underscores too.
    """
    changed = {name.lower().encode("latin-1"): value for name, value in changes.items()}
    kept = [header for header in headers if changed.keys().isdisjoint(_spellings(header[0]))]
    return kept + [(k, v.encode("latin-1")) for k, v in changed.items() if v is not None]


def _spellings(name: bytes) -> tuple[bytes, bytes]:
    return name, name.replace(b"_", b"-")


def merge_cookies(headers: RawHeaders, cookies: bytes) -> RawHeaders:
    """Return `headers` with the client's cookies added (RFC 6265 4.2).

    They replace the caller's cookies of the same names.
    """
    names = {pair.partition(b"=")[0].strip() for pair in cookies.split(b";")}
    kept = [
        pair.strip()
        for name, value in headers
        if name == b"cookie"
        for pair in value.split(b";")
        if pair.strip() and pair.partition(b"=")[0].strip() not in names
    ]
    return [*remove(headers, b"cookie"), (b"cookie", b"; ".join([*kept, cookies]))]
