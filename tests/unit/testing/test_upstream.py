"""The scripted upstream answers by script, and tells what it got: real sockets, no app."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import trustme

from asgi_upstream.testing import Upstream
from asgi_upstream.testing._answers import ScriptedResponse
from asgi_upstream.testing._malformed import MALFORMED, MalformedKind
from asgi_upstream.testing._received import ReceivedRequest
from asgi_upstream.testing._steps import Fault, with_faults
from tests.support.flavor import httpx
from tests.support.waiting import aeventually, eventually


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def client(upstream: Upstream) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=upstream.url, trust_env=False, timeout=60) as client:
        yield client


def until_the_end(upstream: Upstream, data: bytes) -> tuple[bytes, bool]:
    """What comes for some bytes, and whether the end is a reset."""
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=60) as sock:
        sock.sendall(data)
        got = b""
        try:
            while part := sock.recv(65536):
                got += part
        except ConnectionResetError:
            return got, True
        return got, False


# What is sent.


def test_an_answer_is_one_line(upstream: Upstream, client: httpx.Client) -> None:
    upstream.get("/item").json({"name": "lamp"}, status=201, headers={"x-own": "1"})
    upstream.get("/text").text("täxt")
    upstream.get("/bytes").content(b"\x00\x01", headers=[("x-two", "1"), ("x-two", "2")])
    upstream.get("/none").status(404)
    upstream.get("/plain")
    item = client.get("/item")
    assert (item.status_code, item.json(), item.headers["x-own"]) == (201, {"name": "lamp"}, "1")
    assert client.get("/text").text == "täxt"
    assert client.get("/bytes").headers.get_list("x-two") == ["1", "2"]
    assert client.get("/bytes").content == b"\x00\x01"
    assert client.get("/none").status_code == 404
    assert (client.get("/plain").status_code, client.get("/plain").content) == (200, b"")


def test_a_header_that_is_given_is_in_place_of_its_own(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/item").json(1, headers={"Content-Type": "application/hal+json"})
    assert client.get("/item").headers.get_list("content-type") == ["application/hal+json"]


def test_chunks_come_one_by_one_with_the_delays_said(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/chunks").chunks(b"one", 0.1, b"two", b"three", every=0.05)
    began = time.monotonic()
    with client.stream("GET", "/chunks") as response:
        assert list(response.iter_raw()) == [b"one", b"two", b"three"]
    assert response.headers["transfer-encoding"] == "chunked"
    assert time.monotonic() - began >= 0.25


def test_a_chunk_of_nothing_does_not_end_the_body(upstream: Upstream, client: httpx.Client) -> None:
    upstream.get("/chunks").chunks(b"one", b"", b"two", b"")
    assert [client.get("/chunks").text for _ in range(2)] == ["onetwo"] * 2
    assert upstream.total_connections == 1


def test_endless_chunks_end_when_the_caller_disconnects(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/pour").chunks(b"p" * 65536, forever=True)
    with client.stream("GET", "/pour") as response:
        chunks = response.iter_raw(65536)
        assert [next(chunks) for _ in range(100)] == [b"p" * 65536] * 100
        assert upstream.open_exchanges == 1
        assert not upstream.requests[0].disconnected
    eventually(lambda: upstream.open_exchanges == 0)
    assert upstream.requests[0].disconnected


def test_one_who_reads_without_end_keeps_nobody_waiting(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/pour").chunks(b"p", forever=True)
    upstream.get("/item").json(1)
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=60) as sock:
        sock.sendall(b"GET /pour HTTP/1.1\r\n\r\n")

        def read() -> None:
            with contextlib.suppress(OSError):
                while sock.recv(1 << 20):
                    pass

        reading = threading.Thread(target=read)
        reading.start()
        try:
            assert client.get("/item").json() == 1
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            reading.join(60)


def test_events_are_an_event_stream(upstream: Upstream, client: httpx.Client) -> None:
    upstream.get("/events").events("one", {"n": 2}, "of\ntwo lines")
    response = client.get("/events")
    assert response.headers["content-type"] == "text/event-stream"
    assert response.text == 'data: one\n\ndata: {"n": 2}\n\ndata: of\ndata: two lines\n\n'


def test_an_echo_sends_the_body_back(upstream: Upstream, client: httpx.Client) -> None:
    upstream.any("/echo").echo()
    body = bytes(range(256)) * 1000
    response = client.put("/echo", content=iter([body, body]), headers={"content-type": "a/b"})
    assert response.content == body * 2
    assert response.headers["content-type"] == "a/b"


def test_raw_bytes_are_sent_unchanged_and_connection_closes(upstream: Upstream) -> None:
    canned = b"HTTP/1.1 200 Fine\r\nX-Odd : yes\r\ncontent-length: 2\r\n\r\nok"
    upstream.get("/raw").raw(canned[:10], 0.05, canned[10:])
    assert until_the_end(upstream, b"GET /raw HTTP/1.1\r\n\r\n") == (canned, False)


@pytest.mark.parametrize("kind", MALFORMED)
def test_no_client_takes_a_broken_message(
    upstream: Upstream, client: httpx.Client, kind: MalformedKind
) -> None:
    upstream.get("/broken").broken(kind)
    if kind == "status":
        assert client.get("/broken").status_code == 777  # which is for a relay to refuse
    else:
        with pytest.raises((httpx.RemoteProtocolError, httpx.DecodingError)):
            client.get("/broken")


def test_a_function_of_the_request_says_what_is_answered(
    upstream: Upstream, client: httpx.Client
) -> None:
    def conditional(request: ReceivedRequest) -> ScriptedResponse:
        known = request.headers.get("if-none-match") == "one"
        return ScriptedResponse().status(304) if known else item

    item = ScriptedResponse().text("item", headers={"etag": "one"})
    upstream.get("/item").callback(conditional)
    upstream.get("/dies").callback(conditional).close(after=2).then.text("then")
    assert client.get("/item").text == "item"
    assert client.get("/item", headers={"if-none-match": "one"}).status_code == 304
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/dies")
    assert client.get("/dies").text == "then"
    assert client.get("/item").text == "item"  # the fault is of the other path


@pytest.mark.parametrize("function", [lambda request: 1 / 0, lambda request: None])
def test_a_function_that_fails_is_500_with_its_traceback(
    upstream: Upstream,
    client: httpx.Client,
    function: Callable[[ReceivedRequest], ScriptedResponse],
) -> None:
    upstream.get("/item").callback(function)
    response = client.get("/item")
    assert (response.status_code, "Traceback" in response.text) == (500, True)


# What goes wrong.


def test_an_upstream_that_stalls_is_silent_before_the_head(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/never").stall()
    upstream.get("/late").stall(0.2).json("late")
    with pytest.raises(httpx.ReadTimeout):
        client.get("/never", timeout=0.2)
    began = time.monotonic()
    assert client.get("/late").json() == "late"
    assert time.monotonic() - began >= 0.2


def test_an_upstream_that_stalls_later_has_sent_so_many_bytes(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/stalls").content(b"0123456789").stall(after=4)
    with client.stream("GET", "/stalls", timeout=2) as response:
        chunks = response.iter_raw()
        assert next(chunks) == b"0123"
        with pytest.raises(httpx.ReadTimeout):
            next(chunks)


@pytest.mark.parametrize("after", [None, 0, 4, 10, 99])
@pytest.mark.parametrize("reset", [False, True])
def test_an_upstream_dies_after_so_many_bytes(
    upstream: Upstream, reset: bool, after: int | None
) -> None:
    answer = upstream.get("/dies").chunks(b"01234", b"56789")
    if reset:
        answer.reset(after=after)
    else:
        answer.close(after=after)
    got, was_reset = until_the_end(upstream, b"GET /dies HTTP/1.1\r\n\r\n")
    head, _, body = got.partition(b"\r\n\r\n")
    assert was_reset is reset
    assert bool(head) is (after is not None)
    assert (
        body
        == {
            None: b"",
            0: b"",
            4: b"4\r\n0123\r\n",
            10: b"5\r\n01234\r\n5\r\n56789\r\n",
            99: b"5\r\n01234\r\n5\r\n56789\r\n",  # no end of the body, even so
        }[after]
    )
    eventually(lambda: upstream.open_exchanges == 0)


def test_faults_are_each_at_their_place() -> None:
    stall, end = Fault("stall", 3, 1.0), Fault("end", 5)
    steps = list(with_faults([b"01", 0.5, b"2345", b"6"], [end, stall]))
    assert steps == [b"01", 0.5, b"2", stall, b"34", end, b"5", b"6"]


# Which request is answered how.


def test_answers_follow_each_other_and_the_last_one_stays(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/item").status(503).then.status(502).then.json(1)
    assert [client.get("/item").status_code for _ in range(4)] == [503, 502, 200, 200]


def test_a_request_gets_the_answer_that_says_most_of_it(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.any().text("any")
    upstream.any("/a").text("any /a")
    upstream.get("/a").text("get /a")
    upstream.get("/a?x=1").text("get /a?x=1")
    upstream.request("PROPFIND", "/a").text("propfind /a")
    assert client.get("/a").text == "get /a"
    assert client.get("/a?x=1").text == "get /a?x=1"
    assert client.get("/a?x=2").text == "get /a"
    assert client.post("/a").text == "any /a"
    assert client.request("PROPFIND", "/a").text == "propfind /a"
    assert client.get("/b").text == "any"
    assert client.get("/a%2Fb").text == "any"


def test_what_is_scripted_again_is_in_place_of_the_first(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/a").text("first")
    upstream.get("/a").text("second")
    assert client.get("/a").text == "second"


def test_a_head_is_answered_by_the_head_of_the_get(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/item").json({"name": "lamp"})
    response = client.head("/item")
    assert response.headers["content-length"] == str(len(json.dumps({"name": "lamp"})))
    assert client.get("/item").json() == {"name": "lamp"}  # on the same connection
    assert upstream.total_connections == 1


def test_what_is_not_scripted_is_501_and_says_what_is(
    upstream: Upstream, client: httpx.Client
) -> None:
    upstream.get("/item").json(1)
    response = client.post("/itme")
    assert response.status_code == 501
    assert response.text == "no response is scripted for POST /itme; scripted: GET /item\n"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda upstream: upstream.get("item"),
        lambda upstream: upstream.get("/").chunks("text"),
        lambda upstream: upstream.get("/").chunks(0.1, forever=True),
        lambda upstream: upstream.get("/").chunks(b"", forever=True),
        lambda upstream: upstream.get("/").text("", headers={"x": "\u2192"}),
    ],
)
def test_a_mistake_in_the_script_is_raised_where_it_is_made(
    upstream: Upstream, mistake: Callable[[Upstream], object]
) -> None:
    with pytest.raises((TypeError, ValueError)):
        mistake(upstream)


# What it tells.


def test_requests_are_recorded_byte_for_byte(upstream: Upstream) -> None:
    upstream.post("/up").status(204)
    head = (
        b"POST /up%2F?a=%20b HTTP/1.1\r\nHOST: x\r\nTransfer-Encoding: chunked\r\nX-A:  1 \r\n\r\n"
    )
    head = head.replace(b"/up%2F", b"/up")
    framed = b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nx-trailer: 1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=60) as sock:
        sock.sendall(head + framed)
        assert sock.recv(65536) == b"HTTP/1.1 204 No Content\r\n\r\n"
    (request,) = upstream.requests
    assert request.raw == head + framed
    assert request.head == head
    assert (request.method, request.target, request.path) == ("POST", "/up?a=%20b", "/up")
    assert dict(request.query) == {"a": " b"}
    assert request.fields[2] == (b"X-A", b"1")
    assert request.headers["host"] == "x"
    assert (request.body, request.complete, request.disconnected) == (b"abcde", True, False)


def test_an_upload_that_breaks_off_is_recorded_as_far_as_it_came(upstream: Upstream) -> None:
    head = b"POST /up HTTP/1.1\r\ncontent-length: 10\r\n\r\n"
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=60) as sock:
        sock.sendall(head + b"abc")
        eventually(lambda: upstream.requests and upstream.requests[0].body == b"abc")
        assert upstream.open_exchanges == 1
    eventually(lambda: upstream.open_exchanges == 0)
    assert upstream.requests[0].raw == head + b"abc"
    assert (upstream.requests[0].complete, upstream.requests[0].disconnected) == (False, True)


def test_connections_and_exchanges_are_counted(upstream: Upstream, client: httpx.Client) -> None:
    upstream.get("/item").json(1)
    upstream.get("/never").stall()
    assert (upstream.open_connections, upstream.total_connections, upstream.open_exchanges) == (
        0,
        0,
        0,
    )
    client.get("/item")
    client.get("/item")
    assert [request.connection for request in upstream.requests] == [0, 0]
    eventually(lambda: (upstream.open_connections, upstream.open_exchanges) == (1, 0))
    with socket.create_connection(("127.0.0.1", upstream.port)) as sock:
        sock.sendall(b"GET /never HTTP/1.1\r\n\r\n")
        eventually(lambda: (upstream.open_connections, upstream.open_exchanges) == (2, 1))
        assert [request.path for request in upstream.under_way()] == ["/never"]
    eventually(lambda: (upstream.open_connections, upstream.open_exchanges) == (1, 0))
    client.close()
    eventually(lambda: upstream.open_connections == 0)


def test_a_client_that_expects_100_gets_it(upstream: Upstream) -> None:
    upstream.post("/up").echo()
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=60) as sock:
        sock.sendall(b"POST /up HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ok")
        assert b"HTTP/1.1 200 OK" in sock.recv(65536)


def test_early_response_does_not_wait_for_the_body(
    upstream: Upstream,
) -> None:
    upstream.post("/up").status(413).respond_early().then.echo()
    head = b"POST /up HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=60) as sock:
        sock.sendall(head)
        assert b"HTTP/1.1 413 " in sock.recv(65536)
        assert not upstream.requests[0].complete
        sock.sendall(b"ok" + head)
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    eventually(lambda: upstream.open_exchanges == 0)
    assert [request.complete for request in upstream.requests] == [True, False]
    assert [request.disconnected for request in upstream.requests] == [False, True]


def test_it_serves_https(tmp_path: object) -> None:
    authority = trustme.CA()
    tls, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(trusting)
    with (
        Upstream(tls=tls) as upstream,
        httpx.Client(base_url=upstream.url, verify=trusting, trust_env=False) as client,
    ):
        upstream.get("/item").json(1)
        upstream.get("/dies").content(b"0123").reset(after=2)
        assert client.get("/item").json() == 1
        with pytest.raises(httpx.TransportError):
            client.get("/dies")


def test_it_stops_with_exchanges_open() -> None:
    with Upstream() as upstream:
        upstream.get("/never").stall()
        sock = socket.create_connection(("127.0.0.1", upstream.port), timeout=60)
        sock.sendall(b"GET /never HTTP/1.1\r\n\r\n")
        eventually(lambda: upstream.open_exchanges == 1)
    with sock:
        assert sock.recv(1) == b""


@pytest.mark.anyio
async def test_it_works_beside_any_event_loop(upstream: Upstream) -> None:
    upstream.get("/item").stall(0.05).json(1)
    async with httpx.AsyncClient(base_url=upstream.url, trust_env=False) as client:
        assert (await client.get("/item")).json() == 1
    assert await aeventually(lambda: upstream.open_connections == 0) < 5


def test_what_is_waited_for_in_vain_is_told() -> None:
    with pytest.raises(AssertionError, match=r"within 0\.05 s"):
        eventually(lambda: False, within=0.05)


def test_an_answer_can_be_asked_what_it_does() -> None:
    request = ReceivedRequest(b"GET / HTTP/1.1\r\n\r\n", 0)
    assert list(ScriptedResponse().chunks(b"a").steps(request))[1:] == [b"1\r\na\r\n", b"0\r\n\r\n"]
