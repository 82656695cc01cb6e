"""The path of a request line: where it is found, what follows a prefix, and what tries to get out.

The filter is held against a reference that knows nothing of it: every way in which an upstream may
normalise a path, and whether the result is still under its base.
"""

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from asgi_upstream import forward_request
from asgi_upstream._forwarding.target import (
    Base,
    _bases,
    find_base,
    get_raw_path,
    is_path_traversal,
    split_prefix,
    strip_prefix,
)
from tests.support.examples import count_examples
from tests.support.flavor import httpx

# --- get_raw_path ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/a", b"/a"),
        (b"/a%2Fb/%zz//c;d='\"[]|{}+", b"/a%2Fb/%zz//c;d='\"[]|{}+"),
        (b"/%e4%E4", b"/%e4%E4"),
        (b"/a/", b"/a/"),
        (b"", b""),
        (b"*", b"*"),
    ],
)
def test_the_raw_path_is_taken_as_it_is(raw: bytes, expected: bytes) -> None:
    assert get_raw_path({"path": "/other", "raw_path": raw}) == expected


@pytest.mark.parametrize("raw", [b"/a?b=1", b"/a?", b"/a??x", b"http://h/a?b=/c"])
def test_query_in_the_raw_path_is_cut_off(raw: bytes) -> None:
    """Some test clients leave it there."""
    assert get_raw_path({"path": "/a", "raw_path": raw}) == b"/a"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"http://evil.example/a/b", b"/a/b"),
        (b"HTTP://user:pw@evil.example:81/a", b"/a"),
        (b"http://evil.example", b"/"),
        (b"http://evil.example?a=/b", b"/"),
        (b"h2c+x.y-z://[::1]:8/a//b", b"/a//b"),
        (b"x://evil.example/a", b"/a"),
        (b"http://evil.example#/a", b"#/a"),
        (b"http:///a", b"/a"),
    ],
)
def test_an_absolute_form_request_line_loses_its_scheme_and_host(
    raw: bytes, expected: bytes
) -> None:
    assert get_raw_path({"path": "/a", "raw_path": raw}) == expected


@pytest.mark.parametrize("raw", [b"//evil/a", b"/@evil", b"/http://evil/a", b"/http:/evil"])
def test_a_path_that_only_looks_like_a_url_stays_a_path(raw: bytes) -> None:
    assert get_raw_path({"path": "/a", "raw_path": raw}) == raw


@pytest.mark.parametrize("scope", [{}, {"raw_path": None}])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b", b"/a/b"),
        ("/café au lait", b"/caf%C3%A9%20au%20lait"),
        ("/:@!$&'()*+,;=~-._", b"/:@!$&'()*+,;=~-._"),
        ('/a?b#c"<>[]|{}^`\\', b"/a%3Fb%23c%22%3C%3E%5B%5D%7C%7B%7D%5E%60%5C"),
        ("/a\0b\r\nc", b"/a%00b%0D%0Ac"),
    ],
)
def test_without_a_raw_path_the_decoded_one_is_encoded_anew(
    scope: dict[str, None], path: str, expected: bytes
) -> None:
    assert get_raw_path({"path": path, **scope}) == expected


@pytest.mark.parametrize(
    ("path", "expected"), [("/a%2Fb", b"/a%252Fb"), ("/100%", b"/100%25"), ("/%41", b"/%2541")]
)
def test_percent_sign_of_the_decoded_path_is_encoded(path: str, expected: bytes) -> None:
    """It was `%25` before the server decoded it."""
    assert get_raw_path({"path": path}) == expected


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_encoded_path_is_legal_and_decodes_to_the_same_path(path: str) -> None:
    raw = get_raw_path({"path": "/" + path})
    assert re.fullmatch(rb"[!-~]+", raw)
    assert b"?" not in raw
    assert unquote_to_bytes(raw).decode() == "/" + path


# --- find_base -----------------------------------------------------------------------------


