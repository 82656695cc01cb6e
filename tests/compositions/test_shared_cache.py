"""The cache of four workers, as real processes: one is asked, and all have the answer."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.compositions.upstream import arrivals
from tests.support.servers import Answer, Server, ask, free_port
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

REDIS = shutil.which("redis-server", path=os.environ.get("PATH", "") + ":/usr/bin")
WORKERS = 4

needs_redis = [
    pytest.mark.redis,
    pytest.mark.skipif(REDIS is None, reason="there is no redis-server on this machine"),
]


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis of its own, that keeps nothing: its URL, and its process."""
    port = free_port()
    assert REDIS is not None
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([REDIS, *options], stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


STORES = [
    pytest.param("sqlite", marks=pytest.mark.slow),
    pytest.param("redis", marks=needs_redis),
]


@pytest.fixture(scope="module", params=STORES)
def server(
    request: pytest.FixtureRequest, listening: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DATABASE", str(folder / "cache.db"))
        if request.param == "redis":
            patch.setenv("REDIS_URL", stack.enter_context(redis_server(folder))[0])
        yield stack.enter_context(serving(listening))


@contextmanager
def serving(upstream: Upstream) -> Iterator[Server]:
    server = Server(
        "uvicorn-httptools",
        upstream.url,
        app="tests.compositions.caching_app:app",
        options=["--workers", str(WORKERS)],
        dev_mode=False,
    )
    try:
        yield server
    finally:
        server.stop()


def by_worker(server: Server, path: str, fields: str = "") -> dict[bytes, list[Answer]]:
    """Ask until each worker has answered twice."""
    answers: dict[bytes, list[Answer]] = {}
    for _ in range(400):  # which worker takes a connection is the kernel's choice
        answer = ask(server, path, fields=fields)
        answers.setdefault(answer.field(b"x-worker") or b"", []).append(answer)
        if sum(len(of_one) > 1 for of_one in answers.values()) >= WORKERS:
            break
    return answers


def test_a_workers_first_request_is_a_hit_when_another_has_asked(
    server: Server, upstream: Upstream
) -> None:
    answers = by_worker(server, "/api/kept?key=shared&cache=max-age%3D60&parts=30")
    assert len(answers) == WORKERS
    assert len(arrivals["shared"]) == 1
    bodies = {answer.body for of_one in answers.values() for answer in of_one}
    assert [len(body) for body in bodies] == [len(b"1 for anybody\n") + 29 * 50_000]
    first_of_each = [of_one[0].field(b"age") for of_one in answers.values()]
    assert first_of_each.count(None) == 1  # the one that was asked for


@pytest.mark.parametrize(
    ("says", "fields"),
    [
        ("cache=private,max-age%3D60", ""),
        ("cache=public,max-age%3D60&set-cookie=session%3D1", ""),
        ("cache=public,max-age%3D60&vary=*&etag=%22x%22", ""),
        ("cache=max-age%3D60", "authorization: ann\r\n"),
        ("cache=max-age%3D60", "cookie: ann\r\n"),
    ],
    ids=["private", "set-cookie", "vary", "authorization", "cookie"],
)
def test_no_worker_has_from_another_what_is_private(
    server: Server, upstream: Upstream, says: str, fields: str, request: pytest.FixtureRequest
) -> None:
    answers = by_worker(server, f"/api/kept?key={request.node.callspec.id}&{says}", fields)
    numbers = sorted(
        int(answer.body.split()[0]) for of_one in answers.values() for answer in of_one
    )
    assert len(answers) == WORKERS
    assert numbers == list(range(1, len(numbers) + 1))


def test_headers_of_a_304_are_not_shared_between_workers(
    server: Server, upstream: Upstream
) -> None:
    path = "/api/kept?key=renewed&cache=max-age%3D60&age=100&etag=%22x%22&renews=1"
    assert ask(server, path).status == 200
    assert ask(server, path, fields="cookie: ann\r\n").status == 200
    answers = by_worker(server, path)
    assert len(answers) == WORKERS
    cookies = {answer.field(b"set-cookie") for of_one in answers.values() for answer in of_one}
    assert cookies == {None}


@pytest.mark.slow
def test_what_one_worker_changes_the_others_forget(server: Server, upstream: Upstream) -> None:
    path = "/api/kept?key=changed&cache=max-age%3D60"
    by_worker(server, path)
    assert len(arrivals["changed"]) == 1
    ask(server, path, method="POST")
    answers = by_worker(server, path)
    assert len(arrivals["changed"]) == 3
    assert {answer.body for of_one in answers.values() for answer in of_one} == {b"3 for anybody\n"}


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.skipif(REDIS is None, reason="there is no redis-server on this machine")
def test_without_its_redis_every_request_goes_to_the_upstream(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/api/kept?key=gone&cache=max-age%3D60"
    with redis_server(tmp_path) as (url, process):
        monkeypatch.setenv("REDIS_URL", url)
        with serving(upstream) as server:
            eventually(lambda: ask(server, path).field(b"age") is not None)
            process.kill()
            process.wait()
            before = len(arrivals["gone"])
            assert [ask(server, path).status for _ in range(3)] == [200] * 3
            assert len(arrivals["gone"]) == before + 3
