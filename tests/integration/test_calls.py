"""`fetch`, `cancel_on_disconnect` and `heartbeat=` on real servers."""

import json
from collections.abc import Iterator

import pytest

from tests.support.server_choice import every_server
from tests.support.servers import NOISE, Server, SocketCaller, ask
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

APP = "tests.support.apps.merge_app:app"


@pytest.fixture(scope="module")
def running(server_name: str, upstream: Upstream) -> Iterator[Server]:
    server = Server(server_name, upstream.url, app=APP)
    yield server
    server.stop()


@every_server
@pytest.mark.parametrize("base", ["", "/base"])
@pytest.mark.parametrize("order", ["before", "in", "after", "never"])
def test_merge_answers_and_keeps_the_body(server: Server, order: str, base: str) -> None:
    body = b"b" * 100_000
    answer = ask(
        server,
        f"{base}/merge",
        method="POST",
        fields=f"content-length: {len(body)}\r\n",
        body=body,
        target="/item",
        order=order,
    )
    assert answer.status == 200
    result = json.loads(answer.body)
    assert result["body"] == ("" if order == "never" else body.decode())
    assert len(result["lengths"]) == 2


@every_server
@pytest.mark.parametrize("base", ["", "/base"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/never", "/silent_after_head"])
def test_disconnect_frees_both_upstreams(
    server: Server, upstream: Upstream, path: str, method: str, base: str
) -> None:
    fields = "content-length: 3\r\n" if method == "POST" else ""
    body = b"abc" if method == "POST" else b""
    before = len(server.log())
    caller = SocketCaller(
        server, f"{base}/merge", method=method, fields=fields, body=body, target=path
    )
    eventually(lambda: upstream.open_exchanges == 2)
    caller.leave()
    eventually(lambda: upstream.open_exchanges == 0)
    assert "Traceback" not in server.log()[before:]
    assert all(noise not in server.log()[before:] for noise in NOISE)


def test_deadline_of_a_merge_is_504(server: Server, upstream: Upstream) -> None:
    answer = ask(server, "/merge", target="/never", deadline=0.3)
    assert answer.status == 504
    eventually(lambda: upstream.open_exchanges == 0)


def test_failing_upstream_of_a_merge_is_502(server: Server) -> None:
    assert ask(server, "/merge", target="/close_at_once").status in (500, 502)


def test_silent_event_stream_has_heartbeats(server: Server, upstream: Upstream) -> None:
    caller = SocketCaller(server, "/heartbeat")
    assert b": heartbeat\n\n" in caller.read(until=b": heartbeat\n\n")
    caller.leave()
    eventually(lambda: upstream.open_exchanges == 0)
