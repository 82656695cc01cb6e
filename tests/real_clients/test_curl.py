"""curl, by HTTP/1.1 through uvicorn and by HTTP/2 through hypercorn."""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real_clients.app import build
from tests.real_clients.programs import program, run
from tests.real_clients.upstreams import Upstreams, both_transports
from tests.support.hypercorn import Certificate, Hypercorn
from tests.support.servers import Server
from tests.support.waiting import eventually

pytestmark = both_transports

DATA = random.Random(7).randbytes(3_000_000)


@pytest.fixture(scope="module")
def big(upstreams: Upstreams) -> Path:
    path = upstreams.folder / "big"
    path.write_bytes(DATA)
    return path


class Curl:
    """curl, with an address in front of each path."""

    def __init__(self, home: Path, url: str, *options: str) -> None:
        self._program = program("curl")
        self.home, self._url = home, url
        self._options = ["-q", "-sS", "--noproxy", "*", "--max-time", "60", *options]

    def __call__(self, *arguments: str | Path, **options: Any) -> bytes:
        whole = [f"{self._url}{a}" if str(a).startswith("/web/") else a for a in arguments]
        return run(self._program, *self._options, *whole, home=self.home, **options).stdout

    def asks(self, *arguments: str | Path, **options: Any) -> Any:
        """What the upstream says that it got."""
        return json.loads(self(*arguments, **options))


@pytest.fixture
def curl(tmp_path: Path, url: str, big: Path) -> Curl:
    return Curl(tmp_path, url)


def values(echo: Any, name: str) -> list[str]:
    return [value for key, value in echo["fields"] if key == name]


def test_curl_gets_a_file_whole(curl: Curl) -> None:
    assert curl("/web/files/big") == DATA


def test_curl_gets_the_head_with_the_length_of_the_file(curl: Curl) -> None:
    head = curl("--head", "/web/files/big").lower()
    assert head.startswith(b"http/1.1 200")
    assert b"content-length: 3000000\r\n" in head
    assert b"accept-ranges: bytes\r\n" in head


@pytest.mark.parametrize(
    ("asked", "got"),
    [("100-199", DATA[100:200]), ("2999990-", DATA[2999990:]), ("-5", DATA[-5:])],
)
def test_curl_gets_a_range(curl: Curl, asked: str, got: bytes) -> None:
    assert curl("--range", asked, "-w", "%{http_code}", "/web/files/big") == got + b"206"


def test_curl_gets_several_ranges_as_one_multipart_body(curl: Curl) -> None:
    body = curl("--range", "0-9,20-29", "/web/files/big")
    assert b"bytes 0-9/3000000" in body
    assert b"bytes 20-29/3000000" in body
    assert DATA[:10] in body
    assert DATA[20:30] in body


def test_curl_is_told_of_a_range_that_is_none(curl: Curl) -> None:
    out = curl("--range", "5000000-", "-o", os.devnull, "-w", "%{http_code}", "/web/files/big")
    assert out == b"416"


def test_curl_resumes_a_download_where_it_stopped(curl: Curl) -> None:
    part = curl.home / "big"
    part.write_bytes(DATA[:1_234_567])
    out = curl("-C", "-", "-o", part, "-w", "%{http_code} %{size_download}", "/web/files/big")
    assert out == b"206 %d" % (len(DATA) - 1_234_567)
    assert part.read_bytes() == DATA


def test_curl_does_not_get_again_what_has_not_changed(curl: Curl) -> None:
    etag = curl.home / "etag"
    assert curl("--etag-save", etag, "/web/files/big") == DATA
    assert curl("--etag-compare", etag, "-w", "%{http_code}", "/web/files/big") == b"304"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_curl_sends_a_file_in_either_framing(curl: Curl, big: Path, framing: str) -> None:
    if framing == "length":
        echo = curl.asks("--upload-file", big, "/web/echo")
    else:
        echo = curl.asks("--upload-file", "-", "/web/echo", data=DATA)
    assert (echo["method"], echo["length"]) == ("PUT", len(DATA))
    assert echo["sha256"] == hashlib.sha256(DATA).hexdigest()
    framed = (values(echo, "content-length"), values(echo, "transfer-encoding"))
    assert framed == ((["3000000"], []) if framing == "length" else ([], ["chunked"]))


def test_curl_sends_a_form_with_a_file(curl: Curl, big: Path) -> None:
    said = curl.asks("-F", "name=Ann", "-F", f"file=@{big};filename=ü.bin", "/web/form")
    assert said == {"name": ["Ann"], "file": ["ü.bin", hashlib.sha256(DATA).hexdigest()]}


def test_curl_is_told_to_continue_by_the_server_in_front(curl: Curl, big: Path) -> None:
    # It would wait longer for that than it may take in all.
    echo = curl.asks(
        *("--expect100-timeout", "60", "-H", "Expect: 100-continue", "--upload-file", big),
        "/web/echo",
    )
    assert echo["length"] == len(DATA)
    assert values(echo, "expect") == []


