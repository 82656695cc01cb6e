"""Which fields cross: cases of the RFCs, and what holds for every list of fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_upstream._exchange.response_head import (
    end_to_end_response_headers,
    headers_for_modified_body,
)
from asgi_upstream._headers import (
    are_names_valid,
    end_to_end,
    has_control_characters,
    override,
    parse_content_length,
)
from tests.support.headers import HOP_BY_HOP, Fields, is_subsequence

KNOWN = [
    *HOP_BY_HOP,
    b"content-length",
    b"content-encoding",
    b"content-type",
    b"etag",
    b"set-cookie",
    b"date",
    b"server",
    b"x-one",
    b"x-two",
    b"x-content-type-options",
]


def cased(name: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([name, name.upper(), name.title()])


values = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"close", b"X-One", b"x-one, X-Two ,close", b",,", b"12", b"text/plain"]),
    st.sampled_from([b'"tag"', b'W/"tag"', b"chunked", b"a=1; Path=/"]),
)
fields_of_any_case: st.SearchStrategy[Fields] = st.lists(
    st.tuples(st.sampled_from(KNOWN).flatmap(cased), values), max_size=12
)
fields_in_lower_case: st.SearchStrategy[Fields] = st.lists(
    st.tuples(st.sampled_from(KNOWN), values), max_size=12
)


def names(fields: Fields) -> list[bytes]:
    return [name for name, _ in fields]


# --- end_to_end ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_a_hop_by_hop_field_does_not_cross(name: bytes) -> None:
    raw = [(name.title(), b"x"), (b"X-Kept", b"1")]
    assert end_to_end(raw) == [(b"x-kept", b"1")]


def test_headers_named_in_connection_do_not_cross_in_any_case() -> None:
    raw = [
        (b"X-First", b"1"),
        (b"Connection", b"close, x-FIRST"),
        (b"x-second", b"2"),
        (b"connection", b" X-Second ,"),
        (b"x-third", b"3"),
    ]
    assert end_to_end(raw) == [(b"x-third", b"3")]


def test_header_with_a_longer_name_than_named_crosses() -> None:
    raw = [(b"connection", b"x-a"), (b"x-ab", b"1"), (b"x", b"2")]
    assert end_to_end(raw) == [(b"x-ab", b"1"), (b"x", b"2")]


def test_transfer_encoding_takes_the_content_length_with_it() -> None:
    raw = [(b"content-length", b"5"), (b"Transfer-Encoding", b"chunked"), (b"x", b"1")]
    assert end_to_end(raw) == [(b"x", b"1")]


def test_a_content_length_alone_crosses() -> None:
    assert end_to_end([(b"Content-Length", b"5")]) == [(b"content-length", b"5")]


@given(fields_of_any_case)
def test_no_field_of_one_hop_crosses_whatever_comes(raw: Fields) -> None:
    crossed = names(end_to_end(raw))
    assert not set(crossed) & set(HOP_BY_HOP)
    named = {
        token.strip().lower()
        for name, value in raw
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    assert not set(crossed) & named
    if b"transfer-encoding" in [name.lower() for name in names(raw)]:
        assert b"content-length" not in crossed


@given(fields_of_any_case)
def test_headers_that_cross_keep_order_repetition_and_bytes(raw: Fields) -> None:
    crossed = end_to_end(raw)
    lowered = [(name.lower(), value) for name, value in raw]
    assert all(name == name.lower() for name in names(crossed))
    assert is_subsequence(crossed, lowered)
    # All fields of one name share one fate: repeated ones cross one by one or not at all.
    for name in set(names(crossed)):
        assert [f for f in crossed if f[0] == name] == [f for f in lowered if f[0] == name]


@given(fields_of_any_case)
def test_a_second_hop_takes_nothing_more_away(raw: Fields) -> None:
    assert end_to_end(end_to_end(raw)) == end_to_end(raw)


@given(fields_of_any_case)
def test_an_ordinary_field_crosses_unless_connection_names_it(raw: Fields) -> None:
    kept = [f for f in end_to_end([*raw, (b"X-Own", b"\xff v")]) if f[0] == b"x-own"]
    assert kept == [(b"x-own", b"\xff v")]


def test_the_given_list_stays_as_it_was() -> None:
    raw = [(b"Connection", b"x"), (b"X", b"1"), (b"ETag", b'"t"')]
    before = list(raw)
    end_to_end_response_headers(raw)
    headers_for_modified_body(raw)
    override(raw, [(b"x", b"2")])
    assert raw == before


# --- relayed_response_headers --------------------------------------------------------------


def test_date_server_and_alt_svc_are_the_servers_own() -> None:
    raw = [(b"Date", b"now"), (b"Server", b"nginx"), (b"X", b"1"), (b"Alt-Svc", b"clear")]
    assert end_to_end_response_headers(raw) == [(b"x", b"1")]


def test_repeated_set_cookie_headers_cross_in_order() -> None:
    raw = [(b"Set-Cookie", b"a=1"), (b"vary", b"a"), (b"set-cookie", b"b=2"), (b"vary", b"b")]
    assert end_to_end_response_headers(raw) == [(name.lower(), value) for name, value in raw]


@given(fields_of_any_case)
def test_a_response_relays_all_that_crosses_but_the_servers_own(raw: Fields) -> None:
    expected = [f for f in end_to_end(raw) if f[0] not in (b"date", b"server")]
    assert end_to_end_response_headers(raw) == expected


# --- of_a_changed_body ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"accept-ranges",
        b"content-digest",
        b"content-encoding",
        b"content-length",
        b"content-md5",
        b"digest",
        b"repr-digest",
    ],
)
def test_what_is_true_of_the_exact_bytes_goes_with_them(name: bytes) -> None:
    kept = [(b"content-type", b"text/html"), (b"last-modified", b"x"), (b"vary", b"accept")]
    assert headers_for_modified_body([(name, b"x"), *kept]) == kept


def test_a_strong_etag_becomes_a_weak_one() -> None:
    assert headers_for_modified_body([(b"etag", b'"v1"')]) == [(b"etag", b'W/"v1"')]


def test_a_weak_etag_stays_as_it_is() -> None:
    assert headers_for_modified_body([(b"etag", b'W/"v1"')]) == [(b"etag", b'W/"v1"')]


@given(fields_in_lower_case)
def test_headers_for_modified_body_are_idempotent(fields: Fields) -> None:
    once = headers_for_modified_body(fields)
    assert headers_for_modified_body(once) == once
    assert all(value.startswith(b"W/") for name, value in once if name == b"etag")
    assert not {b"content-length", b"content-encoding"} & set(names(once))


# --- overlaid ------------------------------------------------------------------------------


def test_an_own_field_stands_in_place_of_all_of_its_name() -> None:
    fields = [(b"vary", b"a"), (b"x", b"1"), (b"vary", b"b")]
    assert override(fields, [(b"vary", b"own")]) == [(b"x", b"1"), (b"vary", b"own")]


def test_an_own_set_cookie_is_added_to_the_upstreams() -> None:
    fields = [(b"set-cookie", b"theirs=1")]
    own = [(b"set-cookie", b"mine=1"), (b"set-cookie", b"mine=2")]
    assert override(fields, own) == fields + own


@given(fields_in_lower_case, fields_in_lower_case)
def test_own_fields_win_and_the_others_stay(fields: Fields, own: Fields) -> None:
    result = override(fields, own)
    replaced = set(names(own)) - {b"set-cookie"}
    others = [field for field in fields if field[0] not in replaced]
    assert result == others + own


# --- names, values and lengths ---------------------------------------------------------------


def test_control_characters_in_values_are_found() -> None:
    found = {
        byte
        for byte in range(256)
        if has_control_characters([(b"x-a", b"a"), (b"x-b", b"a%cb" % byte)])
    }
    assert found == {*range(0x20), 0x7F} - {0x09}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], True),
        ([b"x-a", b"!#$%&'*+.^_`|~09AZaz"], True),
        ([b""], False),
        ([b"x-a", b""], False),
        ([b"x-a", b"x:b"], False),
        ([b"x-a:"], False),
        ([b"x b"], False),
        ([b"x\xe9"], False),
    ],
)
def test_header_names_are_valid_if_all_are_tokens(names: list[bytes], expected: bool) -> None:
    assert are_names_valid([(name, b"1") for name in names]) is expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([b"0"], 0),
        ([b"12"], 12),
        ([b"12", b"12"], 12),
        ([b"12", b"13"], None),
        ([b"9" * 19], 10**19 - 1),
        ([b"9" * 20], None),
        ([b""], None),
        ([b"+1"], None),
        ([b"1 "], None),
        ([b"1_0"], None),
        ([b"0x1"], None),
    ],
)
def test_content_length_is_parsed_if_it_is_one_number(
    values: list[bytes], expected: int | None
) -> None:
    headers = [(b"x-a", b"7"), *((b"content-length", value) for value in values)]
    assert parse_content_length(headers) == expected
