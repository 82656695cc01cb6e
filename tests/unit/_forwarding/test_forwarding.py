"""forward_request and ReverseProxy, between a caller and an upstream in memory.

What needs sockets, servers and malformed messages is in tests/integration; the rules for paths and
fields, each by its name, are in test_paths.py and test_request_headers.py.
"""

import functools
import gzip
import inspect
import typing
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_httpx import HTTPXMock
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_upstream import (
    BufferedResponse,
    ReverseProxy,
    StreamedResponse,
    UpstreamError,
    forward_request,
)
from asgi_upstream.dependencies import _cached_dependency
from tests.support.asgi import Caller, Script, Upstream, answering
from tests.support.examples import count_examples

pytestmark = pytest.mark.virtual_time

BASE = "http://up.example"
Fields = Iterable[tuple[bytes, bytes]]


def client_of(upstream: Upstream | None = None, **options: Any) -> httpx.AsyncClient:
    options.setdefault("base_url", BASE)
    return httpx.AsyncClient(transport=upstream or answering(), **options)


def caller_of(
    path: str = "/",
    method: str = "GET",
    *,
    headers: Fields = (),
    body: Sequence[bytes] = (),
    client: httpx.AsyncClient | None = None,
    **scope: Any,
) -> Caller:
    """Who asks for `path`, which has the query with it, as a server passes it on."""
    raw, _, query = path.encode("latin-1").partition(b"?")
    caller = Caller(method, headers=[(b"host", b"app.example"), *headers], body=body)
    path = unquote(raw.decode("latin-1"))
    caller.scope.update(path=path, raw_path=raw, query_string=query, **scope)
    if client is not None:
        caller.scope["state"] = {"client": client}
    return caller


def request_of(path: str = "/", method: str = "GET", **options: Any) -> Request:
    caller = caller_of(path, method, **options)
    return Request(caller.scope, caller.receive)


def target_of(request: httpx.Request) -> bytes:
    target: bytes = request.extensions["target"]
    return target


def values(request: httpx.Request, name: bytes) -> list[bytes]:
    return [value for key, value in request.headers.raw if key.lower() == name]


async def called(caller: Caller, app: ASGIApp) -> Caller:
    with anyio.fail_after(60):
        return await caller.call(app)


async def forwarded(
    upstream: Upstream,
    path: str = "/",
    method: str = "GET",
    *,
    headers: Fields = (),
    body: Sequence[bytes] = (),
    scope: dict[str, Any] | None = None,
    **options: Any,
) -> Caller:
    """The caller, after a ReverseProxy that is the whole app forwarded its request."""
    caller = caller_of(
        path, method, headers=headers, body=body, client=client_of(upstream), **(scope or {})
    )
    try:
        return await called(caller, ReverseProxy(**options))
    finally:
        assert upstream.open == 0


# --- the contract --------------------------------------------------------------------------


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


def test_a_path_in_place_of_a_clients_name_is_refused_with_where_it_belongs() -> None:
    with pytest.raises(ValueError, match=r"mount\('/api', ReverseProxy\(\)\).*prefix='/api'"):
        ReverseProxy("/api")


def test_a_url_in_place_of_a_clients_name_is_refused_with_where_it_belongs() -> None:
    with pytest.raises(ValueError, match=r"client_lifespan\(base_url='https://api\.example'\)"):
        ReverseProxy("https://api.example")


def test_an_option_that_there_is_not_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="client_lifespan"):
        ReverseProxy(base_url="http://upstream")  # type: ignore[call-overload]


def test_a_client_in_place_of_its_name_is_refused_at_once() -> None:
    client: Any = httpx.AsyncClient()
    with pytest.raises(TypeError, match=r"name of a client, not httpx2?\.AsyncClient"):
        ReverseProxy(client)


def test_client_and_request_in_the_wrong_order_or_not_awaited_are_refused() -> None:
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


# --- method, target, url -------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "get", "Post", "PROPFIND", "M-SEARCH", "X"]
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
        (BASE + "/caf%C3%A9/", "/a", b"/caf%C3%A9/a"),
    ],
)
def test_the_base_comes_before_the_path_with_or_without_a_slash_at_its_end(
    base: str, path: str, target: bytes
) -> None:
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
def test_a_path_that_does_not_start_with_the_prefix_is_the_programmers_error(prefix: str) -> None:
    with pytest.raises(ValueError, match="does not start with the prefix"):
        forward_request(client_of(), request_of("/api/a"), prefix=prefix)


@pytest.mark.parametrize(
    "path", ["/..", "/%2e%2e/a", "/a/..%2fb", "/..;/", "/..%5c", "/%252e%252e", "/api%2Fa"]
)
def test_a_path_that_tries_to_get_out_is_answered_400(path: str) -> None:
    prefix = "/api" if path.startswith("/api") else None
    with pytest.raises(HTTPException) as caught:
        forward_request(client_of(), request_of(path), prefix=prefix)
    assert caught.value.status_code == 400


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
def test_also_a_target_that_httpx_would_print_otherwise_or_not_at_all_is_sent_as_it_is(
    path: str,
) -> None:
    outgoing = forward_request(client_of(), request_of(path))
    assert target_of(outgoing) == path.encode()
    assert str(outgoing.url).startswith(BASE)
    assert str(outgoing.url).isprintable()


def test_options_for_the_whole_server_has_no_path_to_forward() -> None:
    with pytest.raises(HTTPException) as caught:
        forward_request(client_of(), request_of("*", "OPTIONS"))
    assert caught.value.status_code == 400


# --- url= ----------------------------------------------------------------------------------


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
        (httpx.URL("/other"), b"/v1/other?q=1"),
        (httpx.URL("/other?own=2"), b"/v1/other?own=2"),
        (httpx.URL("http://up.example/v1/other"), b"/v1/other?q=1"),
    ],
)
def test_url_is_another_target_under_the_base_with_its_own_query_or_the_callers(
    url: str | httpx.URL, target: bytes
) -> None:
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
def test_a_url_whose_first_segment_has_a_colon_is_refused_or_sent_whole_and_no_guess(
    url: str,
) -> None:
    # httpx, as RFC 3986 4.2, takes the part before the colon for a scheme.
    try:
        target = target_of(forward_request(client_of(), request_of(), url=url))
    except ValueError:
        return
    assert target == b"/" + url.encode()


