"""Exchanges at random with an upstream at random, until one of them goes wrong.

    python -m tests.fuzz.fuzz --minutes 10
    python -m tests.fuzz.fuzz --seed 1234     # one case again

Each case is a client on `AsyncioTransport` with small limits, some exchanges of all kinds, and
connections to an upstream that cuts, breaks, pauses, ends and resets as it likes. Callers are slow,
leave and are cancelled; the client may be closed in between. Whatever happens, every exchange ends,
nothing is left open or counted, nothing is told to the event loop's exception handler, and a
response that was sent whole and undamaged is received so, by whom it was for.
"""

import argparse
import asyncio
import gc
import logging
import math
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpcore
import httpx
from starlette.exceptions import HTTPException
from starlette.types import Message, Scope

from asgi_upstream import BufferedResponse, StreamedResponse, client_lifespan
from asgi_upstream.transport._connection import ConnectionOwner, HTTP11Connection
from asgi_upstream.transport._pool_state import Origin
from tests.support.memory import InMemory, MemorySocket, StuckError, VirtualLoop, end_of_body

REQUEST = re.compile(rb"([A-Z]+) /(\d+)(?:-(\d+))? HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*\r\n")
SMUGGLED = b"HTTP/1.1 200 OK\r\nx-id: smuggled\r\ncontent-length: 8\r\n\r\nsmuggled"
DAMAGE = [b"\r", b"\n", b" ", b":", b",", b"0", b"9", b"a", b"\0", b"\xff", b"\r\n", b"HTTP/1.1 "]

# What a network stream raises.
OF_A_STREAM = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


class ContentError(Exception):
    """What a body raises while it is sent."""


@dataclass
class Exchange:
    """One of them: what is asked, by whom, and what came of it."""

    number: int
    method: str
    content: bytes | AsyncIterator[bytes] | None
    sends: bytes | None  # the body, where it is all sent
    headers: dict[str, str]
    answered_by: list["Answer"] = field(default_factory=list["Answer"])
    status: int | None = None
    identity: str | None = None
    body: bytes = b""
    whole: bool = False


@dataclass
class Answer:
    """What the upstream sent for it, where that is not damaged."""

    raw: bytes
    body: bytes
    damaged: bool
    early: bool
    until_close: bool


