"""Which fields of a caller's request an upstream gets: each rule by its name, and what holds."""

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from asgi_upstream._forwarding.headers import (
    _rules,
    apply_changes,
    build_request_headers,
    merge_cookies,
)
from tests.support.examples import count_examples

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP = (
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade"
).split()
SAID_BY_PROXIES = (
    b"forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port "
    b"x-forwarded-prefix x-forwarded-server x-forwarded-ssl x-forwarded-scheme x-real-ip "
    b"x-original-url x-rewrite-url"
).split()
PROXY_FAMILIES = (
    b"x-forwarded x-forwarded-user x-forwarded-email x-forwarded-groups x-forwarded-access-token "
    b"x-forwarded-client-cert x-forwarded-uri x-forwarded-path x-forwarded-method x-forwarded-by "
    b"x-forwarded-protocol x-forwarded-for-me x-original-forwarded-for x-vercel-forwarded-for "
    b"x-scheme x-url-scheme x-original-host x-original-uri x-original-method x-original-proto "
    b"x-rewrite-path x-script-name x-host x-remote-user x-remote-addr remote-user remote-groups "
    b"remote-addr x-client-ip client-ip true-client-ip x-cluster-client-ip cf-connecting-ip "
    b"cf-connecting-ipv6 fly-client-ip fastly-client-ip x-azure-clientip x-originating-ip "
    b"x-auth-request-user x-auth-request-email x-authenticated-user x-webauth-user "
    b"ssl-client-cert ssl-client-verify ssl-client-s-dn x-ssl-client-cert x-ssl-client-verify "
    b"x-ssl-cert x-client-cert x-client-dn client-cert client-cert-chain x-arr-clientcert "
    b"x-amzn-oidc-identity x-amzn-oidc-data x-amzn-mtls-clientcert-subject "
    b"x-goog-authenticated-user-email x-ms-client-principal x-ms-client-principal-name "
    b"x-envoy-external-address x-authentik-username tailscale-user-login front-end-https "
    b"cf-access-authenticated-user-email x-pomerium-jwt-assertion x-vouch-user x-auth-user "
    b"x-auth-email x-auth-group x-auth-groups x-auth-roles x-envoy-internal x-envoy-original-path "
    b"x-real-port x-real-addr x-client-address x-client-host x-client-verify x-proto "
    b"x-front-end-https remote-group remote-host remote-port remote-name remote-email remote-ip "
    b"x-source-ip socket-ip x-user-ip client-ipv4"
).split()
INNOCENT = (
    b"x-request-id x-correlation-id x-client-version x-client-id x-client-data x-client x-api-key "
    b"x-requested-with x-http-method-override x-csrf-token x-amz-date x-amzn-trace-id cf-ray "
    b"traceparent tracestate baggage x-b3-traceid x-user-id x-tenant x-auth-token authorization "
    b"referer origin via max-forwards x-schema x-realm x-original forward forwarded-to x-forward "
    b"remote x-ip x-zip client-id x-ms-client-request-id x-amz-content-sha256 x-stainless-os "
    b"x-envoy-upstream-rq-timeout-ms cf-access-client-id cf-access-client-secret x-trip user-ip-x "
    b"x-ship x-goog-api-key x-goog-user-project sec-fetch-user dnt x-hostname-policy accept "
    b"x-not-yet-forwarded"
).split()
SEEN = {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}


def scope_of(raw: Fields, **other: Any) -> dict[str, Any]:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "headers": raw,
        "client": ("192.0.2.7", 4321),
    }
    return {**scope, **other}


def forwarded(raw: Fields, *, trust: bool = False, **scope: Any) -> Fields:
    return build_request_headers(scope_of(raw, **scope), trust_forwarded_headers=trust)


def less_what_was_seen(fields: Fields) -> Fields:
    return [field for field in fields if field[0] not in SEEN]


def crossed(*raw: tuple[bytes, bytes], trust: bool = False, **scope: Any) -> Fields:
    """What crosses of these fields, without what this server says of the caller."""
    return less_what_was_seen(forwarded(list(raw), trust=trust, **scope))


def values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key == name]


both_trusts = pytest.mark.parametrize("trust", [False, True])

# --- the connection to the upstream ---------------------------------------------------------


@both_trusts
@pytest.mark.parametrize("said", [b"NTLM TlRMTVNTUA", b"negotiate YII", b"Negotiate"])
def test_connection_bound_authorization_sends_close(said: bytes, trust: bool) -> None:
    fields = crossed((b"authorization", said), (b"connection", b"keep-alive"), trust=trust)
    assert fields == [(b"authorization", said), (b"connection", b"close")]


