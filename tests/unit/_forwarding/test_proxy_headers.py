"""What proxies say of a caller (RFC 7239), and what this one adds."""

from typing import Any

import pytest

from asgi_upstream._forwarding.headers import build_request_headers
from tests.support.headers import (
    INNOCENT,
    PROXY_FAMILIES,
    SAID_BY_PROXIES,
    SEEN,
    both_trusts,
    crossed,
    forwarded,
    scope_of,
    values,
)


@pytest.mark.parametrize("name", SAID_BY_PROXIES)
def test_what_a_caller_says_as_a_proxy_does_not_cross(name: bytes) -> None:
    fields = forwarded([(name, b"spoofed"), (name, b"again"), (b"host", b"app.example")])
    assert b"spoofed" not in dict(fields).values()
    assert b"again" not in dict(fields).values()
    assert [name for name, _ in fields] == [*map(bytes, sorted(SEEN))]


@pytest.mark.parametrize("name", PROXY_FAMILIES)
def test_proxy_headers_of_untrusted_callers_are_dropped(name: bytes) -> None:
    for spelling in (name, name.upper(), name.replace(b"-", b"_"), name.replace(b"-", b"_", 1)):
        assert crossed((spelling, b"forged"), (b"x", b"1")) == [(b"x", b"1")]


@pytest.mark.parametrize("name", sorted({*PROXY_FAMILIES, *SAID_BY_PROXIES} - SEEN))
def test_proxy_headers_of_a_trusted_proxy_cross(name: bytes) -> None:
    assert (name, b"v") in forwarded([(name, b"v")], trust=True)


@both_trusts
@pytest.mark.parametrize("name", INNOCENT)
def test_headers_that_only_resemble_proxy_headers_cross(name: bytes, trust: bool) -> None:
    assert crossed((name, b"v"), trust=trust) == [(name, b"v")]
    assert crossed((name, b"v"), (b"x-real-ip", b"1")) == [(name, b"v")]


@both_trusts
@pytest.mark.parametrize("name", [b"x.forwarded.for", b"x-real.ip", b"content.length", b"x~scheme"])
def test_headers_that_cgi_spells_like_a_blocked_one_are_dropped(name: bytes, trust: bool) -> None:
    # lighttpd and others turn each character that is no letter or digit into an underscore.
    assert crossed((name, b"forged"), (b"x.y", b"1"), trust=trust) == [(b"x.y", b"1")]


def forwarded_prefix(mount: bytes, *raw: tuple[bytes, bytes], **options: Any) -> list[bytes]:
    trust = options.pop("trust", False)
    scope = scope_of(list(raw), **options)
    headers = build_request_headers(scope, mount, trust_forwarded_headers=trust)
    return values(headers, b"x-forwarded-prefix")


@both_trusts
@pytest.mark.parametrize("mount", [b"/api", b"/caf%C3%A9/a%2Fb", b"/~a;b", b"/X/a"])
def test_forwarded_prefix_is_the_mount_as_it_was_sent(mount: bytes, trust: bool) -> None:
    assert forwarded_prefix(mount, trust=trust) == [mount]


@both_trusts
def test_forwarded_prefix_is_absent_without_a_mount(trust: bool) -> None:
    assert forwarded_prefix(b"", trust=trust) == []


def test_forwarded_prefix_of_untrusted_caller_is_replaced() -> None:
    assert forwarded_prefix(b"/api", (b"x-forwarded-prefix", b"/evil")) == [b"/api"]
    assert forwarded_prefix(b"", (b"x-forwarded-prefix", b"/evil")) == []


@pytest.mark.parametrize("outer", [b"/gw", b"/gw/"])
def test_forwarded_prefix_of_trusted_proxy_gets_the_mount(outer: bytes) -> None:
    raw = (b"x-forwarded-prefix", outer)
    assert forwarded_prefix(b"/api", raw, trust=True) == [b"/gw/api"]
    assert forwarded_prefix(b"", raw, trust=True) == [outer]
    assert forwarded_prefix(b"/api", (b"x-forwarded-prefix", b"/X/"), trust=True) == [b"/X/api"]


def test_forwarded_prefix_with_server_root_path_is_not_doubled() -> None:
    # The server was told the proxy's prefix too (--root-path), so the mount includes it.
    raw = (b"x-forwarded-prefix", b"/gw")
    scope = {"root_path": "/gw/api", "app_root_path": "/gw"}
    assert forwarded_prefix(b"/gw/api", raw, trust=True, **scope) == [b"/gw/api"]
    for root in ("/X", "/X/"):
        for scope in ({"root_path": root}, {"root_path": "/X/api", "app_root_path": root}):
            raw = (b"x-forwarded-prefix", b"/X")
            assert forwarded_prefix(b"/X", raw, trust=True, **scope) == [b"/X"]


def test_forwarded_prefix_encodes_what_a_header_cannot_hold() -> None:
    assert forwarded_prefix(b"/caf\xc3\xa9 \r\nx: y") == [b"/caf%C3%A9%20%0D%0Ax:%20y"]


