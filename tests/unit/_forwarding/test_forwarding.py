"""forward_request and ReverseProxy, between a caller and an upstream in memory.

What needs sockets, servers and malformed messages is in tests/integration; the rules for paths and
fields, each by its name, are in test_paths.py and test_request_headers.py."""

import inspect
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from asgi_upstream import (
    ReverseProxy,
    forward_request,
)
from tests.support.flavor import httpx
from tests.support.forwarding import (
    BASE,
    caller_of,
    client_of,
    request_of,
    target_of,
    values,
)

pytestmark = pytest.mark.virtual_time


def test_the_signatures_are_those_of_the_contract() -> None:
    parameters = inspect.signature(forward_request).parameters
    assert {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        "prefix": None,
        "url": None,
        "headers": None,
        "trust_forwarded_headers": False,
        "preserve_host": False,
        "body_timeout": 60.0,
    }
    assert [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        "client",
        "request",
    ]
    parameters = inspect.signature(ReverseProxy).parameters
    assert parameters["name"].default == "client"
    defaults = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert defaults == {
        "prefix": None,
        "methods": None,
        "headers": None,
        "trust_forwarded_headers": False,
        "preserve_host": False,
        "body_timeout": 60.0,
        "on_request": None,
        "rewrite_redirects": False,
        "rewrite_cookies": False,
        "max_message_bytes": 64 * 1024 * 1024,
        "ping_interval": None,
    }


def test_path_as_client_name_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"mount\('/api', ReverseProxy\(\)\).*prefix='/api'"):
        ReverseProxy("/api")


def test_url_as_client_name_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"client_lifespan\(base_url='https://api\.example'\)"):
        ReverseProxy("https://api.example")


def test_an_option_that_there_is_not_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="client_lifespan"):
        ReverseProxy(base_url="http://upstream")  # type: ignore[call-overload]


def test_a_client_in_place_of_its_name_is_refused_at_once() -> None:
    client: Any = httpx.AsyncClient()
    with pytest.raises(TypeError, match=r"name of a client, not httpx2?\.AsyncClient"):
        ReverseProxy(client)


def test_swapped_or_unawaited_arguments_are_refused() -> None:
    client, request = httpx.AsyncClient(base_url="http://upstream"), Request(caller_of("/").scope)
    forward: Any = forward_request
    with pytest.raises(TypeError, match=r"write forward_request\(client, request\)"):
        forward(request, client)
    unawaited: Any = client.get("/")
    with pytest.raises(TypeError, match="an un-awaited coroutine"):
        forward(unawaited, request)
    unawaited.close()


@pytest.mark.parametrize(
    "options", [{"deadline": -1}, {"transform": 3}, {"on_stream_error": b""}, {"status_code": 100}]
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=": give "):
        ReverseProxy(**options)


@pytest.mark.parametrize(
    "method",
    ["GET", "HEAD", "POST", "get", "Post", "PROPFIND", "M-SEARCH", "!#$%&'*+-.^_`|~09AZaz"],
)
def test_the_method_is_kept_also_its_case(method: str) -> None:
    assert forward_request(client_of(), request_of(method=method)).method == method


@pytest.mark.parametrize(
    ("base", "path", "target"),
    [
        (BASE, "/a", b"/a"),
        (BASE, "/", b"/"),
        (BASE + "/", "/a", b"/a"),
        (BASE + "/v1", "/a", b"/v1/a"),
        (BASE + "/v1/", "/a", b"/v1/a"),
        (BASE + "/v1/", "/", b"/v1/"),
        (BASE + "/v1/", "//a", b"/v1//a"),
        (BASE + "/X/", "/a", b"/X/a"),
        (BASE + "/caf%C3%A9/", "/a", b"/caf%C3%A9/a"),
    ],
)
def test_base_with_or_without_slash_precedes_the_path(base: str, path: str, target: bytes) -> None:
    assert target_of(forward_request(client_of(base_url=base), request_of(path))) == target


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/a?b=1", b"/a?b=1"),
        ("/a?b=%zz&&c[]=+&d;e='\"|{}", b"/a?b=%zz&&c[]=+&d;e='\"|{}"),
        ("/a?b=/../..", b"/a?b=/../.."),
        ("/a??", b"/a??"),
        ("/%2F%2f;x//y%00", b"/%2F%2f;x//y%00"),
    ],
)
def test_path_and_query_are_passed_on_byte_for_byte(path: str, target: bytes) -> None:
    assert target_of(forward_request(client_of(), request_of(path))) == target


