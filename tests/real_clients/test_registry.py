"""A registry of images, Docker's own, to which skopeo copies them and from which it has them back.

Clients of a registry know a host, and that what they look for is under its `/v2/`.
"""

import base64
import hashlib
import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.real_clients.image import MB, WHO, Skopeo, blobs, image
from tests.real_clients.programs import listening, program
from tests.real_clients.upstreams import Passed, Upstreams, both_transports
from tests.support.servers import Server

pytestmark = both_transports

MOST_GROWTH = 48 * MB
USERS = "ann:$2y$04$/mYksnIwgHArnB7q65DSIetztlKP3gMXCfak1nh.dt3m8G6QjkY8a\n"  # bcrypt, of `secret`


def settings(home: Path, port: int, says: str | None) -> Path:
    """`says`: the address that it gives of itself, instead of the one that its callers know."""
    (home / "users").write_text(USERS)
    written = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(home / "data")},
            "delete": {"enabled": True},
        },
        "auth": {"htpasswd": {"realm": "images", "path": str(home / "users")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "s"} | ({"host": says} if says else {}),
    }
    path = home / "config.yml"
    path.write_text(json.dumps(written))  # which is YAML too
    return path


OWN, CALLERS = "its own address", "the caller's address"


@pytest.fixture(scope="module", params=[OWN, pytest.param(CALLERS, marks=pytest.mark.slow)])
def registry(
    request: pytest.FixtureRequest, upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """It names the address of each next step as a whole URL, of the one kind or the other."""
    home, port = tmp_path_factory.mktemp("registry"), upstreams.ports["registry"]
    says = upstreams.url("registry") if request.param == OWN else None
    command = [program("docker-registry"), "serve", str(settings(home, port, says))]
    with listening(command, port, home):
        yield
    shutil.rmtree(home / "data")  # pytest keeps folders of former runs


@pytest.fixture
def skopeo(relay: Server, registry: None, tmp_path: Path) -> Iterator[Skopeo]:
    yield Skopeo(tmp_path, relay)
    shutil.rmtree(tmp_path)


@pytest.fixture
def passed(relay: Server) -> Passed:
    return Passed(relay, "registry")


@contextmanager
def in_constant_memory(server: Server) -> Iterator[None]:
    before, most, over = server.memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, server.memory() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
    assert most < MOST_GROWTH


# skopeo.


@pytest.mark.slow
def test_an_image_is_copied_there_and_back(skopeo: Skopeo, passed: Passed) -> None:
    digest = image(skopeo.home / "there", 3 * MB, 5 * MB, 10)
    name = skopeo.name(f"{skopeo.home.name}/one:1.0")
    skopeo("copy", "oci:there:made", name)
    there = passed.look()
    # Two layers, one of few bytes, and the config; a layer is one body of unknown length.
    assert (there["POST 202"], there["PATCH 202"], there["PUT 201"]) == (4, 4, 5)
    assert there["sent"] > 8 * MB
    assert json.loads(skopeo("inspect", name))["Digest"] == digest
    skopeo("copy", name, "oci:back:made")
    assert passed.look()["received"] > 8 * MB
    assert blobs(skopeo.home / "back") == blobs(skopeo.home / "there")


@pytest.mark.slow
def test_layers_that_the_registry_has_are_not_sent_again(skopeo: Skopeo, passed: Passed) -> None:
    image(skopeo.home / "there", 2 * MB)
    skopeo("copy", "oci:there:made", skopeo.name(f"{skopeo.home.name}/one:1"))
    assert passed.look()["sent"] > 2 * MB
    skopeo("copy", "oci:there:made", skopeo.name(f"{skopeo.home.name}/one:2"))
    again = passed.look()
    assert (again["HEAD 200"], again["PATCH 202"]) == (2, 0)
    assert again["sent"] < 10_000


@pytest.mark.slow
def test_tags_are_listed_and_deleted(skopeo: Skopeo) -> None:
    image(skopeo.home / "there", 100)
    name = f"{skopeo.home.name}/one"
    for number in range(3):
        skopeo("copy", "oci:there:made", skopeo.name(f"{name}:{number}"))
    assert set(json.loads(skopeo("list-tags", skopeo.name(name)))["Tags"]) == {"0", "1", "2"}
    skopeo("delete", skopeo.name(f"{name}:0"))  # the manifest, and so all of its tags
    assert "manifest unknown" in skopeo("inspect", skopeo.name(f"{name}:1"), code=1)


@pytest.mark.slow
def test_who_may_not_push_is_told_so(skopeo: Skopeo, passed: Passed) -> None:
    image(skopeo.home / "there", 100)
    name = skopeo.name("app/refused:1")
    said = skopeo("copy", "oci:there:made", name, who="ann:wrong", code=1)
    assert "unauthorized" in said
    assert passed.look()["POST 202"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("registry", [OWN], indirect=True)
def test_image_of_1_gb_is_copied_in_constant_memory(
    skopeo: Skopeo, relay: Server, passed: Passed
) -> None:
    image(skopeo.home / "warming", 16 * MB)
    skopeo("copy", "oci:warming:made", skopeo.name("app/warming:1"))
    image(skopeo.home / "there", 1024 * MB)
    name = skopeo.name(f"{skopeo.home.name}/large:1")
    with in_constant_memory(relay):
        skopeo("copy", "oci:there:made", name, timeout=300)
        assert passed.look()["sent"] > 1024 * MB
        skopeo("copy", name, "oci:back:made", timeout=300)
        assert passed.look()["received"] > 1024 * MB
    assert blobs(skopeo.home / "back") == blobs(skopeo.home / "there")


# A layer in several chunks, which skopeo does not do.


class Push:
    """The upload of one blob: each answer names the address of the next chunk."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._location = "/v2/app/blobs/uploads/"
        self._digest = hashlib.sha256()
        self._length = 0

    def ask(self, method: str, body: bytes = b"", **fields: str) -> int:
        fields["Authorization"] = "Basic " + base64.b64encode(WHO.encode()).decode()
        self._connection.request(method, self._location, body or None, fields)
        answer = self._connection.getresponse()
        answer.read()
        if location := answer.headers.get("location"):
            url = urlsplit(location)
            assert url.netloc in ("", f"127.0.0.1:{self._connection.port}"), location
            self._location = url.path + (f"?{url.query}" if url.query else "")
        return answer.status

    def chunk(self, data: bytes) -> int:
        fields = {"Content-Range": f"{self._length}-{self._length + len(data) - 1}"}
        fields["Content-Type"] = "application/octet-stream"
        self._digest.update(data)
        self._length += len(data)
        return self.ask("PATCH", data, **fields)

    def finish(self, digest: str | None = None) -> int:
        self._location += f"&digest=sha256:{digest or self._digest.hexdigest()}"
        return self.ask("PUT")

    def close(self) -> None:
        self._connection.close()


def push(server: Server, total: int, chunk: int) -> None:
    with closing(Push(server)) as upload:
        assert upload.ask("POST") == 202
        data = bytes(range(256)) * (chunk // 256)
        for number in range(total // chunk):
            assert upload.chunk(b"%8d" % number + data[8:]) == 202
        assert upload.finish() == 201
        assert upload.ask("HEAD") == 200  # at the address of the blob, which it was told


def test_a_layer_of_64_mb_is_pushed_in_chunks_in_constant_memory(
    relay: Server, registry: None
) -> None:
    push(relay, 16 * MB, 4 * MB)  # so that what stays from the first time is there
    with in_constant_memory(relay):
        push(relay, 64 * MB, 16 * MB)


def test_a_layer_that_is_not_what_its_digest_says_is_refused(relay: Server, registry: None) -> None:
    with closing(Push(relay)) as upload:
        assert upload.ask("POST") == 202
        assert upload.chunk(b"a" * 1000) == 202
        assert upload.finish("0" * 64) == 400
