"""The code of the how-to pages, in front of a scripted upstream."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from fastapi import FastAPI
from fastapi.testclient import TestClient

from asgi_upstream import StreamedResponse, UpstreamError
from asgi_upstream.testing import Upstream
from tests.support.pages import run_page
from tests.support.waiting import eventually

pytestmark = [pytest.mark.of_httpx, pytest.mark.no_leaks]
Serve = Callable[..., str]
REFUSED = "http://127.0.0.1:1"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def backup() -> Iterator[Upstream]:
    with Upstream() as upstream:
        upstream.any().text("backup")
        yield upstream


@pytest.fixture
def call(serve: Serve) -> Iterator[Callable[..., httpx.Client]]:
    """Serves an app and returns a caller of it."""
    callers: list[httpx.Client] = []

    def start(app: object) -> httpx.Client:
        callers.append(httpx.Client(base_url=serve(app), trust_env=False))
        return callers[-1]

    yield start
    for caller in callers:
        caller.close()


Call = Callable[..., httpx.Client]


# Forwarding


@pytest.fixture
def forwarding(upstream: Upstream, backup: Upstream) -> dict[str, Any]:
    upstream.any().text("main")
    return run_page("docs/forwarding.md", p9000=upstream.url, p9001=backup.url)


def test_forwarding_page_sends_each_path(
    forwarding: dict[str, Any], upstream: Upstream, call: Call
) -> None:
    caller = call(forwarding["app"])
    for path in ("/api/item?id=1", "/lamp?id=1"):
        assert caller.get(path).text == "main"
        assert upstream.requests[-1].target == "/item?id=1"
    redirect = caller.get("/api")
    assert (redirect.status_code, redirect.headers["location"][-5:]) == (307, "/api/")


def test_forwarding_page_authenticates_callers(
    forwarding: dict[str, Any], upstream: Upstream, call: Call
) -> None:
    caller = call(forwarding["app"])
    assert caller.get("/guarded/item").status_code == 401
    assert upstream.requests == []
    assert caller.get("/guarded/item", headers={"x-api-key": "key-of-ann"}).is_success
    assert upstream.requests[0].target == "/item"
    assert "x-api-key" not in upstream.requests[0].headers


def test_forwarding_page_checks_websockets_in_on_request(
    forwarding: dict[str, Any], upstream: Upstream, call: Call
) -> None:
    caller = call(forwarding["app"])
    handshake = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    handshake["sec-websocket-key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    assert caller.get("/checked/item").status_code == 401
    assert caller.get("/checked/item", headers=handshake).status_code == 401
    assert upstream.requests == []
    for headers in ({}, handshake):
        caller.get("/checked/item", headers={"x-api-key": "key-of-ann", **headers})
        assert upstream.requests[-1].target == "/item"
        assert "x-api-key" not in upstream.requests[-1].headers
    assert upstream.requests[-1].headers["upgrade"] == "websocket"


def test_forwarding_page_chooses_the_client(forwarding: dict[str, Any], call: Call) -> None:
    caller = call(forwarding["both"])
    assert caller.get("/item").text == "main"
    assert caller.get("/item", headers={"x-version": "2"}).text == "backup"
    assert caller.get("/beta/item").text == "backup"


def test_request_headers_page_orders_the_sources(upstream: Upstream, call: Call) -> None:
    caller = call(run_page("docs/request-headers.md", p9000=upstream.url)["app"])
    upstream.any().text("fine")
    own = {"authorization": "mine", "x-session": "s1", "x-user": "eve", "x-debug-level": "9"}
    assert caller.get("/api/item", headers=own).is_success
    sent = upstream.requests[-1].headers
    assert (sent["authorization"], sent["x-user"]) == ("Bearer key-of-the-app", "ann")
    assert "x-session" not in sent
    assert caller.get("/quiet/item", headers=own).is_success
    sent = upstream.requests[-1].headers
    assert (sent["authorization"], sent["x-user"]) == ("Bearer of-today", "eve")
    assert "x-debug-level" not in sent
    names = [name for name, _ in upstream.requests[-1].fields]
    assert names == [name.lower() for name in names]


def test_redirects_of_own_requests_carry_client_headers(
    upstream: Upstream, backup: Upstream
) -> None:
    """httpx removes Authorization only, as the page on headers says."""
    elsewhere = backup.url.replace("127.0.0.1", "localhost")
    upstream.any().status(302, headers={"location": f"{elsewhere}/x"})
    headers = {"authorization": "secret", "x-api-key": "secret"}
    with httpx.Client(headers=headers, trust_env=False, follow_redirects=True) as client:
        client.get(upstream.url)
    sent = backup.requests[0].headers
    assert ("authorization" in sent, "x-api-key" in sent) == (False, True)


def test_redirects_page_maps_under_the_mount(upstream: Upstream, call: Call) -> None:
    caller = call(run_page("docs/redirects-and-cookies.md", p9000=upstream.url)["app"])
    for location in (f"{upstream.url}/item", "/item", "/shop/item"):
        cookie = ("set-cookie", "a=1; Path=/; Domain=inside")
        upstream.get("/").status(302, headers=[("location", location), cookie])
        response = caller.get("/shop/")
        assert response.headers["location"] == "/shop/item"
        assert response.headers["set-cookie"] == "a=1; Path=/shop/"
    for location in ("https://elsewhere.example/", "item"):
        upstream.get("/").status(302, headers={"location": location})
        assert caller.get("/shop/").headers["location"] == location


PATHS = [("/items/1?a=/admin", True), ("/orders", True), ("/items", True), ("/admin", False)]
PATHS += [("/items/1%2F", False), ("//items/1", False), ("/items//1", False), ("/Items/1", False)]
PATHS += [("/items/1;x", False), ("/items/%2531", False), ("/./admin", False), ("//admin", False)]
PATHS += [("/%2561dmin", False), ("/admin;x=1", False), ("/ADMIN", False), ("/itemsadmin", False)]


@pytest.mark.parametrize(("path", "is_allowed"), PATHS)
def test_path_rules_page_compares_the_sent_path(
    upstream: Upstream, call: Call, path: str, is_allowed: bool
) -> None:
    caller = call(run_page("docs/path-rules.md", p9000=upstream.url)["app"])
    upstream.any().text("fine")
    exact = {"target": f"/api{path}".encode()}
    response = caller.get("/", extensions=exact)
    assert response.status_code == (200 if is_allowed else 404)
    assert [request.target for request in upstream.requests] == [path] * is_allowed


def test_proxy_headers_page_preserves_the_host(upstream: Upstream, call: Call) -> None:
    caller = call(run_page("docs/proxy-headers.md", p9000=upstream.url)["app"])
    upstream.any().text("fine")
    caller.get("/app/", headers={"host": "outside.example", "x-real-ip": "1.2.3.4"})
    sent = upstream.requests[0].headers
    assert sent["host"] == sent["x-forwarded-host"] == "outside.example"
    assert (sent["x-forwarded-for"], sent["x-forwarded-prefix"]) == ("127.0.0.1", "/app")
    assert "x-real-ip" not in sent


# Files and uploads


def test_large_files_page_relays_ranges_and_head(upstream: Upstream, call: Call) -> None:
    caller = call(run_page("docs/large-files.md", p9000=upstream.url)["app"])
    headers = {"content-range": "bytes 0-4/9", "accept-ranges": "bytes", "etag": '"1"'}
    upstream.get("/a%20b").content(b"first", status=206, headers=headers)
    response = caller.get("/files/a b", headers={"range": "bytes=0-4", "if-range": '"1"'})
    assert (response.status_code, response.content) == (206, b"first")
    assert headers.items() <= dict(response.headers).items()
    sent = upstream.requests[0].headers
    assert (sent["range"], sent["if-range"]) == ("bytes=0-4", '"1"')
    assert caller.head("/files/a b").headers["content-length"] == "5"
    assert upstream.requests[1].method == "HEAD"


def test_uploads_page_forwards_the_bytes(upstream: Upstream, call: Call) -> None:
    caller = call(run_page("docs/uploads.md", p9000=upstream.url)["app"])
    upstream.post("/uploads").echo()
    upload = caller.build_request("POST", "/uploads", data={"a": "1"}, files={"f": b"x" * 300_000})
    upload.read()
    assert caller.send(upload).content == upstream.requests[0].body == upload.content
    assert caller.post("/uploads", content=iter([b"x"])).status_code == 411


def test_uploads_page_limits_the_length(upstream: Upstream) -> None:
    with TestClient(run_page("docs/uploads.md", p9000=upstream.url)["app"]) as caller:
        too_long = {"content-length": "1000000001"}
        assert caller.post("/uploads", headers=too_long).status_code == 413


def test_uploads_page_sends_the_file_again(upstream: Upstream, call: Call) -> None:
    caller = call(run_page("docs/uploads.md", p9000=upstream.url)["app"])
    upstream.post("/documents").text("fine")
    content = b"%PDF" + b"x" * 3_000_000  # FastAPI keeps this in a temporary file
    files = {"file": ("a.pdf", content, "application/pdf")}
    assert caller.post("/documents", data={"title": "t"}, files=files).text == "fine"
    body = upstream.requests[0].body
    assert content in body
    assert b'name="title"\r\n\r\nt\r\n' in body
    assert b'filename="a.pdf"' in body
    files = {"file": ("a.txt", content, "text/plain")}
    assert caller.post("/documents", data={"title": "t"}, files=files).status_code == 415


# Failover


@pytest.fixture
def failover(upstream: Upstream, backup: Upstream, call: Call) -> httpx.Client:
    urls = {"p9000": upstream.url, "p9001": backup.url}
    return call(run_page("docs/failover.md", **urls)["app"])


@pytest.mark.parametrize("fault", ["503", "close", "reset"])
def test_failover_page_repeats_safe_methods_only(
    failover: httpx.Client, upstream: Upstream, backup: Upstream, fault: str
) -> None:
    scripted = upstream.any()
    {"503": lambda: scripted.status(503), "close": scripted.close, "reset": scripted.reset}[fault]()
    assert failover.get("/api/a%2Fb?c=d").text == "backup"
    assert backup.requests[0].target == "/a%2Fb?c=d"
    assert backup.requests[0].headers["host"] == backup.url.removeprefix("http://")
    assert failover.post("/api/a").status_code == (503 if fault == "503" else 502)
    assert len(backup.requests) == 1


def test_failover_page_sends_uploads_if_unconnected(backup: Upstream, call: Call) -> None:
    backup.any().echo()
    caller = call(run_page("docs/failover.md", p9000=REFUSED, p9001=backup.url)["app"])
    assert caller.post("/api/a", content=iter([b"one ", b"two"])).content == b"one two"


def test_failover_page_relays_a_healthy_upstream(
    failover: httpx.Client, upstream: Upstream, backup: Upstream
) -> None:
    upstream.any().status(404)
    assert [failover.get("/api/a").status_code for _ in range(2)] == [404, 404]
    assert backup.requests == []


def test_failover_page_answers_one_route_from_backup(
    upstream: Upstream, backup: Upstream, call: Call
) -> None:
    shop = run_page("docs/failover.md", p9000=upstream.url, p9001=backup.url)["shop"]
    upstream.get("/item").text("main").then.status(503)
    caller = call(shop)
    assert [caller.get("/item").text for _ in range(2)] == ["main", "backup"]
    shop = run_page("docs/failover.md", p9000=REFUSED, p9001=backup.url)["shop"]
    assert call(shop).get("/item").text == "backup"


# Events


def test_events_page_ends_a_failed_stream(upstream: Upstream, call: Call) -> None:
    page = run_page("docs/events.md", p9000=upstream.url)
    upstream.get("/events").events("one").reset(after=11)
    text = call(page["app"]).get("/events").text
    assert text == "data: one\n\n" + page["last_event"](UpstreamError()).decode()


def test_events_page_sends_heartbeats(
    upstream: Upstream, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = run_page("docs/events.md", p9000=upstream.url)
    made: list[float] = []

    class Fast(StreamedResponse):
        def __init__(self, *args: Any, heartbeat: float, **options: Any) -> None:
            made.append(heartbeat)
            super().__init__(*args, heartbeat=0.05, **options)

    page["StreamedResponse"] = Fast
    upstream.get("/events").events("one").stall(after=11)
    with call(page["app"]).stream("GET", "/events") as response:
        assert response.headers["x-accel-buffering"] == "no"
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(":"))
    assert made == [15]
    eventually(lambda: upstream.open_exchanges == 0)


# Other pages


@pytest.mark.filterwarnings("error")
def test_openapi_page_documents_the_errors(upstream: Upstream, call: Call) -> None:
    app: FastAPI = run_page("docs/openapi.md", p9000=upstream.url)["app"]
    upstream.any().json({"name": "lamp"})
    caller = call(app)
    assert caller.get("/item").json() == caller.get("/api/item").json() == {"name": "lamp"}

    @app.get(
        "/events",
        response_class=StreamedResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def events() -> None: ...

    app.openapi_schema = None
    paths = caller.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/item", "/events"}
    responses = paths["/item"]["get"]["responses"]
    assert {"200", "502", "503", "504"} <= set(responses)
    assert list(paths["/events"]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]


def test_sync_clients_page_maps_errors(upstream: Upstream, call: Call) -> None:
    caller = call(run_page("docs/sync-clients.md", p9000=upstream.url)["app"])
    upstream.get("/item").json(1).then.status(404).then.close()
    assert [caller.get("/item").status_code for _ in range(3)] == [200, 502, 502]


def test_several_upstreams_page_merges(upstream: Upstream, call: Call) -> None:
    caller = call(run_page("docs/several-upstreams.md", p9000=upstream.url)["app"])
    upstream.get("/item").json(1)
    upstream.get("/headers").json(2)
    assert caller.get("/page").json() == {"item": 1, "headers": 2}
    upstream.get("/headers").close()
    assert caller.get("/page").status_code == 502


async def _send_serial_number(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the number of the client's certificate, and close."""
    await reader.readuntil(b"\r\n\r\n")
    serial = writer.get_extra_info("peercert")["serialNumber"]
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + serial.encode())
    writer.close()
    await writer.wait_closed()


def test_transport_page_reloads_certificates(tmp_path: Path) -> None:
    authority = trustme.CA()
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    authority.configure_trust(server_tls)
    server_tls.verify_mode = ssl.CERT_REQUIRED
    page = run_page("docs/transport.md")
    pem = tmp_path / "tls.pem"
    page.update(CERT=str(pem), KEY=str(pem), RELOAD_INTERVAL=0.01)
    authority.configure_trust(page["context"])

    def write_certificate() -> None:
        issued = authority.issue_cert("client")
        new = tmp_path / "new.pem"
        new.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        new.replace(pem)  # so that no reload sees half of it

    async def run() -> None:
        server = await asyncio.start_server(_send_serial_number, "127.0.0.1", 0, ssl=server_tls)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, page["certificate_lifespan"](None), page["api_lifespan"](None) as state:
            first = (await state["client"].get(url)).text
            assert (await state["client"].get(url)).text == first
            write_certificate()
            while (await state["client"].get(url)).text == first:
                pass

    write_certificate()
    asyncio.run(asyncio.wait_for(run(), 60))
