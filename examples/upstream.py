"""The upstream of the examples and of `make demo`.

    uvicorn examples.upstream:app --port 9000

`/open` returns the number of open exchanges, and the callers that have disconnected early.
"""

import asyncio
import gzip
import hashlib
import itertools
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from functools import cache

import anyio
import anyio.lowlevel
import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

FILE_SIZE = 200_000_000
CHUNK = 65536
LINES = "one\ntwo\nthree, with ümläuts\n"


def file_chunks(size: int) -> Iterator[bytes]:
    """Yield `size` bytes, always the same, in different chunks."""
    block = random.Random(0).randbytes(CHUNK)
    for number, start in enumerate(range(0, size, CHUNK)):
        yield (number.to_bytes(8) + block[8:])[: size - start]


@cache
def file_sha256(size: int) -> str:
    """Return the checksum of these bytes."""
    digest = hashlib.sha256()
    for chunk in file_chunks(size):
        digest.update(chunk)
    return digest.hexdigest()


async def file(request: Request) -> Response:
    """Send 200 MB, or `?size=` bytes, with their checksum in `x-sha256`."""
    size = int(request.query_params.get("size", FILE_SIZE))
    checksum = await anyio.to_thread.run_sync(file_sha256, size)

    async def body() -> AsyncIterator[bytes]:
        for chunk in file_chunks(size):
            yield chunk
            # Nothing else waits here, and uvicorn must get a chance to notice a disconnect.
            await anyio.lowlevel.checkpoint()

    headers = {"content-length": str(size), "x-sha256": checksum}
    return StreamingResponse(body(), media_type="application/octet-stream", headers=headers)


async def events(request: Request) -> Response:
    """Send an event every 100 ms, forever or `?count=` times. `sent` is the wall-clock time."""
    count = request.query_params.get("count")

    async def body() -> AsyncIterator[str]:
        for number in itertools.count() if count is None else range(int(count)):
            if number:
                await anyio.sleep(0.1)
            yield f"id: {number}\ndata: {json.dumps({'number': number, 'sent': time.time()})}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


async def item(request: Request) -> Response:
    """Send a small JSON document."""
    return JSONResponse({"name": "lamp", "price": 20}, headers={"x-upstream": "yes"})


async def text(request: Request) -> Response:
    """Send three lines of text."""
    return PlainTextResponse(LINES)


async def slow_text(request: Request) -> Response:
    """Send `?count=` lines, one every `?delay=` seconds."""
    count = int(request.query_params.get("count", 10))
    delay = float(request.query_params.get("delay", 0.3))

    async def body() -> AsyncIterator[str]:
        for number in range(count):
            yield f"line {number}\n"
            await anyio.sleep(delay)

    return StreamingResponse(body(), media_type="text/plain")


async def gzipped(request: Request) -> Response:
    """Send the JSON document compressed."""
    body = gzip.compress(b'{"name":"lamp","price":20}', mtime=0)
    return Response(body, media_type="application/json", headers={"content-encoding": "gzip"})


async def never(request: Request) -> Response:
    """Never answer."""
    await anyio.sleep_forever()
    return Response()


async def dies(request: Request) -> Response:
    """Send `?chunks=` chunks, then close the connection."""
    chunks = int(request.query_params.get("chunks", 3))

    async def body() -> AsyncIterator[str]:
        for number in range(chunks):
            yield f"data: part {number}\n\n"
            await anyio.sleep(0.02)
        raise RuntimeError("this upstream dies half-way, as asked")

    return StreamingResponse(body(), media_type="text/event-stream")


async def cookie(request: Request) -> Response:
    """Return the received cookies, and start a session."""
    response = JSONResponse({"got": request.cookies})
    response.set_cookie("session", f"{time.monotonic_ns():x}")
    return response


async def token(request: Request) -> Response:
    """Return a token like an OAuth2 server, to any client."""
    return JSONResponse({"access_token": "of-the-app", "token_type": "bearer", "expires_in": 3600})


async def headers(request: Request) -> Response:
    """Return the request's headers."""
    return JSONResponse(dict(request.headers))


async def status(request: Request) -> Response:
    """Answer with the status in the path."""
    code = request.path_params["code"]
    if code in (204, 205, 304):
        return Response(status_code=code)
    return PlainTextResponse(f"status {code}\n", status_code=code)


async def big(request: Request) -> Response:
    """Send a JSON document of `?size=` bytes."""
    size = int(request.query_params.get("size", 1_000_000))
    return Response(
        b'{"filler":"' + b"x" * (size - len('{"filler":""}')) + b'"}', media_type="application/json"
    )


async def talk(websocket: WebSocket) -> None:
    """Echo each message, and close after "bye"."""
    await websocket.accept()
    async for message in websocket.iter_text():
        if message == "bye":
            await websocket.close(4000, "so long")
            break
        await websocket.send_text(f"you said: {message}")


class Exchanges:
    """Counts the open exchanges of an app, and ends those whose caller has disconnected."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.open = 0
        self.left_count = 0
        self.left: deque[dict[str, object]] = deque(maxlen=1000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == "/open":
            left = {"left_count": self.left_count, "left": list(self.left)}
            await JSONResponse({"open": self.open, **left})(scope, receive, send)
        else:
            self.open += 1
            try:
                await self._watched(scope, receive, send)
            finally:
                self.open -= 1

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.Event()
        whole = False

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        async def receive_disconnect() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send_noting_the_end(message: Message) -> None:
            nonlocal whole
            whole = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        answer = asyncio.ensure_future(self.app(scope, receive_disconnect, send_noting_the_end))
        watcher = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({answer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if whole or not gone.is_set():
                await answer
            else:
                self.left_count += 1
                self.left.append({"path": scope["path"], "at": time.monotonic()})
        finally:
            answer.cancel()
            watcher.cancel()
            await asyncio.gather(answer, watcher, return_exceptions=True)


routes = Starlette(
    routes=[
        Route("/file", file),
        Route("/events", events),
        Route("/item", item),
        Route("/text", text),
        Route("/slow-text", slow_text),
        Route("/gzip", gzipped),
        Route("/never", never),
        Route("/dies", dies),
        Route("/cookie", cookie),
        Route("/headers", headers),
        Route("/token", token, methods=["POST"]),
        Route("/status/{code:int}", status),
        Route("/big", big),
        WebSocketRoute("/talk", talk),
    ]
)
app = Exchanges(routes)
