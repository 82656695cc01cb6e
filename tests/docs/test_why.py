"""docs/why.md: each point happens to the idiom, and does not to what replaces it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.page_apps import Serve, serving
from tests.support.pages import ROOT, files
from tests.support.servers import Server, SocketCaller, ask
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

CODE = files("docs/why.md")
BEFORE, AFTER = CODE["before.py"], CODE["after.py"]
ONE_PLACE = "limits=httpx.Limits(max_connections=1), timeout=httpx.Timeout(60, pool=0.2), base_url"
NOT_FOUND = "/status%3Fcode=404"  # encoded, so that it is in the path of the page's apps
CHECK = """


def check(upstream: httpx.Response) -> None:
    if upstream.status_code != 200:
        raise HTTPException(upstream.status_code)
"""
MIDDLEWARE = """

@app.middleware("http")
async def middleware(request, call_next):
    return await call_next(request)
"""
LOST_TO_A_CHECK = """r = await client.send(request, stream=True)
    if r.status_code != 200:
        raise HTTPException(r.status_code)
"""


@pytest.fixture(scope="module")
def serve(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    with serving(tmp_path_factory.mktemp("why"), upstream.url) as serve:
        yield serve


@pytest.fixture(scope="module")
def before(serve: Serve) -> Server:
    return serve(BEFORE)


@pytest.fixture(scope="module")
def after(serve: Serve) -> Server:
    return serve(AFTER)


def test_1_nobody_closes_the_client(tmp_path: Path) -> None:
    """The lifespan runs as under a server, and the process lives on."""
    run = "\n\nimport asyncio\n\n\nasync def main():\n"
    run += "    async with app.router.lifespan_context(app) as state:\n"
    run += "        client = (state or {}).get('client') or globals()['client']\n"
    run += "        await client.get('/item')\n"
    run += "    print(client.is_closed)\n\n\nasyncio.run(main())\n"
    with Upstream() as upstream:
        assert _printed(BEFORE + run, tmp_path, upstream.url) == "False\n"
        assert _printed(AFTER + run, tmp_path, upstream.url) == "True\n"


def _printed(code: str, folder: Path, upstream_url: str) -> str:
    (folder / "main.py").write_text(code.replace("http://127.0.0.1:9000", upstream_url))
    run = subprocess.run(
        [sys.executable, str(folder / "main.py")],
        env=os.environ | {"PYTHONPATH": f"{ROOT}/src"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_2_one_callers_session_is_sent_for_the_next(before: Server, after: Server) -> None:
    for server, sent in ((before, True), (after, False)):
        ask(server, "/headers")  # sets the cookies a and b
        assert (b"cookie: " in ask(server, "/echo").body.lower()) is sent


def test_3_every_failure_is_500(serve: Serve) -> None:
    refused = {"http://127.0.0.1": "http://127.0.0.1:1/"}  # nobody listens on port 1
    silent = {"base_url": "timeout=0.2, base_url"}
    full = {"base_url": ONE_PLACE}
    for replaced, path, status in ((refused, "/item", 502), (silent, "/never", 504)):
        assert ask(serve(BEFORE, **replaced), path).status == 500
        assert ask(serve(AFTER, **replaced), path).status == status
    for code, status in ((BEFORE, 500), (AFTER, 503)):
        server = serve(code, **full)
        first = SocketCaller(server, "/silent_mid_body")
        first.read(until=b"first")
        assert ask(server, "/item").status == status
        first.leave()


def test_4_a_caller_who_leaves_before_the_headers_is_not_noticed(tmp_path: Path) -> None:
    patient = {"base_url": "timeout=60, base_url"}  # so that no timeout is taken for a leaving
    with Upstream() as upstream, serving(tmp_path, upstream.url) as serve:
        for code, left_over in ((AFTER, 0), (BEFORE, 1)):
            caller = SocketCaller(serve(code, **patient), "/never")
            eventually(lambda: upstream.open_exchanges == 1)
            caller.leave()
            if left_over:
                with pytest.raises(AssertionError, match="condition not met"):
                    eventually(lambda: upstream.open_exchanges == 0, 3)
            else:
                eventually(lambda: upstream.open_exchanges == 0)


def test_5_error_between_send_and_return_leaks_a_connection(serve: Serve) -> None:
    leaking = BEFORE.replace("import FastAPI", "import FastAPI, HTTPException").replace(
        "r = await client.send(request, stream=True)\n", LOST_TO_A_CHECK
    )
    server = serve(leaking, base_url=ONE_PLACE)
    assert ask(server, "/item").status == 200
    assert ask(server, NOT_FOUND).status == 404
    assert ask(server, "/item").status == 500  # the one place is gone for good
    checked = AFTER.replace("Depends, FastAPI", "Depends, FastAPI, HTTPException").replace(
        '"/" + path))', '"/" + path), on_response=check)' + CHECK
    )
    server = serve(checked, base_url=ONE_PLACE)
    assert ask(server, NOT_FOUND).status == 404
    assert ask(server, "/item").status == 200


def test_6_the_status_is_lost(before: Server, after: Server) -> None:
    assert ask(before, NOT_FOUND).status == 200
    assert ask(after, NOT_FOUND).status == 404


def test_7_the_headers_are_lost(before: Server, after: Server) -> None:
    for name in (b"content-type", b"content-encoding", b"content-length"):
        assert ask(before, "/zipped").field(name) is None
        assert ask(after, "/zipped").field(name) is not None
    assert len(ask(before, "/headers").all(b"set-cookie")) == 0
    assert len(ask(after, "/headers").all(b"set-cookie")) == 2


def test_8_no_timeout_bounds_the_whole(serve: Serve) -> None:
    trickle = "/chunks%3Fcount=25%26delay=0.1"
    assert ask(serve(BEFORE, base_url="timeout=2, base_url"), trickle).complete
    server = serve(AFTER.replace('"/" + path))', '"/" + path), deadline=1)'))
    assert not ask(server, trickle).complete


def test_9_background_does_not_run_when_the_upstream_dies(serve: Serve) -> None:
    server = serve(BEFORE.replace("r.aclose", "print, 'closing', flush=True"))
    assert not ask(server, "/short_chunked").complete
    assert "closing" not in server.log()
    ask(server, "/item")
    eventually(lambda: "closing" in server.log())


def test_10_a_truncated_body_looks_whole_under_a_middleware(serve: Serve) -> None:
    answer = ask(serve(BEFORE + MIDDLEWARE), "/short_chunked")
    assert (answer.body, answer.complete) == (b"s" * 100, True)
    assert not ask(serve(AFTER + MIDDLEWARE), "/short_chunked").complete


def test_each_point_of_the_page_has_a_test() -> None:
    points = re.findall(r"^\*\*(\d+)\. ", (ROOT / "docs/why.md").read_text(), re.M)
    tests = [match[1] for name in globals() if (match := re.match(r"test_(\d+)_", name))]
    assert points == tests
