"""git over smart HTTP: `git http-backend`, the CGI program that comes with git, as an ASGI app."""

import asyncio
import base64
import os
from contextlib import suppress
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

ANN = base64.b64encode(b"ann:secret").decode()


async def git(scope: Scope, receive: Receive, send: Send) -> None:
    """Anybody may read; whoever pushes must be ann."""
    request = Request(scope, receive)
    pushes = "git-receive-pack" in request.url.path + request.url.query
    if pushes and request.headers.get("authorization") != f"Basic {ANN}":
        refusal = Response(status_code=401, headers={"www-authenticate": 'Basic realm="git"'})
        return await refusal(scope, receive, send)
    process = await asyncio.create_subprocess_exec(
        "git",
        "http-backend",
        env=environment(request) | ({"REMOTE_USER": "ann"} if pushes else {}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    feeding = asyncio.create_task(feed(request, process.stdin))
    head = (await process.stdout.readuntil(b"\r\n\r\n")).split(b"\r\n")
    answered = dict(line.split(b": ", 1) for line in head if line)
    status = int(answered.pop(b"Status", b"200").split()[0])
    fields = [(name.lower(), value) for name, value in answered.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    while chunk := await process.stdout.read(65536):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await feeding
    await process.wait()
    return await send({"type": "http.response.body"})


async def feed(request: Request, stdin: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):  # it refuses a push before it has read it
        async for chunk in request.stream():
            if stdin.is_closing():  # it has ended: uvloop takes no write then, not an empty one
                break
            stdin.write(chunk)
            await stdin.drain()
    stdin.close()


def environment(request: Request) -> dict[str, str]:
    """What a CGI program is told (RFC 3875 4.1)."""
    path = request.url.path.removeprefix(request.scope["root_path"])
    told = {
        "HTTP_" + name.upper().replace("-", "_"): value for name, value in request.headers.items()
    }
    told |= {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_PROJECT_ROOT": str(Path(os.environ["FOLDER"]) / "git"),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        "REQUEST_METHOD": request.method,
        "PATH_INFO": path,
        "QUERY_STRING": request.url.query,
        "CONTENT_TYPE": request.headers.get("content-type", ""),
        "REMOTE_ADDR": "127.0.0.1",
    }
    if "content-length" in request.headers:
        told["CONTENT_LENGTH"] = request.headers["content-length"]
    return told
