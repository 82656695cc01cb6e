"""Event streams: read in a transform by httpx-sse, and kept alive while the upstream is silent."""

import time
from collections.abc import Iterator

import fastapi.routing
import httpx
import pytest

from examples.compositions import events as example
from tests.compositions.callers import Serve, leave_when
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

BEFORE_THE_DEFAULT = 10  # seconds; both ping each 15 where nothing else is set
KEPT_ALIVE = ["/kept-alive", "/kept-alive-by-fastapi"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI's own heartbeat comes each 15 seconds; for a test, sooner."""
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.1)


def read_until(text: str, lines: Iterator[str]) -> list[str]:
    """The lines up to the one with this text in it."""
    got: list[str] = []
    for line in lines:
        got.append(line)
        if text in line:
            return got
    raise AssertionError(f"{text!r} did not come: {got}")


def test_events_are_transformed_one_by_one_in_any_chunks(serve: Serve, upstream: Upstream) -> None:
    caller = serve("events", PING="0.1")
    with caller.stream("GET", "/shouted/quiet") as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-upstream"] == "yes"
        lines = read_until("ZWEI", response.iter_lines())
    assert [line for line in lines if line] == [
        "id: 7", "event: line", "data: GRÜN", "data: ROT", "id: 7", "event: message", "data: ZWEI",
    ]  # fmt: skip
    eventually(lambda: upstream.open_exchanges == 0)


def test_upstream_failure_mid_transform_ends_with_error_event(
    serve: Serve,
) -> None:
    text = serve("events", PING="0.1").get("/shouted/dying").text
    assert text.endswith("event: error\ndata: the upstream failed\n\n")
    assert "ZWEI" in text


@pytest.mark.parametrize("path", KEPT_ALIVE)
def test_heartbeats_come_while_the_upstream_is_silent(
    serve: Serve, upstream: Upstream, path: str
) -> None:
    caller = serve("events", PING="0.1")
    with caller.stream("GET", path + "/quiet", timeout=BEFORE_THE_DEFAULT) as response:
        lines = response.iter_lines()
        events = read_until("zwei", lines)
        assert [line for line in events if line.startswith("data")] == [
            "data: grün", "data: rot", "data: zwei",
        ]  # fmt: skip
        for _ in range(3):
            read_until(": ping", lines)
    eventually(lambda: upstream.open_exchanges == 0)


def test_a_transform_has_no_heartbeats_and_drops_the_upstreams(serve: Serve) -> None:
    caller = serve("events", PING="0.1")
    with caller.stream("GET", "/shouted/quiet", timeout=5) as response:
        lines = response.iter_lines()
        assert not any(line.startswith(":") for line in read_until("ZWEI", lines))
        with pytest.raises(httpx.ReadTimeout):
            read_until(": ping", lines)


def test_heartbeats_come_before_the_upstream_has_answered_at_all(
    serve: Serve, upstream: Upstream
) -> None:
    caller = serve("events", PING="0.1")
    with caller.stream("GET", "/kept-alive/never", timeout=BEFORE_THE_DEFAULT) as response:
        read_until(": ping", response.iter_lines())
    eventually(lambda: upstream.open_exchanges == 0)


@pytest.mark.parametrize("path", ["/shouted", *KEPT_ALIVE])
@pytest.mark.parametrize("events", ["/quiet", "/torrent"])
def test_a_caller_who_leaves_ends_the_upstreams_stream(
    serve: Serve, upstream: Upstream, path: str, events: str
) -> None:
    with serve("events", PING="0.1").stream("GET", path + events) as response:
        lines = response.iter_lines()  # which closes the connection where nobody has it any more
        read_until("data", lines)
        assert upstream.open_exchanges == 1
        assert next(lines) is not None
    eventually(lambda: upstream.open_exchanges == 0)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/shouted", 502), ("/kept-alive", 200), ("/kept-alive-by-fastapi", 502)],
)
def test_failure_before_the_response_starts_is_an_error_status(
    serve: Serve, path: str, status: int
) -> None:
    response = serve("events", PING="0.1").get(path + "/close_at_once")
    assert response.status_code == status
    assert ("event: error" in response.text) == (status == 200)


@pytest.mark.parametrize("path", KEPT_ALIVE)
def test_upstream_failure_reaches_caller_of_kept_alive_stream(serve: Serve, path: str) -> None:
    text = serve("events", PING="0.1").get(path + "/dying").text
    assert text.index("data: zwei") < text.index("event: error")


def test_disconnect_before_the_response_frees_the_upstream(
    serve: Serve, upstream: Upstream
) -> None:
    leave_when(serve("events", PING="0.1"), "/shouted/never", lambda: upstream.open_exchanges == 1)
    eventually(lambda: upstream.open_exchanges == 0)


@pytest.mark.slow
def test_dependency_that_awaits_upstream_misses_the_disconnect(
    serve: Serve, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = serve("events", PING="0.1")
    monkeypatch.setattr(example, "PATIENT", httpx.Timeout(60, read=4))
    leave_when(caller, "/kept-alive-by-fastapi/never", lambda: upstream.open_exchanges == 1)
    time.sleep(1.5)
    assert upstream.open_exchanges == 1
    eventually(lambda: upstream.open_exchanges == 0)
