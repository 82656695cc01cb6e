"""The examples of limits and of readiness, under load: real sockets, on both transports."""

import importlib
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from tests.support import example_apps
from tests.support.example_apps import ROOT, Serve, open_at, served, until

upstream_url, upstream = example_apps.upstream_url, example_apps.upstream
url_of, serve = example_apps.url_of, example_apps.serve

ANN, BOB = {"x-api-key": "key-of-ann"}, {"x-api-key": "key-of-bob"}


@pytest.fixture(scope="module")
def slow_url() -> Iterator[str]:
    """The slow upstream: another origin, that counts what is open in the same place."""
    with served(importlib.import_module("examples.upstream").app) as url:
        yield url


@pytest.fixture(params=["httpx", "asyncio"])
def caller(request: pytest.FixtureRequest, serve: Serve, slow_url: str) -> httpx.Client:
    """Calls examples/limits.py, on each transport."""
    return serve("limits", SLOW_URL=slow_url, TRANSPORT=request.param)


class Crowd:
    """Many callers of one path at the same time."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets

    def answers(self) -> Counter[int]:
        """The statuses that have come so far."""
        statuses: Counter[int] = Counter()
        for sock in self._sockets:
            with suppress(BlockingIOError):
                start = sock.recv(12, socket.MSG_PEEK)
                statuses[int(start.removeprefix(b"HTTP/1.1 "))] += 1
        return statuses


@contextmanager
def crowd(
    caller: httpx.Client, path: str, count: int, headers: Mapping[str, str] | None = None
) -> Iterator[Crowd]:
    """So many callers, who leave at the end of the block, answered or not."""
    url = caller.base_url
    fields = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"GET {path} HTTP/1.1\r\nhost: app\r\n{fields}\r\n".encode()
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection((url.host, url.port or 80), timeout=60))
            for _ in range(count)
        ]
        for sock in sockets:
            sock.sendall(head)
            sock.setblocking(False)
        yield Crowd(sockets)


# limits.py: the pool as a bulkhead


def test_full_pool_refuses_requests_and_keeps_its_exchanges(
    caller: httpx.Client, upstream: httpx.Client
) -> None:
    with crowd(caller, "/apart/slow", 60) as callers:
        # The upstream never answers: so the refusals do not wait for it.
        until(lambda: callers.answers().total() == 56)
        assert callers.answers() == {503: 56}
        until(lambda: open_at(upstream) == 4)
        refused = caller.get("/apart/slow")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_full_pool_serves_again_after_its_exchanges(
    caller: httpx.Client, upstream: httpx.Client
) -> None:
    with crowd(caller, "/apart/slow", 60) as callers:
        until(lambda: callers.answers() == {503: 56})
    until(lambda: open_at(upstream) == 0)
    assert caller.get("/queue").status_code == 200  # the same pool


def test_plain_timeout_of_a_request_also_waits_for_the_pool(
    caller: httpx.Client, upstream: httpx.Client
) -> None:
    with crowd(caller, "/apart/slow", 4) as holders:
        until(lambda: open_at(upstream) == 4)
        with crowd(caller, "/queue", 10) as waiting:
            with crowd(caller, "/apart/slow", 10) as refused:
                until(lambda: refused.answers() == {503: 10})
            assert not holders.answers()
            assert not waiting.answers(), "they came first, and were refused as well"


# limits.py: a pool for each upstream


def test_slow_upstream_does_not_block_another_pool(
    caller: httpx.Client,
) -> None:
    with crowd(caller, "/apart/slow", 60) as slow:
        until(lambda: slow.answers() == {503: 56})
        assert [caller.get("/apart/fast").status_code for _ in range(20)] == [200] * 20
        with crowd(caller, "/apart/fast", 20) as fast:
            until(lambda: fast.answers() == {200: 20})


def test_slow_upstream_starves_a_fast_one_in_the_same_pool(
    caller: httpx.Client, upstream: httpx.Client
) -> None:
    assert caller.get("/together/fast").status_code == 200
    with crowd(caller, "/together/slow", 60) as slow:
        until(lambda: slow.answers() == {503: 56})
        assert [caller.get("/together/fast").status_code for _ in range(5)] == [503] * 5
    until(lambda: open_at(upstream) == 0)
    assert caller.get("/together/fast").status_code == 200


# limits.py: concurrent requests per caller


def test_caller_above_its_limit_gets_429_and_others_do_not(
    caller: httpx.Client, upstream: httpx.Client
) -> None:
    with crowd(caller, "/events", 60, ANN) as ann:
        until(lambda: ann.answers().total() == 60)
        assert ann.answers() == {200: 2, 429: 58}
        with crowd(caller, "/events", 60, BOB) as bob:
            until(lambda: bob.answers().total() == 60)
            assert bob.answers() == {200: 2, 429: 58}
            assert open_at(upstream) == 4
    refused = caller.get("/events")
    assert refused.status_code == 401


def test_limiter_is_held_until_the_stream_ends(caller: httpx.Client) -> None:
    with (
        caller.stream("GET", "/events", headers=ANN),
        caller.stream("GET", "/events", headers=ANN) as response,
    ):
        chunks = response.iter_raw()
        for _ in range(5):  # long after the endpoint has returned
            next(chunks)
            refused = caller.get("/events?count=1", headers=ANN)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


def test_limiter_is_released_when_the_stream_ends(caller: httpx.Client) -> None:
    with caller.stream("GET", "/events", headers=ANN):  # keeps the caller's limiter alive
        for _ in range(3):  # more often than there are places
            until(lambda: caller.get("/events?count=2", headers=ANN).status_code == 200)


@pytest.mark.parametrize("path", ["/events", "/dies"])
def test_limiter_is_released_after_a_disconnect_or_failure(caller: httpx.Client, path: str) -> None:
    with caller.stream("GET", "/events", headers=ANN):  # keeps the caller's limiter alive
        for _ in range(3):  # more often than there are places
            with crowd(caller, path, 1, ANN) as ann:
                until(lambda: ann.answers() == {200: 1})
            until(lambda: caller.get("/events?count=1", headers=ANN).status_code == 200)


def test_limiter_of_an_idle_caller_is_removed(caller: httpx.Client) -> None:
    until(lambda: not limiters())
    with crowd(caller, "/events", 5, ANN) as ann, crowd(caller, "/events", 5, BOB) as bob:
        until(lambda: ann.answers() == bob.answers() == {200: 2, 429: 3})
        assert sorted(limiters()) == ["ann", "bob"]
    until(lambda: not limiters())


def limiters() -> list[str]:
    """The callers for whom there is a limiter."""
    return list(importlib.import_module("examples.limits").limiters)


# readiness.py


def test_readiness_counts_open_and_waiting_exchanges(serve: Serve, upstream_url: str) -> None:
    caller = serve("readiness")
    assert caller.get("/ready").status_code == 200
    with crowd(caller, "/events", 2) as served_ones:
        until(lambda: served_ones.answers() == {200: 2})
        with crowd(caller, "/events", 2):
            until(lambda: bool(caller.get("/ready").json()["waiting"] == 2))
            response = caller.get("/ready")
            assert response.status_code == 200
            state = response.json()
            assert (state["exchanges"], state["idle"]) == (4, 0)
            assert state["waiting_for"] == {upstream_url: 2}
    until(lambda: bool(caller.get("/ready").json()["exchanges"] == 0))
    assert caller.get("/ready").json()["waiting"] == 0


def test_readiness_is_503_only_while_too_many_wait(serve: Serve) -> None:
    caller = serve("readiness")
    with crowd(caller, "/events", 20) as callers:
        until(lambda: caller.get("/ready").status_code == 503)
        assert caller.get("/alive").status_code == 200
        until(lambda: callers.answers() == {200: 2})
    until(lambda: caller.get("/ready").status_code == 200)


def test_readiness_ignores_an_upstream_that_is_down(serve: Serve) -> None:
    caller = serve("readiness", UPSTREAM_URL="http://127.0.0.1:1")
    assert caller.get("/events").status_code == 502
    assert caller.get("/ready").status_code == 200


# docs/limits.md


def test_the_code_on_the_page_is_the_examples() -> None:
    example = (ROOT / "examples/limits.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/limits.md").read_text(), re.S)
    assert len(blocks) > 2
    for block in blocks:
        for part in re.split(r"^\.\.\.\n", block, flags=re.M):
            assert part.strip() in example