@pytest.mark.parametrize(
    "credentials",
    [[b"Basic x", b"Negotiate y"], [b"  Negotiate y"], [b"\x0b\x0cNTLM"], [b"NTLM a", b"Basic"]],
)
def test_connection_auth_is_seen_in_every_authorization(credentials: list[bytes]) -> None:
    fields = crossed(*[(b"authorization", value) for value in credentials])
    assert fields[-1] == (b"connection", b"close")
    assert values(fields, b"connection") == [b"close"]


def test_connection_auth_is_looked_for_in_authorization_only() -> None:
    raw = [(b"x-a", b"Negotiate"), (b"authorization", b"Basic x")]
    assert crossed(*raw) == raw


# --- end to end ----------------------------------------------------------------------------


@both_trusts
def test_other_fields_keep_their_bytes_order_and_repetition(trust: bool) -> None:
    raw = [
        (b"accept", b"a"),
        (b"x-one", b"1"),
        (b"accept", b"b"),
        (b"x-empty", b""),
        (b"x-obs", b"caf\xc3\xa9 \xff\x80"),
        (b"x-blanks", b"a  \t b"),
        (b"x-one", b"1"),
        (b"authorization", b"Bearer t"),
        (b"cookie", b"a=1; b=2"),
        (b"user-agent", b"\xe9"),
    ]
    assert crossed(*raw, trust=trust) == raw


@both_trusts
def test_nothing_is_added_but_what_this_server_saw(trust: bool) -> None:
    assert forwarded([(b"host", b"app.example")], trust=trust) == [
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"x-forwarded-host", b"app.example"),
        (b"x-forwarded-proto", b"https"),
    ]


# --- hop by hop (RFC 9110 7.6.1) -----------------------------------------------------------


@both_trusts
@pytest.mark.parametrize("name", [name for name in HOP_BY_HOP if name != b"transfer-encoding"])
def test_a_field_of_one_hop_does_not_cross(name: bytes, trust: bool) -> None:
    assert crossed((name, b"x"), (b"x-kept", b"1"), trust=trust) == [(b"x-kept", b"1")]


@both_trusts
def test_headers_named_on_several_connection_lines_do_not_cross(
    trust: bool,
) -> None:
    raw = [
        (b"x-first", b"1"),
        (b"connection", b",, X-First ,\tkeep-alive,"),
        (b"connection", b""),
        (b"x-second", b"2"),
        (b"connection", b"x-second,x-second, close"),
        (b"connection", b" , \t, X-THIRD"),
        (b"x-third", b"3"),
        (b"x-third", b"33"),
        (b"x-thirdly", b"4"),
        (b"x", b"5"),
    ]
    assert crossed(*raw, trust=trust) == [(b"x-thirdly", b"4"), (b"x", b"5")]


@pytest.mark.parametrize(
    "named", [b"X-Forwarded-For", b"x-forwarded-host, x-forwarded-proto", b"host", b"Host,close"]
)
def test_connection_header_cannot_strip_forwarded_headers(
    named: bytes,
) -> None:
    raw = [(b"connection", named), (b"host", b"app.example")]
    assert forwarded(raw) == [
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"x-forwarded-host", b"app.example"),
        (b"x-forwarded-proto", b"https"),
    ]


def test_connection_header_cannot_strip_a_trusted_proxys_headers() -> None:
    # The proxy removed what Connection named before it added its own; what stands there is its.
    fields = forwarded(
        [(b"x-forwarded-for", b"203.0.113.1"), (b"connection", b"close")], trust=True
    )
    assert values(fields, b"x-forwarded-for") == [b"203.0.113.1, 192.0.2.7"]


def test_content_length_named_in_connection_crosses() -> None:
    # RFC 9110 7.6.1 forbids to name it; a request whose body is lost is worse than such a list.
    """It must, because the body crosses."""
    assert crossed((b"connection", b"content-length"), (b"content-length", b"5")) == [
        (b"content-length", b"5")
    ]


# --- framing (RFC 9112 6) ------------------------------------------------------------------


def test_a_length_is_kept_also_one_of_zero() -> None:
    assert crossed((b"content-length", b"0")) == [(b"content-length", b"0")]


