"""How failures and answers of the app's own code are recorded."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    Outcome,
    StreamedResponse,
    UpstreamProtocolError,
)
from tests.support.asgi import Caller
from tests.support.flavor import AsyncioTransport, httpx
from tests.support.recorded import (
    Answer,
    Observed,
    Raised,
    buffered,
    every_way,
    observing,
    recorded_tests,
    responses,
)
from tests.support.upstream import Upstream

pytestmark = recorded_tests


async def breaking(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in body:
        yield chunk
        raise Raised


async def refusing(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for _ in body:
        raise HTTPException(403)
    yield b""


def no_iterator(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    raise Raised


@every_way
@pytest.mark.parametrize("transform", [breaking, refusing, no_iterator])
@pytest.mark.parametrize("on_response", [None, lambda upstream: None], ids=["", "on_response"])
async def test_a_transform_that_raises_is_transform_failed(
    seen: Observed, way: Answer, transform: Any, on_response: Any
) -> None:
    options = {"transform": transform, "on_response": on_response}
    record = await seen.record(way(seen, "/chunks", **options))
    assert (record.outcome, record.status) == (Outcome.TRANSFORM_FAILED, 200)
    assert isinstance(record.exception, Raised | HTTPException)


@every_way
async def test_an_upstream_that_fails_in_a_transform_is_body_failed(
    seen: Observed, way: Answer
) -> None:
    async def passing(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk

    record = await seen.record(way(seen, "/short", transform=passing))
    assert (record.outcome, record.bytes_received) == (Outcome.BODY_FAILED, 100)


@every_way
@pytest.mark.parametrize("transform", [None, breaking], ids=["", "transform"])
async def test_an_on_response_that_raises_is_app_failed(
    seen: Observed, way: Answer, transform: Any
) -> None:
    def broken(upstream: httpx.Response) -> None:
        raise Raised

    for on_response in (broken, lambda upstream: "no response"):
        options = {"transform": transform, "on_response": on_response}
        record = await seen.record(way(seen, "/item", **options))
        assert (record.outcome, record.status) == (Outcome.APP_FAILED, 200)
        assert isinstance(record.exception, Raised | TypeError)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
@pytest.mark.parametrize("on_response", [None, lambda upstream: None], ids=["", "on_response"])
@pytest.mark.parametrize("error", [Raised(), HTTPException(400)], ids=["bug", "refusal"])
async def test_a_request_whose_own_body_raises_is_app_failed(
    seen: Observed, cls: Any, on_response: Any, error: Exception
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise error

    request = seen.get("/echo", "POST", content=parts())
    record = await seen.record(cls(seen.client, request, on_response=on_response))
    assert (record.outcome, record.status, record.bytes_sent) == (Outcome.APP_FAILED, None, 3)
    assert record.exception is error


@pytest.mark.asyncio_only
async def test_upload_that_fails_after_an_early_response_is_app_failed(
    upstream: Upstream,
) -> None:
    """Only AsyncioTransport takes an answer before the upload's end."""
    answered = anyio.Event()
    upstream.post("/early").content(b"in the end").stall(after=2).respond_early()

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await answered.wait()
        raise HTTPException(400)

    own: list[ExchangeRecord] = []
    async with httpx.AsyncClient(transport=AsyncioTransport()) as client:
        app = StreamedResponse(
            client,
            client.build_request("POST", f"{upstream.url}/early", content=parts()),
            on_response=lambda upstream: answered.set(),
            observers=[own.append],
        )
        with pytest.raises(HTTPException):
            await Caller().call(app)
    (record,) = own
    assert (record.outcome, record.status, record.bytes_sent) == (Outcome.APP_FAILED, 200, 3)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_each_call_of_one_response_has_its_record(seen: Observed, cls: Any) -> None:
    app = cls(seen.client, seen.get("/item"))
    for _ in range(2):
        assert (await seen.record(app)).outcome is Outcome.COMPLETED

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"

    app = cls(seen.client, seen.get("/echo", "POST", content=parts()))
    assert (await seen.record(app)).bytes_sent == 3
    again = await seen.record(app)
    assert (again.outcome, again.status, again.bytes_sent) == (Outcome.APP_FAILED, None, 0)
    assert isinstance(again.exception, RuntimeError)


@responses
async def test_an_exchange_on_a_closed_client_is_app_failed(
    upstream: Upstream, transport: str, way: Answer
) -> None:
    async with observing(upstream, transport) as seen:
        pass
    record = await seen.record(way(seen, "/item"))
    assert (record.outcome, record.status, record.client) == (Outcome.APP_FAILED, None, None)
    assert isinstance(record.exception, RuntimeError)


@every_way
async def test_another_answer_is_replaced(seen: Observed, way: Answer) -> None:
    record = await seen.record(
        way(seen, "/item?size=50", on_response=lambda upstream: JSONResponse({}))
    )
    assert (record.outcome, record.status, record.exception) == (Outcome.REPLACED, 200, None)
    assert record.bytes_received == (50 if way is buffered else 0)


@every_way
async def test_a_refusal_is_replaced(seen: Observed, way: Answer) -> None:
    def forbid(upstream: httpx.Response) -> None:
        raise HTTPException(403)

    record = await seen.record(way(seen, "/item", on_response=forbid))
    assert (record.outcome, record.status) == (Outcome.REPLACED, 200)
    assert isinstance(record.exception, HTTPException)


@every_way
async def test_upstream_error_of_on_response_is_an_upstream_failure(
    seen: Observed, way: Answer
) -> None:
    cause = ValueError("no JSON")

    def no_json(upstream: httpx.Response) -> None:
        raise UpstreamProtocolError

    def no_json_for_a_reason(upstream: httpx.Response) -> None:
        raise UpstreamProtocolError from cause

    for on_response, exception in [(no_json, None), (no_json_for_a_reason, cause)]:
        record = await seen.record(way(seen, "/item", on_response=on_response))
        assert (record.outcome, record.status) == (Outcome.PROTOCOL_FAILED, 200)
        assert record.exception is exception or exception is None


@every_way
async def test_what_another_answer_raises_is_in_the_record(seen: Observed, way: Answer) -> None:
    class Broken(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise Raised

    record = await seen.record(way(seen, "/item", on_response=lambda upstream: Broken()))
    assert record.outcome is Outcome.REPLACED
    assert isinstance(record.exception, Raised)


@every_way
async def test_an_exchange_in_place_of_another_has_a_record_of_its_own(
    seen: Observed, way: Answer
) -> None:
    def instead(upstream: httpx.Response) -> Response:
        return StreamedResponse(seen.client, seen.get("/item?size=7"))

    await seen.call(way(seen, "/status?code=503", on_response=instead))
    outcomes = [(record.outcome, record.status) for record in seen.records]
    assert outcomes == [(Outcome.COMPLETED, 200), (Outcome.REPLACED, 503)]
    seen.records.clear()
