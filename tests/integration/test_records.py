"""Each exchange has its one record on every server, also where its end is the server's to tell."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.server_choice import ALL_SERVERS
from tests.support.servers import NOISE, Server, SocketCaller, ask
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

APP = "tests.support.apps.records_app:app"
Records = Callable[..., list[dict[str, Any]]]
# How an exchange ends is partly the server's to tell.
pytestmark = pytest.mark.servers(*ALL_SERVERS, fast=("uvicorn-httptools+asyncio", "hypercorn-trio"))
WAYS = ["/plain/streamed", "/plain/buffered", "/forward"]


@pytest.fixture(scope="module")
def observed(server_name: str, upstream: Upstream) -> Iterator[Server]:
    server = Server(server_name, upstream.url, app=APP)
    yield server
    server.stop()
    for noise in NOISE:
        assert noise not in server.log()


@pytest.fixture
def records(observed: Server, upstream: Upstream) -> Iterator[Records]:
    """The records since the beginning of the test, once there are so many and nothing is open."""
    ask(observed, "/forget")
    upstream.requests.clear()

    def kept(count: int = 1) -> list[dict[str, Any]]:
        eventually(lambda: len(observed.state()["records"]) >= count)
        eventually(lambda: observed.state()["open"] == 0 == upstream.open_exchanges)
        got: list[dict[str, Any]] = observed.state()["records"]
        assert len(got) == count, got
        return got

    yield kept
    for caller in SocketCaller.open:
        caller.leave()
    SocketCaller.open.clear()


def test_each_answer_has_one_record_with_its_bytes(observed: Server, records: Records) -> None:
    sizes = [1, 1000, 300_000]
    for way in WAYS:
        for size in sizes:
            answer = ask(observed, f"{way}/item?size={size}")
            assert len(answer.body) == size
    got = records(len(WAYS) * len(sizes))
    assert [record["bytes_received"] for record in got] == sizes * len(WAYS)
    assert {record["outcome"] for record in got} == {"completed"}
    assert {record["client"] for record in got} == {"client"}
    assert {record["route"] for record in got} == {"/{kind}/{path:path}", "/forward"}


@pytest.mark.parametrize("framing", ["content-length: 6\r\n", "transfer-encoding: chunked\r\n"])
def test_an_upload_is_counted_as_the_upstream_got_it(
    observed: Server, records: Records, upstream: Upstream, framing: str
) -> None:
    body = b"abcdef" if "length" in framing else b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
    ask(observed, "/forward/echo", method="POST", fields=framing, body=body)
    ask(observed, "/plain/streamed/echo", method="POST", fields=framing, body=body, upload=True)
    assert [r["bytes_sent"] for r in records(2)] == [6, 6]
    assert [seen.body for seen in upstream.requests] == [b"abcdef"] * 2


@pytest.mark.parametrize("way", WAYS)
def test_a_head_request_receives_nothing(observed: Server, records: Records, way: str) -> None:
    assert ask(observed, f"{way}/item", method="HEAD").field(b"content-length") == b"1024"
    (record,) = records()
    assert (record["method"], record["bytes_received"]) == ("HEAD", 0)
    assert record["outcome"] == "completed"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_caller_who_leaves_before_the_headers(
    observed: Server, records: Records, upstream: Upstream, way: str, reset: bool
) -> None:
    caller = SocketCaller(observed, f"{way}/never")
    eventually(lambda: upstream.open_exchanges == 1)
    assert observed.state()["open"] == 1
    caller.leave(reset=reset)
    (record,) = records()
    assert (record["outcome"], record["status"]) == ("caller_disconnected_before_headers", None)


@pytest.mark.parametrize("path", ["silent_mid_body", "events", "pour"])
@pytest.mark.parametrize("way", ["/plain/streamed", "/forward"])
def test_a_caller_who_leaves_in_the_body(
    observed: Server, records: Records, way: str, path: str
) -> None:
    caller = SocketCaller(observed, f"{way}/{path}")
    caller.read(until=b"\r\n\r\n")
    caller.leave()
    (record,) = records()
    assert (record["outcome"], record["status"]) == ("caller_disconnected_mid_body", 200)


def test_a_caller_who_leaves_in_its_upload(
    observed: Server, records: Records, upstream: Upstream
) -> None:
    fields = "content-length: 6\r\n"
    caller = SocketCaller(observed, "/forward/echo", method="POST", fields=fields, body=b"abc")
    eventually(lambda: upstream.open_exchanges == 1)
    caller.leave()
    (record,) = records()
    assert (record["outcome"], record["bytes_sent"]) == ("caller_disconnected_before_headers", 3)


@pytest.mark.parametrize("path", ["short", "reset_mid_body", "broken_chunk"])
@pytest.mark.parametrize("way", WAYS)
def test_a_body_that_breaks_off(observed: Server, records: Records, way: str, path: str) -> None:
    ask(observed, f"{way}/{path}")
    (record,) = records()
    assert (record["outcome"], record["bytes_received"]) == ("body_failed", 100)


def test_a_timeout_of_a_middleware_has_cancelled(observed: Server, records: Records) -> None:
    assert ask(observed, "/raced/streamed/never").status == 504
    (record,) = records()
    assert record["outcome"] in ("cancelled", "caller_disconnected_before_headers")


def test_many_at_once_are_counted_and_each_has_its_record(
    observed: Server, records: Records, upstream: Upstream
) -> None:
    """50 are at the upstream, 10 wait for a place; half leave, for the others it ends."""
    callers = [SocketCaller(observed, f"{way}/never") for way in WAYS for _ in range(20)]
    eventually(lambda: observed.state()["open"] == 60)
    eventually(lambda: upstream.open_exchanges == 50)
    for caller in callers:
        caller.leave()
    outcomes = {record["outcome"] for record in records(60)}
    assert outcomes == {"caller_disconnected_before_headers"}


def test_exchange_open_when_the_server_stops_has_one_record(
    upstream: Upstream, server_name: str
) -> None:
    """Or in none on granian, which kills its worker."""
    server = Server(server_name, upstream.url, app=APP)
    callers = [SocketCaller(server, f"{way}/never") for way in WAYS]
    streaming = SocketCaller(server, "/plain/streamed/events")
    streaming.read(until=b"data:")
    eventually(lambda: upstream.open_exchanges == 4)
    server.stop()
    ended = re.findall(r"ended: (\w+)", server.log())
    assert ended == ([] if server_name.startswith("granian") else ["cancelled"] * 4)
    eventually(lambda: upstream.open_exchanges == 0)
    for caller in [*callers, streaming]:
        caller.leave()
    SocketCaller.open.clear()
