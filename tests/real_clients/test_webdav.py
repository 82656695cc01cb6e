"""rclone on both sides: as a client of WebDAV, and as its server, whose paths have `/dav` too.

WebDAV names addresses of its own in two places: in bodies, where each file of a listing has its
path, and in the field `Destination`, which says where MOVE and COPY go (RFC 4918 10.3).
"""

import http.client
import inspect
import random
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.real_clients.app import use_path_of_destination
from tests.real_clients.programs import files_in, listening, program, run
from tests.real_clients.upstreams import Passed, Upstreams, both_transports
from tests.support.servers import ROOT, Answer, Server
from tests.support.wire import until_the_end

pytestmark = both_transports

FILES = {
    "big": random.Random(13).randbytes(6 << 20),
    "empty": b"",
    "below/a file + ü&%20#?.txt": b"text",
    "below/deeper/[x];y=1.txt": b"deep",
}


@contextmanager
def serving(port: int, path: str, home: Path) -> Iterator[Path]:
    """The folder that is served under this path."""
    stored = home / "stored"
    stored.mkdir()
    command = [program("rclone"), "serve", "webdav", str(stored), "--addr", f"127.0.0.1:{port}"]
    with listening([*command, "--baseurl", path, "--dir-cache-time", "0s"], port, home):
        yield stored


