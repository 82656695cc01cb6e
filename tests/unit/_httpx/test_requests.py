"""The URL that a forwarded request makes from its target."""

from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_upstream._httpx.requests import MAX_PLAIN_TARGET, copy_with_target

URLS = [
    "",
    "http://127.0.0.1:9",
    "https://u:p%40@a.example/base?a=b#c%20",
    "http://[::1]",
    "http://ä.é",
]
both_libraries = pytest.mark.parametrize("library", [httpx, httpx2])
targets = st.lists(
    st.sampled_from(["/", ".", "..", "?", "%2F", "%", "a:b", "[1]", "=", "+&", "#", "~", "|", "-"]),
    max_size=8,
).map(lambda items: ("/" + "".join(items)).encode())


@both_libraries
@given(target=targets, url=st.sampled_from(URLS))
def test_url_is_the_one_that_httpx_parses(library: Any, target: bytes, url: str) -> None:
    def describe(copy: Any) -> tuple[object, ...]:
        return type(copy), str(copy), copy.raw_path, copy.netloc, copy.userinfo, copy.fragment

    base = library.URL(url)
    try:
        expected = base.copy_with(raw_path=target)
    except library.InvalidURL:
        with pytest.raises(library.InvalidURL):
            copy_with_target(base, target, library)
        return
    copy = copy_with_target(base, target, library)
    assert describe(copy) == describe(expected)
    assert copy == expected
    assert str(base) == str(library.URL(url))


class ParsedURL:
    """A URL of another version of httpx."""

    def __init__(self, url: Any) -> None:
        pass

    def copy_with(self, *, raw_path: bytes) -> str:
        return f"parsed {raw_path.decode()}"


@both_libraries
def test_plain_target_is_not_parsed(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.URL, "copy_with", None)
    for target in ("/", "/v1/items/", "/a-b_c.txt?x=1&y=%20/..", "/a%2Fb;c"):
        copy = copy_with_target(library.URL("http://a"), target.encode(), library)
        assert str(copy) == f"http://a{target}"


def test_target_for_another_httpx_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "URL", ParsedURL)
    assert copy_with_target(ParsedURL(None), b"/a", httpx) == "parsed /a"


def test_target_longer_than_httpx_accepts_is_invalid() -> None:
    url = httpx.URL("http://a")
    assert copy_with_target(url, b"/" * MAX_PLAIN_TARGET, httpx)
    with pytest.raises(httpx.InvalidURL):
        copy_with_target(url, b"/" + b"a" * 65536, httpx)
