"""The list of docs/graceful-shutdown.md: what a stop does to open exchanges, on each server."""

import contextlib
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.server_choice import ALL_SERVERS
from tests.support.servers import (
    GRACE,
    GUNICORN,
    GUNICORN_AS_IT_COMES,
    NOISE,
    Answer,
    Server,
    SocketCaller,
    ask,
)
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers(
    *ALL_SERVERS,
    GUNICORN,
    GUNICORN + "+asyncio",
    GUNICORN_AS_IT_COMES,
    fast=("uvicorn-h11", "hypercorn-trio", "granian+asyncio", GUNICORN),
)

KILLERS = ("granian", GUNICORN_AS_IT_COMES)
"""At the end of their grace they end their workers by SIGKILL, and cancel nothing before."""

HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "busy, with a frame": ("/plain/streamed/events", {"on_stream_error": "frame"}),
    "silent, with a frame": ("/plain/streamed/silent_mid_body", {"on_stream_error": "frame"}),
    "head only, with a frame": ("/plain/streamed/silent_after_head", {"on_stream_error": "frame"}),
    "busy, without": ("/plain/streamed/events", {}),
    "silent, without": ("/plain/streamed/silent_mid_body", {}),
    "before the headers": ("/plain/streamed/never", {"on_stream_error": "frame"}),
    "middleware": ("/base/streamed/events", {"on_stream_error": "frame"}),
    "bounded": ("/plain/streamed/events", {"on_stream_error": "frame", "deadline": 2}),
    "short": ("/plain/streamed/chunks?count=10&delay=0.1", {}),
}


@dataclass
class Stop:
    """A server that was stopped while the exchanges of `HELD` were open."""

    server: str
    answers: dict[str, Answer]
    seconds: float
    log: str
    left_at_the_upstream: int

    @property
    def kills(self) -> bool:
        return self.server.partition("+")[0] in KILLERS


@pytest.fixture(scope="module")
def stop(server_name: str, upstream: Upstream) -> Iterator[Stop]:
    server = Server(server_name, upstream.url, app="tests.support.apps.one_client_app:app")
    try:
        assert ask(server, "/plain/streamed/item").status == 200  # the first takes longer
        callers = {
            name: SocketCaller(server, path, **options) for name, (path, options) in HELD.items()
        }
        # On trio hypercorn would never end: it shields its writes.
        deaf = [] if server_name == "hypercorn-trio" else ["/plain/streamed/pour"]
        deaf_callers = [SocketCaller(server, path, on_stream_error="frame") for path in deaf]
        eventually(lambda: upstream.open_exchanges == len(callers) + len(deaf_callers))
        time.sleep(0.3)  # so that every server watches its callers
        with ThreadPoolExecutor(len(callers)) as pool:
            reading = {name: pool.submit(caller.read) for name, caller in callers.items()}
            seconds = server.stop()
            answers = {name: Answer(data.result()) for name, data in reading.items()}
    finally:
        server.stop()
    with contextlib.suppress(AssertionError):
        eventually(lambda: upstream.open_exchanges == 0)
    yield Stop(server_name, answers, seconds, server.log(), upstream.open_exchanges)
    for caller in SocketCaller.open:
        caller.leave()
    SocketCaller.open.clear()


@pytest.mark.parametrize(
    "name", ["busy, with a frame", "silent, with a frame", "head only, with a frame"]
)
def test_stopped_stream_ends_with_its_error_frame(stop: Stop, name: str) -> None:
    """Unless the server kills its workers."""
    answer = stop.answers[name]
    assert answer.status == 200
    frame = b"event: error\ndata: ExchangeCancelled\n\n"
    assert (answer.complete, answer.body.endswith(frame)) == (not stop.kills, not stop.kills)


@pytest.mark.parametrize("name", ["busy, without", "silent, without"])
def test_stopped_stream_without_error_frame_is_cut_off(stop: Stop, name: str) -> None:
    assert stop.answers[name].status == 200
    assert not stop.answers[name].complete


def test_stop_before_the_headers_is_500_or_a_closed_connection(
    stop: Stop,
) -> None:
    closes = stop.kills or stop.server == "hypercorn-trio"
    assert stop.answers["before the headers"].status == (0 if closes else 500)


def test_stopped_stream_behind_base_http_middleware_is_cut_off(stop: Stop) -> None:
    """Starlette's middleware does not let the error frame pass."""
    answer = stop.answers["middleware"]
    assert not answer.complete


def test_a_short_answer_under_way_is_finished_within_the_grace(stop: Stop) -> None:
    answer = stop.answers["short"]
    expected = b"".join(b"chunk-%d;" % number for number in range(10))
    assert (answer.status, answer.complete, answer.body) == (200, True, expected)


def test_stream_with_deadline_in_the_grace_ends_with_its_frame(
    stop: Stop,
) -> None:
    answer = stop.answers["bounded"]
    assert answer.complete
    assert answer.body.endswith(b"event: error\ndata: UpstreamTimeout\n\n")


def test_server_ends_after_its_grace_with_a_caller_not_reading(
    stop: Stop,
) -> None:
    assert stop.seconds < GRACE + 5


def test_nothing_stays_open_at_the_upstream(stop: Stop) -> None:
    assert stop.left_at_the_upstream == 0


def test_a_stop_is_not_logged_as_a_failure_of_the_upstream(stop: Stop) -> None:
    warnings = [line for line in stop.log.splitlines() if line.startswith("asgi_upstream WARN")]
    assert [line for line in warnings if "UpstreamTimeout" not in line] == []
    for noise in NOISE:
        assert noise not in stop.log


@pytest.mark.servers("uvicorn-h11", "uvicorn-httptools", "granian", fast=("uvicorn-h11",))
def test_server_without_grace_waits_for_its_last_caller(
    upstream: Upstream, server_name: str
) -> None:
    server = Server(server_name, upstream.url, grace=None)
    try:
        caller = SocketCaller(server, "/plain/streamed/events")
        caller.read(b"data: ")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(GRACE + 1)
        assert server.process.poll() is None
        for _ in range(10):
            caller.read(b"data: ")
        caller.leave()
        eventually(lambda: server.process.poll() is not None)
        assert upstream.open_exchanges == 0
    finally:
        server.stop()
