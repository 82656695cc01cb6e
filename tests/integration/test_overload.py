"""More callers at once than the upstream has places for: most are refused soon, the rest served.

2,000 callers on `AsyncioTransport`. httpcore's pool looks at every waiting request whenever one
comes or goes, so that there 2,000 keep the event loop busy for a minute, in which no timeout is
kept. 200 keep it busy for more than a second, also without this library; 110 for half of that.
"""

import asyncio
import json
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.servers import Answer, Server, ask
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

APP = "tests.support.apps.fault_app:app"
CALLERS = {"uvicorn-httptools+asyncio": 2000, "uvicorn-h11+asyncio": 2000, "uvicorn-httptools": 110}
pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.servers(*CALLERS, fast=CALLERS)]
PLACES = 50  # of the client "fifty" in the app
POOL_TIMEOUT = 3.0
TAKES = 4.0
"""Seconds that the upstream takes: longer than the timeout, so that who must wait is refused."""

MB = 1 << 20


@pytest.fixture(autouse=True)
def _descriptors_for_all() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def running(server_name: str, upstream: Upstream) -> Iterator[Server]:
    server = Server(server_name, upstream.url, app=APP)
    yield server
    server.stop()


class Wave:
    """Callers who come at once: what they got, and the most that it took."""

    def __init__(self, server: Server, upstream: Upstream, callers: int) -> None:
        self.most_memory = self.most_connections = 0
        self.answers = asyncio.run(self._run(server, upstream, callers))

    async def _run(self, server: Server, upstream: Upstream, callers: int) -> list[Answer]:
        calls = [asyncio.ensure_future(self._call(server)) for _ in range(callers)]
        while not all(call.done() for call in calls):
            self.most_memory = max(self.most_memory, server.memory())
            self.most_connections = max(self.most_connections, upstream.open_connections)
            await asyncio.wait(calls, timeout=0.1)
        return [call.result() for call in calls]

    async def _call(self, server: Server) -> Answer:
        options = json.dumps({"timeout": {"timeout": 30, "pool": POOL_TIMEOUT}})
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"GET /plain/fifty/chunks?count=1&delay={TAKES} HTTP/1.1\r\nhost: app\r\n"
        writer.write(f"{head}connection: close\r\nx-options: {options}\r\n\r\n".encode())
        try:
            async with asyncio.timeout(60):
                return Answer(await reader.read())
        finally:
            writer.close()

    def of(self, status: int) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == status]


def latency(server: Server) -> float:
    begun = time.monotonic()
    assert ask(server, "/plain/fifty/item").status == 200
    return time.monotonic() - begun


def test_callers_past_the_limit_get_503_and_the_rest_is_served(
    server: Server, upstream: Upstream
) -> None:
    callers = CALLERS["+".join(filter(None, (server.name, server.transport)))]
    usual = statistics.median(latency(server) for _ in range(20))
    connections = upstream.open_connections
    before = server.memory()

    first = Wave(server, upstream, callers)
    back_after = eventually(lambda: latency(server) < max(5 * usual, 0.05), 50)
    after_first = server.memory()
    second = Wave(server, upstream, callers)
    back_after = max(back_after, eventually(lambda: latency(server) < max(5 * usual, 0.05), 5))

    print(f"latency {usual:.4f} s, as usual again {back_after:.2f} s after a wave")
    print("MB", [m // MB for m in (before, first.most_memory, after_first, second.most_memory)])
    for wave in (first, second):
        print(Counter(answer.status for answer in wave.answers))
        assert Counter(answer.status for answer in wave.answers).keys() == {200, 503}
        assert all(answer.complete for answer in wave.answers)
        assert len(wave.of(200)) >= PLACES
        assert {answer.body for answer in wave.of(200)} == {b"chunk-0;"}
        assert len(wave.of(503)) > callers / 2
        assert {answer.field(b"retry-after") for answer in wave.of(503)} == {b"1"}
        assert wave.most_connections <= connections + PLACES
        waited = [float(answer.field(b"x-seconds") or "nan") for answer in wave.of(503)]
        print(f"503 after {statistics.median(waited):.2f} s, at most {max(waited):.2f} s")
        assert min(waited) > POOL_TIMEOUT - 0.1
        assert statistics.median(waited) < POOL_TIMEOUT + 1
        assert max(waited) < POOL_TIMEOUT + 5
    # Each caller costs its connection and its request, once.
    assert first.most_memory - before < 32 * MB + callers * 100_000
    assert second.most_memory - first.most_memory < 16 * MB
