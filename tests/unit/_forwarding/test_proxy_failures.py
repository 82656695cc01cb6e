"""ReverseProxy: no request, response or failure of the upstream becomes a 500."""

from urllib.parse import unquote

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_upstream import (
    ReverseProxy,
)
from tests.support.asgi import Caller, InMemoryUpstream, Script, answering
from tests.support.examples import count_examples
from tests.support.flavor import httpx
from tests.support.forwarding import (
    BASE,
    called,
    client_of,
    forwarded,
    methods,
)

pytestmark = pytest.mark.virtual_time


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
