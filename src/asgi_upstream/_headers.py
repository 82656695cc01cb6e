"""Which header fields cross, as pure functions over raw header lists.

A raw header list is ASGI's: pairs of a name in lower case and a value, as bytes, in order, repeated
fields one by one.
"""

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from starlette.exceptions import HTTPException

RawHeaders = list[tuple[bytes, bytes]]

# For one connection only, with those that Connection names (RFC 9110 7.6.1).
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
# Single-valued, and every ASGI server adds its own.
_NOT_RELAYED = HOP_BY_HOP | {b"date", b"server"}
# True only of the very bytes that the upstream sent (RFC 9110 8, RFC 9530).
_DEPENDS_ON_BODY = frozenset(
    b"accept-ranges content-digest content-encoding content-length content-md5 digest "
    b"repr-digest".split()
)
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
NOSNIFF = (b"x-content-type-options", b"nosniff")
_CONTROL_CHARACTERS = re.compile(rb"[\0-\x08\n-\x1f\x7f]")
_LINE_BREAKS = re.compile(rb"[\r\n\0]")


def end_to_end(
    raw: Iterable[tuple[bytes, bytes]], dropped: AbstractSet[bytes] = HOP_BY_HOP
) -> RawHeaders:
    """The fields of `raw` that may cross a hop, their names in lower case (RFC 9110 7.6.1).

    Without those in `dropped`, which holds the hop-by-hop fields and may hold more.
    """
    fields: RawHeaders = []
    named: set[bytes] = set()
    for name, value in raw:
        name = name.lower()
        if name not in dropped:
            fields.append((name, value))
        elif name == b"connection":
            if value != b"keep-alive" and value != b"close":  # as it mostly is
                # A length that it names, as it must not, frames the body nevertheless.
                tokens = {token.strip().lower() for token in value.split(b",")}
                named |= tokens - HOP_BY_HOP - {b"content-length"}
        elif name == b"transfer-encoding":  # it overrides the length (RFC 9112 6.3)
            named.add(b"content-length")
    return [field for field in fields if field[0] not in named] if named else fields


def has_control_characters(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a value has a byte that none may, and that some servers fail on (RFC 9110 5.5)."""
    return _CONTROL_CHARACTERS.search(b"".join([value for _, value in fields])) is not None


def end_to_end_response_headers(raw: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The fields of an upstream's response that its caller gets."""
    return end_to_end(raw, _NOT_RELAYED)


def headers_for_modified_body(fields: RawHeaders) -> RawHeaders:
    """`fields` for a body that was decoded or transformed on the way.

    What held for the exact bytes goes, and a strong ETag becomes a weak one (RFC 9110 8.8.1).
    """
    return [
        (name, b"W/" + value if name == b"etag" and not value.startswith(b"W/") else value)
        for name, value in fields
        if name not in _DEPENDS_ON_BODY
    ]


def override(fields: RawHeaders, own: RawHeaders) -> RawHeaders:
    """`fields` with `own` on top: each name in `own` replaces, but Set-Cookie is added."""
    replaced = {name for name, _ in own if name != b"set-cookie"}
    return [field for field in fields if field[0] not in replaced] + own


def remove(fields: RawHeaders, name: bytes) -> RawHeaders:
    """`fields` less those of that name."""
    return [field for field in fields if field[0] != name]


def needs_nosniff(values: Mapping[bytes, bytes]) -> bool:
    """Whether a response of these fields is plain text without `NOSNIFF`.

    A browser holds back the first bytes of `text/plain` to guess what they truly are, and so a
    stream (WHATWG MIME Sniffing 7.2).
    """
    media_type = values.get(b"content-type", b"")
    return (
        media_type[:10].lower() == b"text/plain"
        and media_type.split(b";")[0].strip().lower() == b"text/plain"
        and NOSNIFF[0] not in values
    )


def content_length(fields: RawHeaders) -> int | None:
    """Content-Length in bytes; None where it is absent or not a number (RFC 9110 8.6)."""
    value = dict(fields).get(b"content-length", b"")
    return int(value) if value.isdigit() else None


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
            raise HTTPException(400, "A header field is malformed")
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
        raise HTTPException(400, "A header field is malformed")


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
