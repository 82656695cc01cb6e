"""The rules for targets, headers and redirects, through `forward_request` and `ReverseProxy`.

Each rule by itself is in test_paths.py, test_request_headers.py and test_rewriting.py.
"""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount

from asgi_upstream import ReverseProxy, StreamedResponse, forward_request
from tests.support.asgi import Caller, answering
from tests.support.flavor import client_lifespan, httpx

pytestmark = pytest.mark.virtual_time

BASE = "http://up.example"


def make_client(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=answering(), **{"base_url": BASE, **options})


def make_request(path: bytes = b"/a", **scope: Any) -> Request:
    caller = Caller(headers=[(b"host", b"app.example")])
    caller.scope.update(path=path.decode("latin-1"), raw_path=path, **scope)
    return Request(caller.scope, caller.receive)


# --- X-Forwarded-Prefix --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "scope", "prefix", "expected"),
    [
        (b"/api/a", {"root_path": "/api"}, None, "/api"),
        (b"/api/a", {}, "/api", "/api"),
        (b"/api/a", {}, "/api/", "/api"),
        (b"/caf%c3%a9/a", {"root_path": "/café"}, None, "/caf%c3%a9"),
        (b"/gw/api/a", {"root_path": "/gw/api", "app_root_path": "/gw"}, None, "/gw/api"),
        (b"/api/a", {"root_path": "/gw/api", "app_root_path": "/gw"}, None, "/gw/api"),
        (b"/api/a", {"root_path": "/api"}, "", None),
        (b"/api/a", {"root_path": "/api"}, "/", None),
        (b"/a", {}, None, None),
    ],
)
def test_forwarded_prefix_is_the_path_in_front_of_the_upstream(
    path: bytes, scope: dict[str, Any], prefix: str | None, expected: str | None
) -> None:
    outgoing = forward_request(make_client(), make_request(path, **scope), prefix=prefix)
    assert outgoing.headers.get("x-forwarded-prefix") == expected


def test_forwarded_prefix_is_absent_for_a_url_of_the_endpoint() -> None:
    outgoing = forward_request(make_client(), make_request(root_path="/api"), url="/other")
    assert "x-forwarded-prefix" not in outgoing.headers


# --- what the scope may leave out ------------------------------------------------------------


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("removed", [(), {"query_string": None, "root_path": None, "client": None}])
def test_request_with_only_required_scope_keys_is_forwarded(removed: Any, trust: bool) -> None:
    scope = {"type": "http", "method": "GET", "path": "/a b", "headers": iter([[b"X-A", b"1"]])}
    request = Request({**scope, **dict(removed)})
    outgoing = forward_request(make_client(), request, trust_forwarded_headers=trust)
    assert outgoing.extensions["target"] == b"/a%20b"
    assert outgoing.headers["x-a"] == "1"
    assert outgoing.headers["x-forwarded-proto"] == "http"


# --- targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base", [BASE + "/v1?key=1", BASE + "?", httpx.URL(BASE, params={"a": "1"})]
)
def test_query_in_base_url_is_an_error_that_names_params(base: str | httpx.URL) -> None:
    if str(base) != BASE + "?":
        with pytest.raises(ValueError, match="params="):
            forward_request(make_client(base_url=base), make_request())
    with pytest.raises(ValueError, match="params="):
        client_lifespan(base_url=base)


@pytest.mark.parametrize("url", ["/a\n", "/a\x00b", BASE + "/\x7f", "http://[", "/a\r\nx: y"])
def test_url_that_is_invalid_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError, match="url="):
        forward_request(make_client(), make_request(), url=url)


@pytest.mark.parametrize(
    "path", [b"/.%ff./secret", b"/%e2%80%8b../a", b"/.%c2%ad./a", b"/..%00.png"]
)
def test_disguised_dot_segment_of_a_caller_is_400(path: bytes) -> None:
    with pytest.raises(HTTPException) as caught:
        forward_request(make_client(base_url=BASE + "/public"), make_request(path))
    assert caught.value.status_code == 400