# --- params on the client ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/a", b"/a?key=secret"),
        ("/a?b=1", b"/a?b=1&key=secret"),
        ("/a?key=spoofed&b=1&key=again", b"/a?b=1&key=secret"),
        ("/a?k%65y=spoofed", b"/a?key=secret"),
        ("/a?key", b"/a?key=secret"),
        ("/a?KEY=1&keys=2&b=%zz+", b"/a?KEY=1&keys=2&b=%zz+&key=secret"),
    ],
)
def test_params_of_the_client_are_sent_and_win(path: str, target: bytes) -> None:
    client = client_of(params={"key": "secret"})
    outgoing = forward_request(client, request_of(path))
    assert target_of(outgoing) == target
    assert outgoing.url.params.get_list("key") == ["secret"]


def test_params_of_the_client_win_by_names_that_need_encoding() -> None:
    client = client_of(params={"clé d": "secret"})
    for name in ("cl%C3%A9+d", "cl%c3%a9%20d"):
        outgoing = forward_request(client, request_of(f"/?{name}=spoofed&b=1"))
        assert target_of(outgoing) == b"/?b=1&cl%C3%A9+d=secret"


def test_params_of_the_client_leave_the_other_bytes_of_the_query_as_they_are() -> None:
    outgoing = forward_request(client_of(params={"k": "v"}), request_of("/?a=1&&b=2&"))
    assert target_of(outgoing).startswith(b"/?a=1&&b=2&")


# --- what the author put on the client -----------------------------------------------------


def test_the_clients_headers_are_sent_and_win_also_over_repeated_fields_and_twins() -> None:
    client = client_of(headers={"X-Api-Key": "secret", "User-Agent": "gateway/1"})
    caller = [
        (b"x-api-key", b"spoofed"),
        (b"x_api_key", b"spoofed"),
        (b"x-api_key", b"spoofed"),
        (b"user-agent", b"curl"),
        (b"x-api-key", b"again"),
        (b"x-api-keys", b"kept"),
    ]
    outgoing = forward_request(client, request_of(headers=caller))
    assert values(outgoing, b"x-api-key") == [b"secret"]
    assert values(outgoing, b"user-agent") == [b"gateway/1"]
    assert values(outgoing, b"x-api-keys") == [b"kept"]
    assert not any(b"_" in name for name, _ in outgoing.headers.raw)


def test_a_header_of_the_clients_with_an_underscore_wins_too() -> None:
    client = client_of(headers={"api_key": "secret"})
    caller = [(b"api_key", b"spoofed"), (b"api-key", b"spoofed"), (b"x", b"1")]
    outgoing = forward_request(client, request_of(headers=caller))
    assert [v for n, v in outgoing.headers.raw if n.replace(b"_", b"-") == b"api-key"] == [
        b"secret"
    ]


def test_repeated_headers_of_the_clients_are_all_sent() -> None:
    client = client_of(headers=[("x-one", "1"), ("x-one", "2")])
    outgoing = forward_request(client, request_of(headers=[(b"x-one", b"3")]))
    assert values(outgoing, b"x-one") == [b"1", b"2"]


def test_a_host_of_the_clients_wins_over_the_upstreams_name() -> None:
    client = client_of(headers={"Host": "inner.example"})
    assert values(forward_request(client, request_of()), b"host") == [b"inner.example"]


def test_what_httpx_adds_by_itself_is_not_sent() -> None:
    outgoing = forward_request(client_of(), request_of())
    assert sorted(name for name, _ in outgoing.headers.raw) == [
        b"host",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    ]


def test_what_httpx_would_add_is_the_callers_where_it_sent_it() -> None:
    caller = [(b"user-agent", b"curl"), (b"accept", b"a"), (b"accept-encoding", b"br")]
    outgoing = forward_request(client_of(), request_of(headers=caller))
    for name, value in caller:
        assert values(outgoing, name) == [value]


def test_cookies_of_the_client_join_the_callers_and_win() -> None:
    client = client_of(cookies={"session": "own"})
    outgoing = forward_request(
        client, request_of(headers=[(b"cookie", b"a=1; session=spoofed"), (b"cookie", b"b=2")])
    )
    assert values(outgoing, b"cookie") == [b"a=1; b=2; session=own"]


def test_timeouts_of_the_client_apply() -> None:
    client = client_of(timeout=httpx.Timeout(3, connect=1))
    assert forward_request(client, request_of()).extensions["timeout"] == {
        "connect": 1,
        "read": 3,
        "write": 3,
        "pool": 3,
    }


# --- headers= ------------------------------------------------------------------------------


def test_headers_as_a_mapping_set_replace_and_with_none_remove() -> None:
    client = client_of(headers={"x-key": "own", "x-other": "own"})
    caller = [(b"x-one", b"1"), (b"x-one", b"2"), (b"cookie", b"a=1"), (b"x-two", b"3")]
    outgoing = forward_request(
        client,
        request_of(headers=caller),
        headers={"X-ONE": "set", "Cookie": None, "x-key": None, "x-new": "caf\xe9", "x-none": None},
    )
    assert values(outgoing, b"x-one") == [b"set"]
    assert values(outgoing, b"cookie") == []
    assert values(outgoing, b"x-key") == []
    assert values(outgoing, b"x-other") == [b"own"]
    assert values(outgoing, b"x-new") == [b"caf\xe9"]
    assert values(outgoing, b"x-two") == [b"3"]


def test_headers_may_remove_what_this_server_says_of_the_caller() -> None:
    outgoing = forward_request(client_of(), request_of(), headers={"x-forwarded-for": None})
    assert not values(outgoing, b"x-forwarded-for")


