"""wget, which mirrors what is behind the relay."""

from pathlib import Path

import pytest

from tests.real_clients.programs import files_in, program, run
from tests.real_clients.upstreams import Upstreams, both_transports

pytestmark = both_transports


@pytest.fixture(scope="module")
def tree(upstreams: Upstreams) -> dict[str, bytes]:
    """A small site: pages with links to each other, and files."""
    page = "<!doctype html><a href='{}'>next</a>"
    files = {
        "index.html": page.format("below").encode(),
        "below/index.html": page.format("a%20file.txt").encode(),
        "below/a file.txt": b"text\n" * 1000,
    }
    for name, data in files.items():
        path = upstreams.folder / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


def wget(home: Path, *arguments: str) -> str:
    options = ("--no-verbose", "--no-config", "--no-proxy", "--tries=1", "--timeout=20")
    return run(program("wget"), *options, *arguments, home=home).stderr.decode()


def mirror(home: Path, url: str) -> str:
    return wget(
        home,
        "--mirror",
        "-np",
        "-nH",
        "--cut-dirs=3",
        "--trust-server-names",
        f"{url}/web/files/site/",
    )


def test_wget_mirrors_a_site(tmp_path: Path, url: str, tree: dict[str, bytes]) -> None:
    # `below` is redirected to `below/`, with the upstream's own address.
    mirror(tmp_path, url)
    assert files_in(tmp_path) == tree


def test_wget_does_not_get_again_what_has_not_changed(
    tmp_path: Path, url: str, tree: dict[str, bytes]
) -> None:
    assert mirror(tmp_path, url).count(" -> ") == len(tree)
    assert mirror(tmp_path, url).count(" -> ") == 0


def test_wget_continues_a_file(tmp_path: Path, url: str, tree: dict[str, bytes]) -> None:
    whole = tree["below/a file.txt"]
    (tmp_path / "a file.txt").write_bytes(whole[:1234])
    wget(tmp_path, "--continue", f"{url}/web/files/site/below/a%20file.txt")
    assert files_in(tmp_path) == {"a file.txt": whole}


def test_without_rewritten_redirects_wget_leaves_the_relay(
    tmp_path: Path, url: str, upstreams: Upstreams, tree: dict[str, bytes]
) -> None:
    said = wget(tmp_path, "--server-response", f"{url}/as-it-comes/files/site/below")
    assert upstreams.url("web") in said
