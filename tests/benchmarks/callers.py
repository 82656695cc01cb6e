"""Callers: each function measures one way once.

A number of requests is given, not a time, for requests that are cut off at the end of a time have
cost something too, the more the slower the way.
"""

import asyncio
import socket
import threading
import time
from typing import cast

from .relays import Relay


class Failed(Exception):
    """What a way does not do."""


class _Load:
    """Keeps so many requests under way, and measures from the moment when that many were answered
    until so many more are: at both ends as much is half done.
    """

    def __init__(self, relay: Relay, path: str, concurrency: int, requests: int) -> None:
        self.request = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        self.spent = 0.0
        self.under_way = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._relay = relay
        self._first = concurrency
        self._last = concurrency + requests
        self._answers = 0

    @property
    def goes_on(self) -> bool:
        return self._answers < self._last

    def answered(self) -> None:
        self._answers += 1
        self.under_way -= 1
        if self._answers == self._first:
            self.spent = -self._relay.seconds()
        elif self._answers == self._last:
            self.spent += self._relay.seconds()
        if not self.goes_on and not self.under_way and not self.done.done():
            self.done.set_result(None)

    def fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(Failed(why))


class _Small(asyncio.Protocol):
    """Asks for one path again and again, as long as the load goes on."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._received = b""
        self._length: int | None = None  # of the answer, and 0 where only its end tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        self._load.under_way += 1
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._length is None:
            head, end, _ = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self._load.fail("answers " + head.split(b"\r\n")[0].decode())
            _, field, value = head.lower().partition(b"\r\ncontent-length:")
            self._length = len(head) + 4 + int(value.split(b"\r\n")[0]) if field else 0
        if len(self._received) < self._length:
            return
        if self._length or self._received.endswith(b"\r\n0\r\n\r\n"):
            self._received = b""
            self._length = None
            self._load.answered()
            if self._load.goes_on:
                self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail("a connection was closed")

    def close(self) -> None:
        self._transport.abort()


async def small(
    relay: Relay, path: str, concurrency: int, requests: int, most: float = 60
) -> float:
    """Seconds of processor time a request, of so many, so many at a time."""
    load = _Load(relay, path, concurrency, requests)
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: _Small(load), "127.0.0.1", relay.port))[1]
        for _ in range(concurrency)
    ]
    for caller in callers:
        caller.ask()
    try:
        async with asyncio.timeout(most):
            await load.done
    except TimeoutError:
        count = 2 * concurrency + requests
        raise Failed(f"more than {most:g} s for {count:,} requests") from None
    finally:
        for caller in callers:
            caller.close()
    return load.spent / requests


class _Stream(asyncio.Protocol):
    """Reads events, and notes how late each came, and how often none came alone."""

    def __init__(self, path: str) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
        self.lags: list[int] = []
        self._loop = asyncio.get_running_loop()
        self.has_begun: asyncio.Future[None] = self._loop.create_future()
        self.has_ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        for event in data.split(b"data: ")[1:]:
            self.lags.append(now - int(event[: event.index(b" ")]))
        if self.lags and not self.has_begun.done():
            self.has_begun.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.has_ended.done():
            self.has_ended.set_result(None)
        if not self.has_begun.done():
            self.has_begun.set_result(None)


async def _open_streams(relay: Relay, path: str, streams: int, most: float) -> list[_Stream]:
    """Open them a few at a time, and wait for the first event of each."""
    opened: list[_Stream] = []
    try:
        for start in range(0, streams, 20):
            group = [await _open(relay, path) for _ in range(min(20, streams - start))]
            opened += group
            async with asyncio.timeout(most):
                await asyncio.gather(*(stream.has_begun for stream in group))
            if not all(stream.lags for stream in group):
                raise Failed("a stream ended without an event")
            if all(stream.lags[0] > 1e9 for stream in group):
                raise Failed("events are held back until their stream ends")
    except TimeoutError:
        _close(opened)
        raise Failed(f"no event came within {most:g} s") from None
    except Failed:
        _close(opened)
        raise
    return opened


async def _open(relay: Relay, path: str) -> _Stream:
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(lambda: _Stream(path), "127.0.0.1", relay.port))[1]


def _close(streams: list[_Stream]) -> None:
    for stream in streams:
        stream.transport.abort()


async def events(
    relay: Relay, streams: int, a_second: int, seconds: float, most: float = 10
) -> tuple[float, float]:
    """Seconds of processor time an event, and of lag at the 95th percentile.

    Of the middle of the streams' lives: opening them is not in it. They end by themselves.
    """
    for for_opening in (0.8, 3, 10):  # a busy machine takes longer
        count = int(a_second * (seconds + for_opening))
        opened = await _open_streams(relay, f"/events/{count}/{1000 // a_second}", streams, most)
        for stream in opened:
            stream.lags = []
        before = relay.seconds()
        await asyncio.sleep(seconds)
        spent = relay.seconds() - before
        lags = sorted(lag for stream in opened for lag in stream.lags)
        in_time = not any(stream.has_ended.done() for stream in opened)
        try:
            async with asyncio.timeout(for_opening + most):
                await asyncio.gather(*(stream.has_ended for stream in opened))
        except TimeoutError:
            raise Failed("a stream did not end") from None
        if in_time:
            return spent / len(lags), lags[int(len(lags) * 0.95)] / 1e9
    raise Failed("streams ended too soon")


async def memory(relay: Relay, streams: int, most: float = 10) -> float:
    """Resident bytes of one open stream of events, in a relay that served a few before."""
    await small(relay, "/events/2/1", 10, 200)
    before = relay.resident()
    opened = await _open_streams(relay, "/events/2/600000", streams, most)
    await asyncio.sleep(0.2)
    grown = relay.resident() - before
    _close(opened)
    return grown / streams


def idle(relay: Relay) -> tuple[float, float]:
    """Seconds of processor time until the app listens, and the resident bytes then."""
    return relay.seconds(), relay.resident()


async def latency(
    relay: Relay, path: str, rate: float, connections: int = 50, seconds: float = 1.5
) -> tuple[float, float]:
    """Return seconds of latency, the median and the 99th percentile, at `rate` requests a second.

    Requests are sent at fixed times, whether or not the last one was answered, and wait for a free
    connection. The wait counts.
    """
    await small(relay, path, 10, 200)  # warms up
    loop = asyncio.get_running_loop()
    took: list[float] = []
    free: asyncio.Queue[_Paced] = asyncio.Queue()
    opened = [
        (await loop.create_connection(lambda: _Paced(path, free, took), "127.0.0.1", relay.port))[1]
        for _ in range(connections)
    ]
    for connection in opened:
        free.put_nowait(connection)
    start, sent = time.perf_counter(), 0
    try:
        async with asyncio.timeout(seconds * 10):
            while sent < rate * seconds:
                due = start + sent / rate
                if (pause := due - time.perf_counter()) > 0:
                    await asyncio.sleep(pause)
                (await free.get()).ask(due)
                sent += 1
            for _ in opened:  # all are free when all have answered
                await free.get()
    except TimeoutError:
        raise Failed(f"is too slow for {rate:.0f} requests a second") from None
    finally:
        for connection in opened:
            connection.close()
    took.sort()
    return took[len(took) // 2], took[int(len(took) * 0.99)]


class _Paced(asyncio.Protocol):
    """Sends a request when it is told to, and notes how long the answer took."""

    def __init__(self, path: str, free: "asyncio.Queue[_Paced]", took: list[float]) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        self._size = int(path[1:])
        self._free, self._took = free, took
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, due: float) -> None:
        self._due = due
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        body = self._received.partition(b"\r\n\r\n")[2]
        if len(body) >= self._size and (len(body) == self._size or body.endswith(b"0\r\n\r\n")):
            self._received = b""
            self._took.append(time.perf_counter() - self._due)
            self._free.put_nowait(self)

    def close(self) -> None:
        self._transport.abort()


def body(relay: Relay, size: int) -> float:
    """Seconds of processor time for a body of so many bytes."""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as caller:
        before = relay.seconds()
        caller.sendall(f"GET /{size} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        buffer = bytearray(1 << 20)
        received = 0
        while count := caller.recv_into(buffer):
            received += count
        spent = relay.seconds() - before
    if received < size:
        raise Failed("the body was not whole")
    return spent


def upload(relay: Relay, size: int) -> float:
    """Seconds of processor time for an upload of so many bytes."""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as caller:
        before = relay.seconds()
        head = f"POST /upload/{size} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"
        caller.sendall(head.encode())
        part = bytes(1 << 20)
        # The end is waited for in here, so that an early failure does not block the sending.
        answer: list[bytes] = []
        reader = threading.Thread(target=lambda: answer.append(caller.recv(65536)))
        reader.start()
        try:
            for start in range(0, size, len(part)):
                caller.sendall(part[: size - start])
        except OSError as exc:
            raise Failed(f"the upload broke: {exc}") from exc
        finally:
            reader.join()
        spent = relay.seconds() - before
    if not answer or not answer[0].startswith(b"HTTP/1.1 200"):
        raise Failed("the upload was refused")
    return spent
