"""on_response, from_response and background tasks."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from asgi_upstream import (
    BufferedResponse,
    StreamedResponse,
    UpstreamError,
    UpstreamProtocolError,
)
from tests.support.asgi import Caller, InMemoryUpstream, answering
from tests.support.flavor import httpx
from tests.support.responses import AnyClass, Ran, answer_of, both, called, failing

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@both
@pytest.mark.parametrize("is_async", [False, True])
async def test_on_response_sees_the_upstream_before_anything_is_sent(
    cls: AnyClass, is_async: bool
) -> None:
    seen: list[tuple[int, str]] = []
    caller = Caller()

    def plain(upstream: httpx.Response) -> None:
        assert caller.messages == []
        seen.append((upstream.status_code, upstream.headers["x-own"]))

    async def awaited(upstream: httpx.Response) -> None:
        await anyio.lowlevel.checkpoint()
        plain(upstream)

    upstream = answering(b"x", status=201, headers=[("x-own", "1")])
    await caller.call(answer_of(upstream, cls, on_response=awaited if is_async else plain))
    assert seen == [(201, "1")]
    assert caller.body == b"x"
    assert upstream.open == 0


@both
async def test_the_headers_that_on_response_leaves_are_relayed(cls: AnyClass) -> None:
    def edit(upstream: httpx.Response) -> None:
        del upstream.headers["x-secret"]
        upstream.headers["x-new"] = "1"

    upstream = answering(b"x", headers=[("x-secret", "1"), ("x-kept", "1")])
    caller = await called(upstream, cls, on_response=edit, headers={"x-own": "1"})
    assert caller.values("x-secret") == []
    assert caller.values("x-new") == caller.values("x-kept") == caller.values("x-own") == ["1"]


@both
async def test_on_response_may_raise_an_http_error(cls: AnyClass) -> None:
    def refuse(upstream: httpx.Response) -> None:
        raise HTTPException(404, "gone from here")

    upstream = answering(b"x", b"y")
    caller, error = await failing(upstream, HTTPException, cls, on_response=refuse)
    assert isinstance(error, HTTPException)
    assert (error.status_code, error.detail) == (404, "gone from here")
    assert caller.messages == []


@both
async def test_on_response_may_fail(cls: AnyClass) -> None:
    async def fails(upstream: httpx.Response) -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError

    caller, _ = await failing(answering(b"x"), LookupError, cls, on_response=fails)
    assert caller.messages == []


@both
async def test_on_response_may_raise_the_upstreams_http_error(cls: AnyClass) -> None:
    def check(upstream: httpx.Response) -> None:
        upstream.raise_for_status()

    _, error = await failing(answering(b"x", status=500), UpstreamError, cls, on_response=check)
    assert isinstance(error.__cause__, httpx.HTTPStatusError)


@both
async def test_on_response_may_answer_after_the_upstream_is_closed(
    cls: AnyClass,
) -> None:
    upstream = answering(b"x", b"y")
    open_at_start: list[int] = []

    class CountingResponse(PlainTextResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            open_at_start.append(upstream.open)
            await super().__call__(scope, receive, send)

    caller = await called(upstream, cls, on_response=lambda r: CountingResponse("own", 202))
    assert (caller.status, caller.body) == (202, b"own")
    assert caller.complete
    assert open_at_start == [0]


@both
async def test_another_exchange_may_be_the_answer_instead(cls: AnyClass) -> None:
    second = answering(b"from the second")
    caller = await called(
        answering(b"x", status=503), cls, on_response=lambda r: answer_of(second, cls)
    )
    assert (caller.status, caller.body) == (200, b"from the second")
    assert second.open == 0


@both
async def test_an_answer_of_another_type_is_refused(cls: AnyClass) -> None:
    caller, error = await failing(
        answering(b"x"), TypeError, cls, on_response=lambda r: {"no": "response"}
    )
    assert "dict" in str(error)
    assert "JSONResponse" in str(error)
    assert caller.messages == []


@both
async def test_on_response_may_read_the_body_itself(cls: AnyClass) -> None:
    async def reads(upstream: httpx.Response) -> None:
        assert await upstream.aread() == b'{"a": 1}'

    coded = gzip.compress(b'{"a": 1}')
    headers = [("content-encoding", "gzip"), ("content-length", str(len(coded)))]
    caller = await called(answering(coded, headers=headers), cls, on_response=reads)
    assert caller.body == b'{"a": 1}'
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") in ([], ["8"])


@pytest.mark.parametrize("how", ["closes", "reads on"])
async def test_on_response_that_consumes_the_body_is_an_error(how: str) -> None:
    async def careless(upstream: httpx.Response) -> None:
        if how == "closes":
            await upstream.aclose()
        else:
            async for _ in upstream.aiter_raw():
                pass

    caller, error = await failing(answering(b"a", b"b"), RuntimeError, on_response=careless)
    assert "aread()" in str(error)
    assert caller.messages == []


@pytest.mark.parametrize(
    "encode", [None, gzip.compress, zlib.compress], ids=["plain", "gzip", "deflate"]
)
async def test_a_changed_answer_is_one_line(encode: Callable[[bytes], bytes] | None) -> None:
    body, headers = b'{"a": "\xc3\xa4"}', [("content-type", "application/json")]
    if encode is not None:
        coding = "gzip" if encode is gzip.compress else "deflate"
        body, headers = encode(body), [*headers, ("content-encoding", coding)]
    caller = await called(
        answering(body[:4], body[4:], headers=headers),
        BufferedResponse,
        on_response=lambda r: JSONResponse({"changed": r.json()["a"], "text": r.text}),
    )
    assert json.loads(caller.body) == {"changed": "ä", "text": '{"a": "ä"}'}


async def test_buffered_upstream_is_closed_before_on_response() -> None:
    upstream = answering(b"x")
    seen: list[int] = []
    await called(upstream, BufferedResponse, on_response=lambda r: seen.append(upstream.open))
    assert seen == [0]


async def test_buffered_body_in_unknown_coding_is_relayed() -> None:
    statuses: list[int] = []
    caller = await called(
        answering(b"coded", headers=[("content-encoding", "nonsense")]),
        BufferedResponse,
        on_response=lambda r: statuses.append(r.status_code),
    )
    assert statuses == [200]
    assert caller.body == b"coded"
    assert caller.values("content-encoding") == ["nonsense"]


async def opened_by_hand(upstream: InMemoryUpstream) -> httpx.Response:
    client = upstream.client()
    return await client.send(client.build_request("GET", "/"), stream=True)


@both
async def test_an_open_response_is_adopted_and_closed(cls: AnyClass) -> None:
    upstream = answering(b"a", b"b", status=201, headers=[("x-own", "1")])
    response = cls.from_response(await opened_by_hand(upstream), headers={"x-new": "1"})
    assert isinstance(response, cls)
    assert upstream.open == 1
    caller = await Caller().call(response)
    assert (caller.status, caller.body) == (201, b"ab")
    assert caller.values("x-own") == caller.values("x-new") == ["1"]
    assert (upstream.opened, upstream.open) == (1, 0)


@both
async def test_an_adopted_response_can_be_sent_once(cls: AnyClass) -> None:
    response = cls.from_response(await opened_by_hand(answering(b"a")))
    await Caller().call(response)
    caller = Caller()
    with pytest.raises(RuntimeError, match=r"StreamedResponse\(client, request\)"):
        await caller.call(response)
    assert caller.messages == []


@both
async def test_an_open_response_that_is_adopted_twice_is_sent_once(cls: AnyClass) -> None:
    upstream = await opened_by_hand(answering(b"a"))
    first, second = cls.from_response(upstream), cls.from_response(upstream)
    await Caller().call(first)
    caller = Caller()
    with pytest.raises(RuntimeError, match="the upstream's body is gone"):
        await caller.call(second)
    assert caller.messages == []


@both
async def test_a_response_whose_body_is_gone_is_not_adopted(cls: AnyClass) -> None:
    upstream = await opened_by_hand(answering(b"a"))
    async for _ in upstream.aiter_raw():
        pass
    with pytest.raises(RuntimeError, match="stream=True"):
        cls.from_response(upstream)


@both
async def test_a_closed_response_is_not_adopted(cls: AnyClass) -> None:
    upstream = await opened_by_hand(answering(b"a"))
    await upstream.aclose()
    with pytest.raises(RuntimeError, match="stream=True"):
        cls.from_response(upstream)


@both
async def test_a_response_read_whole_is_adopted_as_it_was_read(cls: AnyClass) -> None:
    coded = gzip.compress(b"text")
    upstream = await opened_by_hand(
        answering(coded, headers=[("content-encoding", "gzip"), ("content-length", "24")])
    )
    await upstream.aread()
    caller = await Caller().call(cls.from_response(upstream))
    assert caller.body == b"text"
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") in ([], ["4"])


async def test_options_of_an_adopted_response_are_checked_too() -> None:
    upstream = answering(b"a")
    opened = await opened_by_hand(upstream)
    with pytest.raises(ValueError, match="deadline=0"):
        StreamedResponse.from_response(opened, deadline=0)
    with pytest.raises(ValueError, match="max_bytes=0"):
        BufferedResponse.from_response(opened, max_bytes=0)
    await opened.aclose()


@both
async def test_a_caller_who_leaves_frees_an_adopted_response(cls: AnyClass) -> None:
    upstream = answering(b"a", 30.0)
    response = cls.from_response(await opened_by_hand(upstream))
    with anyio.fail_after(60):
        await Caller(leaves_after=0.05).call(response)
    assert upstream.open == 0


@both
async def test_background_runs_after_the_whole_response(cls: AnyClass) -> None:
    upstream, caller = answering(b"a", b"b"), Caller()
    ran = Ran(caller, upstream)
    await caller.call(answer_of(upstream, cls, background=BackgroundTask(ran)))
    assert ran.when == [(True, 0)]


@both
async def test_background_set_later_runs(cls: AnyClass) -> None:
    upstream, caller = answering(b"a"), Caller()
    ran = Ran(caller, upstream)
    response = answer_of(upstream, cls)
    response.background = BackgroundTask(ran)
    await caller.call(response)
    assert ran.when == [(True, 0)]


@both
async def test_background_runs_after_an_answer_sent_instead(cls: AnyClass) -> None:
    upstream, caller = answering(b"a"), Caller()
    ran = Ran(caller, upstream)
    await caller.call(
        answer_of(
            upstream, cls, background=BackgroundTask(ran), on_response=lambda r: Response("own")
        )
    )
    assert ran.when == [(True, 0)]


@both
@pytest.mark.parametrize("where", ["before the headers", "in the body"])
async def test_background_does_not_run_after_an_exception(cls: AnyClass, where: str) -> None:
    death = httpx.ReadError("reset")
    upstream = answering(failing=death) if where[0] == "b" else answering(b"a", death)
    caller = Caller()
    ran = Ran(caller, upstream)
    with pytest.raises(UpstreamProtocolError):
        await caller.call(answer_of(upstream, cls, background=BackgroundTask(ran)))
    assert ran.when == []


@both
@pytest.mark.parametrize("where", ["before the headers", "in the body"])
async def test_background_does_not_run_for_a_caller_who_left(cls: AnyClass, where: str) -> None:
    upstream = answering(b"a", 30.0, before=30 if where[0] == "b" else 0)
    caller = Caller(leaves_after=0.05)
    ran = Ran(caller, upstream)
    with anyio.fail_after(60):
        await caller.call(answer_of(upstream, cls, background=BackgroundTask(ran)))
    assert ran.when == []


@both
@pytest.mark.parametrize("messages", [0, 1])
async def test_background_does_not_run_where_sending_failed(cls: AnyClass, messages: int) -> None:
    upstream = answering(b"a", headers=[("content-length", "1")])
    caller = Caller(send_fails_after=messages)
    ran = Ran(caller, upstream)
    await caller.call(answer_of(upstream, cls, background=BackgroundTask(ran)))
    assert ran.when == []
