"""What a caller gets when the network, TLS, DNS, the process or its log fails; nothing stays open.

Faults of the network are those of `fault_proxy.py`, between the app and its upstream.
"""

import contextlib
import http.client
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.apps.fault_app import HOST
from tests.support.fault_proxy import Ending, Fault, FaultProxy
from tests.support.servers import Answer, Server, SocketCaller, ask
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

APP = "tests.support.apps.fault_app:app"
# The stock transport on asyncio's own event loop, on trio and on uvloop; ours on asyncio's, uvloop.
RESOLVING = ["uvicorn-h11", "uvicorn-h11+asyncio", "hypercorn-trio"]
pytestmark = pytest.mark.servers(
    *RESOLVING,
    "granian",
    "uvicorn-httptools+asyncio",
    fast=("uvicorn-h11", "uvicorn-httptools+asyncio"),
)
"""Those on uvloop resolve names by its own means, so the app cannot put others in their place."""

# Callers who keep their connections take longer than the usual 5 s on a busy machine. Without
# descriptors, asyncio in Python 3.11 logs an error for each place in the backlog, usually 2048.
OPTIONS = {
    "uvicorn": ["--timeout-keep-alive", "300", "--backlog", "128"],
    "hypercorn": ["--keep-alive", "300", "--backlog", "128"],
}