@pytest.fixture(scope="module")
def stored(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(upstreams.ports["webdav"], "/dav", tmp_path_factory.mktemp("webdav")) as stored:
        yield stored


@pytest.fixture(scope="module")
def by_host(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same, for the mount that sends the caller's own Host."""
    home, port = tmp_path_factory.mktemp("by-host"), upstreams.ports["by_host"]
    with serving(port, "/by-host", home):
        yield


class Rclone:
    def __init__(self, home: Path, url: str) -> None:
        self._program = program("rclone")
        self.home, self.url = home, url

    def __call__(self, *arguments: str | Path, code: int = 0) -> list[str]:
        """Its lines, of its output and of its log."""
        settings = {
            "RCLONE_WEBDAV_URL": self.url,
            "RCLONE_WEBDAV_VENDOR": "other",
            "RCLONE_RETRIES": "1",
            "RCLONE_LOW_LEVEL_RETRIES": "1",
            # Its server answers 423 if two requests use the same folder at the same moment.
            "RCLONE_TRANSFERS": "1",
            "RCLONE_CHECKERS": "1",
        }
        done = run(self._program, *arguments, home=self.home, code=code, environment=settings)
        return (done.stdout + done.stderr).decode().splitlines()


@pytest.fixture
def name(tmp_path: Path) -> str:
    return tmp_path.name


@pytest.fixture
def rclone(tmp_path: Path, url: str, stored: Path, name: str) -> Rclone:
    """With FILES in a folder `there`, and in one of its own at the server."""
    for folder in (tmp_path / "there", stored / name):
        for path, data in FILES.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return Rclone(tmp_path, f"{url}/dav")


@pytest.fixture
def passed(relay: Server) -> Passed:
    return Passed(relay, "webdav")


def test_rclone_copies_there_and_back(rclone: Rclone, stored: Path, name: str) -> None:
    rclone("copy", "there", f":webdav:{name}-new")
    assert files_in(stored / f"{name}-new") == FILES
    rclone("copy", f":webdav:{name}-new", "back")
    assert files_in(rclone.home / "back") == FILES


@pytest.mark.slow
def test_rclone_syncs_what_is_new_and_what_is_gone(
    rclone: Rclone, stored: Path, name: str, passed: Passed
) -> None:
    (rclone.home / "there" / "big").unlink()
    (rclone.home / "there" / "new").write_bytes(b"new")
    rclone("sync", "there", f":webdav:{name}")
    assert files_in(stored / name) == files_in(rclone.home / "there")
    done = passed.look()
    assert (done["PUT 201"], done["DELETE 204"]) == (1, 1)
    rclone("sync", "there", f":webdav:{name}")
    done = passed.look()
    assert (done["PUT 201"], done["DELETE 204"]) == (0, 0)


@pytest.mark.slow
def test_rclone_checks_what_is_there(rclone: Rclone, stored: Path, name: str) -> None:
    rclone("check", "--download", "there", f":webdav:{name}")
    (stored / name / "big").write_bytes(FILES["big"][:-1] + b"x")
    said = rclone("check", "--download", "there", f":webdav:{name}", code=1)
    assert any("1 differences found" in line for line in said)


def test_rclone_lists(rclone: Rclone, name: str) -> None:
    assert sorted(rclone("lsf", "-R", "--files-only", f":webdav:{name}")) == sorted(FILES)
    assert sorted(rclone("lsf", f":webdav:{name}")) == ["below/", "big", "empty"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [("big", "below/moved + ü.bin"), ("below", "moved"), ("below/deeper", "deep%2f")],
)
def test_rclone_moves_a_file_or_a_folder_at_the_server(
    rclone: Rclone, stored: Path, name: str, passed: Passed, old: str, new: str
) -> None:
    rclone("moveto", f":webdav:{name}/{old}", f":webdav:{name}/{new}")
    moved = {
        new + path.removeprefix(old) if path.startswith(old) else path: data
        for path, data in FILES.items()
    }
    assert files_in(stored / name) == moved
    done = passed.look()
    assert done["MOVE 201"] == 1
    assert done["GET 200"] == done["PUT 201"] == 0


@pytest.mark.slow
def test_rclone_copies_a_file_at_the_server(
    rclone: Rclone, stored: Path, name: str, passed: Passed
) -> None:
    rclone("copyto", f":webdav:{name}/big", f":webdav:{name}/other/copy")
    assert files_in(stored / name) == FILES | {"other/copy": FILES["big"]}
    done = passed.look()
    assert (done["COPY 201"], done["GET 200"]) == (1, 0)


@pytest.mark.slow
def test_rclone_deletes(rclone: Rclone, stored: Path, name: str) -> None:
    rclone("deletefile", f":webdav:{name}/below/deeper/[x];y=1.txt")
    rclone("rmdir", f":webdav:{name}/below/deeper")
    assert not (stored / name / "below" / "deeper").exists()
    rclone("delete", f":webdav:{name}/below")
    assert set(files_in(stored / name)) == {"big", "empty"}
    rclone("purge", f":webdav:{name}")
    assert not (stored / name).exists()


@pytest.mark.slow
def test_rclone_reads_a_part(rclone: Rclone, name: str, passed: Passed) -> None:
    part = rclone(
        "cat", "--offset", "1", "--count", "2", f":webdav:{name}/below/deeper/[x];y=1.txt"
    )
    assert part == ["ee"]
    assert passed.look()["GET 206"] == 1


def litmus(home: Path, url: str, parts: str) -> list[str]:
    """What these parts of a test of servers of WebDAV say of one, a line a test."""
    settings = {"TESTS": parts}
    done = run(program("litmus"), "-k", url, home=home, code=None, environment=settings)
    said = done.stdout.decode().replace("\r", "\n").replace(url, "")
    assert "summary for `http'" in said, said
    lines = (line.strip() for line in said.splitlines())
    # uvicorn with httptools cuts a fragment off, which no request should have, before the app.
    return [
        line for line in lines if line.endswith("pass") or "FAIL" in line if "fragment" not in line
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "parts"),
    [
        ("webdav", "/dav/", "basic copymove props http"),  # who locks says addresses in `If` too
        ("by_host", "/by-host/", "basic copymove props locks http"),
    ],
)
def test_litmus_says_of_the_relay_what_it_says_of_the_server(
    url: str,
    upstreams: Upstreams,
    stored: Path,
    by_host: None,
    tmp_path: Path,
    name: str,
    path: str,
    parts: str,
) -> None:
    at_the_server = litmus(tmp_path, upstreams.url(name) + path, parts)
    assert litmus(tmp_path, url + path, parts) == at_the_server
    assert sum(line.endswith("pass") for line in at_the_server) > 40


def ask(relay: Server, method: str, path: str, **fields: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", relay.port, timeout=60)) as connection:
        connection.request(method, path, headers=fields)
        return connection.getresponse().status


def test_a_destination_elsewhere_is_refused(
    relay: Server, rclone: Rclone, url: str, stored: Path, name: str
) -> None:
    for there in ("http://127.0.0.1:9/dav/x", f"{url}/web/x", "/etc/x", f"{url}0/dav/x", "dav/x"):
        assert ask(relay, "MOVE", f"/dav/{name}/big", Destination=there) == 502
    assert files_in(stored / name) == FILES
    assert ask(relay, "MOVE", f"/dav/{name}/big", Destination=f"{url}/dav/{name}/x") == 201


def test_webdav_without_settings_lists_and_moves_nothing(
    relay: Server, rclone: Rclone, url: str, stored: Path, name: str
) -> None:
    rclone.url = f"{url}/webdav/dav"  # whose files say of themselves that they are under `/dav`
    assert rclone("lsf", f":webdav:{name}") == []
    there = f"{url}/webdav/dav/{name}/new"
    assert ask(relay, "MOVE", f"/webdav/dav/{name}/big", Destination=there) == 502
    assert files_in(stored / name) == FILES


@pytest.mark.parametrize("path", ["/dav/", "/by-host/"])
def test_a_caller_who_names_no_host_is_answered(
    relay: Server, stored: Path, by_host: None, path: str
) -> None:
    for request, status in (
        (f"GET {path} HTTP/1.0\r\n\r\n", 200),
        (f"MOVE {path}a HTTP/1.0\r\ndestination: http://127.0.0.1/dav/b\r\n\r\n", 502),
    ):
        with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as connection:
            connection.sendall(request.encode())
            assert Answer(until_the_end(connection)).status == status


def test_the_page_shows_the_setting_of_the_destination() -> None:
    page = (ROOT / "docs" / "tested-clients.md").read_text()
    assert inspect.getsource(use_path_of_destination) in page
