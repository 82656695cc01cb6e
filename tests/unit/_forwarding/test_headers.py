"""Which headers of a caller's request an upstream gets: each rule by its name."""

from typing import Any

import pytest
from starlette.exceptions import HTTPException

from asgi_upstream._forwarding.headers import (
    _rules,
    apply_changes,
    build_request_headers,
    merge_cookies,
)
from tests.support.headers import (
    HOP_BY_HOP,
    both_trusts,
    crossed,
    forwarded,
    scope_of,
    values,
)

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
    with pytest.raises(HTTPException, match="Malformed header") as caught:
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