def test_parts_of_a_base_url_are_kept_unless_it_has_a_password() -> None:
    url = httpx.URL("http://up.example:81/v1/")
    assert find_base(url) == Base(url, b"/v1", b"up.example:81")
    assert find_base(url) is find_base(url)
    secret = httpx.URL("http://user:pw@up.example/v1/")
    assert find_base(secret).path == b"/v1"
    assert secret not in [base.url for base in _bases.values()]


def test_base_url_in_the_memory_of_an_older_one_is_not_mixed_up() -> None:
    url, older = httpx.URL("http://new.example"), httpx.URL("http://old.example")
    _bases.keep(id(url), find_base(older))
    assert find_base(url).netloc == b"new.example"


# --- split_prefix --------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [{}, {"root_path": None}, {"root_path": ""}])
def test_path_without_a_slash_is_answered_400(scope: dict[str, Any]) -> None:
    with pytest.raises(HTTPException, match="Invalid path") as caught:
        split_prefix({"path": "*", "raw_path": b"*", **scope}, None)
    assert caught.value.status_code == 400


# --- after_prefix --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "prefix", "rest"),
    [
        (b"/api/a", b"/api", b"/a"),
        (b"/api/a", b"/api/", b"/a"),
        (b"/api/", b"/api", b"/"),
        (b"/api", b"/api", b""),
        (b"/api", b"/api/", b""),
        (b"/api//a", b"/api", b"//a"),
        (b"/a", b"", b"/a"),
        (b"/a", b"/", b"/a"),
        (b"/%61p%69/a", b"/api", b"/a"),
        (b"/caf%C3%A9/a%c3", b"/caf\xc3\xa9", b"/a%c3"),
        (b"/caf%c3%a9/a", b"/caf\xc3\xa9", b"/a"),
        (b"/caf%C3%a9", b"/caf\xc3\xa9/", b""),
        (b"/caf\xc3\xa9/a", b"/caf\xc3\xa9", b"/a"),
        (b"/%7euser/a", b"/~user", b"/a"),
        (b"/100%25/a", b"/100%", b"/a"),
        (b"/100%/a", b"/100%", b"/a"),
        (b"/%4g/a", b"/%4g", b"/a"),
        (b"/a%2Fb/c", b"/a/b", b"/c"),
        (b"/api%2Fa", b"/api", b"%2Fa"),
        (b"/api%2fa", b"/api", b"%2fa"),
    ],
)
def test_what_follows_a_prefix(raw: bytes, prefix: bytes, rest: bytes) -> None:
    assert strip_prefix(raw, prefix) == rest


@pytest.mark.parametrize(
    ("raw", "prefix"),
    [
        (b"/api", b"/ap"),
        (b"/ap", b"/api"),
        (b"/ap", b"/api/"),
        (b"/ap", b"/ap\0"),
        (b"/apix/a", b"/api"),
        (b"/api.a", b"/api"),
        (b"/api%61/a", b"/api"),
        (b"/API/a", b"/api"),
        (b"/a/api", b"/api"),
        (b"//api/a", b"/api"),
        (b"/%2561pi/a", b"/api"),
        (b"/%41/a", b"/%41"),
        (b"/%6", b"/`"),
        (b"/%", b"/a"),
        (b"", b"/api"),
        (b"*", b"/api"),
        (b"/api/a", b"api"),
        (b"", b"a"),
    ],
)
def test_a_path_that_does_not_start_with_the_prefix(raw: bytes, prefix: bytes) -> None:
    assert strip_prefix(raw, prefix) is None


percents = st.sampled_from(["%{:02x}", "%{:02X}", "plain"])


@st.composite
def encoded_in_any_way(draw: st.DrawFn, text: bytes) -> bytes:
    forms = [draw(percents) for _ in text]
    # A `%` that stands for itself is not the start of an escape by accident.
    plain = [form == "plain" and byte != 0x25 for form, byte in zip(forms, text, strict=True)]
    return b"".join(
        bytes([byte])
        if is_plain
        else (form if form != "plain" else "%{:02x}").format(byte).encode()
        for byte, form, is_plain in zip(text, forms, plain, strict=True)
    )