def test_headers_as_a_function_get_the_list_to_be_sent_and_return_the_one_to_send() -> None:
    seen: list[tuple[bytes, bytes]] = []

    def change(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        seen.extend(fields)
        return [*(field for field in fields if field[0] != b"x-one"), (b"X-New", b"1")]

    client = client_of(headers={"x-key": "own"})
    request = request_of(headers=[(b"x-one", b"1"), (b"x-two", b"2")])
    outgoing = forward_request(client, request, headers=change)
    assert (b"host", b"up.example") in seen
    assert (b"x-key", b"own") in seen
    assert (b"x-forwarded-for", b"127.0.0.1") in seen
    assert not values(outgoing, b"x-one")
    assert values(outgoing, b"x-two") == [b"2"]
    assert values(outgoing, b"x-new") == [b"1"]


@pytest.mark.parametrize("value", ["a\r\nx-admin: 1", "a\n", "a\0"])
def test_a_line_break_that_an_author_puts_in_a_header_is_refused(value: str) -> None:
    # The value may be a caller's, from a decoded path or a JSON body.
    with pytest.raises((ValueError, HTTPException)):
        forward_request(client_of(), request_of(), headers={"x-name": value})


def test_trust_forwarded_appends_to_what_the_proxy_said() -> None:
    request = request_of(headers=[(b"x-forwarded-for", b"203.0.113.1"), (b"x-real-ip", b"y")])
    trusted = forward_request(client_of(), request, trust_forwarded_headers=True)
    assert values(trusted, b"x-forwarded-for") == [b"203.0.113.1, 127.0.0.1"]
    assert values(trusted, b"x-real-ip") == [b"y"]
    untrusted = forward_request(client_of(), request)
    assert values(untrusted, b"x-forwarded-for") == [b"127.0.0.1"]
    assert values(untrusted, b"x-real-ip") == []


# --- framing and body ----------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PATCH", "X"])
async def test_a_body_of_known_length_is_sent_with_it(method: str) -> None:
    upstream = answering(b"ok")
    await forwarded(
        upstream, "/", method, headers=[(b"content-length", b"6")], body=[b"ab", b"", b"cdef"]
    )
    assert upstream.bodies == [b"abcdef"]
    assert values(upstream.requests[0], b"content-length") == [b"6"]
    assert not values(upstream.requests[0], b"transfer-encoding")


@pytest.mark.anyio
async def test_a_body_of_unknown_length_is_sent_in_chunks() -> None:
    upstream = answering(b"ok")
    caller_sent = [(b"transfer-encoding", b"chunked"), (b"content-length", b"6")]
    await forwarded(upstream, "/", "POST", headers=caller_sent, body=[b"ab", b"cdef"])
    assert upstream.bodies == [b"abcdef"]
    assert values(upstream.requests[0], b"transfer-encoding") == [b"chunked"]
    assert not values(upstream.requests[0], b"content-length")


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "X"])
async def test_no_body_is_invented_where_the_caller_sent_none(method: str) -> None:
    upstream = answering()
    await forwarded(upstream, "/", method)
    assert upstream.bodies == [b""]
    assert not values(upstream.requests[0], b"content-length")
    assert not values(upstream.requests[0], b"transfer-encoding")


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_length_of_zero_stays(method: str) -> None:
    upstream = answering()
    await forwarded(upstream, "/", method, headers=[(b"content-length", b"0")])
    assert values(upstream.requests[0], b"content-length") == [b"0"]


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["2", "3"])
async def test_an_http_2_caller_that_names_no_length_gets_chunks_upstream(version: str) -> None:
    upstream = answering(b"ok")
    await forwarded(upstream, "/", "POST", body=[b"ab", b"c"], scope={"http_version": version})
    assert upstream.bodies == [b"abc"]
    assert values(upstream.requests[0], b"transfer-encoding") == [b"chunked"]


@pytest.mark.anyio
async def test_a_length_that_connection_names_does_not_cost_the_body() -> None:
    upstream = answering(b"ok")
    headers = [(b"connection", b"content-length"), (b"content-length", b"3")]
    await forwarded(upstream, "/", "POST", headers=headers, body=[b"abc"])
    assert upstream.bodies == [b"abc"]


@pytest.mark.anyio
async def test_a_caller_who_leaves_in_the_upload_ends_the_exchange() -> None:
    upstream = answering(b"ok")
    caller = caller_of("/", "POST", headers=[(b"content-length", b"6")], client=client_of(upstream))
    caller = _leaving(caller, [b"ab"])
    await called(caller, ReverseProxy())
    assert upstream.open == 0
    assert upstream.bodies == []
    assert not caller.messages or caller.status == 499


def _leaving(caller: Caller, parts: list[bytes]) -> Caller:
    leaving = Caller("POST", body=parts, body_is_whole=False)
    leaving.scope.update(caller.scope)
    leaving.left.set()
    return leaving


async def endpoint_after(read: str, request: Request) -> Response:
    if read == "body":
        await request.body()
    elif read == "json":
        await request.json()
    elif read == "stream":
        async for _ in request.stream():
            pass
    client: httpx.AsyncClient = request.state.client
    return StreamedResponse(client, forward_request(client, request))


@pytest.mark.anyio
@pytest.mark.parametrize("read", ["nothing", "body", "json"])
async def test_a_body_that_the_endpoint_read_and_kept_is_forwarded(read: str) -> None:
    upstream = answering(b"ok")
    endpoint = functools.partial(endpoint_after, read)
    app = Starlette(routes=[Route("/", endpoint, name="reads", methods=["POST"])])
    caller = caller_of(
        "/",
        "POST",
        headers=[(b"content-length", b"9")],
        body=[b'{"a"', b": 12}"[:5]],
        client=client_of(upstream),
    )
    await called(caller, app)
    assert caller.status == 200
    assert upstream.bodies == [b'{"a": 12}']


@pytest.mark.anyio
async def test_a_body_that_the_endpoint_read_as_a_stream_is_gone_and_the_error_says_so() -> None:
    upstream = answering(b"ok")
    endpoint = functools.partial(endpoint_after, "stream")
    app = Starlette(routes=[Route("/", endpoint, name="reads")])
    caller = caller_of(
        "/", headers=[(b"content-length", b"3")], body=[b"abc"], client=client_of(upstream)
    )
    with pytest.raises(RuntimeError, match="body was consumed before forward_request"):
        await called(caller, app)
    assert upstream.open == 0


