"""Builds the headers of a forwarded request from the caller's."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from .._headers import HOP_BY_HOP, RawHeaders, end_to_end, remove

# What a proxy says of its caller: believed only of a proxy that is trusted (RFC 7239).
_FORWARDED = frozenset(
    b"forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port "
    b"x-forwarded-prefix x-forwarded-server x-forwarded-ssl x-forwarded-scheme x-real-ip "
    b"x-original-url x-rewrite-url".split()
)
# Met by this server, or said anew: Host names the upstream (RFC 9110 7.2, 10.1.1). Proxy is no
# field, but becomes HTTP_PROXY in a CGI program (https://httpoxy.org).
_SET_BY_PROXY = frozenset((b"host", b"expect", b"http2-settings", b"proxy"))
_UNTRUSTED = _SET_BY_PROXY | _FORWARDED
# What a caller does not set by way of an underscore either.
_UNDERSCORE_BLOCKED = HOP_BY_HOP | _FORWARDED | _SET_BY_PROXY | {b"content-length"}
# Schemes by which a server may take the whole connection for the caller's (RFC 4559 6).
_CONNECTION_AUTH_SCHEMES = (b"negotiate", b"ntlm")
_NAMES = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]+:)*")
_LINE_BREAKS = re.compile(rb"[\r\n\0]")


def build_request_headers(scope: Mapping[str, Any], *, trust_forwarded_headers: bool) -> RawHeaders:
    """The fields of a caller's request that the upstream gets, with what this server saw of it.

    A field whose name has an underscore counts as the one with a hyphen, for which many upstreams
    take it. Framing is kept: Transfer-Encoding, then always chunked, or Content-Length.

    Raises:
        HTTPException: 400 for a line break or NUL in a field, which would end or split it.
    """
    raw: RawHeaders = scope["headers"]
    validate(raw)
    dropped = _SET_BY_PROXY if trust_forwarded_headers else _UNTRUSTED
    fields: RawHeaders = []
    for name, value in end_to_end(raw):
        if b"_" in name:
            passes = name.replace(b"_", b"-") not in _UNDERSCORE_BLOCKED
        else:
            passes = name not in dropped
        if passes:
            fields.append((name, value.strip(b" \t")))  # which some servers leave (RFC 9110 5.5)
    by_name = dict(reversed(raw))  # of each name: some servers put trailers behind (RFC 9110 6.5.1)
    if scope["http_version"] != "1.1":  # RFC 9113 8.2.3
        cookies = [value for name, value in fields if name == b"cookie"]
        if len(cookies) > 1:
            fields = [*remove(fields, b"cookie"), (b"cookie", b"; ".join(filter(None, cookies)))]
    if b"transfer-encoding" in by_name:
        fields = [*remove(fields, b"content-length"), (b"transfer-encoding", b"chunked")]
    elif b"content-length" in by_name:
        lengths = {value for name, value in fields if name == b"content-length"}
        length = lengths.pop() if len(lengths) == 1 else b""
        if not (length.isdigit() and len(length) < 20):  # RFC 9112 6.3
            raise HTTPException(400, "Malformed header")
        fields = [*remove(fields, b"content-length"), (b"content-length", length)]
    if by_name.get(b"authorization", b"").lower().startswith(_CONNECTION_AUTH_SCHEMES):
        fields.append((b"connection", b"close"))  # or the next caller on it would be this one
    host = by_name.get(b"host")
    seen = _x_forwarded(scope, host)
    return _append_x_forwarded(fields, seen) if trust_forwarded_headers else fields + seen


def validate(fields: RawHeaders) -> None:
    """Refuse an invalid name, and a value that would end its field or split it.

    Raises:
        HTTPException: 400 (RFC 9110 5.1, 5.5).
    """
    names = b"".join([name + b":" for name, _ in fields])
    if not _NAMES.fullmatch(names) or _LINE_BREAKS.search(b"".join([value for _, value in fields])):
        raise HTTPException(400, "Malformed header")


def _x_forwarded(scope: Mapping[str, Any], host: bytes | None) -> RawHeaders:
    """X-Forwarded-*: the peer, the Host and the scheme, as this server saw them."""
    seen: RawHeaders = []
    if scope.get("client"):  # none on a unix socket
        seen.append((b"x-forwarded-for", scope["client"][0].encode("latin-1")))
    if host is not None:
        seen.append((b"x-forwarded-host", host))
    seen.append((b"x-forwarded-proto", scope["scheme"].encode("latin-1")))
    return seen


def _append_x_forwarded(fields: RawHeaders, seen: RawHeaders) -> RawHeaders:
    """`fields` of a trusted proxy: the list of peers grows, what was asked for first stays."""
    sent = {name for name, _ in fields}
    for name, value in seen:
        if name == b"x-forwarded-for":
            peers = [old for key, old in fields if key == name]
            fields = [*remove(fields, name), (name, b", ".join([*peers, value]))]
            if b"forwarded" in sent:
                node = b'"[%s]"' % value if b":" in value else value
                fields = [*fields, (b"forwarded", b"for=" + node)]
        elif name not in sent:
            fields = [*fields, (name, value)]
    return fields


def apply_changes(fields: RawHeaders, changes: Mapping[str, str | None]) -> RawHeaders:
    """`fields` with each of `changes` set, or removed where it is None; with underscore twins."""
    changed = {name.lower().encode("latin-1"): value for name, value in changes.items()}
    kept = [field for field in fields if changed.keys().isdisjoint(_spellings(field[0]))]
    return kept + [(k, v.encode("latin-1")) for k, v in changed.items() if v is not None]


def _spellings(name: bytes) -> tuple[bytes, bytes]:
    return name, name.replace(b"_", b"-")


def merge_cookies(fields: RawHeaders, own: bytes) -> RawHeaders:
    """`fields` with the author's cookies in place of the caller's of those names (RFC 6265 4.2)."""
    names = {pair.partition(b"=")[0].strip() for pair in own.split(b";")}
    kept = [
        pair.strip()
        for name, value in fields
        if name == b"cookie"
        for pair in value.split(b";")
        if pair.strip() and pair.partition(b"=")[0].strip() not in names
    ]
    return [*remove(fields, b"cookie"), (b"cookie", b"; ".join([*kept, own]))]
