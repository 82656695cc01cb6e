"""The upstream `web`: files, uploads, events, git, packages."""

import asyncio
import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.real_clients.git_server import git

FOLDER = Path(os.environ["FOLDER"])
METHODS = ["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"]
PAGE = b"<!doctype html><meta charset=utf-8><link rel=icon href='data:,'><title>page</title>"
seen: Counter[str] = Counter()
named: dict[int, str] = {}
under_way = 0


class Counting:
    """Counts the exchanges that are open, and the codings of all."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        global under_way
        counts = scope["type"] == "http"
        under_way += counts
        for name, value in scope.get("headers", ()):
            if name in (b"content-encoding", b"transfer-encoding"):
                seen[value.decode()] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            under_way -= counts


async def count_open(request: Request) -> Response:
    return JSONResponse(under_way)


async def echo(request: Request) -> Response:
    """What came: the fields, the length and the hash of the body."""
    digest, length = hashlib.sha256(), 0
    async for chunk in request.stream():
        digest.update(chunk)
        length += len(chunk)
    seen[request.query_params.get("name", "")] += 1
    return JSONResponse(
        {
            "method": request.method,
            "query": request.url.query,
            "fields": [(k.decode(), v.decode("latin-1")) for k, v in request.headers.raw],
            "length": length,
            "sha256": digest.hexdigest(),
        },
        headers={"x-upstream": "web"},
    )


async def read_form(request: Request) -> Response:
    """What a form said: its fields, and the name and the hash of each file."""
    said = {}
    async with request.form() as form:
        for name, value in form.items():
            if isinstance(value, UploadFile):
                digest = hashlib.sha256(await value.read()).hexdigest()
                said[name] = [value.filename, digest]
            else:
                said[name] = [value]
    return JSONResponse(said)


async def count_seen(request: Request) -> Response:
    return JSONResponse(seen[request.query_params["name"]])


async def refuse(request: Request) -> Response:
    """Answer without a look at the body."""
    return Response("too large\n", 413)


async def events(request: Request) -> Response:
    """`count` numbered events behind Last-Event-ID, and then the end or, with `holds`, silence."""
    first = int(request.headers.get("last-event-id", "0")) + 1
    count = int(request.query_params.get("count", "1000000"))
    pause = float(request.query_params.get("pause", "0.02"))
    holds = "holds" in request.query_params

    async def stream() -> AsyncIterator[bytes]:
        yield b"retry: 50\n\n"
        for number in range(first, first + count):
            yield b"id: %d\ndata: %s\n\n" % (number, json.dumps({"number": number}).encode())
            await asyncio.sleep(pause)
        if holds:
            await asyncio.sleep(3600)

    return StreamingResponse(stream(), media_type="text/event-stream")


async def lines(request: Request) -> Response:
    async def stream() -> AsyncIterator[bytes]:
        for number in range(int(request.query_params["count"])):
            yield b"line %d\n" % number
            await asyncio.sleep(0.01)

    return StreamingResponse(stream(), media_type="text/plain")


async def pour(request: Request) -> Response:
    async def stream() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)
            await asyncio.sleep(0)  # uvicorn takes all, and at once, for a caller who has left

    return StreamingResponse(stream(), media_type="application/octet-stream")


async def breaks(request: Request) -> Response:
    """A body that ends before it should."""
    fields = {"content-length": "100000"} if "length" in request.query_params else {}

    async def stream() -> AsyncIterator[bytes]:
        yield b"a" * 1000
        await asyncio.sleep(0.05)
        raise ClientDisconnect  # uvicorn cuts the connection

    return StreamingResponse(stream(), headers=fields)


async def silent(request: Request) -> Response:
    """No answer, until the caller leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response()


async def login(request: Request) -> Response:
    response = Response("in")
    response.set_cookie("session", "abc", path="/")
    response.headers.append("set-cookie", "theme=dark; path=/")
    return response


async def zipped(request: Request) -> Response:
    accepted = "gzip" in request.headers.get("accept-encoding", "")
    fields = {"content-encoding": "gzip"} if accepted else {}
    return Response(gzip.compress(b"zipped " * 1000) if accepted else b"zipped", headers=fields)


async def who(request: Request) -> Response:
    """Who authenticated this connection, as IIS has it with NTLM and Negotiate."""
    assert request.client is not None
    scheme, _, name = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("ntlm", "negotiate"):
        named[request.client.port] = name
    return Response(named.get(request.client.port, "nobody"))


async def page(request: Request) -> Response:
    return Response(PAGE, media_type="text/html")


async def go(request: Request) -> Response:
    """A redirect that names this server's own address, as many frameworks send."""
    return Response(status_code=307, headers={"location": str(request.url_for("echo"))})


app = Counting(
    Starlette(
        routes=[
            Route("/open", count_open),
            Route("/seen", count_seen),
            Route("/echo", echo, methods=METHODS),
            Route("/form", read_form, methods=["POST"]),
            Route("/go", go, methods=METHODS),
            Route("/refuse", refuse, methods=METHODS),
            Route("/events", events),
            Route("/lines", lines),
            Route("/pour", pour),
            Route("/breaks", breaks),
            Route("/silent", silent, methods=METHODS),
            Route("/login", login),
            Route("/zipped", zipped),
            Route("/who", who),
            Route("/page", page),
            Mount("/git", git),
            Mount("/files", StaticFiles(directory=FOLDER, html=True)),
        ]
    )
)
