"""Back-pressure in both directions, by a model: any order of data, pauses, ends and reads.

What the upstream sends waits in the socket while the consumer lags, and what is uploaded waits
while the socket is full. In the end all has come through, in order, and nothing is stuck.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asgi_upstream.transport._connection import READ_BUFFER_LIMIT, HTTP11Connection
from asgi_upstream.transport._read_buffer import CHUNK_OVERHEAD
from asgi_upstream.transport._response_head import ReadState
from asgi_upstream.transport._serializer import OutgoingRequest
from tests.support.examples import count_examples
from tests.support.flavor import httpx
from tests.support.memory import MOST_READ, MemorySocket, VirtualLoop

PATTERN = bytes(range(251)) * 5000  # of a prime period, so that what is out of order is seen
MOST_PART = 200_000


class Owner:
    """In place of a pool."""

    def __init__(self) -> None:
        self.released = 0

    def release(self, connection: HTTP11Connection) -> None:
        self.released += 1

    def discard(self, connection: HTTP11Connection) -> None:
        pass


class BackPressure(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.owner = Owner()
        self.exchanges = 0
        self.connect()

    def connect(self) -> None:
        self.connection = HTTP11Connection(self.owner, self.loop, httpx)
        self.wire = MemorySocket(self.connection, self.loop)
        self.wire.draining = False
        self.under_way = False
        self.reading: asyncio.Task[bytes] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    # The exchange.

    @precondition(lambda self: not self.under_way)
    @rule(
        size=st.sampled_from([0, 1, 66_000, 300_000, 300_000, 1_200_000]),
        framing=st.sampled_from(["length", "chunked", "close"]),
        upload=st.sampled_from(["none", "none", "bytes", "chunked"]),
        chunk=st.sampled_from([10_000, 100_000, 2_000_000]),
    )
    def begin(self, size: int, framing: str, upload: str, chunk: int) -> None:
        if self.connection.closed:
            self.connect()
        self.exchanges += 1
        self.body, self.framing = PATTERN[self.exchanges :][:size], framing
        if framing == "length":
            self.coming = b"content-length: %d\r\n\r\n" % size + self.body
        elif framing == "chunked":
            pieces = [self.body[at : at + chunk] for at in range(0, size, chunk)]
            coded = b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces])
            self.coming = b"transfer-encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"
        else:
            self.coming = b"\r\n" + self.body
        self.coming = b"HTTP/1.1 200 OK\r\n" + self.coming
        self.ended = self.over = False
        self.seen = bytearray()
        self.loop.act(self.wire.take)  # who has answered had taken the request before
        self.wire.taken.clear()
        self.parts: deque[bytes] = deque()
        self.more_parts = asyncio.Event()
        self.uploads, self.sent, self.last_part = upload, b"", upload != "chunked"
        content: bytes | AsyncIterator[bytes] = b""
        if upload == "bytes":
            content = self.sent = PATTERN
        elif upload == "chunked":
            content = self.content()
        out = OutgoingRequest("POST", b"POST / HTTP/1.1\r\n\r\n", content, None, None, None)
        self.loop.act(self.connection.send, out)
        self.under_way = True

    async def content(self) -> AsyncIterator[bytes]:
        while self.parts or not self.last_part:
            if self.parts:
                yield self.parts.popleft()
            else:
                self.more_parts.clear()
                await self.more_parts.wait()

    @precondition(lambda self: self.under_way and self.coming)
    @rule(size=st.sampled_from([1, 30, 1000, 70_000, MOST_READ, 600_000]))
    def the_upstream_sends(self, size: int) -> None:
        piece, self.coming = self.coming[:size], self.coming[size:]
        self.loop.act(self.wire.feed, piece)

    @precondition(lambda self: self.under_way and self.coming)
    @rule()
    def all_of_it_comes_and_nobody_reads(self) -> None:
        self.the_upstream_sends(len(self.coming))
        self.all_that_can_happen()

    @precondition(lambda self: self.under_way and not self.coming and not self.ended)
    @rule()
    def the_upstream_ends(self) -> None:
        self.ended = True
        self.loop.act(self.wire.end)

    @precondition(lambda self: self.under_way and not self.last_part)
    @rule(size=st.sampled_from([1, 1000, MOST_PART]), last=st.booleans())
    def the_caller_uploads(self, size: int, last: bool) -> None:
        part = PATTERN[len(self.sent) % 251 :][:size]
        self.sent += part
        self.parts.append(part)
        self.last_part = last or len(self.sent) > 1_000_000
        self.loop.act(self.more_parts.set)

    @rule(draining=st.booleans())
    def the_upstream_takes_all_or_nothing(self, draining: bool) -> None:
        self.wire.draining = draining
        if draining:
            self.loop.act(self.wire.take)

    @rule(size=st.sampled_from([1, 50_000, 200_000]))
    def the_upstream_takes_some(self, size: int) -> None:
        self.loop.act(self.wire.take, size)

    @rule()
    def a_turn_of_the_loop(self) -> None:
        self.run(asyncio.sleep(0))
        self.collect()

    @rule()
    def all_that_can_happen(self) -> None:
        self.run(asyncio.sleep(1))
        self.collect()

    @precondition(lambda self: self.under_way and self.reading is None and not self.over)
    @rule(most=st.sampled_from([None, None, 1, 65_536]))
    def the_consumer_takes(self, most: int | None) -> None:
        if self.connection.has_head and (piece := self.loop.act(self.connection.read_nowait, most)):
            self.seen += piece

    @precondition(lambda self: self.under_way and self.reading is None and not self.over)
    @rule(most=st.sampled_from([None, 1, 65_536]))
    def the_consumer_waits(self, most: int | None) -> None:
        if self.connection.has_head:
            self.reading = self.loop.create_task(self.connection.read(most))

    @precondition(lambda self: self.reading is not None)
    @rule()
    def the_consumer_is_cancelled(self) -> None:
        assert self.reading is not None
        self.reading.cancel()
        self.run(asyncio.wait([self.reading]))
        self.collect()

    @precondition(lambda self: self.under_way and self.reading is None)
    @rule()
    def the_exchange_is_finished(self) -> None:
        self.under_way = False
        self.run(self.finish())

    async def finish(self) -> None:
        clean, before = self.is_clean(), self.owner.released
        await self.connection.aclose()
        assert (self.owner.released > before, not self.connection.closed) == (clean, clean)
        assert not clean or self.wire.unsent <= MemorySocket.HIGH

    def is_clean(self) -> bool:
        connection = self.connection
        return (
            connection._parser.state is ReadState.DONE
            and self.framing != "close"
            and connection._upload is None
            and not connection.closed
        )

    def collect(self) -> None:
        if self.reading is not None and self.reading.done():
            reading, self.reading = self.reading, None
            if not reading.cancelled():
                try:
                    piece = reading.result()
                except httpx.WriteError:  # the upstream ended, and had not taken all
                    assert self.ended
                    self.over = True
                    return
                self.seen += piece
                self.over = not piece

    # What is always so.

    @invariant()
    def what_came_is_in_order(self) -> None:
        if self.under_way:
            assert self.body.startswith(self.seen)

    @invariant()
    def no_more_is_held_than_the_bound_and_one_read(self) -> None:
        chunks = self.connection._buffer._chunks
        held = sum(map(len, chunks))
        assert held + CHUNK_OVERHEAD * len(chunks) == self.connection._buffer.size
        assert held <= READ_BUFFER_LIMIT + MOST_READ

    @invariant()
    def reading_pauses_only_for_what_the_consumer_has_to_take(self) -> None:
        if not self.connection.closed:
            assert self.wire.paused == self.connection._reading_paused
        if self.wire.paused and not self.connection.closed:
            assert self.under_way
            assert self.connection._buffer.size > READ_BUFFER_LIMIT // 4
            assert self.connection._parser.state is not ReadState.DONE

    @invariant()
    def no_more_waits_to_be_sent_than_the_socket_takes_and_one_part(self) -> None:
        if self.under_way and self.uploads == "chunked":
            assert self.wire.unsent <= MemorySocket.HIGH + MOST_PART + 100

    # And in the end.

    def teardown(self) -> None:
        try:
            if self.under_way:
                self.all_comes_through()
            assert self.loop.complaints == []
        finally:
            self.run(self.connection.aclose())
            self.run(asyncio.sleep(1))
            self.loop.close()

    def all_comes_through(self) -> None:
        self.last_part = True
        self.loop.act(self.more_parts.set)
        self.the_upstream_takes_all_or_nothing(True)
        if self.coming:
            self.the_upstream_sends(len(self.coming))
        if self.framing == "close" and not self.ended:
            self.the_upstream_ends()
        for _ in range(1000):
            self.all_that_can_happen()
            if self.over:
                break
            if self.reading is None:
                self.the_consumer_waits(None)
            self.what_came_is_in_order()
            self.reading_pauses_only_for_what_the_consumer_has_to_take()
        assert self.over
        assert self.connection._upload is None or self.connection._upload.task.done()
        if not self.ended:
            assert self.seen == self.body
            assert self.wire.unsent == 0
            assert self.is_clean()
            if self.uploads != "none":
                taken = bytes(self.wire.taken).partition(b"\r\n\r\n")[2]
                assert self.uploaded(taken) == self.sent

    def uploaded(self, taken: bytes) -> bytes:
        if self.uploads == "bytes":
            return taken
        body = b""
        while taken:
            line, _, taken = taken.partition(b"\r\n")
            body, taken = body + taken[: int(line, 16)], taken[int(line, 16) + 2 :]
        return body


BackPressureTest = BackPressure.TestCase
BackPressureTest.settings = settings(
    max_examples=count_examples(37),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
