"""examples/compositions/caching.py, which tells what worker answered."""

import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.compositions.caching import app


class Worker:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-worker", b"%d" % os.getpid())]
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


app.user_middleware.append(Middleware(Worker))


@app.get("/state")
async def state() -> dict[str, int]:
    return {"pid": os.getpid()}
