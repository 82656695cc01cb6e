"""nginx behind the app, as a server of files and of WebDAV, and nginx in front of it."""

import hashlib
import http.client
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real_clients.programs import listening
from tests.real_clients.upstreams import Upstreams, both_transports
from tests.support.nginx import configure_nginx, needs_nginx
from tests.support.servers import Answer, Server, free_port
from tests.support.waiting import eventually
from tests.support.wire import until_the_end

pytestmark = [*needs_nginx, both_transports]

DATA = random.Random(5).randbytes(3_000_000)
HTTP = """
    default_type application/octet-stream; client_max_body_size 0;
    gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;
"""
BEHIND = """
    server {{
        listen 127.0.0.1:{port}; root {folder}/files; autoindex on; absolute_redirect on;
        location /dav/ {{ dav_methods PUT DELETE MKCOL MOVE; create_full_put_path on; }}
    }}
"""
IN_FRONT = """
    server {{
        listen 127.0.0.1:{port};
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto https;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_http_version 1.1; proxy_set_header Connection "";
        location / {{ proxy_pass http://relay; }}
        location /web/ {{
            proxy_pass http://relay; proxy_buffering off; proxy_request_buffering off;
        }}
    }}
    upstream relay {{ server 127.0.0.1:{relay}; keepalive 8; }}
"""


def start(home: Path, servers: str, port: int, **values: Any) -> Any:
    # The workers write files as another user, so anybody may use the folder.
    for folder in (home, home.parent, home.parent.parent):
        folder.chmod(0o755)
    command = configure_nginx(home, HTTP + servers.format(port=port, folder=home, **values))
    return listening(command, port, home)


@pytest.fixture(scope="session")
def behind(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("nginx")
    (home / "files" / "dav").mkdir(parents=True)
    (home / "files" / "big").write_bytes(DATA)
    (home / "files" / "text").write_bytes(b"0123456789" * 1000)
    with start(home, BEHIND, upstreams.ports["nginx"]):
        yield home / "files"


@pytest.fixture
def front(relay: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    home, port = tmp_path_factory.mktemp("front"), free_port()
    with start(home, IN_FRONT, port, relay=relay.port):
        yield port


def ask(port: int, method: str, path: str, body: Any = None, **fields: str) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in fields.items()})
    got = connection.getresponse()
    answer = Answer(b"HTTP/1.1 %d x" % got.status)
    answer.fields = [(k.lower().encode(), v.encode("latin-1")) for k, v in got.getheaders()]
    answer.body = got.read()
    connection.close()
    return answer


# Behind.


def test_a_file_of_nginx_arrives_whole(relay: Server, behind: Path) -> None:
    answer = ask(relay.port, "GET", "/nginx/big")
    assert (answer.status, answer.body) == (200, DATA)
    part = ask(relay.port, "GET", "/nginx/big", Range="bytes=10-19")
    assert (part.status, part.body) == (206, DATA[10:20])


def test_what_nginx_compresses_arrives_compressed(relay: Server, behind: Path) -> None:
    answer = ask(relay.port, "GET", "/nginx/text", Accept_Encoding="gzip")
    assert answer.field(b"content-encoding") == b"gzip"
    assert len(answer.body) < 1000
    assert (answer.field(b"etag") or b"").startswith(b"W/")
    assert ask(relay.port, "GET", "/nginx/text").body == b"0123456789" * 1000


def test_nginx_tells_that_a_file_has_not_changed(relay: Server, behind: Path) -> None:
    etag = ask(relay.port, "GET", "/nginx/big").field(b"etag") or b""
    assert ask(relay.port, "GET", "/nginx/big", If_None_Match=etag.decode()).status == 304


def test_a_redirect_of_nginx_to_its_own_address_is_mapped(relay: Server, behind: Path) -> None:
    answer = ask(relay.port, "GET", "/nginx/dav")
    assert (answer.status, answer.field(b"location")) == (301, b"/nginx/dav/")


def test_a_file_is_put_and_deleted_by_webdav(relay: Server, behind: Path) -> None:
    assert ask(relay.port, "MKCOL", "/nginx/dav/made/").status == 201
    path = "/nginx/dav/made/a%20file"
    assert ask(relay.port, "PUT", path, DATA).status == 201
    assert (behind / "dav" / "made" / "a file").read_bytes() == DATA
    assert ask(relay.port, "PUT", path, iter([DATA, b"more"])).status == 204  # chunked
    assert (behind / "dav" / "made" / "a file").read_bytes() == DATA + b"more"
    assert ask(relay.port, "DELETE", "/nginx/dav/made/").status == 204
    assert not (behind / "dav" / "made").exists()


# In front.


def fields_of(answer: Answer) -> list[list[str]]:
    fields: list[list[str]] = json.loads(answer.body)["fields"]
    return fields


def test_trusted_nginx_in_front_names_the_caller(front: int) -> None:
    fields = fields_of(ask(front, "GET", "/trusting/echo", X_Forwarded_For="9.9.9.9"))
    assert ["x-forwarded-proto", "https"] in fields
    assert ["x-forwarded-for", "9.9.9.9, 127.0.0.1, 127.0.0.1"] in fields
    fields = fields_of(ask(front, "GET", "/web/echo", X_Forwarded_For="9.9.9.9"))
    assert ["x-forwarded-proto", "http"] in fields
    assert ["x-forwarded-for", "127.0.0.1"] in fields


@pytest.mark.parametrize("path", ["/web/echo", "/as-it-comes/echo"], ids=["passing", "buffering"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_through_nginx_in_front_arrives_whole(
    front: int, path: str, framing: str
) -> None:
    body = DATA if framing == "length" else iter([DATA[:1000], DATA[1000:]])
    echo = json.loads(ask(front, "POST", path, body).body)
    assert echo["sha256"] == hashlib.sha256(DATA).hexdigest()


def test_events_pass_nginx_in_front_as_they_come(front: int) -> None:
    with socket.create_connection(("127.0.0.1", front), timeout=60) as connection:
        connection.sendall(b"GET /web/events?count=3&holds HTTP/1.1\r\nhost: a\r\n\r\n")
        data = b""
        while b'"number": 3' not in data:  # behind which the upstream is silent
            part = connection.recv(65536)
            assert part
            data += part


def test_disconnect_from_nginx_in_front_frees_the_upstream(
    front: int, upstreams: Upstreams
) -> None:
    eventually(lambda: upstreams.open == 0)
    with socket.create_connection(("127.0.0.1", front), timeout=60) as connection:
        connection.sendall(b"GET /web/silent HTTP/1.1\r\nhost: a\r\n\r\n")
        eventually(lambda: upstreams.open == 1)
    eventually(lambda: upstreams.open == 0)


@pytest.mark.parametrize("path", ["/web/breaks", "/web/breaks?length"])
def test_a_body_that_broke_off_is_cut_by_nginx_in_front_too(front: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", front), timeout=60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        answer = Answer(until_the_end(connection))
    assert (answer.status, answer.complete) == (200, False)


def test_nginx_in_front_uses_its_connections_to_the_app_again(front: int) -> None:
    peers = [json.loads(ask(front, "GET", "/state").body)["peer"][1] for _ in range(10)]
    assert len(set(peers)) == 1
    for _ in range(30):
        assert ask(front, "GET", "/web/echo").status == 200
        assert ask(front, "POST", "/web/refuse", b"a" * 200_000).status == 413
