"""Callers who disconnect, uploads, and cancellation."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from asgi_upstream import (
    StreamedResponse,
    UpstreamError,
)
from tests.support.asgi import Caller, InMemoryUpstream, answering
from tests.support.flavor import httpx
from tests.support.responses import AnyClass, Ran, answer_of, both, upper

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@both
async def test_disconnect_before_the_headers_frees_connection(
    cls: AnyClass, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = answering(b"a", before=30)
    caller = Caller(leaves_after=0.05)
    with anyio.fail_after(60):
        await caller.call(answer_of(upstream, cls))
    assert (upstream.opened, upstream.open) == (1, 0)
    assert [m.get("status") for m in caller.messages if "status" in m] in ([], [499])
    assert caller.body == b""
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@both
async def test_disconnect_while_upstream_is_silent_frees_connection(
    cls: AnyClass, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = answering(b"a", 30.0)
    caller = Caller(leaves_after=0.05)
    with anyio.fail_after(60):
        await caller.call(answer_of(upstream, cls))
    assert upstream.open == 0
    if cls is StreamedResponse:
        assert (caller.status, caller.body, caller.complete) == (200, b"a", False)
    else:
        assert [m.get("status") for m in caller.messages if "status" in m] in ([], [499])
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


async def test_disconnect_while_upstream_pours_frees_connection() -> None:
    pouring: list[bytes | float] = [b"a", 0.01] * 3000
    upstream = answering(*pouring)
    caller = Caller(leaves_after=0.05)
    with anyio.fail_after(60):
        await caller.call(answer_of(upstream))
    assert upstream.open == 0
    assert not caller.complete


@both
async def test_a_caller_who_left_before_the_call_frees_the_connection(cls: AnyClass) -> None:
    upstream = answering(b"a", before=30)
    caller = Caller()
    caller.left.set()
    with anyio.fail_after(60):
        await caller.call(answer_of(upstream, cls))
    assert upstream.open == 0


@both
@pytest.mark.parametrize("messages", [0, 1, 2])
async def test_a_server_that_fails_to_send_frees_the_connection(
    cls: AnyClass, messages: int, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = answering(b"a", 0.01, b"b", 0.01, b"c")
    with anyio.fail_after(60):
        await Caller(send_fails_after=messages).call(answer_of(upstream, cls))
    assert upstream.open == 0
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@both
async def test_a_caller_who_leaves_during_on_response_is_noticed(cls: AnyClass) -> None:
    async def slow(upstream: httpx.Response) -> None:
        await anyio.sleep(30)

    upstream = answering(b"a")
    with anyio.fail_after(60):
        await Caller(leaves_after=0.05).call(answer_of(upstream, cls, on_response=slow))
    assert upstream.open == 0


async def test_a_disconnect_after_the_last_part_is_no_caller_who_left() -> None:
    upstream = answering(b"a", headers=[("content-length", "1")])
    caller = Caller()
    ran = Ran(caller, upstream)
    for _ in range(3):
        caller.messages.clear()
        await caller.call(answer_of(upstream, background=BackgroundTask(ran)))
        caller.left = anyio.Event()
    assert [complete for complete, _ in ran.when] == [True] * 3


@both
@pytest.mark.parametrize(
    "headers", [[(b"content-length", b"9")], [(b"transfer-encoding", b"chunked")]]
)
async def test_the_watch_for_the_caller_does_not_eat_the_upload(
    cls: AnyClass, headers: list[tuple[bytes, bytes]]
) -> None:
    upstream = answering(b"ok")
    caller = Caller("POST", headers=headers, body=[b"one", b"two", b"end"])

    async def parts() -> AsyncIterator[bytes]:
        more = True
        while more:
            # The first pause is long, for the watch may start late.
            await anyio.sleep(0 if caller.parts_left < 3 else 0.25)
            message = await caller.receive()
            assert message["type"] == "http.request", "the watch took a part of the upload"
            yield message["body"]
            more = message["more_body"]

    client = upstream.client()
    with anyio.fail_after(60):
        await caller.call(cls(client, client.build_request("POST", "/", content=parts())))
    assert upstream.bodies == [b"onetwoend"]
    assert caller.body == b"ok"


@both
async def test_disconnect_during_the_upload_frees_connection(
    cls: AnyClass, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = answering(b"ok")
    caller = Caller(
        "POST",
        headers=[(b"content-length", b"9")],
        body=[b"one"],
        body_is_whole=False,
        leaves_after=0.05,
    )
    request = Request(caller.scope, caller.receive)
    client = upstream.client()
    with anyio.fail_after(60):
        await caller.call(cls(client, client.build_request("POST", "/", content=request.stream())))
    assert upstream.open == 0
    assert [m.get("status") for m in caller.messages if "status" in m] in ([], [499])
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@both
async def test_disconnect_after_the_upload_frees_connection(cls: AnyClass) -> None:
    upstream = answering(b"ok", before=30)
    caller = Caller(
        "POST", headers=[(b"content-length", b"6")], body=[b"one", b"two"], leaves_after=0.05
    )
    request = Request(caller.scope, caller.receive)
    client = upstream.client()
    with anyio.fail_after(60):
        await caller.call(cls(client, client.build_request("POST", "/", content=request.stream())))
    assert upstream.bodies == [b"onetwo"]
    assert upstream.open == 0


class CancelledAt:
    """Awaits a coroutine and cancels its task at the n-th time that it waits for the loop."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int) -> None:
        self._coroutine = coroutine
        self._n = n
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731
        while True:
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value
            self.waits += 1
            if self.waits == self._n:
                task = asyncio.current_task()
                assert task is not None
                task.cancel("from outside")
            try:
                value = yield waits_for
            except BaseException as exc:
                step = lambda exc=exc: self._coroutine.throw(exc)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda value=value: self._coroutine.send(value)  # type: ignore[misc]  # noqa: E731