class FuzzCase:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        # A kind upstream breaks nothing and waits for ever, so connections are used again, and who
        # waits for what was lost waits for ever too.
        self.kind = self.chance(0.5)
        self.exchanges: list[Exchange] = []
        self.far_ends: list[asyncio.Task[None]] = []
        self.failures: list[str] = []

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def bad(self, probability: float) -> bool:
        return not self.kind and self.chance(probability)

    async def pause(self, most: float = 3) -> None:
        """Nothing, some turns of the loop, or some time."""
        kind = self.rng.randrange(4)
        if kind == 1:
            for _ in range(self.rng.randrange(1, 5)):
                await asyncio.sleep(0)
        elif kind == 2:
            await asyncio.sleep(self.rng.random() * 0.2)
        elif kind == 3 and self.chance(0.3):
            await asyncio.sleep(self.rng.random() * most)

    async def run(self) -> None:
        rng = self.rng
        limits = httpx.Limits(
            max_connections=rng.choice([1, 1, 2, 3, None]),
            max_keepalive_connections=rng.choice([0, 1, 2, None, None]),
            keepalive_expiry=rng.choice([0.0, 0.1, 5, None]),
        )
        self.transport = _Transport(self, limits=limits, retries=rng.choice([0, 0, 2]))
        patience = None if self.kind else rng.choice([None, None, 1.0, 30.0])
        lifespan = client_lifespan(
            transport=self.transport, base_url="http://upstream", timeout=patience, trust_env=False
        )
        async with lifespan(None) as state:
            client: Any = state["client"]
            tasks = [asyncio.create_task(self.exchange(client)) for _ in range(rng.randint(1, 6))]
            if self.chance(0.1):
                await self.pause()
                await self.transport.aclose()
            await asyncio.gather(*tasks)
            for _ in range(5):
                await asyncio.sleep(0)
            pool = self.transport.pool_state()
            if (pool.waiting, pool.open - pool.idle) != (0, 0):
                self.failures.append(f"all have ended, and the pool says {pool}")
        await asyncio.sleep(1000)  # for all that was cancelled, and every timer
        pool = self.transport.pool_state()
        if (pool.open, pool.connecting, pool.waiting, len(pool.origins)) != (0, 0, 0, 0):
            self.failures.append(f"the client was closed, and the pool says {pool}")
        if not all(wire.lost for wire in self.transport.wires):
            self.failures.append("a connection was not closed")
        for far_end in self.far_ends:
            if far_end.done() and not far_end.cancelled() and far_end.exception() is not None:
                raise AssertionError("the test is wrong") from far_end.exception()
            far_end.cancel()
        await asyncio.sleep(0.1)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            self.failures.append(f"tasks are left: {left}")
        for exchange in self.exchanges:
            self.judge(exchange)

    def judge(self, exchange: Exchange) -> None:
        name = f"exchange {exchange.number}"
        if any(answer.damaged for answer in exchange.answered_by):
            return
        if exchange.identity == "smuggled":
            self.failures.append(f"{name} was answered with what was behind another's body")
        if exchange.whole:
            if not any(exchange.body == answer.body for answer in exchange.answered_by):
                self.failures.append(f"{name} has another body than was sent: {exchange.body!r}")
            if exchange.identity != str(exchange.number):
                self.failures.append(f"{name} was answered with {exchange.identity}")

    # The near end.

    async def exchange(self, client: httpx.AsyncClient) -> None:
        for _ in range(self.rng.randint(1, 3)):
            await self.pause(7)
            one = self.made(len(self.exchanges))
            self.exchanges.append(one)
            host = self.rng.choice(["upstream", "upstream", "upstream", "another"])
            url = f"http://{host}/{one.number}"
            request = client.build_request(
                one.method, url, content=one.content, headers=one.headers
            )
            if self.chance(0.05):

                async def trace(name: str, info: dict[str, Any]) -> None:
                    await self.pause()

                request.extensions["trace"] = trace
            act: Callable[[httpx.AsyncClient, httpx.Request, Exchange], Awaitable[None]]
            act = self.rng.choice([self.by_httpx, self.by_relay, self.by_response])
            if "upgrade" in one.headers:
                act = self.by_upgrade
            task = asyncio.ensure_future(act(client, request, one))
            if cancels := self.chance(0.1 if self.kind else 0.25):
                await self.pause()
                await self.pause()
                task.cancel()
            try:
                await task
            except (
                httpx.TransportError,
                httpcore.NetworkError,
                httpcore.TimeoutException,
                httpcore.ProtocolError,
                HTTPException,
                ContentError,
            ):
                pass
            except asyncio.CancelledError:
                if not cancels and one.sends is not None:
                    raise

    def made(self, number: int) -> Exchange:
        rng = self.rng
        method = rng.choice(["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE"])
        if self.chance(0.05):
            upgrade = {"connection": "upgrade", "upgrade": "echo"}
            return Exchange(number, "GET", None, b"", upgrade)
        if method not in ("POST", "PUT"):
            return Exchange(number, method, None, b"", {})
        parts = [
            b"<%d>" % number * rng.choice([0, 1, 1000, 40_000]) for _ in range(rng.randint(0, 4))
        ]
        body = b"".join(parts)
        if self.chance(0.3):
            return Exchange(number, method, body, body, {})
        fault = rng.choice(["", "", "", "raises", "maker", "stubborn", "length"])
        headers = {}
        if self.chance(0.5) or fault == "length":
            headers["content-length"] = str(
                len(body) + (rng.choice([-1, 1]) if fault == "length" else 0)
            )
            if headers["content-length"] == "-1":
                headers["content-length"] = "1"
        sends = body if fault in ("", "stubborn") else None
        return Exchange(number, method, self.content(parts, fault), sends, headers)

    async def content(self, parts: list[bytes], fault: str) -> AsyncIterator[bytes]:
        try:
            for part in parts:
                await self.pause()
                yield part
            if fault == "raises":
                raise ContentError
            if fault == "maker":
                maker = asyncio.create_task(asyncio.sleep(1))
                maker.cancel()
                await maker
        finally:
            if fault == "stubborn":
                await asyncio.sleep(self.rng.choice([0, 0.1, 5]))

    async def by_httpx(
        self, client: httpx.AsyncClient, request: httpx.Request, one: Exchange
    ) -> None:
        response = await client.send(request, stream=True)
        try:
            self.head(one, response.status_code, response.headers.raw)
            leaves = self.chance(0.15)
            async for piece in response.aiter_raw():
                one.body += piece
                await self.pause()
                if leaves and self.chance(0.5):
                    return
            one.whole = True
        finally:
            await response.aclose()

    async def by_relay(
        self, client: httpx.AsyncClient, request: httpx.Request, one: Exchange
    ) -> None:
        opening = self.transport.send_raw(request)
        if opening is None:
            assert "trace" in request.extensions
            await self.by_httpx(client, request, one)
            return
        connection: Any = await opening
        try:
            self.head(one, connection.head.status, connection.head.headers)
            if connection.head.status != 101:
                leaves = self.chance(0.15)
                while piece := connection.read_nowait() or await connection.read():
                    one.body += piece
                    await self.pause()
                    if leaves and self.chance(0.5):
                        return
                one.whole = True
        finally:
            if not connection.release():
                await connection.aclose()

    async def by_upgrade(
        self, client: httpx.AsyncClient, request: httpx.Request, one: Exchange
    ) -> None:
        response = await client.send(request, stream=True)
        try:
            stream = response.extensions["network_stream"]
            for _ in range(self.rng.randrange(4)):
                await self.pause()
                if self.chance(0.7):
                    await stream.write(b"x" * self.rng.choice([0, 1, 100_000]), timeout=5)
                else:
                    await stream.read(self.rng.choice([1, 10, 100_000]), timeout=5)
        finally:
            await response.aclose()

    async def by_response(
        self, client: httpx.AsyncClient, request: httpx.Request, one: Exchange
    ) -> None:
        rng = self.rng
        left = asyncio.Event()
        deadline = None if self.kind else rng.choice([None, None, 0.5, 20])
        app: StreamedResponse | BufferedResponse
        if self.chance(0.5):
            app = StreamedResponse(client, request, deadline=deadline)
        else:
            app = BufferedResponse(
                client, request, deadline=deadline, max_bytes=rng.choice([10, 1 << 20])
            )

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await self.pause()
            if message["type"] == "http.response.start":
                self.head(one, message["status"], message["headers"])
            elif message["type"] == "http.response.body":
                one.body += message["body"]
                one.whole = not message["more_body"] and one.status != 499
            else:
                raise ValueError("unknown message")
            if left.is_set() and rng.random() < 0.5:
                raise OSError("the caller left")

        async def leave() -> None:
            await self.pause()
            await self.pause()
            left.set()

        scope: Scope = {"type": "http", "method": request.method, "path": "/", "headers": []}
        leaving = asyncio.create_task(leave()) if self.chance(0.2) else None
        try:
            await app(scope, receive, send)
        finally:
            if leaving is not None:
                leaving.cancel()

    def head(self, one: Exchange, status: int, fields: Any) -> None:
        one.status, one.body = status, b""
        one.identity = {bytes(n).lower(): bytes(v) for n, v in fields}.get(b"x-id", b"").decode(
            "latin"
        )

    # The far end.

    def connected(self, wire: MemorySocket) -> None:
        self.far_ends.append(asyncio.create_task(self.far_end(wire)))

    async def far_end(self, wire: MemorySocket) -> None:
        """One connection at the upstream, which ends in all events."""
        rng, news = self.rng, asyncio.Event()
        wire.on_write = news.set
        if self.bad(0.03):  # a greeting, or an end before anything
            wire.feed(b"220 hello\r\n") if self.chance(0.5) else wire.end()
        wire.draining = self.chance(0.7)
        tainted, at = False, 0
        idle = math.inf if self.kind else rng.choice([0.05, 1.0, 20.0])
        while not wire.closing:
            head = REQUEST.search(wire.taken, at)
            if head is None:
                if not await self.heard(wire, news, idle):
                    break
                continue
            at = head.end()
            one = self.exchanges[int(head[2])]
            answer = self.answer(one, tainted=tainted)
            one.answered_by.append(answer)
            if not answer.early:
                while (end := end_of_body(wire.taken, at, head[0])) is None and not wire.closing:
                    if not await self.heard(wire, news, math.inf if self.kind else 20):
                        break
                if end is None:
                    break
                if one.sends is not None and _body(wire.taken[at:end], head[0]) != one.sends:
                    self.failures.append(f"exchange {one.number}: another body came up")
                at = end
            tainted = tainted or answer.damaged or answer.early
            await self.send(wire, answer.raw)
            if b"101 Switch" in answer.raw:
                while not wire.closing and await self.heard(wire, news, rng.choice([0.1, 3])):
                    wire.feed(b"y" * rng.choice([1, 1000, 300_000]))
            if answer.until_close or self.chance(0.05 if self.kind else 0.2):
                break
            if self.chance(0.05) and not wire.has_more and not REQUEST.search(wire.taken, at):
                # Before any other request, so that it is the answer to none.
                wire.connection.data_received(SMUGGLED)
        wire.reset() if self.chance(0.3) else wire.end()

    async def heard(self, wire: MemorySocket, news: asyncio.Event, patience: float) -> bool:
        """Whether more was taken in that time."""
        before, until = len(wire.taken), asyncio.get_running_loop().time() + patience
        while len(wire.taken) == before and not wire.closing:
            news.clear()
            if not wire.draining and wire.unsent:
                await self.pause()
                wire.take(self.rng.choice([1, 1000, 50_000, 100_000]))
                continue
            left = until - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(left if left < math.inf else None):
                    await news.wait()
            except TimeoutError:
                return False
        return len(wire.taken) > before

    async def send(self, wire: MemorySocket, raw: bytes) -> None:
        rng = self.rng
        cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.choice([0, 0, 1, 2, 5])))
        if SMUGGLED in raw:  # with the body: behind a later request it would be its response
            cuts = [cut for cut in cuts if cut <= len(raw) - len(SMUGGLED) - 8]
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            if start != end:
                wire.feed(raw[start:end])
            await self.pause()

    def answer(self, one: Exchange, *, tainted: bool) -> Answer:
        rng = self.rng
        if "upgrade" in one.headers and self.chance(0.8):
            raw = b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello"
            return Answer(raw, b"", True, early=False, until_close=False)
        body = b"(%d)" % one.number * rng.choice([0, 1, 1, 3, 1000, 100_000, 200_000])
        status = rng.choice([b"200 OK", b"200 OK", b"404 Not Found", b"204 None", b"304 Same"])
        fields = b"x-id: %d\r\n" % one.number
        content = not (one.method == "HEAD" or status[:3] in (b"204", b"304"))
        framing = rng.choice(["length", "length", "chunked", "close"])
        if framing == "length" and status[:3] != b"204":
            fields += b"content-length: %d\r\n" % len(body)
        elif framing == "chunked" and status[:3] != b"204":
            fields += b"transfer-encoding: chunked\r\n"
        if self.chance(0.1):
            fields += b"connection: close\r\n"
        raw = b"HTTP/1.1 %b\r\n%b\r\n" % (status, fields)
        if not content:
            body = b""
        elif framing == "chunked":
            size = rng.choice([1000, 30_000, 1_000_000])
            for start in range(0, len(body), size):
                raw += b"%x\r\n%b\r\n" % (
                    len(body[start : start + size]),
                    body[start : start + size],
                )
            raw += b"0\r\n\r\n"
        else:
            raw += body
        if self.chance(0.1):
            raw = b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + raw
        until_close = content and framing == "close"
        damaged = tainted or until_close  # whose end may be any
        if self.chance(0.08) and not until_close:
            raw += SMUGGLED
        elif self.bad(0.3):
            damaged = True
            for _ in range(rng.randint(1, 3)):
                near = rng.choice([200, len(raw) + 1])
                place = rng.randrange(min(near, len(raw) + 1))
                raw = raw[:place] + rng.choice(DAMAGE) + raw[place + rng.randrange(3) :]
            if self.chance(0.3):
                raw = raw[: rng.randrange(len(raw) + 1)]
        early = self.chance(0.1) and one.method in ("POST", "PUT")
        return Answer(raw, body, damaged, early, until_close)