@pytest.mark.parametrize(
    ("root_path", "app_root_path", "raw", "target"),
    [
        ("/api", "", "/api/a", b"/a"),
        ("/api", "", "/api", b"/"),
        ("/api", "", "/api/", b"/"),
        # A root_path of the server's: in the raw path, and not.
        ("/proxy/api", "/proxy", "/proxy/api/a", b"/a"),
        ("/proxy/api", "/proxy", "/api/a", b"/a"),
        ("/proxy", "/proxy", "/a", b"/a"),
        ("/proxy", "/proxy", "/proxy/a", b"/a"),
        ("/X/api", "/X/", "/X/api/a", b"/a"),
        ("/X/api", "/X/", "/api/a", b"/a"),
        ("/café", "", "/caf%C3%A9/a", b"/a"),
        ("/a b", "", "/a%20b/%20", b"/%20"),
        ("/outer/inner", "", "/outer/inner/a", b"/a"),
    ],
)
def test_the_mounts_path_is_cut_off(
    root_path: str, app_root_path: str, raw: str, target: bytes
) -> None:
    request = request_of(raw, root_path=root_path, app_root_path=app_root_path)
    assert target_of(forward_request(client_of(), request)) == target


@pytest.mark.parametrize("prefix", ["/api", "/api/", "/%61pi", "/ap%69"])
def test_a_prefix_is_cut_off_encoded_or_not(prefix: str) -> None:
    request = request_of("/api/a%2F?b")
    assert target_of(forward_request(client_of(), request, prefix=prefix)) == b"/a%2F?b"


@pytest.mark.parametrize("prefix", ["/café", "/caf%C3%A9", "/caf%c3%a9"])
def test_a_prefix_may_need_encoding(prefix: str) -> None:
    for raw in ("/caf%C3%A9/a", "/caf%c3%a9/a"):
        assert target_of(forward_request(client_of(), request_of(raw), prefix=prefix)) == b"/a"


@pytest.mark.parametrize("prefix", ["", "/"])
def test_an_empty_prefix_keeps_the_whole_path_also_in_a_mount(prefix: str) -> None:
    request = request_of("/api/a", root_path="/api")
    assert target_of(forward_request(client_of(), request, prefix=prefix)) == b"/api/a"


@pytest.mark.parametrize("prefix", ["/ap", "/apix", "/other", "api", "/api/a/b"])
def test_path_outside_the_prefix_is_a_value_error(prefix: str) -> None:
    with pytest.raises(ValueError, match="does not start with the prefix"):
        forward_request(client_of(), request_of("/api/a"), prefix=prefix)


@pytest.mark.parametrize(
    "path", ["/..", "/%2e%2e/a", "/a/..%2fb", "/..;/", "/..%5c", "/%252e%252e", "/api%2Fa"]
)
def test_a_path_that_tries_to_get_out_is_answered_400(path: str) -> None:
    prefix = "/api" if path.startswith("/api") else None
    with pytest.raises(HTTPException) as caught:
        forward_request(client_of(), request_of(path), prefix=prefix)
    assert (caught.value.status_code, caught.value.detail) == (400, "Invalid path")


@pytest.mark.parametrize("base", [BASE, BASE + "/v1/"])
@pytest.mark.parametrize("path", ["//evil", "/@evil", "/http://evil", "/:80/", "http://evil/", "/"])
def test_no_path_and_no_host_chooses_another_upstream(base: str, path: str) -> None:
    request = request_of(path, headers=[(b"host", b"evil"), (b"x-forwarded-host", b"evil")])
    outgoing = forward_request(client_of(base_url=base), request)
    assert (outgoing.url.scheme, outgoing.url.netloc) == ("http", b"up.example")
    assert values(outgoing, b"host") == [b"up.example"]
    assert target_of(outgoing).startswith(b"/v1/" if "v1" in base else b"/")


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/a%2Fb?c=%20d", BASE + "/a%2Fb?c=%20d"),
        ("/a/", BASE + "/a/"),
        ("/a", BASE + "/a"),
        ("/", BASE + "/"),
    ],
)
def test_the_url_is_printable_and_true_for_logs_hooks_and_mocks(path: str, url: str) -> None:
    outgoing = forward_request(client_of(), request_of(path))
    assert str(outgoing.url) == url
    assert outgoing.url.raw_path == target_of(outgoing)