def test_curl_gets_a_refusal_of_an_upload(curl: Curl, big: Path) -> None:
    out = curl("-w", "%{http_code}", "-H", "Expect: 100-continue", "-T", big, "/web/refuse")
    assert out == b"too large\n413"


def test_curl_sends_an_upload_again_to_where_it_is_redirected(curl: Curl, big: Path) -> None:
    echo = curl.asks("--location", "-X", "POST", "--data-binary", f"@{big}", "/web/go")
    assert echo["length"] == len(DATA)
    assert len(values(echo, "x-forwarded-host")) == 1  # it came through the relay again


def test_curl_uses_one_connection_for_many_requests(curl: Curl) -> None:
    urls = ["/web/echo"] * 5
    out = curl(*(a for url in urls for a in ("-o", os.devnull, url)), "-w", "%{num_connects} ")
    assert out == b"1 0 0 0 0 "


@pytest.mark.parametrize("path", ["/web/breaks", "/web/breaks?length"])
def test_curl_sees_that_a_body_broke_off(curl: Curl, path: str) -> None:
    # 18: partial file.
    curl(path, code=18)


def test_curl_that_gives_up_frees_the_upstream(curl: Curl, upstreams: Upstreams) -> None:
    eventually(lambda: upstreams.open == 0)
    curl("--max-time", "0.5", "/web/silent", code=28)
    eventually(lambda: upstreams.open == 0)


@pytest.mark.parametrize("said", ["NTLM ann", "negotiate ann"])
def test_authenticated_connection_is_not_shared(curl: Curl, said: str) -> None:
    assert curl("-H", f"Authorization: {said}", "/web/who") == b"ann"
    assert [curl("/web/who") for _ in range(3)] == [b"nobody"] * 3
    assert curl("-H", "Authorization: Basic bm9ib2R5", "/web/who") == b"nobody"


# By HTTP/2.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module", params=["stock", "asyncio"])
def front(
    request: pytest.FixtureRequest, upstreams: Upstreams, certificate: Certificate
) -> Iterator[Hypercorn]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSPORT", request.param)
        app = build({"web": upstreams.url("web"), "s3": upstreams.url("s3")})
    front = Hypercorn(app, certificate)
    front.config.keep_alive_timeout = 5
    with front:
        yield front


@pytest.fixture
def curl2(tmp_path: Path, front: Hypercorn, certificate: Certificate, big: Path) -> Curl:
    return Curl(tmp_path, front.url, "--http2", "--cacert", str(certificate.authority))


def test_curl_gets_a_file_by_http_2(curl2: Curl) -> None:
    out = curl2("-w", "%{http_version}", "/web/files/big")
    assert (out[:-1] == DATA, out[-1:]) == (True, b"2")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_curl_sends_a_file_by_http_2(curl2: Curl, big: Path, framing: str) -> None:
    if framing == "length":
        echo = curl2.asks("--upload-file", big, "/web/echo")
    else:
        echo = curl2.asks("--upload-file", "-", "/web/echo", data=DATA)
    assert echo["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert values(echo, "x-forwarded-proto") == ["https"]


def test_curl_resumes_a_download_by_http_2(curl2: Curl) -> None:
    part = curl2.home / "big"
    part.write_bytes(DATA[:1_234_567])
    assert curl2("-C", "-", "-o", part, "-w", "%{http_code}", "/web/files/big") == b"206"
    assert part.read_bytes() == DATA


def test_curl_gets_many_files_on_one_http2_connection(curl2: Curl) -> None:
    files = [curl2.home / str(number) for number in range(10)]
    out = curl2(
        "--parallel",
        *(a for file in files for a in ("-o", str(file), "/web/files/big")),
        *("-w", "%{http_version}/%{http_code} "),
    )
    assert out == b"2/200 " * 10
    assert all(file.read_bytes() == DATA for file in files)


@pytest.mark.parametrize("path", ["/web/breaks", "/web/breaks?length"])
def test_curl_sees_that_a_body_broke_off_by_http_2(curl2: Curl, path: str) -> None:
    # Hypercorn does not reset the stream of an app that failed: this is seen only when it closes
    # the connection, which it does when no other stream is open for `keep_alive_timeout`.
    assert int(curl2("-o", os.devnull, "-w", "%{exitcode}", path, code=None)) in (18, 56, 92)


def test_curl_that_gives_up_by_http_2_frees_the_upstream(curl2: Curl, upstreams: Upstreams) -> None:
    eventually(lambda: upstreams.open == 0)
    curl2("--max-time", "0.5", "/web/silent", code=28)
    eventually(lambda: upstreams.open == 0)


def test_the_fields_of_curl_arrive_as_they_are(curl: Curl, relay: Server) -> None:
    echo = curl.asks("-A", "mine/1", "-H", "X-A: 1", "-H", "X-A: 2", "/web/echo")
    assert values(echo, "user-agent") == ["mine/1"]
    assert values(echo, "x-a") == ["1", "2"]
    assert values(echo, "accept") == ["*/*"]
    assert values(echo, "accept-encoding") == []
    assert values(echo, "x-forwarded-host") == [f"127.0.0.1:{relay.port}"]
