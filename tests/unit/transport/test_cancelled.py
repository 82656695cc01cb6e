"""A cancellation at each step of each kind of exchange leaves nothing open, and the pool right.

A step is one wait of the exchange's task. It is cancelled while it waits, or when what it waited
for has come and it has not gone on yet; then it may be too late to be told.
"""

import asyncio
import contextlib
import re
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.types import Message, Scope

from asgi_upstream import BufferedResponse, StreamedResponse, UpstreamBodyTooLarge
from tests.support.flavor import client_lifespan, httpx
from tests.support.memory import InMemory, MemorySocket, VirtualLoop, end_of_body

OK = b"HTTP/1.1 200 OK\r\n"
HEAD = re.compile(rb"[A-Z]+ (/\w+) HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*\r\n")
BIG = b"0123456789" * 60_000
MOST_STEPS = 500


@dataclass(frozen=True)
class TransportKind:
    """What is sent, and what is answered: pieces, with a wait after each."""

    answer: tuple[bytes, ...]
    method: str = "GET"
    content: str = ""  # the name of one below
    early: bool = False  # answered before the body is there
    ends: bool = False  # the upstream ends the connection then
    upgrade: bool = False


KINDS = {
    "small": TransportKind((OK + b"content-length: 2\r\n\r\nok",)),
    "length": TransportKind((OK + b"content-length: 600000\r\n\r\n", BIG[:400_000], BIG[400_000:])),
    "chunked": TransportKind(
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r", b"\nok\r\n3\r\nabc", b"\r\n0\r\n", b"\r\n")
    ),
    "until close": TransportKind((OK + b"\r\nok", b"more"), ends=True),
    "interim": TransportKind((b"HTTP/1.1 103 X\r\n\r\n", OK + b"content-length: 2\r\n\r\n", b"ok")),
    "HEAD": TransportKind((OK, b"content-length: 2\r\n\r\n"), "HEAD"),
    "upload in chunks": TransportKind((OK + b"content-length: 2\r\n\r\nok",), "POST", "chunks"),
    "upload of a length": TransportKind((OK + b"content-length: 2\r\n\r\nok",), "POST", "length"),
    "upload of bytes": TransportKind((OK + b"content-length: 2\r\n\r\nok",), "POST", "bytes"),
    "refused": TransportKind(
        (*[b""] * 15, b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\n", b"no"),
        "POST",
        "endless",
        early=True,
    ),
    "both at once": TransportKind(
        (OK + b"content-length: 2\r\n\r\n", b"o", b"k"), "POST", "chunks", early=True
    ),
    "upgrade": TransportKind(
        (OK.replace(b"200", b"101") + b"connection: upgrade\r\nupgrade: x\r\n\r\n", b"hello"),
        upgrade=True,
    ),
}

Use = Callable[["TransportRun", httpx.Request], Awaitable[None]]


class TransportRun:
    """One exchange of a kind, cancelled at one step; and one after it."""

    def __init__(
        self, kind: TransportKind, use: Use, before: str, step: int, *, late: bool
    ) -> None:
        self.kind, self.use, self.before = kind, use, before
        self.step, self.late = step, late
        self.steps = 0

    def connected(self, wire: MemorySocket) -> None:
        self.far_ends.append(asyncio.create_task(self.far_end(wire)))

    async def far_end(self, wire: MemorySocket) -> None:
        news, at = asyncio.Event(), 0
        wire.on_write = news.set
        wire.draining = False

        async def more() -> None:
            await asyncio.sleep(0.01)
            if wire.unsent:
                wire.take(100_000)
            else:
                news.clear()
                await news.wait()

        while not wire.closing:
            if (head := HEAD.search(wire.taken, at)) is None:
                await more()
                continue
            at, kind = head.end(), self.kind
            if head[1] != b"/this":
                kind = KINDS["small"]
            if not kind.early:
                while (end := end_of_body(wire.taken, at, head[0])) is None and not wire.closing:
                    await more()
                at = end or at
            for piece in kind.answer:
                wire.feed(piece)
                await asyncio.sleep(0.01)
            if kind.ends:
                wire.end()

    async def content(self, endless: bool) -> AsyncIterator[bytes]:
        for _ in range(2):
            yield b"x" * 100_000
            await asyncio.sleep(0.05)
        if endless:
            await asyncio.Event().wait()

    @types.coroutine
    def counted(self, coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        """Await it, and cancel the task that does so at the step."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        sent: Any = None
        thrown: BaseException | None = None
        while True:
            try:
                waits = coroutine.throw(thrown) if thrown is not None else coroutine.send(sent)
            except StopIteration:
                return
            sent, thrown = None, None
            if self.steps == self.step:
                if self.late and waits is not None:  # before the task is told that it is done
                    waits.add_done_callback(lambda _: task.cancel())
                else:
                    loop.call_soon(task.cancel)
            self.steps += 1
            try:
                sent = yield waits
            except BaseException as exc:
                thrown = exc

    async def exchange(self, client: httpx.AsyncClient) -> None:
        kind = self.kind
        content: Any = None
        headers = {"connection": "upgrade", "upgrade": "x"} if kind.upgrade else {}
        if kind.content == "bytes":
            content = BIG
        elif kind.content:
            content = self.content(kind.content == "endless")
            if kind.content == "length":
                headers["content-length"] = "200000"
        await self.use(
            self, client.build_request(kind.method, "/this", content=content, headers=headers)
        )

    async def run(self) -> bool:
        """Whether it was cancelled; False when it has fewer steps."""
        self.far_ends: list[asyncio.Task[None]] = []
        limits = httpx.Limits(max_connections=1)
        self.transport = InMemory(self.connected, limits=limits)
        self.transport.connecting_takes = 0.05
        lifespan = client_lifespan(
            transport=self.transport, base_url="http://upstream", timeout=None, trust_env=False
        )
        async with lifespan(None) as state:
            client: Any = state["client"]
            self.client: httpx.AsyncClient = client
            if self.before == "reused":
                await client.get("/before")
            other = None
            if self.before == "waiting":
                other = asyncio.create_task(client.get("/before"))
                await asyncio.sleep(0)

            async def counted() -> None:  # a task takes no generator, from Python 3.12 on
                await self.counted(self.exchange(client))

            task = asyncio.create_task(counted())
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
            assert "Upload._send" not in {
                getattr(one.get_coro(), "__qualname__", "") for one in asyncio.all_tasks()
            }
            if other is not None:
                assert (await other).text == "ok"
            await asyncio.sleep(10)
            pool = self.transport.pool_state()
            assert (pool.waiting, pool.connecting, pool.open) == (0, 0, pool.idle)
            assert sum(not wire.closing for wire in self.transport.wires) == pool.idle
            assert (await client.get("/after")).text == "ok"
        assert self.transport.pool_state().open == 0
        await asyncio.sleep(10)
        for far_end in self.far_ends:
            far_end.cancel()
        await asyncio.wait(self.far_ends)
        assert all(wire.lost for wire in self.transport.wires)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return task.cancelled() or self.steps > self.step


# Who uses it.


async def alone(run: TransportRun, request: httpx.Request) -> None:
    response = await run.client.send(request, stream=True)
    try:
        async for _ in response.aiter_raw():
            await asyncio.sleep(0.001)
    finally:
        await response.aclose()


async def upgraded(run: TransportRun, request: httpx.Request) -> None:
    response = await run.client.send(request, stream=True)
    try:
        stream = response.extensions["network_stream"]
        assert await stream.read(100) == b"hello"
        await stream.write(BIG)
        await stream.write(b"more")
    finally:
        await response.aclose()


async def relayed(run: TransportRun, request: httpx.Request) -> None:
    opening = run.transport.send_raw(request)
    assert opening is not None
    connection = await opening
    try:
        while connection.read_nowait() or await connection.read():
            pass
    finally:
        if not connection.release():
            await connection.aclose()


async def answered(app: StreamedResponse | BufferedResponse, method: str) -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        await asyncio.sleep(0.06)  # long enough for the caller to be watched

    scope: Scope = {"type": "http", "method": method, "path": "/", "headers": []}
    await app(scope, receive, send)


async def streamed(run: TransportRun, request: httpx.Request) -> None:
    await answered(StreamedResponse(run.client, request), request.method)


async def with_a_deadline(run: TransportRun, request: httpx.Request) -> None:
    await answered(StreamedResponse(run.client, request, deadline=1000), request.method)


async def transformed(run: TransportRun, request: httpx.Request) -> None:
    async def transform(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in parts:
            await asyncio.sleep(0)
            yield part.upper()

    await answered(StreamedResponse(run.client, request, transform=transform), request.method)


async def looked_at(run: TransportRun, request: httpx.Request) -> None:
    async def on_response(upstream: httpx.Response) -> None:
        await asyncio.sleep(0.01)

    await answered(StreamedResponse(run.client, request, on_response=on_response), request.method)


async def buffered(run: TransportRun, request: httpx.Request) -> None:
    await answered(BufferedResponse(run.client, request), request.method)


async def too_large(run: TransportRun, request: httpx.Request) -> None:
    with contextlib.suppress(UpstreamBodyTooLarge):
        await answered(BufferedResponse(run.client, request, max_bytes=1), request.method)


USES: list[Use] = [
    alone, relayed, streamed, with_a_deadline, transformed, looked_at, buffered, too_large
]  # fmt: skip


BEFORE = ["new", "reused", "waiting"]
PARTS = 4
"""Of the uses. Each kind is cancelled in each use, but not in each use on each connection."""


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "when that has come"])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", KINDS)
def test_cancellation_at_any_step_leaves_nothing_open(
    name: str, before: str, late: bool, part: int
) -> None:
    kind = KINDS[name]
    first = (part + 2 * BEFORE.index(before) + late) % PARTS
    for use in [upgraded] if kind.upgrade else USES[first::PARTS]:
        for step in range(MOST_STEPS):
            run = TransportRun(kind, use, before, step, late=late)
            loop = VirtualLoop()
            try:
                has_that_step = loop.run_until_complete(run.run())
                loop.run_until_complete(loop.shutdown_asyncgens())
                assert loop.complaints == []
            except BaseException as exc:
                exc.add_note(f"{use.__name__}, cancelled at step {step}")
                raise
            finally:
                loop.close()
            if not has_that_step:
                break
        assert 0 < step < MOST_STEPS - 1