def test_no_framing_is_invented_where_the_caller_sent_none() -> None:
    assert crossed((b"accept", b"a")) == [(b"accept", b"a")]


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b" chunked ", b"gzip, chunked"])
def test_chunked_body_stays_chunked_without_other_codings(
    coding: bytes,
) -> None:
    """The server has decoded the other codings."""
    assert crossed((b"transfer-encoding", coding)) == [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("named", [b"transfer-encoding", b"close, Transfer-Encoding"])
def test_chunks_stay_chunks_also_where_connection_names_them(named: bytes) -> None:
    raw = [(b"connection", named), (b"transfer-encoding", b"chunked")]
    assert crossed(*raw) == [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("turned", [False, True])
def test_of_both_framings_only_the_chunks_cross(turned: bool) -> None:
    raw = [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]
    raw = raw[::-1] if turned else raw
    assert crossed(*raw) == [(b"transfer-encoding", b"chunked")]


def test_repeated_transfer_encodings_become_one() -> None:
    raw = [(b"transfer-encoding", b"gzip"), (b"x", b"1"), (b"transfer-encoding", b"chunked")]
    assert crossed(*raw) == [(b"x", b"1"), (b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("lengths", [[b"5", b"6"], [b"-5"], [b"5,5"], [b""], [b"9" * 20]])
def test_length_that_is_not_one_number_is_refused(lengths: list[bytes]) -> None:
    with pytest.raises(HTTPException) as caught:
        crossed(*((b"content-length", length) for length in lengths))
    assert caught.value.status_code == 400


# --- of this hop ---------------------------------------------------------------------------


@both_trusts
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"host", b"app.example"),
        (b"expect", b"100-continue"),
        (b"http2-settings", b"AAMA"),
        (b"proxy", b"http://evil.example"),
    ],
)
def test_what_this_server_meets_itself_does_not_cross(
    name: bytes, value: bytes, trust: bool
) -> None:
    assert crossed((name, value), (b"x", b"1"), trust=trust) == [(b"x", b"1")]


# --- what proxies say (RFC 7239), untrusted ------------------------------------------------


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


# --- X-Forwarded-Prefix --------------------------------------------------------------------


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


# --- optional and unusual scopes ------------------------------------------------------------


@pytest.mark.parametrize("kind", [tuple, iter, lambda raw: (list(pair) for pair in raw)])
def test_scope_headers_may_be_any_iterable(kind: Any) -> None:
    scope = scope_of([])
    scope["headers"] = kind([(b"accept", b"a"), (b"content-length", b"0"), (b"host", b"h")])
    first = build_request_headers(scope, trust_forwarded_headers=False)
    assert (b"accept", b"a") in first
    assert (b"x-forwarded-host", b"h") in first
    assert build_request_headers(scope, trust_forwarded_headers=False) == first


def test_scope_header_names_may_be_in_any_case() -> None:
    raw = [(b"Content-Length", b"0"), (b"Authorization", b"NTLM x"), (b"HOST", b"h")]
    assert forwarded(raw, client=None) == [
        (b"authorization", b"NTLM x"),
        (b"content-length", b"0"),
        (b"connection", b"close"),
        (b"x-forwarded-host", b"h"),
        (b"x-forwarded-proto", b"https"),
    ]
    assert crossed((b"Transfer-Encoding", b"chunked"), (b"CONTENT-LENGTH", b"3")) == [
        (b"transfer-encoding", b"chunked")
    ]


@pytest.mark.parametrize("client", [["192.0.2.7", 1], ("192.0.2.7", None), ("192.0.2.7",)])
def test_scope_may_have_only_its_required_keys(client: Any) -> None:
    raw = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": raw}
    assert build_request_headers(scope, trust_forwarded_headers=False) == [
        *raw,
        (b"x-forwarded-proto", b"http"),
    ]
    scope.update(client=client, scheme=None)
    assert build_request_headers(scope, trust_forwarded_headers=False) == [
        *raw,
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"x-forwarded-proto", b"http"),
    ]


@both_trusts
@pytest.mark.parametrize(
    "twin",
    [
        b"x_forwarded_for",
        b"x-forwarded_for",
        b"x_forwarded_host",
        b"x_forwarded-proto",
        b"x_real_ip",
        b"transfer_encoding",
        b"content_length",
        b"keep_alive",
        b"proxy_authorization",
        b"proxy_connection",
        b"http2_settings",
    ],
)
def test_underscore_twin_of_a_header_with_a_rule_is_dropped(twin: bytes, trust: bool) -> None:
    assert crossed((twin, b"spoofed"), (b"x", b"1"), trust=trust) == [(b"x", b"1")]