@pytest.mark.anyio
@pytest.mark.parametrize("middleware_reads", [False, True])
async def test_a_body_that_middleware_read_is_forwarded_by_the_app_below(
    middleware_reads: bool,
) -> None:
    class Reading(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            if middleware_reads:
                assert await request.body() == b"abc"
            return await call_next(request)

    upstream = answering(b"ok")
    app = Starlette(routes=[Mount("/api", ReverseProxy())], middleware=[Middleware(Reading)])
    caller = caller_of(
        "/api/a",
        "POST",
        headers=[(b"content-length", b"3")],
        body=[b"ab", b"c"],
        client=client_of(upstream),
    )
    await called(caller, app)
    assert caller.body == b"ok"
    assert upstream.bodies == [b"abc"]


@pytest.mark.anyio
async def test_a_response_called_twice_can_send_a_streamed_body_only_once_and_says_so() -> None:
    upstream = answering(b"ok")
    client = client_of(upstream)
    request = request_of("/", "POST", headers=[(b"content-length", b"3")], body=[b"abc"])
    response = StreamedResponse(client, forward_request(client, request))
    assert (await called(Caller(), response)).status == 200
    with pytest.raises(RuntimeError, match="already been consumed"):
        await called(Caller(), response)


@pytest.mark.anyio
async def test_a_response_of_a_bodyless_request_can_be_called_again() -> None:
    upstream = Upstream(_ok)
    client = client_of(upstream)
    response = StreamedResponse(client, forward_request(client, request_of()))
    for _ in range(2):
        assert (await called(Caller(), response)).status == 200


@pytest.mark.anyio
async def test_a_buffered_response_takes_a_forwarded_request_too() -> None:
    upstream = answering(b"on", b"e")
    client = client_of(upstream)
    request = request_of("/", "POST", headers=[(b"content-length", b"3")], body=[b"abc"])
    caller = await called(Caller(), BufferedResponse(client, forward_request(client, request)))
    assert (caller.body, caller.values("content-length")) == (b"one", ["3"])
    assert upstream.bodies == [b"abc"]


async def _ok(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=Script(b"ok"))


# --- auth, hooks, mocks, redirects ---------------------------------------------------------


@pytest.mark.anyio
async def test_basic_auth_of_the_client_wins_over_the_callers_authorization() -> None:
    upstream = answering(b"ok")
    caller = caller_of(
        headers=[(b"authorization", b"Bearer theirs"), (b"authorization", b"again")],
        client=client_of(upstream, auth=("user", "pw")),
    )
    await called(caller, ReverseProxy())
    assert values(upstream.requests[0], b"authorization") == [b"Basic dXNlcjpwdw=="]


@pytest.mark.anyio
async def test_without_auth_on_the_client_the_callers_authorization_passes() -> None:
    upstream = answering(b"ok")
    await forwarded(upstream, headers=[(b"authorization", b"Bearer theirs")])
    assert values(upstream.requests[0], b"authorization") == [b"Bearer theirs"]


class SecondTry(httpx.Auth):
    """Asks again with a token when it is refused."""

    def auth_flow(
        self, request: httpx.Request
    ) -> typing.Generator[httpx.Request, httpx.Response, None]:
        response = yield request
        if response.status_code == 401:
            request.headers["authorization"] = "Bearer token"
            yield request


class Signed(httpx.Auth):
    requires_request_body = True

    def auth_flow(
        self, request: httpx.Request
    ) -> typing.Generator[httpx.Request, httpx.Response, None]:
        request.headers["x-signed"] = str(len(request.content))
        yield request


class KeyInQuery(httpx.Auth):
    def auth_flow(
        self, request: httpx.Request
    ) -> typing.Generator[httpx.Request, httpx.Response, None]:
        request.url = request.url.copy_set_param("key", "secret")
        yield request


async def _asks_for_a_token(request: httpx.Request) -> httpx.Response:
    is_known = request.headers.get("authorization") == "Bearer token"
    return httpx.Response(200 if is_known else 401, stream=Script(b"ok"))


@pytest.mark.anyio
async def test_an_auth_flow_may_send_a_bodyless_request_again() -> None:
    upstream = Upstream(_asks_for_a_token)
    caller = caller_of("/a%2Fb", client=client_of(upstream, auth=SecondTry()))
    await called(caller, ReverseProxy())
    assert caller.status == 200
    assert [target_of(request) for request in upstream.requests] == [b"/a%2Fb"] * 2


@pytest.mark.anyio
async def test_an_auth_flow_cannot_send_a_streamed_body_again_and_the_error_says_so() -> None:
    upstream = Upstream(_asks_for_a_token)
    caller = caller_of(
        "/",
        "POST",
        headers=[(b"content-length", b"3")],
        body=[b"abc"],
        client=client_of(upstream, auth=SecondTry()),
    )
    with pytest.raises(RuntimeError, match="already been consumed"):
        await called(caller, ReverseProxy())
    assert upstream.open == 0


@pytest.mark.anyio
async def test_an_auth_flow_may_read_the_body_and_it_is_still_sent() -> None:
    upstream = answering(b"ok")
    caller = caller_of(
        "/",
        "POST",
        headers=[(b"content-length", b"3")],
        body=[b"ab", b"c"],
        client=client_of(upstream, auth=Signed()),
    )
    await called(caller, ReverseProxy())
    assert values(upstream.requests[0], b"x-signed") == [b"3"]
    assert values(upstream.requests[0], b"content-length") == [b"3"]
    assert upstream.bodies == [b"abc"]


@pytest.mark.anyio
async def test_an_auth_that_changes_the_url_changes_what_is_sent() -> None:
    # What is sent is the target extension where there is one, and else the URL (httpcore).
    upstream = answering(b"ok")
    caller = caller_of("/a?b=1", client=client_of(upstream, auth=KeyInQuery()))
    await called(caller, ReverseProxy())
    sent = upstream.requests[0]
    assert b"key=secret" in sent.extensions.get("target", sent.url.raw_path)


@pytest.mark.anyio
async def test_event_hooks_of_the_client_see_the_true_request() -> None:
    seen: list[str] = []

    async def on_request(request: httpx.Request) -> None:
        seen.append(f"{request.method} {request.url}")
        request.headers["x-hook"] = "1"

    async def on_response(response: httpx.Response) -> None:
        seen.append(str(response.status_code))

    upstream = answering(b"ok")
    hooks = {"request": [on_request], "response": [on_response]}
    caller = caller_of("/api/a%2Fb?c", client=client_of(upstream, event_hooks=hooks))
    await called(caller, ReverseProxy(prefix="/api"))
    assert seen == [f"GET {BASE}/a%2Fb?c", "200"]
    assert values(upstream.requests[0], b"x-hook") == [b"1"]


@pytest.mark.anyio
async def test_a_hook_that_raises_for_status_is_answered_502() -> None:
    async def on_response(response: httpx.Response) -> None:
        response.raise_for_status()

    upstream = answering(b"no", status=404)
    hooks: dict[str, list[Any]] = {"response": [on_response]}
    caller = caller_of(client=client_of(upstream, event_hooks=hooks))
    await called(caller, ReverseProxy())
    assert caller.status == 502
    assert upstream.open == 0


@pytest.mark.anyio
async def test_a_mock_transport_sees_the_request() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=f"{request.method} {request.url.path}")

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=BASE)
    caller = await called(caller_of("/a/b", client=client), ReverseProxy())
    assert caller.body == b"GET /a/b"