async def waiting_on(awaitable: Awaitable[Any]) -> None:
    await awaitable


def scenario(cls: AnyClass, **options: Any) -> tuple[InMemoryUpstream, Coroutine[Any, Any, Any]]:
    upstream = answering(b"a", 0.0, b"b", headers=[("x", "1")])
    caller = Caller()
    return upstream, answer_of(upstream, cls, **options)(caller.scope, caller.receive, caller.send)


def watched(cls: AnyClass) -> tuple[InMemoryUpstream, Coroutine[Any, Any, Any]]:
    upstream = answering(b"a", b"b", before=0.4)
    caller = Caller()
    return upstream, answer_of(upstream, cls)(caller.scope, caller.receive, caller.send)


def replaced(cls: AnyClass) -> tuple[InMemoryUpstream, Coroutine[Any, Any, Any]]:
    async def instead(upstream: httpx.Response) -> Response:
        await asyncio.sleep(0)
        return Response("own")

    return scenario(cls, on_response=instead)


def uploading(cls: AnyClass) -> tuple[InMemoryUpstream, Coroutine[Any, Any, Any]]:
    upstream = answering(b"a")
    caller = Caller("POST", headers=[(b"content-length", b"6")], body=[b"one", b"two"])
    client = upstream.client()
    content = Request(caller.scope, caller.receive).stream()
    response = cls(client, client.build_request("POST", "/", content=content))
    return upstream, response(caller.scope, caller.receive, caller.send)


def dying(cls: AnyClass) -> tuple[InMemoryUpstream, Coroutine[Any, Any, Any]]:
    upstream = answering(b"a", httpx.ReadError("reset"))
    caller = Caller()
    response = answer_of(upstream, cls, deadline=9)
    return upstream, response(caller.scope, caller.receive, caller.send)


SCENARIOS: dict[str, Callable[[AnyClass], tuple[InMemoryUpstream, Coroutine[Any, Any, Any]]]] = {
    "plain": scenario,
    "deadline": lambda cls: scenario(cls, deadline=9),
    "transform": lambda cls: scenario(cls, transform=upper),
    "watched": watched,
    "replaced": replaced,
    "uploading": uploading,
    "dying": dying,
}


async def cancelled_at_any_wait(
    make: Callable[[], tuple[InMemoryUpstream, Coroutine[Any, Any, Any]]],
) -> tuple[list[int], list[int]]:
    """At which waits a cancellation was swallowed, and at which it left something open."""
    upstream, coroutine = make()
    whole = CancelledAt(coroutine, 0)
    with contextlib.suppress(UpstreamError):
        await waiting_on(whole)
    assert upstream.open == 0
    assert whole.waits >= 4
    runs = [(n, *make()) for n in range(1, whole.waits + 1)]
    tasks = [asyncio.create_task(waiting_on(CancelledAt(coro, n))) for n, _, coro in runs]
    await asyncio.gather(*tasks, return_exceptions=True)
    swallowed = [n for (n, *_), task in zip(runs, tasks, strict=True) if not task.cancelled()]
    return swallowed, [n for n, upstream, _ in runs if upstream.open]


@both
@pytest.mark.parametrize("kind", SCENARIOS)
@pytest.mark.asyncio_only
async def test_a_task_cancelled_at_any_wait_leaves_nothing_open(cls: AnyClass, kind: str) -> None:
    def make() -> tuple[InMemoryUpstream, Coroutine[Any, Any, Any]]:
        upstream, coroutine = SCENARIOS[kind](cls)
        upstream.closing_waits = False
        return upstream, coroutine

    assert await cancelled_at_any_wait(make) == ([], [])


# A shielded scope of anyio does not keep task.cancel() out.
@both
@pytest.mark.parametrize("kind", SCENARIOS)
@pytest.mark.asyncio_only
async def test_a_task_cancelled_while_it_closes_closes_all_the_same(
    cls: AnyClass, kind: str
) -> None:
    assert await cancelled_at_any_wait(lambda: SCENARIOS[kind](cls)) == ([], [])


@both
async def test_a_scope_of_anyio_that_is_cancelled_leaves_nothing_open(cls: AnyClass) -> None:
    for before, body in [(30.0, 0.0), (0.0, 30.0)]:
        upstream = answering(b"a", body, before=before)
        caller = Caller()
        with anyio.move_on_after(0.05) as scope:
            await answer_of(upstream, cls)(caller.scope, caller.receive, caller.send)
        assert scope.cancelled_caught
        assert upstream.open == 0
        assert not caller.complete


@both
async def test_a_timeout_of_the_apps_own_is_not_taken_for_the_deadline(cls: AnyClass) -> None:
    upstream = answering(b"a", before=30)
    caller = Caller()
    with pytest.raises(TimeoutError), anyio.fail_after(0.05):
        await answer_of(upstream, cls, deadline=20)(caller.scope, caller.receive, caller.send)
    assert upstream.open == 0


@both
@pytest.mark.asyncio_only
async def test_no_task_is_left_behind(cls: AnyClass) -> None:
    before = asyncio.all_tasks()
    for upstream in (answering(b"a"), answering(b"a", before=0.3)):
        caller = Caller()
        await answer_of(upstream, cls)(caller.scope, caller.receive, caller.send)
        assert asyncio.all_tasks() == before
