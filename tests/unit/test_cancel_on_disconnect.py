"""Several calls of your own in a `cancel_on_disconnect`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import fastapi
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.websockets import WebSocket

from asgi_upstream import (
    ExchangeRecord,
    Outcome,
    StreamedResponse,
    UpstreamTimeout,
    cancel_on_disconnect,
    count_open_exchanges,
    fetch,
    forward_request,
    get_client,
    upstream_errors,
)
from asgi_upstream._exchange.inbox import Inbox
from asgi_upstream.testing import Upstream, serve
from tests.support.asgi import Caller, answering, collect_garbage
from tests.support.flavor import AsyncioTransport, client_lifespan, httpx
from tests.support.marks import ignore_httpcore_generators
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.virtual_time,
    pytest.mark.anyio,
    ignore_httpcore_generators,
]


Merge = Callable[[httpx.AsyncClient], Awaitable[list[Any]]]


async def alone(client: httpx.AsyncClient) -> list[Any]:
    return [(await fetch(client, client.build_request("GET", "/a"))).text]


async def gathered(client: httpx.AsyncClient) -> list[Any]:
    first, second = await asyncio.gather(
        fetch(client, client.build_request("GET", "/a")),
        fetch(client, client.build_request("GET", "/b")),
    )
    return [first.text, second.text]


async def in_task_group(client: httpx.AsyncClient) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(fetch(client, client.build_request("GET", path)))
            for path in ("/a", "/b")
        ]
    return [task.result().text for task in tasks]


async def in_anyio_group(client: httpx.AsyncClient) -> list[Any]:
    texts: dict[str, str] = {}

    async def get(path: str) -> None:
        texts[path] = (await fetch(client, client.build_request("GET", path))).text

    async with anyio.create_task_group() as group:
        group.start_soon(get, "/a")
        group.start_soon(get, "/b")
    return [texts["/a"], texts["/b"]]


async def in_upstream_errors(client: httpx.AsyncClient) -> list[Any]:
    with upstream_errors():
        return await in_anyio_group(client)


GATHERED = pytest.param(gathered, marks=pytest.mark.asyncio_only)
IN_TASK_GROUP = pytest.param(in_task_group, marks=pytest.mark.asyncio_only)
MERGES = [alone, GATHERED, IN_TASK_GROUP, in_anyio_group, in_upstream_errors]


class FetchingApp:
    """An app with one endpoint, and what its calls recorded."""

    def __init__(self, *steps: bytes | float, before: float = 0) -> None:
        self.upstream = answering(*steps, before=before)
        self.client = self.upstream.client()
        self.records: list[ExchangeRecord] = []

    async def fetch(self, path: str = "/") -> httpx.Response:
        return await fetch(
            self.client, self.client.build_request("GET", path), observers=[self.records.append]
        )

    @property
    def outcomes(self) -> list[Outcome]:
        return [record.outcome for record in self.records]


async def run(
    endpoint: Callable[[Request], Awaitable[Response]],
    caller: Caller,
    *,
    middleware: bool = False,
    method: str = "GET",
) -> Caller:
    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    app = Starlette(
        routes=[Route("/", endpoint, methods=[method])],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)] if middleware else [],
    )
    with anyio.fail_after(60):
        await caller.call(app)
    collect_garbage()
    return caller


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("merge", MERGES)
async def test_block_that_is_not_cancelled_changes_nothing(merge: Merge, middleware: bool) -> None:
    app = FetchingApp(b"x")

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request, deadline=60):
            texts = await merge(app.client)
        return JSONResponse(texts)

    caller = await run(endpoint, Caller(), middleware=middleware)
    assert caller.status == 200
    assert caller.body in (b'["x","x"]', b'["x"]')


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("where", ["head", "body"])
async def test_disconnect_cancels_all_calls_and_is_499(
    merge: Merge,
    middleware: bool,
    where: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FetchingApp(60) if where == "body" else FetchingApp(before=60)

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request):
            await merge(app.client)
        raise AssertionError("not cancelled")

    caller = await run(endpoint, Caller(leaves_after=0.05), middleware=middleware)
    assert caller.status == 499
    assert app.upstream.opened >= 1
    assert app.upstream.open == 0
    assert count_open_exchanges(app.client) == 0
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]


@pytest.mark.parametrize("merge", MERGES)
async def test_deadline_of_a_block_is_504(merge: Merge) -> None:
    app = FetchingApp(before=60)

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request, deadline=0.05):
            await merge(app.client)
        raise AssertionError("not cancelled")

    caller = await run(endpoint, Caller())
    assert caller.status == 504
    assert app.upstream.open == 0


async def test_deadline_can_be_handled_by_the_endpoint() -> None:
    async def endpoint(request: Request) -> Response:
        try:
            async with cancel_on_disconnect(request, deadline=0.05):
                await anyio.sleep(60)
        except UpstreamTimeout:
            return JSONResponse("late")
        raise AssertionError("not cancelled")

    caller = await run(endpoint, Caller())
    assert caller.body == b'"late"'


async def test_record_says_why_a_call_was_cancelled() -> None:
    app = FetchingApp(before=60)

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request):
            await app.fetch()
        raise AssertionError("not cancelled")

    await run(endpoint, Caller(leaves_after=0.05))
    assert app.outcomes == [Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS]
    assert app.records[0].route == "/"


async def test_record_of_a_call_that_met_the_deadline_of_a_block() -> None:
    app = FetchingApp(before=60)

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request, deadline=0.05):
            await app.fetch()
        raise AssertionError("not cancelled")

    await run(endpoint, Caller())
    assert app.outcomes == [Outcome.DEADLINE]


async def test_upstream_failure_in_a_block_is_that_failure() -> None:
    upstream = answering(failing=httpx.ConnectError("refused"))
    client = upstream.client()

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request, deadline=60):
            await fetch(client, client.build_request("GET", "/"))
        raise AssertionError

    caller = await run(endpoint, Caller())
    assert caller.status == 502


@pytest.mark.parametrize("merge", [IN_TASK_GROUP, in_upstream_errors])
async def test_upstream_failure_in_a_group_in_a_block_is_502(merge: Merge) -> None:
    client = answering(failing=httpx.ConnectError("refused")).client()

    async def endpoint(request: Request) -> Response:
        with upstream_errors():
            async with cancel_on_disconnect(request, deadline=60):
                await merge(client)
        raise AssertionError

    caller = await run(endpoint, Caller())
    assert caller.status == 502


async def test_exception_of_the_app_leaves_the_block_as_it_is() -> None:
    class Mine(Exception):
        pass

    caller = Caller()
    request = Request(caller.scope, caller.receive)
    with pytest.raises(Mine):
        async with cancel_on_disconnect(request):
            raise Mine


async def test_cancellation_from_outside_is_not_taken_for_the_callers() -> None:
    caller = Caller()
    with anyio.move_on_after(0.05) as scope:
        async with cancel_on_disconnect(Request(caller.scope, caller.receive), deadline=60):
            await anyio.sleep(60)
    assert scope.cancelled_caught


# --- the caller's messages -----------------------------------------------------------------


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("order", ["before", "in", "after"])
async def test_body_is_whole_wherever_it_is_read(order: str, middleware: bool) -> None:
    app = FetchingApp(b"x")
    seen: list[bytes] = []

    async def endpoint(request: Request) -> Response:
        if order == "before":
            seen.append(await request.body())
        async with cancel_on_disconnect(request):
            await app.fetch()
            if order == "in":
                seen.append(await request.body())
            await app.fetch()
        if order == "after":
            seen.append(await request.body())
        return Response()

    caller = Caller("POST", body=[b"ab", b"cd", b"ef"])
    await run(endpoint, caller, middleware=middleware, method="POST")
    assert seen == [b"abcdef"]
    assert caller.status == 200


@pytest.mark.parametrize("middleware", [False, True])
async def test_disconnect_after_the_body_was_read_is_seen(middleware: bool) -> None:
    app = FetchingApp(before=60)

    async def endpoint(request: Request) -> Response:
        await request.body()
        async with cancel_on_disconnect(request):
            await app.fetch()
        raise AssertionError

    caller = Caller("POST", body=[b"ab", b"cd"], leaves_after=0.05)
    await run(endpoint, caller, middleware=middleware, method="POST")
    assert caller.status == 499
    assert app.upstream.open == 0


async def test_body_can_be_forwarded_after_the_block() -> None:
    app = FetchingApp(b"x")

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request):
            await app.fetch()
        return StreamedResponse(app.client, forward_request(app.client, request))

    caller = Caller("POST", headers=[(b"content-length", b"6")], body=[b"abc", b"def"])
    await run(endpoint, caller, method="POST")
    assert app.upstream.bodies[-1] == b"abcdef"


async def test_large_body_is_not_collected_in_memory() -> None:
    chunk = bytes(256 * 1024)
    caller = Caller("POST", body=[chunk] * 40)
    request = Request(caller.scope, caller.receive)
    async with cancel_on_disconnect(request):
        await anyio.sleep(0.05)
        assert caller.parts_left >= 34
        size = 0
        async for part in request.stream():
            size += len(part)
    assert size == 40 * len(chunk)


async def test_blocks_may_be_nested_and_follow_each_other() -> None:
    app = FetchingApp(b"x")

    async def endpoint(request: Request) -> Response:
        async with cancel_on_disconnect(request):
            async with cancel_on_disconnect(request, deadline=60):
                await app.fetch()
            await app.fetch()
        async with cancel_on_disconnect(request):
            return Response(await request.body())

    caller = await run(endpoint, Caller("POST", body=[b"ab", b"cd"]), method="POST")
    assert caller.body == b"abcd"


async def test_receive_that_fails_does_not_end_the_block() -> None:
    async def receive() -> Any:
        raise LookupError("not a server")

    async with cancel_on_disconnect(Request(Caller().scope, receive)):
        await anyio.sleep(0.01)


async def test_block_needs_a_request_with_messages() -> None:
    with pytest.raises(TypeError, match="cancel_on_disconnect needs"):
        cancel_on_disconnect(HTTPConnection(Caller().scope))
    with pytest.raises(ValueError, match="deadline="):
        cancel_on_disconnect(Request(Caller().scope), deadline=-1)


# --- FastAPI, WebSockets and real servers --------------------------------------------------


async def test_block_works_as_a_dependency() -> None:
    app = FetchingApp(before=60)
    api = fastapi.FastAPI()

    async def cancelling(request: Request) -> AsyncIterator[None]:
        async with cancel_on_disconnect(request):
            yield

    @api.get("/", dependencies=[fastapi.Depends(cancelling)])
    async def root() -> None:
        await app.fetch()

    caller = Caller(leaves_after=0.05)
    with anyio.fail_after(60):
        await caller.call(api)
    assert caller.status == 499
    assert app.upstream.open == 0


class WebSocketCaller:
    """A caller who sends messages over a WebSocket and then disconnects or waits."""

    def __init__(self, *texts: str, disconnects: bool) -> None:
        self._messages: list[dict[str, Any]] = [{"type": "websocket.connect"}]
        self._messages += [{"type": "websocket.receive", "text": text} for text in texts]
        if disconnects:
            self._messages.append({"type": "websocket.disconnect", "code": 1001})
        self.sent: list[Any] = []
        self.scope = {**Caller().scope, "type": "websocket", "subprotocols": []}
        del self.scope["method"]

    async def receive(self) -> Any:
        await anyio.lowlevel.checkpoint()
        if not self._messages:
            await anyio.sleep_forever()
        return self._messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_websocket_block_is_cancelled_by_a_disconnect() -> None:
    app = FetchingApp(before=60)
    api = fastapi.FastAPI()

    @api.websocket("/")
    async def root(websocket: WebSocket) -> None:
        await websocket.accept()
        async with cancel_on_disconnect(websocket):
            await app.fetch()
        raise AssertionError

    caller = WebSocketCaller(disconnects=True)
    with anyio.fail_after(60):
        await api(caller.scope, caller.receive, caller.send)
    assert app.upstream.open == 0
    assert app.outcomes == [Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS]


async def test_websocket_messages_are_kept_for_the_endpoint() -> None:
    app = FetchingApp(0.05, b"x")
    seen: list[str] = []
    caller = WebSocketCaller("1", "2", "3", disconnects=False)
    websocket = WebSocket(caller.scope, caller.receive, caller.send)
    await websocket.accept()
    async with cancel_on_disconnect(websocket):
        await app.fetch()
        seen.append(await websocket.receive_text())
    seen.append(await websocket.receive_text())
    seen.append(await websocket.receive_text())
    assert seen == ["1", "2", "3"]


@pytest.mark.process
@pytest.mark.parametrize("server", ["uvicorn"])
@pytest.mark.parametrize("transport", [None, AsyncioTransport])
def test_caller_who_disconnects_frees_the_upstreams(
    server: str, transport: Callable[[], Any] | None
) -> None:
    with Upstream() as upstream:
        upstream.get("/a").stall(60)
        upstream.get("/b").json(1)
        options: dict[str, Any] = {"transport": transport()} if transport else {}
        app = fastapi.FastAPI(lifespan=client_lifespan(base_url=upstream.url, **options))

        @app.get("/merge")
        async def merge(request: Request) -> list[Any]:
            client = await get_client(request)
            async with cancel_on_disconnect(request):
                return await gathered(client)

        with serve(app) as url:
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(url + "/merge", timeout=0.5)
            eventually(lambda: upstream.open_exchanges == 0)


@pytest.mark.asyncio_only
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("middleware", [False, True])
async def test_message_that_a_server_has_taken_reaches_the_endpoint(
    blocks: int, middleware: bool
) -> None:
    """Granian's `receive` returns a future. To cancel it loses the message."""
    loop = asyncio.get_running_loop()
    chunks = [b"a", b"b", b"c"]

    def receive() -> asyncio.Future[dict[str, Any]]:
        future = loop.create_future()
        chunk = chunks.pop(0)
        message = {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

        def finish() -> None:
            if not future.done():
                future.set_result(message)

        loop.call_later(1, finish)
        return future

    async def receive_in_middleware() -> Any:
        return await receive()

    scope = {"type": "http", "method": "POST", "headers": []}
    request = Request(scope, receive_in_middleware if middleware else receive)
    for _ in range(blocks):
        async with cancel_on_disconnect(request):
            await anyio.sleep(0.5)
    assert await request.body() == b"abc"


@pytest.mark.asyncio_only
async def test_block_leaves_a_disconnect_in_the_queue_of_hypercorn() -> None:
    """A response that does not read the body listens for it."""
    queue = asyncio.Queue[Any]()
    request = Request({"type": "http", "method": "POST", "headers": []}, queue.get)
    async with cancel_on_disconnect(request):
        queue.put_nowait({"type": "http.request", "body": b"a", "more_body": True})
        await anyio.wait_all_tasks_blocked()
    queue.put_nowait({"type": "http.disconnect"})
    await anyio.wait_all_tasks_blocked()
    assert queue.qsize() == 1


@pytest.mark.asyncio_only
async def test_receive_that_fails_after_a_block_fails_once() -> None:
    messages: list[Any] = [OSError("gone"), {"type": "http.disconnect"}]
    go_on = anyio.Event()

    async def receive() -> Any:
        await go_on.wait()
        message = messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    async with cancel_on_disconnect(request):
        await anyio.wait_all_tasks_blocked()
    go_on.set()
    with pytest.raises(OSError, match="gone"):
        await request.receive()
    assert await request.receive() == {"type": "http.disconnect"}


@pytest.mark.asyncio_only
@pytest.mark.parametrize("turns", range(4))
async def test_message_that_comes_with_the_cancellation_is_kept(turns: int) -> None:
    message = {"type": "http.request", "body": b"a", "more_body": True}
    future = asyncio.get_running_loop().create_future()
    inbox = Inbox(iter([future]).__next__)
    listener = asyncio.create_task(inbox.receive_ahead())
    await anyio.wait_all_tasks_blocked()
    future.set_result(message)
    for _ in range(turns):
        await asyncio.sleep(0)
    listener.cancel()
    await asyncio.wait([listener])
    inbox.stop()
    assert await inbox.receive() == message
