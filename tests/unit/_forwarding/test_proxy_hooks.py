"""ReverseProxy: `on_request`, and the options that it passes on to the response."""

import gzip
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from asgi_upstream import (
    ReverseProxy,
)
from tests.support.asgi import answering
from tests.support.flavor import httpx
from tests.support.forwarding import (
    BASE,
    called,
    caller_of,
    client_of,
    forwarded,
    values,
)

pytestmark = pytest.mark.virtual_time


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