@pytest.mark.anyio
async def test_pytest_httpx_matches_the_url_the_headers_and_the_body(
    httpx_mock: HTTPXMock,
) -> None:
    httpx_mock.add_response(
        method="POST",
        url=BASE + "/a%2Fb?c=1",
        match_content=b"abc",
        match_headers={"x-one": "1"},
        text="mocked",
    )
    async with httpx.AsyncClient(base_url=BASE) as client:
        caller = caller_of(
            "/a%2Fb?c=1",
            "POST",
            headers=[(b"x-one", b"1"), (b"content-length", b"3")],
            body=[b"abc"],
            client=client,
        )
        await called(caller, ReverseProxy())
    assert caller.body == b"mocked"


@pytest.mark.anyio
@pytest.mark.parametrize("body", [[], [b"abc"]])
@pytest.mark.parametrize("to", ["/b", "http://other.example/b"])
async def test_a_redirect_is_the_callers_to_follow_whatever_the_client_is_told(
    to: str, body: list[bytes]
) -> None:
    upstream = answering(status=307, headers=[("location", to)])
    caller = caller_of(
        "/a",
        "POST",
        headers=[(b"content-length", b"3")] if body else [],
        body=body,
        client=client_of(upstream, follow_redirects=True),
    )
    await called(caller, ReverseProxy())
    assert (caller.status, caller.values("location")) == (307, [to])
    assert len(upstream.requests) == 1


@pytest.mark.anyio
async def test_an_author_who_sends_it_and_follows_redirects_gets_to_where_they_lead() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        # As httpcore does, which sends the target extension where there is one.
        target = request.extensions.get("target", request.url.raw_path)
        if target == b"/a":
            return httpx.Response(302, headers={"location": "/b"}, stream=Script())
        return httpx.Response(200, stream=Script(target))

    client = client_of(Upstream(answer), follow_redirects=True)
    response = await client.send(forward_request(client, request_of("/a")))
    assert (response.status_code, response.content) == (200, b"/b")


# --- ReverseProxy: which requests ------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_connect_and_trace_are_never_forwarded(method: str) -> None:
    upstream = answering()
    for methods in (None, [method]):
        caller = await forwarded(upstream, "/", method, methods=methods)
        assert caller.status == 405
        assert method not in caller.values("allow")
    assert upstream.requests == []


@pytest.mark.anyio
async def test_allow_of_a_405_does_not_say_that_no_method_at_all_is_allowed() -> None:
    # RFC 9110 10.2.1: an empty Allow says just that.
    caller = await forwarded(answering(), "/", "TRACE")
    assert caller.values("allow") != [""]


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PATCH", "PROPFIND", "X"])
async def test_every_other_method_is_forwarded_by_default(method: str) -> None:
    upstream = answering()
    assert (await forwarded(upstream, "/", method)).status == 200
    assert upstream.requests[0].method == method


@pytest.mark.anyio
async def test_methods_that_are_not_given_are_answered_405_with_those_that_are() -> None:
    upstream = answering()
    for method in ("POST", "get", "X"):
        caller = await forwarded(upstream, "/", method, methods={"GET", "HEAD"})
        assert (caller.status, caller.values("allow")) == (405, ["GET, HEAD"])
    assert upstream.requests == []
    assert (await forwarded(upstream, "/", "HEAD", methods={"GET", "HEAD"})).status == 200


@pytest.mark.anyio
async def test_a_head_is_forwarded_as_one_and_answered_with_its_length() -> None:
    upstream = answering(headers=[("content-length", "12")])
    caller = await forwarded(upstream, "/", "HEAD")
    assert upstream.requests[0].method == "HEAD"
    assert (caller.values("content-length"), caller.body) == (["12"], b"")


@pytest.mark.anyio
async def test_options_for_the_whole_server_is_answered_400() -> None:
    upstream = answering()
    assert (await forwarded(upstream, "*", "OPTIONS")).status == 400
    assert upstream.requests == []