class _Transport(InMemory):
    def __init__(self, case: FuzzCase, **options: Any) -> None:
        super().__init__(case.connected, **options)
        self._case = case

    async def open(self, origin: Origin, owner: ConnectionOwner) -> HTTP11Connection:
        case = self._case
        await case.pause()
        if case.bad(0.05):
            raise ConnectionRefusedError("refused by the test")
        if case.bad(0.02):
            await asyncio.sleep(50)
        connection = await super().open(origin, owner)
        try:
            await case.pause(0.1)
        except BaseException:
            connection.close()  # as `create_connection` does
            raise
        return connection


def _body(data: bytes | bytearray, head: bytes) -> bytes:
    if b"chunked" not in head.lower():
        return bytes(data)
    body, at = b"", 0
    while line := re.compile(rb"([0-9a-f]+)\r\n").match(data, at):
        at = line.end() + int(line[1], 16) + 2
        body += data[line.end() : at - 2]
    return body


async def _closed_one_by_one(loop: asyncio.AbstractEventLoop) -> None:
    """The generators of contents that nobody read to their end.

    `shutdown_asyncgens` closes all at once, and httpx2's closes the one within itself too.
    """
    for generator in list(loop._asyncgens):  # type: ignore[attr-defined]
        await generator.aclose()


