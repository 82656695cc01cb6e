"""What holds for the headers of any request."""

import re
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from asgi_upstream._forwarding.headers import apply_changes
from tests.support.examples import count_examples
from tests.support.headers import (
    HOP_BY_HOP,
    SAID_BY_PROXIES,
    SEEN,
    Fields,
    forwarded,
    is_subsequence,
    less_what_was_seen,
    values,
)

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
        sent = [value.strip(b" \t") for value in values(raw, name)]
        got = values(fields, name)
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