# --- responses -----------------------------------------------------------------------------------


async def relay(
    headers: list[tuple[str, str]], *, base: str = BASE, status: int = 200, **options: Any
) -> Caller:
    """Return the caller of `/api/a` at a proxy that is mounted at `/api`."""
    client = httpx.AsyncClient(transport=answering(status=status, headers=headers), base_url=base)
    caller = Caller(headers=[(b"host", b"app.example")])
    caller.scope.update(path="/api/a", raw_path=b"/api/a", state={"client": client})
    return await caller.call(Starlette(routes=[Mount("/api", ReverseProxy(**options))]))


@pytest.mark.anyio
async def test_redirect_from_forwarded_host_is_mapped_under_mount() -> None:
    headers = [
        ("location", "https://app.example/login?next=/a"),
        ("refresh", "0; url=http://app.example/b"),
        ("link", "<http://up.example/c>; rel=next, <https://cdn.example/d>; rel=preload"),
    ]
    caller = await relay(headers, status=302, rewrite_redirects=True)
    assert caller.values("location") == ["/api/login?next=/a"]
    assert caller.values("refresh") == ["0; url=/api/b"]
    assert caller.values("link") == ["</api/c>; rel=next, <https://cdn.example/d>; rel=preload"]


@pytest.mark.anyio
async def test_redirect_and_cookie_of_prefixed_upstream_stay() -> None:
    headers = [
        ("location", "http://app.example/api/login"),
        ("set-cookie", "a=1; Path=/api/"),
        ("set-cookie", "__host-b=2; Path=/; Secure"),
    ]
    caller = await relay(headers, status=302, rewrite_redirects=True, rewrite_cookies=True)
    assert caller.values("location") == ["/api/login"]
    assert caller.values("set-cookie") == ["a=1; Path=/api/", "__host-b=2; Path=/; Secure"]


@pytest.mark.anyio
async def test_cookies_alone_are_mapped_if_redirects_are_not() -> None:
    headers = [("location", "/login"), ("set-cookie", "a=1; Path=/; Domain=up.example")]
    caller = await relay(headers, status=302, rewrite_cookies=True)
    assert caller.values("location") == ["/login"]
    assert caller.values("set-cookie") == ["a=1; Path=/api/"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Host", "/api/login"),
        ("X-Forwarded-Host", "/api/login"),
        ("X-Other", "http://public.example/login"),
    ],
)
async def test_redirect_uses_the_hosts_that_on_request_has_set(name: str, expected: str) -> None:
    def set_header(request: httpx.Request) -> None:
        request.headers[name] = "public.example"

    headers = [("location", "http://public.example/login")]
    caller = await relay(headers, status=302, rewrite_redirects=True, on_request=set_header)
    assert caller.values("location") == [expected]


@pytest.mark.anyio
async def test_redirect_uses_host_of_a_trusted_proxy() -> None:
    client = httpx.AsyncClient(
        transport=answering(status=302, headers=[("location", "https://public.example/login")]),
        base_url=BASE,
    )
    caller = Caller(headers=[(b"host", b"inside"), (b"x-forwarded-host", b"public.example")])
    caller.scope.update(path="/api/a", raw_path=b"/api/a", state={"client": client})
    proxy = ReverseProxy(rewrite_redirects=True, trust_forwarded_headers=True)
    await caller.call(Starlette(routes=[Mount("/api", proxy)]))
    assert caller.values("location") == ["/api/login"]


@pytest.mark.anyio
async def test_alt_svc_of_the_upstream_is_not_relayed() -> None:
    caller = await relay([("Alt-Svc", 'h3=":443"'), ("x", "1")])
    assert caller.values("alt-svc") == []
    assert caller.values("x") == ["1"]

    client = httpx.AsyncClient(transport=answering(headers=[("alt-svc", "clear")]), base_url=BASE)
    response = StreamedResponse(client, client.build_request("GET", "/"))
    assert (await Caller().call(response)).values("alt-svc") == []
