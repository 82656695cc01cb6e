"""Servers with several workers: whose connections they are, and what a restart does to answers."""

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from asgi_upstream.testing import ReceivedRequest
from tests.support.servers import GUNICORN, ROOT, Answer, Server, SocketCaller
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

APP = "tests.support.apps.one_client_app:app"
WITH_WORKERS = ("uvicorn-httptools", "granian", "hypercorn-asyncio", GUNICORN)
PLACES = 3
WHOLE = b"".join(b"chunk-%d;" % number for number in range(5))


def workers_of(requests: list[ReceivedRequest]) -> Counter[int]:
    """How many requests each process sent."""
    named = (request.headers.get("x-worker") for request in requests)
    return Counter(int(worker) for worker in named if worker)


@contextmanager
def serving(name: str, upstream: Upstream, *options: str) -> Iterator[Server]:
    server = Server(name, upstream.url, app=APP, options=options)
    try:
        yield server
    finally:
        for caller in SocketCaller.open:
            caller.leave()
        SocketCaller.open.clear()
        server.stop()


# Access to the upstream.


@pytest.mark.servers(*WITH_WORKERS, fast=("uvicorn-httptools",))
@pytest.mark.parametrize("transport", ["", "+asyncio"])
def test_each_worker_has_a_pool_of_its_own(
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    server_name: str,
    transport: str,
) -> None:
    monkeypatch.setenv("MAX_CONNECTIONS", str(PLACES))
    before = len(upstream.requests)

    def under_way() -> Counter[int]:
        return workers_of(upstream.requests[before:])

    workers = 4 if server_name == "uvicorn-httptools" else 2
    full = PLACES * workers
    with serving(server_name + transport, upstream, "--workers", str(workers)) as server:
        for _ in range(400):  # which worker takes a connection is the kernel's choice
            if upstream.open_exchanges == full:
                break
            SocketCaller(server, "/plain/streamed/never")
            time.sleep(0.02)
        eventually(lambda: upstream.open_exchanges == full)
        for _ in range(2 * full):
            SocketCaller(server, "/plain/streamed/never")
        time.sleep(0.5)
        assert upstream.open_exchanges == full
        assert sorted(under_way().values()) == [PLACES] * workers
    eventually(lambda: upstream.open_exchanges == 0)


def test_the_example_of_the_docs_is_its_own_arithmetic() -> None:
    text = " ".join((ROOT / "docs/connection-pools.md").read_text().split())
    [example] = re.findall(r"With `limit` .*?\.", text)
    limit, replicas, surge, workers, each, most = map(int, re.findall(r"\d+", example))
    pools = (replicas + surge) * workers
    assert (each, most) == (limit // pools, limit // pools * pools)
    assert f"max_connections={each}" in text
    assert f"up to {100 * pools}." in text


# Restarts under load.


class Load:
    """Callers who ask one after the other, each on a connection of its own, until it is ended."""

    def __init__(self, server: Server, callers: int = 6, seconds: float = 300) -> None:
        self.answers: list[Answer] = []
        self.unanswered = 0
        self._server = server
        self._until = time.monotonic() + seconds
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self._asking = [self._pool.submit(self._ask) for _ in range(callers)]

    def _ask(self) -> None:
        while not self._over.is_set() and time.monotonic() < self._until:
            try:
                caller = SocketCaller(self._server, "/plain/streamed/chunks?count=5&delay=0.03")
                data = caller.read()
            except OSError:
                data = b""
            if data:
                self.answers.append(Answer(data))
            else:
                self.unanswered += 1
                time.sleep(0.02)

    def end(self) -> None:
        self._over.set()
        self._pool.shutdown()
        for asking in self._asking:
            asking.result()


def check(load: Load) -> None:
    """No answer that had started was lost."""
    assert len(load.answers) > 20
    for answer in load.answers:
        assert (answer.status, answer.complete, answer.body) == (200, True, WHOLE)
    assert load.unanswered <= len(load.answers) / 10


RECYCLES = {
    "uvicorn-httptools": ["--workers", "2", "--limit-max-requests", "40"],
    "hypercorn-asyncio": ["--workers", "1", "--max-requests", "40"],
    GUNICORN: ["--workers", "2", "--max-requests", "40"],
}


@pytest.mark.serial
@pytest.mark.servers(*RECYCLES, fast=RECYCLES)
@pytest.mark.slow
def test_worker_that_is_recycled_loses_no_started_response(
    upstream: Upstream, server_name: str
) -> None:
    before = len(upstream.requests)
    with serving(server_name, upstream, *RECYCLES[server_name]) as server:
        load = Load(server)
        try:
            eventually(lambda: len(workers_of(upstream.requests[before:])) >= 4)
        finally:
            load.end()
    check(load)


@pytest.mark.serial
@pytest.mark.servers(
    "uvicorn-httptools",
    "granian",
    pytest.param(
        "hypercorn-asyncio",
        marks=pytest.mark.xfail(
            reason="hypercorn 0.18 ends all workers with the first",
            strict=False,  # a second worker that is slow to start ends late
        ),
    ),
    GUNICORN,
    fast=("uvicorn-httptools",),
)
def test_a_stop_of_several_workers_finishes_a_short_answer(
    upstream: Upstream, server_name: str
) -> None:
    with serving(server_name, upstream, "--workers", "2") as server, ThreadPoolExecutor(1) as pool:
        caller = SocketCaller(server, "/plain/streamed/chunks?count=15&delay=0.1")
        caller.read(b"chunk-0;")
        reading = pool.submit(caller.read)
        server.stop()
        assert reading.result().endswith(b"chunk-14;\r\n0\r\n\r\n")


@pytest.mark.serial
@pytest.mark.servers(*WITH_WORKERS, fast=("uvicorn-httptools",))
def test_a_reload_by_sighup_loses_no_answer_that_had_started(
    upstream: Upstream, server_name: str
) -> None:
    before, options = len(upstream.requests), ["--workers", "2"]
    if server_name.startswith("uvicorn"):  # else it gives up if a worker takes 5 s to start
        options += ["--timeout-worker-healthcheck", "100"]
    with serving(server_name, upstream, *options) as server:
        load = Load(server)
        try:
            eventually(lambda: len(load.answers) > 30)
            old = set(workers_of(upstream.requests[before:]))
            os.kill(server.process.pid, signal.SIGHUP)
            mark = len(upstream.requests)
            eventually(lambda: set(workers_of(upstream.requests[mark:])) - old, 200)
            more = len(load.answers) + 60
            eventually(lambda: len(load.answers) > more)
        finally:
            load.end()
    check(load)
