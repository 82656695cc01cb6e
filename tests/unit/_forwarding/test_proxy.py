"""ReverseProxy: routes, upstreams, hooks and rewriting."""

import gzip
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_upstream import (
    ReverseProxy,
    UpstreamError,
)
from asgi_upstream.dependencies import _cached_dependency
from tests.support.asgi import Caller, InMemoryUpstream, Script, answering
from tests.support.examples import count_examples
from tests.support.flavor import httpx
from tests.support.forwarding import (
    BASE,
    called,
    caller_of,
    client_of,
    forwarded,
    methods,
    target_of,
    values,
)

pytestmark = pytest.mark.virtual_time


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_connect_and_trace_are_never_forwarded(method: str) -> None:
    upstream = answering()
    for allowed in (None, [method]):
        caller = await forwarded(upstream, "/", method, methods=allowed)
        assert caller.status == 405
        assert method not in caller.values("allow")
    assert upstream.requests == []


@pytest.mark.anyio
async def test_allow_header_of_a_405_is_not_empty() -> None:
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
async def test_method_outside_methods_is_405_with_allow() -> None:
    upstream = answering()
    for method in ("POST", "get", "X"):
        caller = await forwarded(upstream, "/", method, methods={"GET", "HEAD"})
        assert (caller.status, caller.values("allow")) == (405, ["GET, HEAD"])
    assert upstream.requests == []
    assert (await forwarded(upstream, "/", "HEAD", methods={"GET", "HEAD"})).status == 200


@pytest.mark.anyio
async def test_methods_with_get_include_head() -> None:
    upstream = answering()
    assert (await forwarded(upstream, "/", "HEAD", methods=["GET"])).status == 200
    assert (await forwarded(upstream, "/", "HEAD", methods=["POST"])).status == 405


def test_methods_as_a_str_are_refused() -> None:
    with pytest.raises(TypeError, match="give a list of methods"):
        ReverseProxy(methods="GET")


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
async def test_on_request_that_returns_junk_is_a_type_error(junk: Any) -> None:
    upstream = answering()
    with pytest.raises(TypeError):
        await forwarded(upstream, on_request=lambda request: junk)
    assert upstream.requests == []


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
async def test_upstream_failure_mid_body_cuts_the_callers_connection(
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
async def test_any_path_under_a_mount_with_parameters_is_answered(
    path: str,
) -> None:
    # Servers decode a path with replacement characters where it is not UTF-8.
    upstream = answering(b"ok")
    app = Starlette(routes=[Mount("/{tenant}", ReverseProxy())])
    caller = await called(caller_of(path, client=client_of(upstream)), app)
    assert caller.status in (200, 400, 404)


@pytest.mark.anyio
async def test_path_outside_the_prefix_of_a_whole_app_is_400_or_404() -> None:
    # Here no route has chosen the paths: any caller may ask for any.
    app = Starlette(routes=[Mount("/", ReverseProxy(prefix="/api"))])
    caller = await called(caller_of("/other", client=client_of()), app)
    assert caller.status in (400, 404)


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

    upstream = InMemoryUpstream(respond)
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
async def test_every_httpx_failure_is_answered_502_503_or_504(
    kind: type[Exception], method: str
) -> None:
    upstream = answering(failing=_failure(kind))
    headers = [(b"content-length", b"3")] if method == "POST" else []
    caller = await forwarded(upstream, "/", method, headers=headers, body=[b"abc"])
    assert caller.status in (502, 503, 504)