@both_trusts
def test_an_underscore_in_any_other_name_crosses(trust: bool) -> None:
    raw = [(b"x_tenant", b"1"), (b"_", b"2"), (b"x_clientele", b"3")]
    assert crossed(*raw, trust=trust) == raw


def test_forwarded_headers_come_after_the_callers_headers() -> None:
    """So they cannot be stripped or doubled."""
    fields = forwarded([(b"x-forwarded-proto", b"http"), (b"x", b"1"), (b"host", b"h")])
    assert fields == [
        (b"x", b"1"),
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"x-forwarded-host", b"h"),
        (b"x-forwarded-proto", b"https"),
    ]


# --- what proxies say, trusted -------------------------------------------------------------


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


# --- peers and hosts -----------------------------------------------------------------------


@both_trusts
def test_an_ipv6_peer_is_named_without_brackets(trust: bool) -> None:
    fields = forwarded([], trust=trust, client=("2001:db8::1", 443))
    assert values(fields, b"x-forwarded-for") == [b"2001:db8::1"]


def test_peer_that_a_header_cannot_hold_has_question_marks() -> None:
    fields = forwarded([], client=("c\u20ac", 0))
    assert values(fields, b"x-forwarded-for") == [b"c?"]


@pytest.mark.parametrize("scope", [{"client": None}, {"client": ()}])
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


# --- cookies (RFC 9113 8.2.3) --------------------------------------------------------------


