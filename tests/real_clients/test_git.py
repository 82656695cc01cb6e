"""git, by smart HTTP, to its own `git http-backend`."""

import random
from pathlib import Path

import pytest

from tests.real_clients.programs import program, run
from tests.real_clients.upstreams import Upstreams, both_transports

pytestmark = both_transports

WHO = ("-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-c", "init.defaultBranch=main")


class Git:
    def __init__(self, home: Path) -> None:
        self._program = program("git")
        self.home = home

    def __call__(self, *arguments: str | Path, code: int = 0) -> str:
        done = run(self._program, *WHO, *arguments, home=self.home, code=code)
        return (done.stdout + done.stderr).decode()

    def commit(self, repository: Path, name: str, data: bytes) -> str:
        (repository / name).write_bytes(data)
        self("-C", repository, "add", name)
        self("-C", repository, "commit", "-q", "-m", f"add {name}")
        return self.last(repository)

    def last(self, repository: Path) -> str:
        return self("-C", repository, "rev-parse", "main").strip()


@pytest.fixture
def git(tmp_path: Path) -> Git:
    return Git(tmp_path)


@pytest.fixture
def bare(git: Git, upstreams: Upstreams, tmp_path: Path) -> Path:
    """The repository at the upstream, with a few commits."""
    folder = upstreams.folder / "git" / f"{tmp_path.name}.git"
    seed = tmp_path / "seed"
    git("init", "-q", seed)
    for number in range(3):
        git.commit(seed, f"{number}.bin", random.Random(number).randbytes(400_000))
    git("clone", "-q", "--bare", seed, folder)
    return folder


def address(url: str, bare: Path, who: str = "") -> str:
    return f"{url.replace('//', f'//{who}', 1)}/web/git/{bare.name}"


def test_git_clones(git: Git, bare: Path, url: str) -> None:
    git("clone", "-q", address(url, bare), "copy")
    assert git.last(git.home / "copy") == git.last(bare)
    git("-C", "copy", "fsck", "--strict")


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_git_clones_a_part_by_each_version_of_its_protocol(
    git: Git, bare: Path, url: str, version: str
) -> None:
    protocol = ("-c", f"protocol.version={version}")
    git(*protocol, "clone", "-q", "--depth=1", address(url, bare), "copy")
    assert git("-C", "copy", "rev-list", "--count", "main").strip() == "1"
    git(*protocol, "-C", "copy", "fetch", "-q", "--unshallow")
    assert git("-C", "copy", "rev-list", "--count", "main").strip() == "3"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_git_pushes_a_pack_in_either_framing(
    git: Git, bare: Path, url: str, upstreams: Upstreams, framing: str
) -> None:
    # It sends more than `http.postBuffer` bytes (1 MiB) chunked, after a probe of four bytes.
    git("clone", "-q", address(url, bare, "ann:secret@"), "copy")
    copy = git.home / "copy"
    size = 500_000 if framing == "length" else 5_000_000
    commit = git.commit(copy, "new.bin", random.Random(9).randbytes(size))
    before = upstreams.seen("chunked")
    git("-C", copy, "push", "-q", "origin", "main")
    assert git.last(bare) == commit
    git("-C", bare, "fsck", "--strict")
    assert upstreams.seen("chunked") == before + (framing == "chunked")


def test_git_sends_many_wants_compressed(
    git: Git, bare: Path, url: str, upstreams: Upstreams
) -> None:
    # Requests of more than 1,024 bytes are gzipped: a content coding, which must stay what it is.
    git("clone", "-q", address(url, bare, "ann:secret@"), "copy")
    head = git.last(bare)
    for number in range(60):
        git("-C", bare, "update-ref", f"refs/heads/topic-{number}", head)
    before = upstreams.seen("gzip")
    git("clone", "-q", "--mirror", address(url, bare), "mirror")
    assert upstreams.seen("gzip") > before
    git("-C", "copy", "fetch", "-q")
    assert git("-C", "copy", "branch", "-r").count("topic-") == 60


def test_git_is_asked_who_it_is(git: Git, bare: Path, url: str) -> None:
    git("clone", "-q", address(url, bare), "copy")
    git.commit(git.home / "copy", "new", b"new")
    said = git("-C", "copy", "push", "-q", "origin", "main", code=128)
    assert "could not read Username" in said


def test_git_is_told_that_a_push_is_refused(git: Git, bare: Path, url: str) -> None:
    git("clone", "-q", address(url, bare, "ann:secret@"), "copy")
    git("-C", "copy", "reset", "-q", "--hard", "HEAD~1")
    git.commit(git.home / "copy", "other", b"other")
    assert "non-fast-forward" in git("-C", "copy", "push", "origin", "main", code=1)
