"""The lists of docs/failures.md, each line on each server."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.server_choice import every_server
from tests.support.servers import (
    GRACE,
    Answer,
    Server,
    SocketCaller,
    ask,
    free_port,
)
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

KINDS = ["plain/streamed", "plain/buffered", "plain/sync", "base/streamed", "gzip/streamed"]
STREAMED = [kind for kind in KINDS if "buffered" not in kind]
GZIP = "accept-encoding: gzip\r\n"
MB = 1 << 20

kinds = pytest.mark.parametrize("kind", KINDS)
streamed_kinds = pytest.mark.parametrize("kind", STREAMED)
leaving = pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])


def log_of(server: Server, act: Callable[[], Any]) -> str:
    before = len(server.log())
    act()
    time.sleep(0.02)
    return server.log()[before:]


# What is relayed.


@every_server
@kinds
def test_a_body_with_a_length_arrives_whole_and_keeps_it(server: Server, kind: str) -> None:
    answer = ask(server, f"/{kind}/item?size=300000")
    assert (answer.status, answer.body, answer.complete) == (200, b"x" * 300_000, True)
    assert answer.all(b"content-length") == [b"300000"]


@every_server
@kinds
def test_a_chunked_body_arrives_whole(server: Server, kind: str) -> None:
    answer = ask(server, f"/{kind}/chunks?count=3")
    assert (answer.body, answer.complete) == (b"chunk-0;chunk-1;chunk-2;", True)


@kinds
def test_end_to_end_fields_cross_and_the_others_do_not(server: Server, kind: str) -> None:
    answer = ask(server, f"/{kind}/headers")
    assert answer.all(b"x-twice") == [b"1", b"2"]
    assert answer.all(b"set-cookie") == [b"a=1", b"b=2"]
    assert answer.all(b"x-obs") == [b"\xe9"]
    assert answer.all(b"x-empty") == [b""]
    for name in (b"x-private", b"keep-alive", b"proxy-authenticate"):
        assert answer.all(name) == []
    assert len(answer.all(b"date")) == 1
    assert b"1970" not in answer.all(b"date")[0]
    assert answer.all(b"server") != [b"inside"]


@pytest.mark.parametrize("code", [200, 201, 204, 205, 301, 304, 404, 418, 500, 503, 599])
@pytest.mark.parametrize("kind", ["plain/streamed", "plain/buffered"])
def test_every_final_status_is_relayed(server: Server, kind: str, code: int) -> None:
    answer = ask(server, f"/{kind}/status?code={code}")
    assert (answer.status, answer.field(b"x-upstream")) == (code, b"yes")
    assert (answer.body, answer.complete) == (b"", True)


@every_server
@kinds
def test_head_keeps_the_length_and_has_no_body(server: Server, kind: str) -> None:
    data = SocketCaller(server, f"/{kind}/item?size=77", method="HEAD").read()
    answer = Answer(data)
    assert (answer.status, answer.all(b"content-length"), answer.body) == (200, [b"77"], b"")


def test_a_head_leaves_its_connection_for_the_next_request(
    server: Server, upstream: Upstream
) -> None:
    ask(server, "/plain/narrow/item", method="HEAD")
    before = upstream.open_connections
    for _ in range(3):
        assert ask(server, "/plain/narrow/item", method="HEAD").status == 200
    assert upstream.open_connections == before


@pytest.mark.parametrize("kind", ["plain/streamed", "plain/buffered"])
def test_a_compressed_body_is_relayed_as_it_is_or_decoded(server: Server, kind: str) -> None:
    raw = ask(server, f"/{kind}/zipped")
    assert raw.field(b"content-encoding") == b"gzip"
    assert raw.body[:2] == b"\x1f\x8b"
    decoded = ask(server, f"/{kind}/zipped", decode=True)
    assert (decoded.body, decoded.field(b"content-encoding")) == (b'{"zipped": true}', None)


@every_server
def test_a_chunk_leaves_before_the_next_one_comes(server: Server) -> None:
    caller = SocketCaller(server, "/plain/streamed/silent_mid_body")
    assert b"first" in caller.read(b"first")
    caller.leave()


@every_server
def test_the_head_of_a_silent_stream_arrives_at_once(server: Server) -> None:
    caller = SocketCaller(server, "/plain/streamed/silent_after_head")
    assert b" 200 " in caller.read(b"\r\n\r\n")
    caller.leave()


@every_server
def test_the_callers_upload_reaches_the_upstream_whole(server: Server) -> None:
    body = bytes(range(256)) * 2000
    answer = ask(
        server,
        "/plain/streamed/echo",
        method="POST",
        fields=f"content-length: {len(body)}\r\n",
        body=body,
        upload=True,
    )
    assert answer.body.endswith(b"\r\n\r\n" + body)


@every_server
def test_get_that_passes_on_the_callers_stream_is_answered(server: Server) -> None:
    answer = ask(server, "/plain/streamed/echo", upload=True)
    assert answer.status == 200


# Callers who leave.


@every_server
@pytest.mark.parametrize("kind", [*KINDS, "forward"])
@leaving
def test_disconnect_before_the_headers_frees_connection(
    server: Server, upstream: Upstream, kind: str, reset: bool
) -> None:
    connections = upstream.open_connections
    caller = SocketCaller(server, f"/{kind}/never")
    eventually(lambda: upstream.open_exchanges == 1)
    caller.leave(reset=reset)
    eventually(lambda: upstream.open_exchanges == 0)
    eventually(lambda: upstream.open_connections <= connections)


@every_server
@leaving
@pytest.mark.parametrize(
    ("kind", "behaviour"),
    [
        ("plain/streamed", "silent_after_head"),
        ("plain/streamed", "silent_mid_body"),
        ("plain/streamed", "events"),
        ("plain/streamed", "pour"),
        ("plain/buffered", "silent_mid_body"),
        ("plain/buffered", "pour"),
        ("plain/sync", "silent_mid_body"),
        ("base/streamed", "silent_mid_body"),
        ("base/streamed", "pour"),
        ("gzip/streamed", "events"),
        ("forward", "silent_mid_body"),
        ("forward", "pour"),
    ],
)
def test_a_caller_who_leaves_mid_body_frees_the_connection(
    server: Server, upstream: Upstream, kind: str, reset: bool, behaviour: str
) -> None:
    options: dict[str, Any] = {"max_bytes": 10**12} if "buffered" in kind else {}
    caller = SocketCaller(server, f"/{kind}/{behaviour}", **options)
    eventually(lambda: upstream.open_exchanges == 1)
    if "buffered" not in kind:
        caller.read(b"\r\n\r\n")
    caller.leave(reset=reset)
    eventually(lambda: upstream.open_exchanges == 0)


@every_server
@pytest.mark.parametrize("length", [5, 500_000], ids=["whole upload", "part of an upload"])
@pytest.mark.parametrize("kind", ["plain/streamed", "plain/buffered", "base/streamed", "forward"])
def test_disconnect_in_or_after_the_upload_frees_connection(
    server: Server, upstream: Upstream, kind: str, length: int
) -> None:
    caller = SocketCaller(
        server,
        f"/{kind}/never",
        method="POST",
        fields=f"content-length: {length}\r\n",
        body=b"hello",
        upload=True,
    )
    eventually(lambda: upstream.open_exchanges == 1)
    caller.leave()
    eventually(lambda: upstream.open_exchanges == 0)


def test_slot_of_a_small_pool_is_free_after_a_disconnect(
    server: Server, upstream: Upstream
) -> None:
    caller = SocketCaller(server, "/plain/narrow/never")
    eventually(lambda: upstream.open_exchanges == 1)
    caller.leave()
    assert ask(server, "/plain/narrow/item").status == 200


@every_server
def test_disconnect_while_waiting_for_the_pool_takes_no_slot(
    server: Server, upstream: Upstream
) -> None:
    holder = SocketCaller(server, "/plain/narrow/never")
    eventually(lambda: upstream.open_exchanges == 1)
    requests = len(upstream.requests)
    waiting = [SocketCaller(server, "/plain/narrow/item") for _ in range(5)]
    time.sleep(0.1)
    for caller in waiting:
        caller.leave()
    time.sleep(0.5)
    holder.leave()
    assert ask(server, "/plain/narrow/item").status == 200
    assert len(upstream.requests) == requests + 1


@every_server
def test_a_caller_who_leaves_is_not_logged_as_a_failure(server: Server, upstream: Upstream) -> None:
    def leave() -> None:
        for path in ("plain/streamed/never", "base/streamed/never", "base/streamed/pour"):
            caller = SocketCaller(server, f"/{path}")
            eventually(lambda: upstream.open_exchanges == 1)
            caller.leave()
            eventually(lambda: upstream.open_exchanges == 0)

    log = log_of(server, leave)
    assert "asgi_upstream WARNING" not in log
    assert "Traceback" not in log


@every_server
@pytest.mark.serial
def test_500_callers_who_leave_at_once_are_all_freed(server: Server, upstream: Upstream) -> None:
    paths = ["never", "silent_after_head", "silent_mid_body", "events", "pour"]
    with ThreadPoolExecutor(20) as pool:
        callers = list(
            pool.map(
                lambda n: SocketCaller(server, f"/{KINDS[n % 2]}/{paths[n // 2 % 4]}"), range(500)
            )
        )
        eventually(lambda: upstream.open_exchanges == 500)
        list(pool.map(lambda n: callers[n].leave(reset=n % 2 == 0), range(500)))
    eventually(lambda: upstream.open_exchanges == 0)
    assert ask(server, "/plain/streamed/item").status == 200


@every_server
@pytest.mark.serial
@pytest.mark.parametrize("kind", ["plain", "base"])
def test_many_disconnects_at_once_free_all_slots_of_the_pool(
    server: Server, upstream: Upstream, kind: str
) -> None:
    def call(number: int) -> SocketCaller:
        return SocketCaller(server, f"/{kind}/fifty/never")

    with ThreadPoolExecutor(20) as pool:
        callers = list(pool.map(call, range(200)))
        eventually(lambda: upstream.open_exchanges == 50)
        time.sleep(0.3)
        list(pool.map(lambda caller: caller.leave(reset=True), callers))
    eventually(lambda: upstream.open_exchanges == 0)
    callers = [call(number) for number in range(50)]
    eventually(lambda: upstream.open_exchanges == 50)


@every_server
def test_background_runs_if_the_response_was_sent_whole(server: Server, upstream: Upstream) -> None:
    for kind in ("streamed", "buffered"):
        ask(server, f"/plain/{kind}/item", background=f"whole {kind}")
        ask(server, f"/plain/{kind}/short", background=f"failed {kind}")
        for path in ("never", "silent_mid_body"):
            caller = SocketCaller(server, f"/plain/{kind}/{path}", background=f"left {kind} {path}")
            eventually(lambda: upstream.open_exchanges == 1)
            caller.leave()
            eventually(lambda: upstream.open_exchanges == 0)
    whole = ["whole streamed", "whole buffered"]
    eventually(lambda: server.state()["background"][-2:] == whole)


# Middleware that drops the response.


@every_server
@pytest.mark.parametrize("behaviour", ["pour", "events", "silent_mid_body"])
def test_middleware_that_drops_the_response_closes_upstream(
    server: Server, upstream: Upstream, behaviour: str
) -> None:
    answer = ask(server, f"/dropped/streamed/{behaviour}")
    assert (answer.status, answer.body) == (200, b"dropped")
    eventually(lambda: upstream.open_exchanges == 0)


def test_a_timeout_middleware_closes_the_upstream(server: Server, upstream: Upstream) -> None:
    answer = ask(server, "/raced/streamed/never")
    assert (answer.status, answer.body) == (504, b"too slow")
    eventually(lambda: upstream.open_exchanges == 0)


# Failures before the headers.

BEFORE = [
    "close_at_once",
    "reset_at_once",
    "close_in_head",
    "no_http",
    "huge_head",
    "switch",
    "odd_status",
]


@pytest.mark.parametrize("kind", ["plain/streamed", "plain/buffered", "base/streamed", "forward"])
@pytest.mark.parametrize("behaviour", BEFORE)
def test_an_upstream_that_breaks_before_its_headers_is_502(
    server: Server, upstream: Upstream, kind: str, behaviour: str
) -> None:
    answer = Answer(b"")

    def act() -> None:
        nonlocal answer
        answer = ask(server, f"/{kind}/{behaviour}")

    log = log_of(server, act)
    assert answer.status == 502
    assert json.loads(answer.body) == {"detail": "The upstream sent an invalid response"}
    lines = [line for line in log.splitlines() if line.startswith("asgi_upstream WARNING")]
    assert len(lines) == 1
    assert "127.0.0.1" in lines[0]
    eventually(lambda: upstream.open_exchanges == 0)


@kinds
@pytest.mark.parametrize("url", ["refused", "unresolvable", "tls"])
def test_unreachable_upstream_is_502_and_is_not_named(
    server: Server, untrusted: Upstream, kind: str, url: str
) -> None:
    urls = {
        "refused": f"http://127.0.0.1:{free_port()}/secret",
        "unresolvable": "http://does-not-exist.invalid/secret",
        "tls": f"https://127.0.0.1:{untrusted.port}/secret",
    }
    answer = ask(server, f"/{kind}/item", url=urls[url])
    assert answer.status == 502
    assert json.loads(answer.body) == {"detail": "The upstream cannot be reached"}


@kinds
def test_a_read_timeout_before_the_headers_is_504(server: Server, kind: str) -> None:
    assert ask(server, f"/{kind}/never", timeout=0.1).status == 504


@kinds
def test_a_deadline_before_the_headers_is_504(server: Server, kind: str) -> None:
    answer = ask(server, f"/{kind}/never", deadline=0.1)
    assert answer.status == 504
    assert json.loads(answer.body) == {"detail": "The upstream did not answer in time"}


def test_a_full_pool_is_503_with_retry_after(server: Server, upstream: Upstream) -> None:
    holder = SocketCaller(server, "/plain/narrow/never")
    eventually(lambda: upstream.open_exchanges == 1)
    answer = ask(server, "/plain/narrow/item", timeout=0.1)
    assert (answer.status, answer.field(b"retry-after")) == (503, b"1")
    holder.leave()


@pytest.mark.parametrize("kind", ["streamed", "buffered"])
@pytest.mark.parametrize(("behaviour", "options"), [("no_http", {}), ("never", {"deadline": 0.1})])
def test_an_apps_own_handler_sees_a_plain_upstream_error(
    server: Server, kind: str, behaviour: str, options: dict[str, Any]
) -> None:
    answer = ask(server, f"/handled/{kind}/{behaviour}", **options)
    name = b"UpstreamTimeout" if options else b"UpstreamProtocolError"
    assert (answer.status, answer.body) == (555, b"handled " + name)


# Failures in the middle of the body.

LATE = 2.0
"""Seconds of limits that are to pass, on a busy machine not before the head has come."""

DURING: list[tuple[str, dict[str, Any]]] = [
    ("short", {}),
    ("short_chunked", {}),
    ("reset_mid_body", {}),
    ("broken_chunk", {}),
    ("broken_gzip", {"decode": True}),
    ("short_gzip", {"decode": True}),
    ("silent_mid_body", {"timeout": LATE}),
    ("silent_mid_body", {"deadline": LATE}),
    ("events", {"deadline": LATE}),
    ("chunks", {"transform": "failing"}),
]
# All that takes no time on each kind of response, the rest on one kind.
EACH = [
    pytest.param(kind, behaviour, options, id=f"{kind}-{behaviour}-{''.join(options)}")
    for kind in STREAMED
    for behaviour, options in DURING
    if LATE not in options.values() or kind == STREAMED[0]
]
during = pytest.mark.parametrize(
    ("behaviour", "options"), DURING, ids=lambda value: value if isinstance(value, str) else None
)


@every_server
@pytest.mark.parametrize(("kind", "behaviour", "options"), EACH)
def test_a_body_that_breaks_off_is_cut_off_for_the_caller(
    server: Server, upstream: Upstream, kind: str, behaviour: str, options: dict[str, Any]
) -> None:
    fields = GZIP if "gzip" in kind else ""
    answer = ask(server, f"/{kind}/{behaviour}", fields=fields, **options)
    assert answer.status == 200
    assert not answer.complete
    eventually(lambda: upstream.open_exchanges == 0)


@every_server
@pytest.mark.parametrize("behaviour", ["short", "short_chunked"])
def test_broken_body_is_cut_off_behind_several_middlewares(server: Server, behaviour: str) -> None:
    answer = ask(server, f"/bases/streamed/{behaviour}")
    assert answer.status == 200
    assert not answer.complete


@every_server
@pytest.mark.parametrize(("kind", "behaviour", "options"), EACH)
def test_an_error_frame_ends_a_body_that_breaks_off(
    server: Server, upstream: Upstream, kind: str, behaviour: str, options: dict[str, Any]
) -> None:
    answer = ask(server, f"/{kind}/{behaviour}", on_stream_error="frame", **options)
    assert (answer.status, answer.complete) == (200, True)
    assert b"event: error\ndata: " in answer.body[-60:]
    assert answer.field(b"content-length") is None
    eventually(lambda: upstream.open_exchanges == 0)


@during
def test_a_buffered_body_that_breaks_off_is_an_error_status(
    server: Server, upstream: Upstream, behaviour: str, options: dict[str, Any]
) -> None:
    answer = ask(server, f"/plain/buffered/{behaviour}", max_bytes=10**11, **options)
    slow = "timeout" in options or "deadline" in options
    assert answer.status == (500 if "transform" in options else 504 if slow else 502)
    eventually(lambda: upstream.open_exchanges == 0)


# on_response, transform, max_bytes.


@pytest.mark.parametrize("kind", ["plain/streamed", "plain/buffered", "base/streamed"])
@pytest.mark.parametrize(
    ("hook", "status", "body"),
    [("forbid", 403, b"forbidden on the way"), ("crash", 500, b""), ("replace", 207, b"instead")],
)
def test_on_response_that_raises_or_replaces_closes_upstream(
    server: Server, upstream: Upstream, kind: str, hook: str, status: int, body: bytes
) -> None:
    behaviour = "item" if "buffered" in kind else "pour"
    answer = ask(server, f"/{kind}/{behaviour}", on_response=hook)
    assert answer.status == status
    assert body in answer.body
    eventually(lambda: upstream.open_exchanges == 0)


def test_a_transform_changes_the_body(server: Server) -> None:
    for kind in ("streamed", "buffered"):
        answer = ask(server, f"/plain/{kind}/chunks?count=2", transform="upper")
        assert answer.body == b"CHUNK-0;CHUNK-1;"


@pytest.mark.parametrize("behaviour", ["item?size=2000000", "pour", "bomb"])
def test_a_body_past_max_bytes_is_502_and_reading_stops(
    server: Server, upstream: Upstream, behaviour: str
) -> None:
    ask(server, "/plain/buffered/item")
    before = server.memory()
    answer = ask(server, f"/plain/buffered/{behaviour}", max_bytes=1_000_000, decode=True)
    assert answer.status == 502
    assert json.loads(answer.body) == {"detail": "The upstream's response is too large"}
    assert server.memory() - before < 20 * MB
    eventually(lambda: upstream.open_exchanges == 0)


# A slow reader.


@every_server
@pytest.mark.parametrize("kind", ["plain/streamed", "base/streamed"])
def test_a_caller_who_does_not_read_holds_the_upstream_back(
    server: Server, upstream: Upstream, kind: str
) -> None:
    ask(server, f"/{kind}/item?size=3000000")
    caller = SocketCaller(server, f"/{kind}/pour")
    caller.read(b"\r\n\r\n")
    time.sleep(0.5)
    before = server.memory()
    time.sleep(2)
    assert server.memory() - before < 3 * MB
    caller.leave()
    eventually(lambda: upstream.open_exchanges == 0)


@every_server
def test_callers_who_leave_a_fast_body_leave_no_memory_behind(
    server: Server, upstream: Upstream
) -> None:
    ask(server, "/plain/streamed/item?size=3000000")
    before = server.memory()
    for _ in range(5):
        caller = SocketCaller(server, "/plain/streamed/pour")
        caller.read_bytes(3_000_000)
        caller.leave(reset=True)
        eventually(lambda: upstream.open_exchanges == 0)
    assert server.memory() - before < 30 * MB


# The end of the server.


@every_server
def test_stopped_server_ends_in_its_grace_and_closes_upstream(
    upstream: Upstream, server_name: str
) -> None:
    server = Server(server_name, upstream.url)
    try:
        callers = [
            SocketCaller(server, f"/{kind}/{behaviour}")
            for kind in KINDS
            for behaviour in ("never", "events", "silent_mid_body")
        ]
        eventually(lambda: upstream.open_exchanges == len(callers))
        readers = [threading.Thread(target=caller.read) for caller in callers]
        for reader in readers:
            reader.start()
    finally:
        seconds = server.stop()
    assert seconds < GRACE + 3
    eventually(lambda: upstream.open_exchanges == 0)
    for reader in readers:
        reader.join(50)
    log = server.log()
    for noise in ("never retrieved", "was destroyed", "loop is closed", "never awaited"):
        assert noise not in log
