"""How disconnects and cancellations are recorded."""

import asyncio

import anyio
import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    Outcome,
    StreamedResponse,
    count_open_exchanges,
)
from tests.support.asgi import Caller
from tests.support.recorded import (
    Answer,
    Observed,
    buffered,
    every_way,
    forwarded,
    recorded_tests,
    streamed,
    unbuffered,
)
from tests.support.waiting import aeventually

pytestmark = recorded_tests


@pytest.mark.parametrize(
    ("way", "path"),
    [(streamed, "/never"), (forwarded, "/never"), (buffered, "/never"), (buffered, "/pour")],
)
async def test_a_caller_who_leaves_before_its_answer_started(
    seen: Observed, way: Answer, path: str
) -> None:
    options = {"max_bytes": 1 << 40} if way is buffered else {}
    status = 200 if path == "/pour" else None
    record = await seen.record_with_growing_limit(
        lambda seconds: seen.record(way(seen, path, **options), Caller(leaves_after=seconds)),
        lambda record: record.status == status,
    )
    assert record.outcome is Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
    assert record.status == status
    assert record.exception is None


@unbuffered
@pytest.mark.parametrize("path", ["/silent_after_head", "/silent_mid_body", "/pour"])
async def test_a_caller_who_leaves_in_the_body(seen: Observed, way: Answer, path: str) -> None:
    record = await seen.record_with_growing_limit(
        lambda seconds: seen.record(way(seen, path), Caller(leaves_after=seconds)),
        lambda record: (
            record.status == 200 and (record.bytes_received or path == "/silent_after_head")
        ),
    )
    assert (record.outcome, record.status) == (Outcome.CALLER_DISCONNECTED_MID_BODY, 200)
    assert record.exception is None
    assert (record.bytes_received > 0) == (path != "/silent_after_head")


@every_way
async def test_disconnect_in_the_last_chunk_is_mid_body(seen: Observed, way: Answer) -> None:
    record = await seen.record(way(seen, "/item?size=9"), Caller(send_fails_after=1))
    assert (record.outcome, record.status) == (Outcome.CALLER_DISCONNECTED_MID_BODY, 200)
    assert (record.exception, record.bytes_received) == (None, 9)


@pytest.mark.parametrize("upload", ["forwarded", "streamed", "buffered"])
async def test_a_caller_who_leaves_in_its_upload(seen: Observed, upload: str) -> None:
    async def call(seconds: float) -> ExchangeRecord:
        caller = Caller("POST", body=[b"abc", b"def"], body_is_whole=False, leaves_after=seconds)
        if upload == "forwarded":
            caller.scope["headers"] = [(b"transfer-encoding", b"chunked")]
            app = forwarded(seen, "/echo")
        else:
            cls = StreamedResponse if upload == "streamed" else BufferedResponse
            body = Request(caller.scope, caller.receive).stream()
            app = cls(seen.client, seen.get("/echo", "POST", content=body))
        return await seen.record(app, caller)

    record = await seen.record_with_growing_limit(call, lambda record: record.bytes_sent == 6)
    assert (record.outcome, record.status) == (Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS, None)
    assert (record.exception, record.bytes_sent) == (None, 6)


@every_way
@pytest.mark.parametrize("path", ["/never", "/silent_mid_body"])
async def test_a_middleware_that_gives_up_has_cancelled(
    seen: Observed, way: Answer, path: str, loop_name: str
) -> None:
    async def call(seconds: float) -> ExchangeRecord:
        async def within(scope: Scope, receive: Receive, send: Send) -> None:
            app = way(seen, path)
            if loop_name == "trio":
                with anyio.fail_after(seconds):
                    await app(scope, receive, send)
            else:
                async with asyncio.timeout(seconds):
                    await app(scope, receive, send)

        with pytest.raises(TimeoutError):
            await Caller().call(within)
        await seen.is_at_rest()
        return seen.only

    status = None if path == "/never" else 200
    record = await seen.record_with_growing_limit(call, lambda record: record.status == status)
    assert (record.outcome, record.exception) == (Outcome.CANCELLED, None)
    assert record.status == status


@every_way
async def test_a_request_that_is_cancelled_while_it_waits_for_a_place(
    seen: Observed, way: Answer
) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(seen.call, streamed(seen, "/never"))
        await aeventually(lambda: seen.upstream.open_exchanges == 1)
        with anyio.move_on_after(0.2):
            await way(seen, "/item")(Caller().scope, Caller().receive, Caller().send)
        record = seen.only
        assert count_open_exchanges(seen.client) == 1
        group.cancel_scope.cancel()
    assert (record.outcome, record.status) == (Outcome.CANCELLED, None)
    assert seen.only.outcome is Outcome.CANCELLED