@given(st.data(), st.binary(max_size=8), st.binary(max_size=8))
def test_prefix_is_found_in_any_encoding_and_the_rest_is_kept(
    data: st.DataObject, prefix: bytes, rest: bytes
) -> None:
    prefix = b"/" + prefix.rstrip(b"/")
    raw = data.draw(encoded_in_any_way(prefix)) + b"/" + rest
    if prefix == b"/":  # the prefix of everything, and its slash is the path's
        assert strip_prefix(b"/" + rest, prefix) == b"/" + rest
    else:
        assert strip_prefix(raw, prefix) == b"/" + rest


@given(st.binary(max_size=12), st.binary(max_size=6))
def test_stripped_path_is_the_end_of_the_path_after_the_prefix(raw: bytes, prefix: bytes) -> None:
    rest = strip_prefix(raw, prefix)
    if rest is not None:
        assert raw.endswith(rest)
        assert unquote_to_bytes(raw[: len(raw) - len(rest)]) == prefix.rstrip(b"/")
        assert unquote_to_bytes(rest)[:1] in (b"", b"/")


# What may stand in a request line (RFC 9112 3.2) for h11 and llhttp: every visible character.
visible = st.lists(st.integers(0x21, 0x7E), max_size=24).map(bytes)
legal_paths = visible.map(lambda text: b"/" + text.replace(b"?", b"")).filter(
    lambda path: not is_path_traversal(path)
)


no_upstream = httpx.MockTransport(lambda request: httpx.Response(200))
clients = {
    base: httpx.AsyncClient(base_url=f"http://u.example{base}/", transport=no_upstream)
    for base in ("", "/v1")
}


def targeted(raw: bytes, query: bytes, base: str, mount: str) -> httpx.Request:
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": mount + unquote_to_bytes(raw).decode("utf-8", "replace"),
        "raw_path": mount.encode() + raw,
        "query_string": query,
        "root_path": mount,
        "headers": [],
        "client": None,
    }
    return forward_request(clients[base], Request(scope))


@settings(deadline=None, max_examples=count_examples(26))
@given(legal_paths, visible)
@example(b"//evil.example/a", b"")
@example(b"/a%2fb%2Fc%zz%00;d=1/", b"a=%zz&b=+&&c[]='\"|{}")
@example(b"/http://evil.example/", b"?")
@example(b"/@evil.example", b"#")
@example(b"/:80", b"a=1")
def test_legal_path_and_query_reach_the_upstream_unchanged(path: bytes, query: bytes) -> None:
    for base in clients:
        for mount in ("", "/api"):
            request = targeted(path, query, base, mount)
            expected = base.encode() + path + (b"?" + query if query else b"")
            assert request.extensions["target"] == expected
            assert (request.url.scheme, request.url.host) == ("http", "u.example")
            assert request.url.port is None
            assert request.headers["host"] == "u.example"


@settings(deadline=None)
@given(st.binary(max_size=12), st.binary(max_size=12))
@example(b"\xff", b"")
@example(b"", b"q=\xe9")
@example(b" HTTP/1.1\r\nhost: evil\r\n\r\nGET /", b"")
@example(b"", b"\r\n")
@example(b"a b", b"")
def test_illegal_bytes_of_a_target_are_refused_and_never_sent(path: bytes, query: bytes) -> None:
    # RFC 9112 3.2: a target has no whitespace, control or other byte that is not visible ASCII.
    illegal = re.compile(rb"[^!-~]")
    request = None
    refusal = HTTPException(200)
    try:
        request = targeted(b"/" + path, query, "", "")
    except HTTPException as exc:
        refusal = exc
    if request is not None:
        assert not illegal.search(request.extensions["target"])
    else:
        assert refusal.status_code == 400
        assert illegal.search(path + query) or is_path_traversal(b"/" + path)