@pytest.mark.anyio
async def test_as_the_whole_app_it_answers_the_lifespan() -> None:
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await ReverseProxy()({"type": "lifespan", "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# --- ReverseProxy: which upstream ------------------------------------------------------------


async def _by_header(connection: HTTPConnection) -> str:
    return connection.headers["x-tenant"]


@pytest.mark.anyio
@pytest.mark.parametrize("name", [_by_header, lambda c: c.headers["x-tenant"]])
async def test_the_client_may_be_chosen_for_each_request(name: Any) -> None:
    upstreams = {"one": answering(b"1"), "two": answering(b"2")}
    state = {key: client_of(upstream) for key, upstream in upstreams.items()}
    for tenant, body in (("two", b"2"), ("one", b"1")):
        caller = caller_of(headers=[(b"x-tenant", tenant.encode())], state=state)
        await called(caller, ReverseProxy(name))
        assert caller.body == body


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["none", _by_header, lambda c: c.headers["x-tenant"]])
async def test_a_name_that_no_client_has_is_an_error_that_names_it(name: Any) -> None:
    caller = caller_of(headers=[(b"x-tenant", b"none")], client=client_of())
    with pytest.raises(RuntimeError, match="no client named 'none'"):
        await called(caller, ReverseProxy(name))


@pytest.mark.anyio
async def test_names_that_callers_choose_are_not_kept_for_ever() -> None:
    before = _cached_dependency.cache_info().currsize
    for _ in range(20):
        tenant = uuid.uuid4().hex.encode()
        caller = caller_of(headers=[(b"x-tenant", tenant)], client=client_of())
        with pytest.raises(RuntimeError):
            await called(caller, ReverseProxy(_by_header))
    assert _cached_dependency.cache_info().currsize == before


@pytest.mark.anyio
async def test_a_name_function_may_refuse_the_caller() -> None:
    def name(connection: HTTPConnection) -> str:
        raise HTTPException(401, headers={"www-authenticate": "Basic"})

    upstream = answering()
    caller = await forwarded(upstream, name=name)
    assert (caller.status, caller.values("www-authenticate")) == (401, ["Basic"])
    assert upstream.requests == []


# --- ReverseProxy: on_request ----------------------------------------------------------------


@pytest.mark.anyio
async def test_on_request_may_change_the_request() -> None:
    def change(request: httpx.Request) -> None:
        request.headers["x-one"] = "changed"
        del request.headers["x-two"]

    upstream = answering()
    await forwarded(upstream, on_request=change, headers=[(b"x-one", b"1"), (b"x-two", b"2")])
    assert values(upstream.requests[0], b"x-one") == [b"changed"]
    assert not values(upstream.requests[0], b"x-two")


@pytest.mark.anyio
async def test_on_request_that_changes_the_url_changes_what_is_sent() -> None:
    def change(request: httpx.Request) -> None:
        request.url = request.url.copy_with(path="/changed")

    upstream = answering()
    await forwarded(upstream, "/a", on_request=change)
    sent = upstream.requests[0]
    # What httpcore would send.
    assert sent.extensions.get("target", sent.url.raw_path) == b"/changed"


@pytest.mark.anyio
async def test_on_request_may_be_async_and_replace_the_request() -> None:
    async def replace(request: httpx.Request) -> httpx.Request:
        return httpx.Request("PUT", BASE + "/replaced", content=b"own")

    upstream = answering(b"ok")
    caller = await forwarded(upstream, "/a", on_request=replace)
    assert caller.body == b"ok"
    assert (upstream.requests[0].method, upstream.requests[0].url.path) == ("PUT", "/replaced")
    assert upstream.bodies == [b"own"]


@pytest.mark.anyio
async def test_on_request_may_answer_by_itself() -> None:
    upstream = answering()
    caller = await forwarded(upstream, on_request=lambda r: JSONResponse({"a": 1}, 429))
    assert (caller.status, caller.body) == (429, b'{"a":1}')
    assert upstream.requests == []


@pytest.mark.anyio
async def test_on_request_may_raise_what_is_answered() -> None:
    def refuse(request: httpx.Request) -> None:
        raise HTTPException(403, "No", {"x-why": "because"})

    upstream = answering()
    caller = await forwarded(upstream, on_request=refuse)
    assert (caller.status, caller.body, caller.values("x-why")) == (403, b"No", ["because"])
    assert upstream.requests == []


@pytest.mark.anyio
@pytest.mark.parametrize("junk", ["a", 1, {"a": 1}, "", 0, False, {}])
async def test_on_request_that_returns_junk_is_an_error_and_nothing_is_sent(junk: Any) -> None:
    upstream = answering()
    with pytest.raises(TypeError):
        await forwarded(upstream, on_request=lambda request: junk)
    assert upstream.requests == []


# --- ReverseProxy: the response --------------------------------------------------------------


@pytest.mark.anyio
async def test_response_options_are_passed_on() -> None:
    packed = gzip.compress(b"plain")
    fields = [("content-encoding", "gzip")]
    caller = await forwarded(answering(packed, headers=fields), decode=True, status_code=299)
    assert (caller.status, caller.body) == (299, b"plain")
    assert not caller.values("content-encoding")

    async def louder(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in body:
            yield part.upper()

    assert (await forwarded(answering(b"a", b"b"), transform=louder)).body == b"AB"
    caller = await forwarded(answering(b"a"), media_type="text/x-own")
    assert caller.values("content-type") == ["text/x-own; charset=utf-8"]


@pytest.mark.anyio
async def test_a_deadline_is_passed_on() -> None:
    assert (await forwarded(answering(before=30), deadline=0.05)).status == 504


@pytest.mark.anyio
async def test_an_error_frame_is_passed_on() -> None:
    upstream = answering(b"a", httpx.ReadError("broken"))
    caller = await forwarded(upstream, on_stream_error=lambda exc: b"!")
    assert (caller.status, caller.body, caller.complete) == (200, b"a!", True)


@pytest.mark.anyio
async def test_options_serve_many_requests_and_stay_the_same() -> None:
    fields = [("location", BASE + "/a")]
    seen: list[int] = []
    app = ReverseProxy(
        rewrite_redirects=True, on_response=lambda upstream: seen.append(upstream.status_code)
    )
    for _ in range(3):
        upstream = answering(status=302, headers=fields)
        caller = await called(caller_of(client=client_of(upstream)), app)
        assert caller.values("location") == ["/a"]
    assert seen == [302] * 3


# --- ReverseProxy: rewriting -----------------------------------------------------------------


async def rewritten(
    fields: list[tuple[str, str]], path: str = "/api/a", *, base: str = BASE, **scope: Any
) -> Caller:
    upstream = answering(status=302, headers=fields)
    caller = caller_of(path, client=client_of(upstream, base_url=base), **scope)
    return await called(caller, ReverseProxy(rewrite_redirects=True, rewrite_cookies=True))


@pytest.mark.anyio
async def test_redirects_and_cookies_are_left_alone_by_default() -> None:
    fields = [("location", BASE + "/a"), ("set-cookie", "a=1; Path=/; Domain=up.example")]
    caller = await forwarded(answering(status=302, headers=fields))
    for name, value in fields:
        assert caller.values(name) == [value]


@pytest.mark.anyio
async def test_redirects_and_cookies_are_mapped_under_the_mount_where_that_is_wanted() -> None:
    fields = [
        ("location", BASE + "/v1/b?c=1#d"),
        ("content-location", "/v1/e"),
        ("set-cookie", "a=1; Path=/v1/f; Domain=up.example; Secure"),
        ("set-cookie", "b=2"),
    ]
    caller = await rewritten(fields, base=BASE + "/v1", root_path="/api")
    assert caller.values("location") == ["/api/b?c=1#d"]
    assert caller.values("content-location") == ["/api/e"]
    assert caller.values("set-cookie") == ["a=1; Path=/api/f; Secure", "b=2"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "root_path", "app_root_path", "location"),
    [
        ("/api/a", "/api", "", "/api/b"),
        ("/a", "", "", "/b"),
        ("/caf%C3%A9/a", "/café", "", "/caf%C3%A9/b"),
        ("/x/api/a", "/x/api", "", "/x/api/b"),
        # The server's own root_path: in the raw path, and not.
        ("/proxy/api/a", "/proxy/api", "/proxy", "/proxy/api/b"),
        ("/api/a", "/proxy/api", "/proxy", "/proxy/api/b"),
        ("/api/a", "/a/api", "/a", "/a/api/b"),
        ("/api/a", "/api/api", "/api", "/api/api/b"),
        ("/api/a", "/café/api", "/café", "/caf%C3%A9/api/b"),
    ],
)
async def test_the_mount_is_the_path_that_callers_see(
    path: str, root_path: str, app_root_path: str, location: str
) -> None:
    caller = await rewritten(
        [("location", "/b")], path, root_path=root_path, app_root_path=app_root_path
    )
    assert caller.values("location") == [location]


@pytest.mark.anyio
async def test_on_response_comes_first_and_its_answer_counts_together_with_rewriting() -> None:
    seen: list[str] = []

    async def replace(upstream: httpx.Response) -> Response | None:
        seen.append(upstream.headers["location"])
        return PlainTextResponse("own") if upstream.status_code == 302 else None

    upstream = answering(status=302, headers=[("location", BASE + "/a")])
    caller = await forwarded(upstream, rewrite_redirects=True, on_response=replace)
    assert (caller.status, caller.body) == (200, b"own")
    assert seen == [BASE + "/a"]


@pytest.mark.anyio
async def test_what_on_response_says_is_mapped_too() -> None:
    def point(upstream: httpx.Response) -> None:
        upstream.headers["location"] = BASE + "/c"
        upstream.headers["x-own"] = "1"

    upstream = answering(status=302, headers=[("location", BASE + "/a")])
    caller = await forwarded(upstream, rewrite_redirects=True, on_response=point)
    assert caller.values("location") == ["/c"]
    assert caller.values("x-own") == ["1"]


@pytest.mark.anyio
async def test_rewriting_keeps_the_bytes_of_all_other_fields() -> None:
    fields = [(b"x-obs", b"\xe9\xff"), (b"location", b"/b\xe9"), (b"x-obs", b""), (b"x", b"a,b")]

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(201, headers=fields, stream=Script())

    caller = await forwarded(Upstream(answer), rewrite_redirects=True, rewrite_cookies=True)
    assert caller.headers == fields


@pytest.mark.anyio
@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("location", ["http://xn--/", "//xn--a-/", "http://[", "http://h:x/", "//"])
async def test_a_redirect_to_what_is_no_url_is_relayed_or_is_the_upstreams_failure(
    location: str, rewrite: bool
) -> None:
    # httpx makes the next request of every redirect, also where it does not follow them.
    upstream = answering(status=302, headers=[("location", location)])
    caller = await forwarded(upstream, rewrite_redirects=rewrite)
    assert caller.status == 502 or (caller.status, caller.values("location")) == (302, [location])


@pytest.mark.anyio
@pytest.mark.parametrize("location", ["http://xn--/", "//xn--a-/", "http://["])
async def test_a_content_location_that_is_no_url_is_relayed_as_it_is(location: str) -> None:
    upstream = answering(headers=[("content-location", location)])
    caller = await forwarded(upstream, rewrite_redirects=True)
    assert (caller.status, caller.values("content-location")) == (200, [location])


# --- ReverseProxy: in an app, and as one -----------------------------------------------------


@pytest.mark.anyio
async def test_mounted_its_errors_go_to_the_apps_own_handlers() -> None:
    async def handler(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        return JSONResponse({"own": exc.status_code}, exc.status_code)

    app = Starlette(
        routes=[Mount("/api", ReverseProxy())], exception_handlers={HTTPException: handler}
    )
    upstream = answering(failing=httpx.ConnectError("no"))
    for path, status in (("/api/%2e%2e", 400), ("/api/a", 502)):
        caller = await called(caller_of(path, client=client_of(upstream)), app)
        assert (caller.status, caller.body) == (status, b'{"own":%d}' % status)


@pytest.mark.anyio
async def test_as_the_whole_app_it_answers_its_errors_plainly() -> None:
    upstream = answering(failing=httpx.PoolTimeout("full"))
    caller = await forwarded(upstream)
    assert (caller.status, caller.values("retry-after")) == (503, ["1"])
    assert caller.values("content-type") == ["text/plain; charset=utf-8"]
    assert b"up.example" not in caller.body


@pytest.mark.anyio
@pytest.mark.parametrize("mounted", [False, True])
async def test_an_upstream_that_dies_in_its_body_cuts_the_callers_connection(
    mounted: bool,
) -> None:
    upstream = answering(b"a", httpx.ReadError("broken"))
    app: ASGIApp = ReverseProxy()
    if mounted:
        app = Starlette(routes=[Mount("/", app)])
    caller = caller_of(client=client_of(upstream))
    with pytest.raises((UpstreamError, RuntimeError)):  # Starlette's own, of a response begun
        await called(caller, app)
    assert (caller.status, caller.complete) == (200, False)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "routes",
    [
        [Route("/api/{path:path}", ReverseProxy(prefix="/api"))],
        [Mount("/api", ReverseProxy())],
        [Mount("/api", routes=[Mount("/", ReverseProxy(prefix="/api"))])],
        [Mount("/{tenant}", ReverseProxy())],
        [Mount("/", ReverseProxy(prefix="/api"))],
    ],
)
async def test_it_is_mounted_or_an_endpoint(routes: list[Mount | Route]) -> None:
    upstream = answering(b"ok")
    caller = caller_of("/api/a%2Fb/?c", client=client_of(upstream))
    await called(caller, Starlette(routes=routes))
    assert caller.body == b"ok"
    assert target_of(upstream.requests[0]) == b"/a%2Fb/?c"


@pytest.mark.anyio
async def test_an_endpoint_may_respond_by_it_after_what_it_does_itself() -> None:
    forward = ReverseProxy(prefix="/api")

    async def endpoint(request: Request) -> Response:
        response = await forward.respond(request)
        response.headers["x-own"] = "1"
        return response

    upstream = answering(b"ok")
    app = Starlette(routes=[Route("/api/{path:path}", endpoint)])
    caller = await called(caller_of("/api/a", client=client_of(upstream)), app)
    assert (caller.body, caller.values("x-own")) == (b"ok", ["1"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path", ["/%ff/a", "/%ff%fe/", "/%C3%A9/a", "/%2541/a", "/a%2Fb/c", "/%/a"]
)
async def test_no_path_of_a_callers_is_a_programmers_error_under_a_mount_with_parameters(
    path: str,
) -> None:
    # Servers decode a path with replacement characters where it is not UTF-8.
    upstream = answering(b"ok")
    app = Starlette(routes=[Mount("/{tenant}", ReverseProxy())])
    caller = await called(caller_of(path, client=client_of(upstream)), app)
    assert caller.status in (200, 400, 404)


@pytest.mark.anyio
async def test_a_path_outside_the_prefix_of_a_whole_app_is_the_callers_mistake_and_no_500() -> None:
    # Here no route has chosen the paths: any caller may ask for any.
    app = Starlette(routes=[Mount("/", ReverseProxy(prefix="/api"))])
    caller = await called(caller_of("/other", client=client_of()), app)
    assert caller.status in (400, 404)


# --- nothing that raises becomes a 500 -----------------------------------------------------


def _all_of(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(deep for sub in kind.__subclasses__() for deep in _all_of(sub))]


def _failure(kind: type[Exception]) -> Exception:
    if kind is httpx.HTTPStatusError:
        request = httpx.Request("GET", BASE)
        return httpx.HTTPStatusError("no", request=request, response=httpx.Response(404))
    return kind("no")


FAILURES = [
    kind
    for base in (httpx.RequestError, httpx.HTTPStatusError)
    for kind in _all_of(base)
    if kind.__module__.startswith("httpx")
]

pieces = b"/ // . .. %2e %2F %5c ; %00 %ff % %zz api a \xe9 ? # * : @ \\".split()
raw_paths = st.one_of(
    st.lists(st.sampled_from(pieces), max_size=6).map(lambda parts: b"/" + b"".join(parts)),
    st.binary(max_size=8).map(lambda text: b"/" + text),
    st.sampled_from([b"*", b"", b"http://evil/a", b"evil:80", b"/api", b"/api/"]),
)
queries = st.one_of(st.binary(max_size=8), st.sampled_from([b"a=1", b"key=spoofed", b"q=\xe9"]))
some_methods = "GET get POST HEAD OPTIONS DELETE TRACE CONNECT X M-SEARCH"
methods = st.sampled_from(some_methods.split(" "))
some_fields = (
    b"host connection content-length transfer-encoding te upgrade expect cookie forwarded "
    b"x-forwarded-for x_real_ip accept range"
)
field_names = st.one_of(
    st.sampled_from(some_fields.split()),
    st.text("abz09!#$%&'*+-.^_`|~", min_size=1, max_size=4).map(str.encode),  # RFC 9110 5.6.2
)
field_values = st.one_of(
    st.binary(max_size=8), st.sampled_from([b"3", b"chunked", b"close, host", b"a=1;;b", b"\xe9"])
)
answers = st.one_of(
    st.sampled_from(FAILURES),
    st.just(302),
    st.sampled_from([200, 204, 205, 299, 302, 304, 401, 404, 413, 502, 599, 101, 600, 999]),
)


@settings(
    max_examples=count_examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    raw=raw_paths,
    has_raw=st.booleans(),
    query=queries,
    method=methods,
    fields=st.lists(st.tuples(field_names, field_values), max_size=5),
    version=st.sampled_from(["1.0", "1.1", "2", "3"]),
    peer=st.sampled_from([None, ("::1", 1), ("127.0.0.1", 2)]),
    answer=answers,
    location=st.sampled_from(["/a", "http://xn--/", "http://[", BASE + "/b", "//", "\xe9"]),
    within=st.booleans(),
    params=st.booleans(),
)
def test_nothing_that_a_caller_or_an_upstream_does_becomes_a_500(
    raw: bytes,
    has_raw: bool,
    query: bytes,
    method: str,
    fields: list[tuple[bytes, bytes]],
    version: str,
    peer: tuple[str, int] | None,
    answer: int | type[Exception],
    location: str,
    within: bool,
    params: bool,
) -> None:
    async def respond(request: httpx.Request) -> httpx.Response:
        if not isinstance(answer, int):
            raise _failure(answer)
        headers = [(b"location", location.encode("latin-1")), (b"set-cookie", b"a=1; Path; Path=/")]
        return httpx.Response(answer, headers=headers, stream=Script(b"a"))

    upstream = Upstream(respond)
    client = client_of(upstream, params={"key": "own"} if params else None)
    caller = Caller(method, headers=fields, body=[b"abc"])
    path = unquote(raw.partition(b"?")[0].decode("latin-1"))
    caller.scope.update(path=path, raw_path=raw, query_string=query)
    caller.scope.update(http_version=version, client=peer, state={"client": client})
    if not has_raw:
        del caller.scope["raw_path"]
    app: ASGIApp = ReverseProxy(rewrite_redirects=True, rewrite_cookies=True)
    if within:
        app = _within_an_app(app)
    anyio.run(called, caller, app)
    assert upstream.open == 0
    assert caller.messages, "the caller got no answer"
    assert caller.status != 500
    assert 200 <= caller.status < 600


def _within_an_app(inner: ASGIApp) -> ASGIApp:
    """As in Starlette, whose handlers answer an HTTPException and nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await inner({**scope, "starlette.exception_handlers": ({}, {})}, receive, send)
        except HTTPException as exc:
            await PlainTextResponse(exc.detail, exc.status_code)(scope, receive, send)

    return app


@pytest.mark.anyio
@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_every_failure_that_httpx_knows_is_answered_502_503_or_504(
    kind: type[Exception], method: str
) -> None:
    upstream = answering(failing=_failure(kind))
    headers = [(b"content-length", b"3")] if method == "POST" else []
    caller = await forwarded(upstream, "/", method, headers=headers, body=[b"abc"])
    assert caller.status in (502, 503, 504)