SHORT = 0.3
"""Seconds of timeouts that are to pass."""
AFTER_HEAD = 3.0
"""The same, where a busy machine must have sent the head before."""
LONG = 30.0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure(authority: trustme.CA) -> Iterator[Upstream]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with Upstream(tls=tls) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def running(
    server_name: str,
    upstream: Upstream,
    authority: trustme.CA,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSTREAM_CA", str(file))
        kind = server_name.split("-")[0]
        server = Server(server_name, upstream.url, app=APP, options=OPTIONS.get(kind, ()))
    yield server
    server.stop()


@pytest.fixture
def proxy(server: Server, upstream: Upstream) -> Iterator[FaultProxy]:
    """Before the upstream. No test may leave a connection to it open that failed."""
    with FaultProxy(upstream.port) as proxy:
        yield proxy
        proxy.fault = Fault()
        assert through(proxy, server, "plain/streamed/item").status == 200  # as if nothing had been
        # That one may be kept for another.
        eventually(lambda: proxy.open <= 1)


def through(proxy: FaultProxy, server: Server, path: str, **options: Any) -> Answer:
    """What a caller gets of the upstream behind the proxy."""
    kind, _, behaviour = path.rpartition("/")
    url = f"http://127.0.0.1:{proxy.port}/{behaviour}"
    return ask(server, f"/{kind}/{behaviour}", url=url, **options)


# Before the start.

BEFORE: dict[str, tuple[Fault, int]] = {
    "closes at once": (Fault(Ending.CLOSE), 502),
    "resets at once": (Fault(Ending.RESET), 502),
    "closes within the request": (Fault(Ending.CLOSE, up=20), 502),
    "resets within the request": (Fault(Ending.RESET, up=20), 502),
    "closes within the head": (Fault(Ending.CLOSE, down=20), 502),
    "resets within the head": (Fault(Ending.RESET, down=20), 502),
    "half-open at once": (Fault(Ending.SILENT), 504),
    "half-open within the request": (Fault(Ending.SILENT, up=20), 504),
    "half-open within the head": (Fault(Ending.SILENT, down=20), 504),
    "never reads": (Fault(Ending.DEAF), 504),
    "late": (Fault(delay=2 * SHORT), 504),
}
kinds = pytest.mark.parametrize("kind", ["plain/streamed", "plain/buffered"])


@kinds
@pytest.mark.parametrize("name", BEFORE)
def test_a_fault_before_the_start_is_an_error_status(
    server: Server, proxy: FaultProxy, kind: str, name: str
) -> None:
    proxy.fault, status = BEFORE[name]
    answer = through(proxy, server, f"{kind}/item", timeout=SHORT if status == 504 else LONG)
    assert (answer.status, answer.complete) == (status, True)
    if proxy.fault.end is not Ending.DEAF:  # who does not read does not see the end
        eventually(lambda: proxy.open == 0)


@kinds
def test_a_trickle_of_a_head_ends_at_the_deadline(
    server: Server, proxy: FaultProxy, kind: str
) -> None:
    proxy.fault = Fault(piece=1, delay=0.05, only="down")
    answer = through(proxy, server, f"{kind}/item?size=10", timeout=LONG, deadline=3 * SHORT)
    assert answer.status == 504
    assert float(answer.field(b"x-seconds") or 0) >= 3 * SHORT
    eventually(lambda: proxy.open == 0)


def test_a_peer_that_resets_as_soon_as_it_accepts_is_502(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"

        def serve() -> None:
            for _ in range(60):
                with listening.accept()[0] as connection:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        listening.settimeout(60)
        serving = threading.Thread(target=serve)
        serving.start()
        statuses = [ask(server, "/plain/streamed/item", url=url).status for _ in range(60)]
        serving.join(60)
    assert set(statuses) == {502}


def test_a_peer_that_accepts_no_connection_is_504(server: Server) -> None:
    with socket.socket() as listening, socket.socket() as fills, socket.socket() as waits:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for other in (fills, waits):  # Linux drops what comes when the backlog is full
            other.setblocking(False)
            other.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        assert ask(server, "/plain/streamed/item", url=url, timeout=SHORT).status == 504


# In the middle of the body.

DURING: dict[str, Fault] = {
    "closes": Fault(Ending.CLOSE, down=100_000),
    "resets": Fault(Ending.RESET, down=100_000),
    "half-open": Fault(Ending.SILENT, down=100_000),
    "never reads": Fault(Ending.DEAF, down=100_000),
}
BREAKS = ("closes", "resets")
during = pytest.mark.parametrize("name", DURING)
bodies = pytest.mark.parametrize("body", ["item?size=300000", "pour"])


@bodies
@during
def test_a_fault_in_the_body_cuts_it_off_for_the_caller(
    server: Server, proxy: FaultProxy, upstream: Upstream, name: str, body: str
) -> None:
    proxy.fault = DURING[name]
    answer = through(
        proxy, server, f"plain/streamed/{body}", timeout=LONG if name in BREAKS else AFTER_HEAD
    )
    assert answer.status == 200
    assert not answer.complete
    proxy.fault = Fault()
    eventually(lambda: proxy.open == 0)
    eventually(lambda: upstream.open_exchanges == 0)


@during
def test_an_error_frame_ends_a_body_with_a_fault(
    server: Server, proxy: FaultProxy, name: str
) -> None:
    proxy.fault = DURING[name]
    answer = through(
        proxy,
        server,
        "plain/streamed/pour",
        timeout=LONG if name in BREAKS else AFTER_HEAD,
        on_stream_error="frame",
    )
    assert (answer.status, answer.complete) == (200, True)
    assert b"event: error\ndata: " in answer.body[-60:]


@during
def test_a_fault_in_a_buffered_body_is_an_error_status(
    server: Server, proxy: FaultProxy, name: str
) -> None:
    proxy.fault = DURING[name]
    answer = through(
        proxy, server, "plain/buffered/item?size=300000", timeout=LONG if name in BREAKS else SHORT
    )
    assert answer.status == (502 if name in BREAKS else 504)


def test_a_trickle_of_a_body_ends_at_the_deadline(server: Server, proxy: FaultProxy) -> None:
    proxy.fault = Fault(piece=20, delay=0.02, only="down")
    answer = through(
        proxy, server, "plain/streamed/item?size=10000", timeout=LONG, deadline=AFTER_HEAD
    )
    assert answer.status == 200
    assert not answer.complete
    eventually(lambda: proxy.open == 0)


# What is slow, and no more.


@kinds
def test_a_trickle_of_one_byte_at_a_time_arrives_whole(
    server: Server, proxy: FaultProxy, kind: str
) -> None:
    proxy.fault = Fault(piece=1, delay=0.0001)
    for body, expected in (("item?size=50", b"x" * 50), ("chunks?count=2", b"chunk-0;chunk-1;")):
        answer = through(proxy, server, f"{kind}/{body}")
        assert (answer.status, answer.body, answer.complete) == (200, expected, True)


@kinds
def test_a_delay_delays_and_changes_nothing(server: Server, proxy: FaultProxy, kind: str) -> None:
    proxy.fault = Fault(delay=0.1)
    begun = time.monotonic()
    answer = through(proxy, server, f"{kind}/item?size=300000")
    assert (answer.status, answer.body) == (200, b"x" * 300_000)
    assert time.monotonic() - begun >= 0.2


# Connections that are idle.


@pytest.mark.parametrize("end", [Ending.CLOSE, Ending.RESET])
def test_a_connection_that_ends_while_idle_is_nobodys_error(
    server: Server, proxy: FaultProxy, end: Ending
) -> None:
    assert through(proxy, server, "plain/streamed/item").status == 200
    for number in range(2, 6):
        proxy.cut(end)
        assert through(proxy, server, "plain/streamed/item").status == 200
        assert proxy.accepted == number


def test_idle_connection_gone_silent_costs_one_timeout(server: Server, proxy: FaultProxy) -> None:
    assert through(proxy, server, "plain/streamed/item").status == 200
    proxy.cut(Ending.SILENT)
    assert through(proxy, server, "plain/streamed/item", timeout=SHORT).status == 504
    assert through(proxy, server, "plain/streamed/item", timeout=LONG).status == 200
    assert proxy.accepted == 2


# Uploads.

UPLOADS: dict[str, tuple[Fault, int]] = {
    "closes": (Fault(Ending.CLOSE, up=100_000), 502),
    "resets": (Fault(Ending.RESET, up=100_000), 502),
    "half-open": (Fault(Ending.SILENT, up=100_000), 504),
    "never reads": (Fault(Ending.DEAF, up=100_000), 504),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_a_fault_in_an_upload_is_an_error_status(
    server: Server, proxy: FaultProxy, upstream: Upstream, name: str
) -> None:
    proxy.fault, status = UPLOADS[name]
    size = 16 << 20  # more than all buffers on the way hold
    caller = SocketCaller(
        server,
        "/plain/streamed/echo",
        method="POST",
        fields=f"content-length: {size}\r\n",
        url=f"http://127.0.0.1:{proxy.port}/echo",
        upload=True,
        timeout=SHORT if status == 504 else LONG,
    )

    def send() -> None:
        with contextlib.suppress(OSError):  # it is answered before it is sent
            caller.socket.sendall(bytes(size))

    sending = threading.Thread(target=send)
    sending.start()
    answer = Answer(caller.read(b"}"))
    assert (answer.status, answer.complete) == (status, True)
    with contextlib.suppress(OSError):
        caller.socket.shutdown(socket.SHUT_RDWR)  # so that the thread ends
    sending.join(60)
    proxy.fault = Fault()
    eventually(lambda: proxy.open == 0)
    eventually(lambda: upstream.open_exchanges == 0)


# Callers who leave an upstream with a fault.


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("down", [0, 20, 300])
def test_disconnect_from_half_open_upstream_frees_connection(
    server: Server, proxy: FaultProxy, upstream: Upstream, down: int, reset: bool
) -> None:
    proxy.fault = Fault(Ending.SILENT, down=down)
    url = f"http://127.0.0.1:{proxy.port}/pour"
    caller = SocketCaller(server, "/plain/streamed/pour", url=url)
    eventually(lambda: upstream.open_exchanges == 1)
    caller.leave(reset=reset)
    eventually(lambda: proxy.open == 0)


# TLS.


@kinds
@pytest.mark.parametrize("end", [Ending.CLOSE, Ending.RESET, Ending.SILENT])
@pytest.mark.parametrize("body", ["item?size=300000", "pour"])
def test_tls_that_breaks_off_in_the_body_is_truncation(
    server: Server, secure: Upstream, kind: str, end: Ending, body: str
) -> None:
    with FaultProxy(secure.port) as proxy:
        url = f"https://127.0.0.1:{proxy.port}/"
        path = kind.replace("plain/", "/plain/trusting/")
        answer = ask(server, f"{path}/item", url=f"{url}item")
        assert (answer.status, answer.complete) == (200, True)
        proxy.fault = Fault(end, down=100_000)  # with no close_notify, as none comes from it
        timeout = AFTER_HEAD if end is Ending.SILENT else LONG
        answer = ask(server, f"{path}/item", url=url + body, timeout=timeout)
        if "buffered" in kind:
            assert answer.status == (504 if end is Ending.SILENT else 502)
        else:
            assert answer.status == 200
            assert not answer.complete
        eventually(lambda: proxy.open == 0)
        eventually(lambda: secure.open_exchanges == 0)
        proxy.fault = Fault()
        assert ask(server, f"{path}/item", url=f"{url}item").complete


@pytest.mark.parametrize("end", [Ending.CLOSE, Ending.RESET, Ending.SILENT])
def test_tls_that_breaks_off_in_the_handshake_is_an_error_status(
    server: Server, secure: Upstream, end: Ending
) -> None:
    with FaultProxy(secure.port) as proxy:
        proxy.fault = Fault(end, down=500)
        url = f"https://127.0.0.1:{proxy.port}/item"
        timeout = SHORT if end is Ending.SILENT else LONG
        answer = ask(server, "/plain/trusting/streamed/item", url=url, timeout=timeout)
        assert answer.status == (504 if end is Ending.SILENT else 502)
        eventually(lambda: proxy.open == 0)


# DNS.


@pytest.fixture
def resolver(server: Server) -> Iterator[None]:
    yield
    ask(server, "/resolver")


def by_name(proxy: FaultProxy, server: Server, **options: Any) -> Answer:
    return ask(server, "/plain/streamed/item", url=f"http://{HOST}:{proxy.port}/item", **options)


@pytest.mark.servers(*RESOLVING, fast=("uvicorn-h11",))
@pytest.mark.usefixtures("resolver")
def test_dns_that_fails_is_502_until_it_recovers(server: Server, proxy: FaultProxy) -> None:
    for _ in range(3):
        ask(server, "/resolver?fails=true")
        answer = by_name(proxy, server)
        assert (answer.status, answer.body) == (502, b'{"detail":"The upstream cannot be reached"}')
        ask(server, "/resolver")
        assert by_name(proxy, server).status == 200
        proxy.cut(Ending.CLOSE)


@pytest.mark.servers(*RESOLVING, fast=("uvicorn-h11",))
@pytest.mark.usefixtures("resolver")
def test_a_connection_that_is_kept_needs_no_dns(server: Server, proxy: FaultProxy) -> None:
    assert by_name(proxy, server).status == 200
    ask(server, "/resolver?fails=true")
    assert by_name(proxy, server).status == 200
    assert proxy.accepted == 1
    proxy.cut(Ending.CLOSE)


@pytest.mark.servers(*RESOLVING, fast=("uvicorn-h11",))
@pytest.mark.usefixtures("resolver")
def test_dns_that_is_slow_is_504_after_the_connect_timeout(
    server: Server, proxy: FaultProxy
) -> None:
    ask(server, "/resolver?delay=5")
    answer = by_name(proxy, server, timeout=SHORT)
    assert answer.status == 504
    assert float(answer.field(b"x-seconds") or 9) < 4.5
    ask(server, "/resolver")
    assert by_name(proxy, server).status == 200
    proxy.cut(Ending.CLOSE)


# No descriptors left.


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Kept:
    """A caller who keeps its connection, which no server can refuse any more."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def ask(self, path: str, **fields: str) -> int:
        self._connection.request("GET", path, headers=fields)
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


def test_process_out_of_descriptors_answers_502_and_recovers(
    server: Server, upstream: Upstream
) -> None:
    """It does not use the processor meanwhile."""
    callers = [Kept(server) for _ in range(20)]
    waiting: list[socket.socket] = []
    with FaultProxy(upstream.port) as proxy:
        options = f'{{"url": "http://127.0.0.1:{proxy.port}/item", "timeout": 30}}'
        broken = options.replace(str(proxy.port), "9")
        for caller in callers:  # Python may need descriptors for what it does for the first time
            assert caller.ask("/plain/streamed/item", **{"x-options": broken}) == 502
        assert callers[0].ask("/descriptors?spare=0") == 200
        try:
            # Callers whom the server cannot accept. Granian spins for them, by itself.
            for _ in range(0 if server.name == "granian" else 5):
                waiting.append(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            before, start = cpu_seconds(server.pid), time.monotonic()
            statuses = [
                caller.ask("/plain/streamed/item", **{"x-options": options}) for caller in callers
            ]
            while (elapsed := time.monotonic() - start) < 1.5:
                time.sleep(0.05)
            spent = cpu_seconds(server.pid) - before
        finally:
            assert callers[0].ask("/descriptors") == 200
        for caller in callers:
            assert caller.ask("/plain/streamed/item", **{"x-options": options}) == 200
            caller.close()
        for sock in waiting:
            sock.close()
        assert set(statuses) == {502}
        assert spent < 0.5 * elapsed
        eventually(lambda: proxy.open <= 1)
    assert ask(server, "/plain/streamed/item").status == 200


# A log that fails.


@pytest.fixture(params=["full", "handler", "filter"])
def log(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    ask(server, f"/logging?to={request.param}")
    yield request.param
    ask(server, "/logging")


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("kind", ["plain/streamed", "plain/buffered", "base/streamed"])
def test_a_log_that_fails_changes_no_answer(server: Server, proxy: FaultProxy, kind: str) -> None:
    proxy.fault = Fault(Ending.RESET)
    assert through(proxy, server, f"{kind}/item").status == 502
    proxy.fault = Fault(Ending.SILENT)
    assert through(proxy, server, f"{kind}/item", timeout=SHORT).status == 504
    proxy.fault = DURING["resets"]
    answer = through(proxy, server, f"{kind}/item?size=300000")
    if "buffered" in kind:
        assert answer.status == 502
    else:
        assert (answer.status, answer.complete) == (200, False)
        assert not through(proxy, server, f"{kind}/pour").complete
        answer = through(proxy, server, f"{kind}/pour", on_stream_error="frame")
        assert answer.complete
    eventually(lambda: proxy.open == 0)