def fuzz(seed: int) -> None:
    """One case.

    Raises:
        AssertionError: something went wrong, by the seed.
    """
    loop = VirtualLoop()
    case = FuzzCase(seed)
    try:
        loop.run_until_complete(case.run())
        loop.run_until_complete(_closed_one_by_one(loop))
        gc.collect(1)
        case.failures += [f"the event loop was told of {one}" for one in loop.complaints]
        timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if timers:
            case.failures.append(f"timers are left: {timers}")
    except StuckError as exc:
        tasks = [task.get_stack()[-1:] for task in asyncio.all_tasks(loop)]
        case.failures.append(f"{exc}: {tasks}")
    except (Exception, asyncio.CancelledError) as exc:
        raise AssertionError(f"python -m tests.fuzz.fuzz --seed {seed}") from exc
    finally:
        loop.close()
    if case.failures:
        again = f"python -m tests.fuzz.fuzz --seed {seed}"
        raise AssertionError("\n".join([*case.failures, again]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz AsyncioTransport.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="one case, again")
    arguments = parser.parse_args()
    logging.disable()
    if arguments.seed is not None:
        fuzz(arguments.seed)
        return
    start = random.SystemRandom().randrange(1 << 40)
    until, count, told = time.monotonic() + 60 * arguments.minutes, 0, time.monotonic()
    print(f"cases from seed {start} on, for {arguments.minutes:g} minutes", flush=True)
    while time.monotonic() < until:
        try:
            fuzz(start + count)
        except AssertionError as exc:
            print(exc, exc.__cause__ or "", file=sys.stderr)
            sys.exit(1)
        count += 1
        if time.monotonic() > told + 30:
            told = time.monotonic()
            print(f"{count} cases", flush=True)
    print(f"{count} cases, and nothing went wrong")


if __name__ == "__main__":
    main()
