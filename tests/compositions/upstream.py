"""What the upstream of raw sockets does for the compositions, besides what it does anyway."""

import asyncio
import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from email.utils import formatdate

from tests.integration.upstream import KEEPS_ALIVE, OK, Behaviour, Exchange, behaviour, chunked

arrivals: defaultdict[str, list[float]] = defaultdict(list)
"""When requests came, by the `key` of their query."""


def keeping_alive(function: Behaviour) -> Behaviour:
    KEEPS_ALIVE.add(function)
    return behaviour(function)


def field(e: Exchange, name: str) -> str:
    """The value of a field of the request, or nothing."""
    _, _, rest = e.head.decode("latin-1").lower().partition(f"\r\n{name}: ")
    return rest.partition("\r\n")[0]


@keeping_alive
async def flaky(e: Exchange) -> None:
    """Fails `times` times as `how` says, a status or "reset", and answers then."""
    times = arrivals[e.query["key"]]
    times.append(time.monotonic())
    how = e.query.get("how", "503")
    if len(times) > int(e.query.get("times", "1000000")):
        await e.write(OK + b"content-length: 4\r\n\r\nwell")
    elif how == "reset":
        e.reset()
    else:
        after = e.query.get("after")
        field = f"retry-after: {after}\r\n" if after else ""
        await e.write(f"HTTP/1.1 {how} No\r\n{field}content-length: 2\r\n\r\nno".encode())


@keeping_alive
async def kept(e: Exchange) -> None:
    """The n-th answer to a `key`, for whom the request names; `cache`, `vary`, ... as asked for.

    With `renews`, a 304 sets a cookie for whom the request names, and is fresh.

    Its body has `parts` parts and breaks off after `broken` of them; the first time, with `stall`,
    it stops after one, and does not end.
    """
    times, query = arrivals[e.query["key"]], e.query
    times.append(time.monotonic())
    names = ("authorization", "cookie", "x-api-key", "accept-language")
    for_whom = ",".join(value for name in names if (value := field(e, name)))
    fields = f"cache-control: {query['cache']}\r\n" if "cache" in query else ""
    for name in ("vary", "etag", "set-cookie", "last-modified", "access-control-allow-origin"):
        fields += f"{name}: {query[name]}\r\n" if name in query else ""
    if "undated" not in query:
        fields += f"date: {formatdate(time.time() - int(query.get('age', 0)), usegmt=True)}\r\n"
    if "etag" in query and field(e, "if-none-match") == query["etag"]:
        if "renews" in query:
            fields = re.sub("date: .*?\r\n", f"set-cookie: {for_whom}\r\n", fields)
        await e.write(f"HTTP/1.1 304 Not Modified\r\n{fields}\r\n".encode())
        return
    part = f"{len(times)} for {for_whom or 'anybody'}\n".encode()
    parts = [part, *[bytes([n % 251]) * 50_000 for n in range(1, int(query.get("parts", "1")))]]
    if len(parts) == 1 and "broken" not in query:
        await e.write(OK + fields.encode() + b"content-length: %d\r\n\r\n" % len(part))
        await e.write(part if e.method != "HEAD" else b"")
        return
    await e.write(OK + fields.encode() + b"transfer-encoding: chunked\r\n\r\n")
    for number, part in enumerate(parts):
        await e.write(chunked(part))
        if number + 1 == int(query.get("broken", "0")):
            e.reset()
            return
        if "stall" in query and len(times) == 1:
            await asyncio.sleep(3600)
    await e.write(b"0\r\n\r\n")


async def two_events(e: Exchange) -> None:
    """Cut at each byte."""
    head = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    await e.write(OK + head)
    text = ": hello\n\nevent: line\nid: 7\ndata: grün\ndata: rot\n\ndata: zwei\r\n\r\n"
    for byte in text.encode():
        await e.write(chunked(bytes([byte])))
        await asyncio.sleep(0)


@behaviour
async def quiet(e: Exchange) -> None:
    """Two events, and then nothing more."""
    await two_events(e)
    await asyncio.sleep(3600)


@behaviour
async def torrent(e: Exchange) -> None:
    """Events without end, as fast as they are taken."""
    head = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    await e.write(OK + head)
    while True:
        await e.write(chunked(b"data: %s\n\n" % (b"d" * 10_000)))


@behaviour
async def dying(e: Exchange) -> None:
    """Two events, and then the connection breaks."""
    await two_events(e)
    await asyncio.sleep(0.05)
    e.reset()


@dataclass
class Tokens:
    """What the token endpoint has given out; the last one is valid, unless it was revoked."""

    issued: int = 0
    lifetime: int = 3600
    refusal: bytes = b""  # the whole answer, in place of a token
    valid: str = ""


tokens = Tokens()


@keeping_alive
async def token(e: Exchange) -> None:
    await asyncio.sleep(0.2)  # so that many wait for it
    if tokens.refusal:
        await e.write(tokens.refusal)
        return
    tokens.issued += 1
    tokens.valid = f"token-{tokens.issued}"
    body = json.dumps(
        {"access_token": tokens.valid, "token_type": "Bearer", "expires_in": tokens.lifetime}
    ).encode()
    fields = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    await e.write(OK + fields + body)


@keeping_alive
async def guarded(e: Exchange) -> None:
    """401 for who does not give the token that is valid; `late` seconds after it was looked at."""
    known = field(e, "authorization") == f"bearer {tokens.valid}"
    await asyncio.sleep(float(e.query.get("late", 0)))
    status = b"200 OK" if known else b"401 Unauthorized"
    await e.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nok")
