"""Runs an app's lifespan at the first request, for servers that run none.

    uvicorn examples.lazy_lifespan:app            # a server that runs it
    daphne examples.lazy_lifespan:application     # a server that does not

daphne, a2wsgi, Mangum with lifespan="off" and Azure Functions run no lifespan. If the server does
run it, the wrapper does nothing.
"""

import asyncio
import os
from contextlib import suppress
from contextvars import Context
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_upstream import StreamedResponse, client_lifespan, get_client


class LazyLifespan:
    """An ASGI app that runs another app's lifespan at the first request of each event loop."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._runs: dict[asyncio.AbstractEventLoop, _Run] = {}
        self._server_runs_lifespan = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._server_runs_lifespan = True
        elif not self._server_runs_lifespan and "state" not in scope:
            scope = {**scope, "state": dict(await self._start())}
        await self.app(scope, receive, send)

    async def _start(self) -> dict[str, Any]:
        """Return the lifespan's state. The first request starts it, and the others wait."""
        loop = asyncio.get_running_loop()  # a client cannot be used in another loop
        run = self._runs.get(loop)
        if run is None or run.task.done():  # after a failure the next request tries again
            for closed in [other for other in self._runs if other.is_closed()]:
                del self._runs[closed]
            run = self._runs[loop] = _Run(self.app)
        await asyncio.shield(run.started)  # a request that is cancelled must not stop the others
        return run.state

    async def aclose(self) -> None:
        """Run the app's shutdown, if your server can call this when it stops."""
        run = self._runs.pop(asyncio.get_running_loop(), None)
        if run is not None:
            run.stop.set()
            await run.task


class _Run:
    """One run of the lifespan, in a task and a context of its own.

    The app's shutdown runs when `stop` is set, or when the task is cancelled: `asyncio.run` does
    that at the end of its loop.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self.stop = asyncio.Event()
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._app = app
        self._startup_sent = False
        self._failure = "the app ended its lifespan before it started"
        self.task = asyncio.create_task(self._run(), context=Context())

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
            await self._app(scope, self._receive, self._send)
        except BaseException as exc:
            if self.started.done() or not isinstance(exc, Exception):
                raise
            error = exc
        finally:
            if not self.started.done():
                self.started.set_exception(error or RuntimeError(self._failure))
                self.started.exception()  # all requests that waited may be gone

    async def _receive(self) -> Message:
        if not self._startup_sent:
            self._startup_sent = True
            return {"type": "lifespan.startup"}
        with suppress(asyncio.CancelledError):
            await self.stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self.started.set_result(None)
        elif message["type"] == "lifespan.startup.failed":
            self._failure = message.get("message") or self._failure


async def item(request: Request) -> StreamedResponse:
    """Relay an item of the upstream."""
    client: httpx.AsyncClient = await get_client(request)
    return StreamedResponse(client, client.build_request("GET", "/item"))


UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = Starlette(routes=[Route("/item", item)], lifespan=client_lifespan(base_url=UPSTREAM_URL))
application = LazyLifespan(app)
