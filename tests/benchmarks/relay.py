"""Processor time of a relay per request, and the lag of its events: `make bench`.

The ways are interleaved in one process, so that a noisy machine is noisy for all of them; what
counts are the ratios of the medians.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.servers import ROOT, Caller, Server, eventually, free_port
from tests.integration.upstream import Upstream

WAYS = ("alone", "idiom", "streamed", "buffered", "forwarded")
ROUNDS = 7
TICK = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def relay(upstream_url: str) -> Iterator[tuple[int, int]]:
    """Port and process id of the relay under uvicorn, uvloop and httptools."""
    port = free_port()
    command = ["-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--log-level", "error"]
    process = subprocess.Popen(
        [sys.executable, *command, "--port", str(port), "tests.benchmarks.app:app"],
        cwd=ROOT,
        env=os.environ | {"UPSTREAM_URL": upstream_url},
    )
    try:
        eventually(lambda: asyncio.run(answers(port)), 20)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


async def answers(port: int) -> bool:
    try:
        await load(port, "alone", 1, 1)
    except OSError:
        return False
    return True


async def load(port: int, way: str, requests: int, concurrency: int) -> None:
    async def one_caller(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            writer.write(f"GET /{way} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            if b"chunked" in head:
                await reader.readuntil(b"0\r\n\r\n")
            else:
                await reader.readexactly(1024)
        writer.close()

    each = requests // concurrency
    await asyncio.gather(*(one_caller(each) for _ in range(concurrency)))


def small_bodies(upstream: Upstream) -> None:
    for concurrency, requests in ((10, 1000), (100, 1000)):
        with relay(f"{upstream.url}/item") as (port, pid):
            spent: dict[str, list[float]] = {way: [] for way in WAYS}
            for way in WAYS:
                asyncio.run(load(port, way, requests // 2, concurrency))
            for _ in range(ROUNDS):
                for way in WAYS:
                    before = processor_seconds(pid)
                    asyncio.run(load(port, way, requests, concurrency))
                    spent[way].append((processor_seconds(pid) - before) / requests)
        print(f"1 KB, {concurrency} concurrent: us of processor time a request (to the idiom's)")
        idiom = statistics.median(spent["idiom"])
        for way, seconds in spent.items():
            median = statistics.median(seconds)
            print(f"  {way:10} {median * 1e6:8.0f}   {median / idiom:5.2f}")


def uploads(size: int = 512 << 20) -> None:
    spent: dict[str, list[float]] = {"post_by_hand": [], "post_forwarded": []}
    with sink(size) as url, relay(url) as (port, pid):
        for _ in range(ROUNDS):
            for way, seconds in spent.items():
                before = processor_seconds(pid)
                with socket.create_connection(("127.0.0.1", port)) as caller:
                    head = f"POST /{way} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"
                    caller.sendall(head.encode())
                    for _ in range(size >> 20):
                        caller.sendall(bytes(1 << 20))
                    assert b" 200 " in caller.recv(65536)
                seconds.append(processor_seconds(pid) - before)
    print(f"upload of {size >> 20} MB: s of processor time (to that by hand)")
    by_hand = statistics.median(spent["post_by_hand"])
    for way, seconds in spent.items():
        median = statistics.median(seconds)
        print(f"  {way:14} {median:6.2f}   {median / by_hand:5.2f}")


@contextmanager
def sink(size: int) -> Iterator[str]:
    """An upstream that takes bodies of `size` bytes as fast as they come."""

    def serve() -> None:
        buffer = bytearray(1 << 20)
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:
                return
            with connection:
                while head := connection.recv(65536):
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(65536)
                    left = size - len(head.partition(b"\r\n\r\n")[2])
                    while b"POST" in head and left:
                        left -= connection.recv_into(buffer)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def event_lag(upstream: Upstream) -> None:
    server = Server("uvicorn-httptools", upstream.url)
    try:
        caller = Caller(server, "/plain/streamed/events")
        lags: list[float] = []
        data = caller.read(b"\r\n\r\n")
        while len(lags) < 60:
            data += caller.socket.recv(65536)
            now = time.monotonic_ns()
            *_, last = data.split(b"data: ")
            if last.endswith(b"\n\n\r\n"):
                lags.append((now - int(last.split(b"\n")[0])) / 1e6)
        caller.leave()
    finally:
        server.stop()
    worst = sorted(lags)[int(len(lags) * 0.95)]
    print(f"events: {statistics.median(lags):.2f} ms late at the median, {worst:.2f} at the 95th")


if __name__ == "__main__":
    with Upstream() as upstream:
        small_bodies(upstream)
        event_lag(upstream)
    uploads()
