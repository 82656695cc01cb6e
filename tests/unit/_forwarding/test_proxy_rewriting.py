"""ReverseProxy: redirects and cookies mapped back under the mount."""

from typing import Any

import pytest
from starlette.responses import PlainTextResponse, Response

from asgi_upstream import (
    ReverseProxy,
)
from tests.support.asgi import Caller, InMemoryUpstream, Script, answering
from tests.support.flavor import httpx
from tests.support.forwarding import (
    BASE,
    called,
    caller_of,
    client_of,
    forwarded,
)

pytestmark = pytest.mark.virtual_time


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
async def test_redirects_and_cookies_are_mapped_if_rewriting_is_on() -> None:
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
async def test_on_response_is_called_before_rewriting() -> None:
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

    caller = await forwarded(InMemoryUpstream(answer), rewrite_redirects=True, rewrite_cookies=True)
    assert caller.headers == fields


@pytest.mark.anyio
@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("location", ["http://xn--/", "//xn--a-/", "http://[", "http://h:x/", "//"])
async def test_redirect_to_an_invalid_url_is_relayed_or_502(location: str, rewrite: bool) -> None:
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
