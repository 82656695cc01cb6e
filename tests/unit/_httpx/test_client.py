"""The client that remembers URLs builds the same requests as httpx's own."""

from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_upstream import client_lifespan
from asgi_upstream._httpx import client as caching
from asgi_upstream._httpx.client import URLCachingClient, client_class
from asgi_upstream._httpx.fast_path import direct_transport

TEXT = st.text("aé/%.:@?#&= [*\\é€", max_size=12)
BASES = st.sampled_from(
    ["", "http://a.example", "http://a.example/api/", "https://u:p@b.example:8443/x?y=1", "/api"]
)
URLS = st.one_of(
    TEXT,
    TEXT.map("/items/{}".format),
    TEXT.map("http://c.example/{}".format),
    st.sampled_from(
        ["", "/", "//d.example/x", "http://e.example", "HTTP://F.example:80/../x", "x:y"]
    ),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "content": st.sampled_from([b"body", "text"]),
        "params": st.sampled_from([{}, {"a": "b"}, {"a": ["1", "2"]}, None]),
        "headers": st.sampled_from([{"x-a": "1"}, {"Host": "other"}, None]),
        "cookies": st.sampled_from([{"c": "d"}, None]),
        "timeout": st.sampled_from([3, None, httpx.Timeout(1, read=2)]),
        "extensions": st.sampled_from([{"trace": None}, {"timeout": {}}]),
    },
)


def build(client: httpx.AsyncClient, method: str, url: Any, options: dict[str, Any]) -> object:
    """Return all that a request is sent with, or the error."""
    try:
        request = client.build_request(method, url, **options)
    except Exception as exc:
        return type(exc), str(exc)
    body = b"".join(request.stream) if isinstance(request.stream, httpx.ByteStream) else None
    return (
        request.method,
        request.url,
        request.url.raw_path,
        str(request.url),
        request.headers.raw,
        body,
        request.extensions,
    )


@settings(deadline=None)
@given(
    base=BASES,
    client_params=st.sampled_from([{}, {"key": "1"}]),
    calls=st.lists(st.tuples(st.sampled_from(["GET", "post", "PÜT"]), URLS, OPTIONS), max_size=4),
    other_base=BASES,
)
def test_caching_client_builds_the_same_requests_as_httpx(
    base: str, client_params: dict[str, str], calls: list[Any], other_base: str
) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    options: dict[str, Any] = {"base_url": base, "params": client_params, "transport": transport}
    cached, plain = client_class(httpx.AsyncClient)(**options), httpx.AsyncClient(**options)
    for new_base in (base, base, other_base):  # the second round has all URLs
        if new_base != base:
            cached.base_url = plain.base_url = httpx.URL(new_base)
        for method, url, request_options in calls:
            expected = build(plain, method, url, request_options)
            assert build(cached, method, url, request_options) == expected
            assert build(cached, method, url, request_options) == expected


@settings(deadline=None)
@given(url=URLS)
def test_caching_client_takes_url_objects(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return
    cached = client_class(httpx.AsyncClient)(base_url="http://a.example/api")
    plain = httpx.AsyncClient(base_url="http://a.example/api")
    assert build(cached, "GET", parsed, {}) == build(plain, "GET", parsed, {})


@pytest.mark.parametrize("url", ["/a?token=secret", "http://u:secret@a.example/", "/" + "a" * 300])
def test_urls_that_may_carry_secrets_are_not_remembered(url: str) -> None:
    client = client_class(httpx.AsyncClient)(base_url="http://a.example")
    assert isinstance(client, URLCachingClient)
    client.build_request("GET", url)
    client.build_request("GET", "/b", params={"token": "secret"})
    assert client._upstream_urls == {}
    client.build_request("GET", "/b")
    assert list(client._upstream_urls) == ["/b"]


def test_number_of_remembered_urls_is_bounded() -> None:
    client = client_class(httpx.AsyncClient)(base_url="http://a.example")
    assert isinstance(client, URLCachingClient)
    for number in range(caching.MAX_URLS + 10):
        client.build_request("GET", f"/{number}")
    assert len(client._upstream_urls) == 10


@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_lifespan_client_is_a_caching_async_client(library: Any) -> None:
    async with client_lifespan(library.AsyncClient, base_url="http://a.example")(None) as state:
        client: Any = state["client"]
        assert isinstance(client, library.AsyncClient)
        assert isinstance(client, URLCachingClient)
        request = client.build_request("GET", "/x")
        assert type(request) is library.Request
        assert direct_transport(client, request) is client._transport


@pytest.mark.anyio
async def test_lifespan_leaves_a_subclass_of_the_app_alone() -> None:
    class Subclass(httpx.AsyncClient):
        pass

    async with client_lifespan(Subclass)(None) as state:
        assert type(state["client"]) is Subclass


@pytest.mark.anyio
async def test_fast_path_sees_a_method_replaced_in_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_lifespan(base_url="http://a.example")(None) as state:
        client: Any = state["client"]
        monkeypatch.setattr(httpx.AsyncClient, "send", lambda *args, **kwargs: None)
        assert direct_transport(client, client.build_request("GET", "/x")) is None


def test_url_is_not_remembered_if_params_are_empty() -> None:
    """`params={}` drops the query of `base_url`."""
    client = client_class(httpx.AsyncClient)(base_url="http://a.example/x?y=1")
    assert client.build_request("GET", "", params={}).url == "http://a.example/x"
    assert client.build_request("GET", "").url.query == b"y=1/"