@pytest.mark.parametrize("version", ["2", "3"])
def test_cookie_crumbs_of_http_2_become_one_field(version: str) -> None:
    raw = [(b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=\xe9"), (b"cookie", b"a=1")]
    fields = crossed(*raw, http_version=version)
    assert values(fields, b"cookie") == [b"a=1; b=\xe9; a=1"]
    assert values(crossed(*raw[:3], http_version=version), b"cookie") == [b"a=1; b=\xe9"]
    assert values(fields, b"x") == [b"1"]


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_one_cookie_field_stays_where_it_is(version: str) -> None:
    raw = [(b"cookie", b"a=1;b=2"), (b"x", b"1")]
    assert crossed(*raw, http_version=version) == raw


def test_repeated_cookies_of_http_1_cross_as_they_came() -> None:
    raw = [(b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=2")]
    assert crossed(*raw) == raw


# --- what ends or splits a field -----------------------------------------------------------


@both_trusts
@pytest.mark.parametrize("byte", [b"\r", b"\n", b"\0", b"\r\n x: y", b"a\r\n\r\nGET / HTTP/1.1"])
@pytest.mark.parametrize("name", [b"x", b"cookie", b"content-length", b"expect", b"x_y"])
def test_a_line_break_or_nul_in_a_value_is_refused(name: bytes, byte: bytes, trust: bool) -> None:
    with pytest.raises(HTTPException) as caught:
        forwarded([(name, b"a" + byte)], trust=trust)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("name", [b"x\r\ny", b"x\0", b"\n"])
def test_a_line_break_or_nul_in_a_name_is_refused(name: bytes) -> None:
    with pytest.raises(HTTPException) as caught:
        forwarded([(name, b"a")])
    assert caught.value.status_code == 400


@pytest.mark.parametrize("connection", [b"close", b"host"])
def test_line_break_in_the_host_is_refused(
    connection: bytes,
) -> None:
    """Also if `Connection` names the header."""
    with pytest.raises(HTTPException) as caught:
        forwarded([(b"connection", connection), (b"host", b"h\r\nx-admin: 1")])
    assert caught.value.status_code == 400


def test_other_odd_bytes_are_no_reason_to_refuse() -> None:
    raw = [(b"x", b"\x7f\x80\xff"), (b"y", b"a:b\\\"';,")]
    assert crossed(*raw) == raw


def test_blanks_around_a_value_are_dropped() -> None:
    assert crossed((b"x", b"\t X a \t"), (b"y", b" ")) == [(b"x", b"X a"), (b"y", b"")]


# --- rules by name --------------------------------------------------------------------------


def test_long_names_have_the_rules_of_short_ones() -> None:
    long = b"a" * 200
    assert crossed((long, b"1")) == [(long, b"1")]
    assert crossed((b"x-forwarded-" + long, b"1")) == []


def test_rules_are_kept_for_512_names_of_64_bytes_at_most() -> None:
    for number in range(600):
        crossed((b"x-%d" % number, b"1"))
        assert len(_rules) <= 512
    crossed((b"x" * 64, b"1"), (b"x" * 65, b"1"))
    assert b"x" * 64 in _rules
    assert b"x" * 65 not in _rules


# --- the author's word ---------------------------------------------------------------------


def test_changed_headers_replace_all_of_a_name_and_none_removes() -> None:
    fields = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"c", b"4")]
    assert apply_changes(fields, {"A": "x", "B": None, "d": "caf\xe9", "e": None}) == [
        (b"c", b"4"),
        (b"a", b"x"),
        (b"d", b"caf\xe9"),
    ]


def test_change_applies_to_the_spelling_with_underscores() -> None:
    fields = [(b"x_api_key", b"1"), (b"x-api_key", b"2"), (b"x-api-key", b"3"), (b"xapikey", b"4")]
    assert apply_changes(fields, {"X-Api-Key": None}) == [(b"xapikey", b"4")]


def test_merged_cookies_replace_those_of_the_same_name() -> None:
    fields = [(b"cookie", b"a=1; b = 2; ;;c; e=6"), (b"x", b"1"), (b"cookie", b" a=3; d=4;a")]
    assert merge_cookies(fields, b"a=own; e=5") == [
        (b"x", b"1"),
        (b"cookie", b"b = 2; c; d=4; a=own; e=5"),
    ]


def test_the_authors_cookies_are_sent_where_the_caller_has_none() -> None:
    assert merge_cookies([(b"x", b"1")], b"a=own") == [(b"x", b"1"), (b"cookie", b"a=own")]


# --- what always holds ---------------------------------------------------------------------

KNOWN = [
    *HOP_BY_HOP,
    *SAID_BY_PROXIES,
    *(b"host expect http2-settings content-length cookie authorization x-one x-two".split()),
    *(b"x_forwarded_for x_real_ip content_length transfer_encoding x_one accept-encoding".split()),
]
contents = st.one_of(
    st.binary(max_size=12),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=12).map(
        lambda text: text.encode("latin-1")
    ),
    st.sampled_from(
        [b"close", b"x-one, X-Two ,host", b",,", b"5", b"chunked", b"content-length", b"a=1; b"]
    ),
    st.sampled_from([b"x-forwarded-for,x-forwarded-host", b"203.0.113.1", b'for="[::1]"']),
)
lists: st.SearchStrategy[Fields] = st.lists(
    st.tuples(st.one_of(st.sampled_from(KNOWN), st.binary(max_size=4).map(bytes.lower)), contents),
    max_size=10,
)
others = st.fixed_dictionaries(
    {
        "http_version": st.sampled_from(["1.0", "1.1", "2", "3"]),
        "scheme": st.sampled_from(["http", "https"]),
        "client": st.sampled_from([None, ("192.0.2.7", 1), ("2001:db8::1", 2)]),
    }
)


TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+"


def fields_or_refused(raw: Fields, trust: bool, scope: dict[str, Any]) -> Fields | None:
    try:
        return forwarded(raw, trust=trust, **scope)
    except HTTPException as exc:
        refusal = exc
    assert refusal.status_code == 400
    broken = any(byte in name + value for name, value in raw for byte in (b"\r", b"\n", b"\0"))
    nameless = not all(re.fullmatch(TOKEN, name) for name, _ in raw)
    lengths = {value for name, value in raw if name == b"content-length"}
    unframed = len(lengths) > 1 or not all(re.fullmatch(rb"[0-9]{1,19}", v) for v in lengths)
    assert broken or nameless or unframed
    return None


def is_subsequence(part: Fields, whole: Fields) -> bool:
    rest = iter(whole)
    return all(field in rest for field in part)


@settings(max_examples=count_examples(75), deadline=None)
@given(lists, st.booleans(), others)
@example([(b"connection", b"host"), (b"host", b"a\r\nb")], False, {})
def test_nothing_of_one_hop_crosses_and_nothing_that_splits(
    raw: Fields, trust: bool, scope: dict[str, Any]
) -> None:
    fields = fields_or_refused(raw, trust, scope)
    if fields is None:
        return
    names = [name for name, _ in fields]
    assert not set(names) & (set(HOP_BY_HOP) - {b"transfer-encoding"} | {b"host", b"expect"})
    assert not {b"x_forwarded_for", b"x_real_ip", b"content_length"} & set(names)
    assert not any(byte in name + value for name, value in fields for byte in (b"\r", b"\n", b"\0"))


@settings(max_examples=count_examples(50), deadline=None)
@given(lists, st.booleans(), others)
def test_framing_is_that_of_the_caller_and_never_double(
    raw: Fields, trust: bool, scope: dict[str, Any]
) -> None:
    fields = fields_or_refused(raw, trust, scope)
    if fields is None:
        return
    chunked: Fields = []
    if b"transfer-encoding" in dict(raw):
        chunked = [(b"transfer-encoding", b"chunked")]
        assert b"content-length" not in dict(fields)
    else:
        assert values(fields, b"content-length") == values(raw, b"content-length")
    assert [field for field in fields if field[0] == b"transfer-encoding"] == chunked


@settings(max_examples=count_examples(75), deadline=None)
@given(lists, st.booleans(), others)
def test_every_other_field_keeps_its_bytes_order_and_repetition(
    raw: Fields, trust: bool, scope: dict[str, Any]
) -> None:
    fields = fields_or_refused(raw, trust, scope)
    if fields is None:
        return
    named = {
        token.strip().lower() for value in values(raw, b"connection") for token in value.split(b",")
    }
    ruled = {*HOP_BY_HOP, *SAID_BY_PROXIES, *named, b"host", b"expect", b"http2-settings"}
    ruled |= {b"content-length", b"cookie", b"proxy"}
    plain = [
        (name, value.strip(b" \t"))
        for name, value in raw
        if name not in ruled and name.replace(b"_", b"-") not in ruled
    ]
    assert is_subsequence(plain, fields)
    assert [f for f in fields if f[0] in dict(plain)] == plain
    # Nothing is there that the caller did not send, but what this server says.
    assert set(dict(fields)) <= set(dict(raw)) | SEEN


@settings(max_examples=count_examples(50), deadline=None)
@given(lists, others)
def test_forwarded_headers_are_sent_once_for_any_request(
    raw: Fields, scope: dict[str, Any]
) -> None:
    fields = fields_or_refused(raw, False, scope)
    if fields is None:
        return
    peer = scope["client"]
    assert values(fields, b"x-forwarded-for") == ([peer[0].encode()] if peer else [])
    hosts = values(raw, b"host")  # more than one is for the server to refuse (RFC 9112 3.2)
    assert values(fields, b"x-forwarded-host") in ([[host] for host in hosts] or [[]])
    assert values(fields, b"x-forwarded-proto") == [scope["scheme"].encode()]
    assert not set(dict(fields)) & (set(SAID_BY_PROXIES) - SEEN)


@settings(max_examples=count_examples(50), deadline=None)
@given(lists, others)
def test_a_trusted_proxys_own_words_all_cross(raw: Fields, scope: dict[str, Any]) -> None:
    raw = [field for field in raw if field[0] != b"connection"]
    fields = fields_or_refused(raw, True, scope)
    if fields is None:
        return
    for name in set(SAID_BY_PROXIES) & set(dict(raw)):
        sent, got = values(raw, name), values(fields, name)
        peer = scope["client"]
        if name == b"x-forwarded-for":
            assert got == ([b", ".join([*sent, peer[0].encode()])] if peer else sent)
        elif name == b"forwarded":
            assert got[: len(sent)] == sent
            assert len(got) == len(sent) + bool(peer)
        else:
            assert got == sent


@settings(max_examples=count_examples(37), deadline=None)
@given(lists, st.booleans(), others)
def test_same_request_gives_the_same_headers_and_is_unchanged(
    raw: Fields, trust: bool, scope: dict[str, Any]
) -> None:
    before = list(raw)
    first = fields_or_refused(raw, trust, scope)
    assert raw == before
    assert fields_or_refused(raw, trust, scope) == first


@settings(max_examples=count_examples(37), deadline=None)
@given(lists, others)
@example(
    [(b"cookie", b"a=1"), (b"cookie", b"")], {"http_version": "2", "scheme": "http", "client": None}
)
def test_headers_that_crossed_one_hop_cross_the_next(raw: Fields, scope: dict[str, Any]) -> None:
    """Except for those that the next hop sets itself."""
    once = fields_or_refused(raw, False, scope)
    if once is not None:
        again = less_what_was_seen(forwarded(once, **scope))
        assert again == less_what_was_seen(once)


@given(
    lists, st.dictionaries(st.sampled_from(["x-one", "X-TWO", "cookie"]), st.none() | st.just("v"))
)
def test_an_author_who_says_it_twice_says_the_same(
    fields: Fields, changes: dict[str, str | None]
) -> None:
    once = apply_changes(fields, changes)
    assert apply_changes(once, changes) == once
    for name, value in changes.items():
        expected = [] if value is None else [value.encode()]
        assert values(once, name.lower().encode()) == expected