@pytest.mark.parametrize(
    "path", ["/a[]|{}?'\"", "/" + "%20" * 30_000, "/a?" + "b" * 70_000, "/a#b"]
)
def test_target_that_httpx_would_change_is_sent_unchanged(
    path: str,
) -> None:
    """Also one that httpx could not print at all."""
    outgoing = forward_request(client_of(), request_of(path))
    assert target_of(outgoing) == path.encode()
    assert str(outgoing.url).startswith(BASE)
    assert str(outgoing.url).isprintable()


def test_options_for_the_whole_server_has_no_path_to_forward() -> None:
    with pytest.raises(HTTPException) as caught:
        forward_request(client_of(), request_of("*", "OPTIONS"))
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("/other", b"/v1/other?q=1"),
        ("other", b"/v1/other?q=1"),
        ("other/", b"/v1/other/?q=1"),
        ("/other?own=2", b"/v1/other?own=2"),
        ("http://up.example/v1/other", b"/v1/other?q=1"),
        ("http://UP.example:80/v1/other?own=2", b"/v1/other?own=2"),
        ("http://up.example/v1", b"/v1?q=1"),
        ("http://up.example/v1?own=2", b"/v1?own=2"),
        ("/X/a", b"/v1/X/a?q=1"),
        (httpx.URL("/other"), b"/v1/other?q=1"),
        (httpx.URL("/other?own=2"), b"/v1/other?own=2"),
        (httpx.URL("http://up.example/v1/other"), b"/v1/other?q=1"),
    ],
)
def test_url_selects_a_target_under_the_base(url: str | httpx.URL, target: bytes) -> None:
    """The query is that of the URL, or the caller's if the URL has none."""
    client = client_of(base_url=BASE + "/v1/")
    outgoing = forward_request(client, request_of("/api/a?q=1"), url=url)
    assert target_of(outgoing) == target
    assert outgoing.url.host == "up.example"
    assert values(outgoing, b"host") == [b"up.example"]


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/v1/a",
        "https://up.example/v1/a",
        "http://up.example:8080/v1/a",
        "http://up.example/v2/a",
        "http://up.example/v10",
        "http://up.example/",
        "http://up.example",
        "http://up.example/v1/../a",
        "http://up.example@other.example/v1/a",
        "http://up.example/v1/%2e%2e/a",
        "../a",
        "/../a",
        "a/%2e%2e/b",
        "//other.example/v1/a",
        "//other.example",
    ],
)
def test_url_as_a_str_may_not_leave_the_base(url: str) -> None:
    with pytest.raises(ValueError, match="url="):
        forward_request(client_of(base_url=BASE + "/v1"), request_of(), url=url)


def test_url_as_an_absolute_httpx_url_may_be_anywhere_on_purpose() -> None:
    url = httpx.URL("https://other.example:8443/x%2Fy")
    outgoing = forward_request(client_of(), request_of("/a?q=1"), url=url)
    assert str(outgoing.url) == "https://other.example:8443/x%2Fy?q=1"
    assert target_of(outgoing) == b"/x%2Fy?q=1"
    assert values(outgoing, b"host") == [b"other.example:8443"]


@pytest.mark.parametrize("url", ["item:5", "a:b/c"])
def test_url_with_colon_in_first_segment_is_refused_or_whole(
    url: str,
) -> None:
    # httpx, as RFC 3986 4.2, takes the part before the colon for a scheme.
    try:
        target = target_of(forward_request(client_of(), request_of(), url=url))
    except ValueError:
        return
    assert target == b"/" + url.encode()
