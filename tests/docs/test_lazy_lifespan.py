"""The wrapper that runs the lifespan at the first request: scopes of servers that run none."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Scope

from asgi_upstream import client_lifespan, get_client
from examples.lazy_lifespan import LazyLifespan

# What daphne, a2wsgi and Mangum put into a scope, as far as it differs.
DAPHNE: Mapping[str, Any] = {"http_version": "1.1", "client": ["127.0.0.1", 1], "root_path": ""}
A2WSGI: Mapping[str, Any] = {"http_version": "1.1", "extensions": {}, "scheme": "http"}
MANGUM: Mapping[str, Any] = {"http_version": "1.1", "aws.event": {}, "aws.context": None}
REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="none")


class LoggedApp:
    """An app with a client, and a log of its lifespan."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failures: list[Exception] = []
        self.starting: asyncio.Event | None = None
        self.app = Starlette(routes=[Route("/", self.endpoint)], lifespan=self.lifespan)
        self.lazy = LazyLifespan(self.app)

    async def endpoint(self, request: Request) -> PlainTextResponse:
        client = await get_client(request)
        return PlainTextResponse("closed" if client.is_closed else str(client.base_url))

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        self.log.append(f"start {REQUEST_ID.get()}")
        if self.starting is not None:
            await self.starting.wait()
        if self.failures:
            raise self.failures.pop()
        async with client_lifespan(base_url="http://up.example")(app) as state:
            yield state
        self.log.append("stop")

    async def get(self, server: Mapping[str, Any] = DAPHNE) -> str:
        scope: Scope = {
            "type": "http", "asgi": {"version": "3.0"}, "method": "GET", "path": "/",
            "raw_path": b"/", "query_string": b"", "headers": [], "server": None, **server,
        }  # fmt: skip
        body = b""

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal body
            body += message.get("body", b"")

        await self.lazy(scope, receive, send)
        return body.decode()


@pytest.mark.parametrize("server", [DAPHNE, A2WSGI, MANGUM], ids=["daphne", "a2wsgi", "mangum"])
def test_first_request_starts_the_lifespan_for_all(server: Mapping[str, Any]) -> None:
    app = LoggedApp()

    async def main() -> None:
        REQUEST_ID.set("of the first request")
        for _ in range(3):
            assert await app.get(server) == "http://up.example"

    asyncio.run(main())
    assert app.log == ["start none", "stop"]


def test_invocations_in_one_loop_share_one_lifespan() -> None:
    """Mangum runs its loop once for each invocation."""
    app, loop = LoggedApp(), asyncio.new_event_loop()
    for _ in range(3):
        assert loop.run_until_complete(app.get(MANGUM)) == "http://up.example"
    assert app.log == ["start none"]
    loop.run_until_complete(app.lazy.aclose())
    loop.close()
    assert app.log == ["start none", "stop"]


def test_concurrent_first_requests_start_one_lifespan() -> None:
    app = LoggedApp()

    async def main() -> None:
        app.starting = asyncio.Event()
        requests = [asyncio.create_task(app.get()) for _ in range(5)]
        await asyncio.sleep(0)
        requests[0].cancel()  # the one that started the lifespan
        await asyncio.sleep(0)
        app.starting.set()
        first, *others = await asyncio.gather(*requests, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert others == ["http://up.example"] * 4

    asyncio.run(main())
    assert app.log == ["start none", "stop"]


def test_failure_reaches_waiting_requests_and_next_one_retries() -> None:
    app = LoggedApp()
    app.failures.append(OSError("no database"))

    async def main() -> None:
        for answer in await asyncio.gather(app.get(), app.get(), return_exceptions=True):
            assert isinstance(answer, OSError)
        assert await app.get() == "http://up.example"

    asyncio.run(main())
    assert app.log == ["start none", "start none", "stop"]


def test_failure_without_exception_has_the_apps_message() -> None:
    async def refuses(scope: Scope, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    app = LoggedApp()
    app.lazy = LazyLifespan(refuses)
    with pytest.raises(RuntimeError, match="no database"):
        asyncio.run(app.get())


def test_each_event_loop_has_its_own_lifespan() -> None:
    app = LoggedApp()
    for _ in range(3):
        assert asyncio.run(app.get()) == "http://up.example"
    assert app.log == ["start none", "stop"] * 3
    assert len(app.lazy._runs) <= 1


def test_wrapper_does_nothing_if_the_server_runs_the_lifespan() -> None:
    app = LoggedApp()
    with TestClient(app.lazy) as caller:
        assert caller.get("/").text == "http://up.example"
    assert app.log == ["start none", "stop"]


def test_close_without_a_request_does_nothing() -> None:
    app = LoggedApp()
    asyncio.run(app.lazy.aclose())
    assert app.log == []