@pytest.mark.parametrize("mount", [b"//evil.example", b"/\\evil.example", b"///evil.example"])
def test_forwarded_prefix_names_no_host(mount: bytes) -> None:
    assert forwarded_prefix(mount) == [b"/evil.example"]


def test_forwarded_headers_come_after_the_callers_headers() -> None:
    """So they cannot be stripped or doubled."""
    fields = forwarded([(b"x-forwarded-proto", b"http"), (b"x", b"1"), (b"host", b"h")])
    assert fields == [
        (b"x", b"1"),
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"x-forwarded-host", b"h"),
        (b"x-forwarded-proto", b"https"),
    ]


def test_trusted_forwarded_for_grows_and_becomes_one_line() -> None:
    raw = [
        (b"x-forwarded-for", b"203.0.113.1, 10.0.0.1"),
        (b"x-a", b"1"),
        (b"x-forwarded-for", b"10.0.0.2"),
    ]
    assert values(forwarded(raw, trust=True), b"x-forwarded-for") == [
        b"203.0.113.1, 10.0.0.1, 10.0.0.2, 192.0.2.7"
    ]


def test_a_trusted_host_and_proto_stay_as_first_asked_for() -> None:
    raw = [
        (b"host", b"inside.example"),
        (b"x-forwarded-host", b"app.example"),
        (b"x-forwarded-proto", b"http"),
    ]
    fields = forwarded(raw, trust=True)
    assert values(fields, b"x-forwarded-host") == [b"app.example"]
    assert values(fields, b"x-forwarded-proto") == [b"http"]


def test_trusted_proxy_without_host_and_proto_gets_those_seen() -> None:
    fields = forwarded([(b"host", b"app.example")], trust=True)
    assert values(fields, b"x-forwarded-host") == [b"app.example"]
    assert values(fields, b"x-forwarded-proto") == [b"https"]


@pytest.mark.parametrize("name", sorted(set(SAID_BY_PROXIES) - SEEN - {b"forwarded"}))
def test_what_else_a_trusted_proxy_says_crosses_as_it_is(name: bytes) -> None:
    assert values(forwarded([(name, b"said")], trust=True), name) == [b"said"]


@pytest.mark.parametrize(
    ("peer", "node"),
    [
        ("192.0.2.7", b"192.0.2.7"),
        ("2001:db8::1", b'"[2001:db8::1]"'),
        ("fe80::1%eth0", b'"[fe80::1%eth0]"'),
        ("::ffff:192.0.2.7", b'"[::ffff:192.0.2.7]"'),
    ],
)
def test_forwarded_grows_by_the_peer_and_ipv6_is_quoted(peer: str, node: bytes) -> None:
    # RFC 7239 6: in brackets, and with a colon in it quoted.
    raw = [(b"forwarded", b"for=203.0.113.1;proto=http")]
    fields = forwarded(raw, trust=True, client=(peer, 1))
    assert b", ".join(values(fields, b"forwarded")) == (b"for=203.0.113.1;proto=http, for=" + node)


def test_forwarded_is_not_begun_where_no_proxy_did() -> None:
    assert not values(forwarded([(b"host", b"h")], trust=True), b"forwarded")


@both_trusts
def test_an_ipv6_peer_is_named_without_brackets(trust: bool) -> None:
    fields = forwarded([], trust=trust, client=("2001:db8::1", 443))
    assert values(fields, b"x-forwarded-for") == [b"2001:db8::1"]


def test_peer_that_a_header_cannot_hold_has_question_marks() -> None:
    fields = forwarded([], client=("c\u20ac", 0))
    assert values(fields, b"x-forwarded-for") == [b"c?"]


@pytest.mark.parametrize("scope", [{"client": None}, {"client": ()}, {"client": ("", 0)}])
def test_a_unix_socket_has_no_peer_to_name(scope: dict[str, Any]) -> None:
    raw = [(b"x-forwarded-for", b"spoofed"), (b"host", b"h")]
    assert [name for name, _ in forwarded(raw, **scope)] == [
        b"x-forwarded-host",
        b"x-forwarded-proto",
    ]


def test_a_server_that_knows_no_peer_at_all_is_as_a_unix_socket() -> None:
    scope = scope_of([])
    del scope["client"]
    assert build_request_headers(scope, trust_forwarded_headers=False) == [
        (b"x-forwarded-proto", b"https")
    ]


def test_behind_a_trusted_proxy_on_a_unix_socket_its_list_stays() -> None:
    raw = [(b"x-forwarded-for", b"203.0.113.1"), (b"forwarded", b"for=203.0.113.1")]
    fields = forwarded(raw, trust=True, client=None)
    assert values(fields, b"x-forwarded-for") == [b"203.0.113.1"]
    assert values(fields, b"forwarded") == [b"for=203.0.113.1"]


@both_trusts
def test_without_a_host_none_is_said(trust: bool) -> None:
    assert not values(forwarded([], trust=trust), b"x-forwarded-host")


@both_trusts
def test_an_empty_host_is_said_to_be_empty(trust: bool) -> None:
    assert values(forwarded([(b"host", b"")], trust=trust), b"x-forwarded-host") == [b""]
