"""Each example, served by a real uvicorn in front of a real upstream, does what it says."""

import ast
import asyncio
import hashlib
import importlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

import asgi_upstream
from tests.support import example_apps
from tests.support.example_apps import ROOT, Serve, imported, open_at, served, until
from tests.support.pages import files

upstream_url, upstream = example_apps.upstream_url, example_apps.upstream
url_of, serve = example_apps.url_of, example_apps.serve


def arrivals(response: httpx.Response) -> list[tuple[float, bytes]]:
    """The chunks of a body, each with the time at which it came."""
    return [(time.time(), chunk) for chunk in response.iter_raw()]


# The upstream itself


def test_the_upstreams_file_has_the_checksum_it_says(upstream: httpx.Client) -> None:
    response = upstream.get("/file?size=200000")
    assert len(response.content) == 200_000
    assert hashlib.sha256(response.content).hexdigest() == response.headers["x-sha256"]


@pytest.mark.parametrize("path", ["/never", "/events", "/file"])
def test_the_upstream_notices_and_records_a_caller_who_left(
    upstream: httpx.Client, path: str
) -> None:
    before = upstream.get("/open").json()["left_count"]
    began = time.monotonic()
    if path == "/never":
        with pytest.raises(httpx.ReadTimeout):  # the time is up, and the client closes
            upstream.get(path, timeout=0.2)
    else:
        with upstream.stream("GET", path) as response:
            chunks = response.iter_raw()
            next(chunks)
            assert open_at(upstream) == 1
    until(lambda: upstream.get("/open").json()["left_count"] == before + 1)
    left = upstream.get("/open").json()["left"][-1]
    assert left["path"] == path
    assert began < left["at"] < time.monotonic()


def test_demo_upstream_counts_only_callers_that_disconnected(
    upstream: httpx.Client,
) -> None:
    before = upstream.get("/open").json()["left_count"]
    for path in ("/item", "/text", "/gzip", "/events?count=1", "/file?size=1", "/status/204"):
        with httpx.Client(base_url=upstream.base_url, trust_env=False, timeout=60) as once:
            assert once.get(path).is_success
    assert upstream.get("/open").json()["left_count"] == before


def test_big_document_is_json_of_the_requested_size(upstream: httpx.Client) -> None:
    response = upstream.get("/big?size=5000")
    assert len(response.content) == 5000
    assert response.json()


# streamed.py


def test_streamed_relays_a_file_with_its_length_and_checksum(serve: Serve) -> None:
    with serve("streamed").stream("GET", "/file?size=5000000") as response:
        digest = hashlib.sha256()
        for chunk in response.iter_raw():
            digest.update(chunk)
    assert response.headers["content-length"] == "5000000"
    assert response.headers["x-sha256"] == digest.hexdigest()


def test_streamed_relays_each_event_when_it_comes(serve: Serve) -> None:
    with serve("streamed").stream("GET", "/events?count=15") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = arrivals(response)
    sent = [
        (came, json.loads(data)["sent"])
        for came, chunk in chunks
        for data in re.findall(rb"data: (.*)\n", chunk)
    ]
    assert len(sent) == 15
    assert sent[0][0] < sent[-1][1]  # The first came before the last was sent, 1.4 s later.


def test_streamed_frees_a_silent_upstream_on_disconnect(
    serve: Serve, upstream: httpx.Client
) -> None:
    caller = serve("streamed")
    with pytest.raises(httpx.ReadTimeout):
        caller.get("/never", timeout=0.3)
    until(lambda: open_at(upstream) == 0)


def test_streamed_cuts_the_connection_when_the_upstream_dies(serve: Serve) -> None:
    with (
        serve("streamed").stream("GET", "/dies") as response,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        response.read()
    assert response.status_code == 200


def test_streamed_tells_of_a_dead_upstream_by_a_last_event(serve: Serve) -> None:
    response = serve("streamed").get("/dies-with-a-word")
    assert response.text.startswith("data: part 0\n\n")
    assert response.text.endswith("event: error\ndata: the upstream failed\n\n")


# content_type.py


def test_content_type_is_the_upstreams(serve: Serve) -> None:
    response = serve("content_type").get("/item")
    assert response.headers["content-type"] == "application/json"
    assert "x-content-type-options" not in response.headers


def test_content_type_streams_text_with_nosniff(serve: Serve) -> None:
    with serve("content_type").stream("GET", "/slow-text") as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        chunks = response.iter_raw()
        assert [next(chunks), next(chunks)] == [b"line 0\n", b"line 1\n"]


def test_content_type_of_the_author_wins(serve: Serve) -> None:
    response = serve("content_type").get("/item-as-text")
    assert response.headers.get_list("content-type") == ["text/plain; charset=utf-8"]
    assert response.headers["x-content-type-options"] == "nosniff"


# transform.py


def test_transform_changes_each_chunk_when_it_comes(serve: Serve, upstream: httpx.Client) -> None:
    with serve("transform").stream("GET", "/slow-text") as response:  # takes 3 s
        chunks = response.iter_raw()
        assert [next(chunks), next(chunks)] == [b"LINE 0\n", b"LINE 1\n"]
        assert open_at(upstream) == 1


def test_transform_may_read_all_and_send_something_else(
    serve: Serve, upstream: httpx.Client
) -> None:
    response = serve("transform").get("/checksum?size=300000")
    assert response.text == upstream.get("/file?size=300000").headers["x-sha256"]
    assert "content-length" not in response.headers


# body.py


def test_body_raw_is_compressed_as_the_upstream_sent_it(
    serve: Serve, upstream: httpx.Client
) -> None:
    with upstream.stream("GET", "/gzip") as direct:
        original = b"".join(direct.iter_raw())
    with serve("body").stream("GET", "/raw") as response:
        assert b"".join(response.iter_raw()) == original
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["content-length"] == str(len(original))


def test_body_bytes_are_decoded(serve: Serve) -> None:
    with serve("body").stream("GET", "/bytes") as response:
        assert b"".join(response.iter_raw()) == b'{"name":"lamp","price":20}'
    assert "content-encoding" not in response.headers


def test_body_text_is_characters(serve: Serve, upstream: httpx.Client) -> None:
    assert serve("body").get("/text").text == upstream.get("/text").text[::-1]


def test_body_text_and_lines_may_lie_across_chunks() -> None:
    body = importlib.import_module("examples.body")

    async def bytewise() -> AsyncIterator[bytes]:
        for byte in "ä\nbc\n\nd".encode():
            yield bytes([byte])

    async def joined(chunks: AsyncIterator[bytes]) -> str:
        return b"".join([chunk async for chunk in chunks]).decode()

    assert asyncio.run(joined(body.numbered_lines(bytewise()))) == "1: ä\n2: bc\n3: \n4: d"
    assert asyncio.run(joined(body.reversed_text(bytewise()))) == "ä\nbc\n\nd"


def test_body_lines_are_numbered(serve: Serve) -> None:
    assert serve("body").get("/lines").text == "1: one\n2: two\n3: three, with ümläuts\n"


def test_body_lines_are_read_by_httpx_too(serve: Serve) -> None:
    assert serve("body").get("/longest-line").json() == {"line": "three, with ümläuts"}


# buffered.py


@pytest.mark.parametrize("path", ["/item", "/gzip"])
def test_buffered_json_is_changed_on_the_way(serve: Serve, path: str) -> None:
    response = serve("buffered").get(path)
    assert response.json() == {"from": "upstream", "name": "lamp", "price": 20}
    assert response.headers["content-length"] == str(len(response.content))


def test_buffered_text_is_changed_on_the_way(serve: Serve) -> None:
    assert serve("buffered").get("/text").text == "One\nTwo\nThree, With Ümläuts\n"


def test_buffered_bytes_are_relayed(serve: Serve) -> None:
    response = serve("buffered").get("/file?size=2000")
    assert len(response.content) == 2000
    assert hashlib.sha256(response.content).hexdigest() == response.headers["x-sha256"]


def test_buffered_past_the_bound_is_502_and_reading_stops(
    serve: Serve, upstream: httpx.Client
) -> None:
    caller = serve("buffered")
    assert caller.get(f"/big?size={64 * 1024}").status_code == 200
    response = caller.get(f"/big?size={64 * 1024 + 1}")
    assert response.status_code == 502
    assert response.json() == {"detail": "The upstream's response is too large"}
    left_before = upstream.get("/open").json()["left_count"]
    assert caller.get("/file?size=50000000").status_code == 502
    until(lambda: upstream.get("/open").json()["left_count"] == left_before + 1)


# client_options.py


def test_client_options_default_headers_reach_the_upstream(serve: Serve) -> None:
    seen = serve("client_options").get("/headers").json()
    assert seen["authorization"] == "Bearer of-this-service"
    assert seen["user-agent"] == "example/1"


def test_client_options_the_read_timeout_is_504(serve: Serve) -> None:
    began = time.monotonic()
    assert serve("client_options").get("/never").status_code == 504
    assert time.monotonic() - began > 0.9


def test_client_options_the_deadline_is_504(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    assert serve("client_options").get("/deadline").status_code == 504
    assert "the deadline of 0.5 s passed" in caplog.text


def test_client_options_a_full_pool_is_503_with_retry_after(serve: Serve) -> None:
    caller = serve("client_options")
    with caller.stream("GET", "/events") as first, caller.stream("GET", "/events") as second:
        assert (first.status_code, second.status_code) == (200, 200)
        third = caller.get("/events")
    assert third.status_code == 503
    assert third.headers["retry-after"] == "1"


def test_client_options_requests_go_through_the_proxy(serve: Serve, upstream: httpx.Client) -> None:
    # The upstream plays the proxy: it takes absolute request targets. The name does not resolve.
    caller = serve(
        "client_options", UPSTREAM_URL="http://behind.invalid", PROXY_URL=str(upstream.base_url)
    )
    assert caller.get("/headers").json()["host"] == "behind.invalid"


# cookies.py


def test_cookies_are_not_kept_but_relayed(serve: Serve) -> None:
    caller = serve("cookies")
    for _ in range(2):
        caller.cookies.clear()
        response = caller.get("/not-kept")
        assert response.json() == {"got": {}}
        assert "session" in response.cookies


def test_cookies_are_kept_on_purpose(serve: Serve) -> None:
    caller = serve("cookies")
    first, second = caller.get("/kept"), caller.get("/kept")
    assert first.json() == {"got": {"lang": "en"}}
    assert second.json()["got"].keys() == {"lang", "session"}
    assert "set-cookie" not in second.headers


# plain_def.py, sync_client.py


def test_plain_def_streams_from_an_endpoint_in_a_worker_thread(serve: Serve) -> None:
    with serve("plain_def").stream("GET", "/events?count=3") as response:
        chunks = arrivals(response)
    assert "worker" in response.headers["x-endpoint-thread"].lower()
    assert chunks[-1][0] - chunks[0][0] > 0.15


def test_sync_client_is_shared_by_threads_and_closed_with_app(
    upstream_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[httpx.Client] = []

    class Noted(httpx.Client):
        def __init__(self, *, base_url: str) -> None:
            super().__init__(base_url=base_url)
            made.append(self)

    monkeypatch.setattr(httpx, "Client", Noted)
    with served(imported("sync_client", upstream_url)) as url:
        answers = [httpx.get(f"{url}/item", trust_env=False).json() for _ in range(3)]
        assert not made[0].is_closed
    assert answers == [{"from": "a worker thread", "name": "lamp", "price": 20}] * 3
    assert len(made) == 1
    assert made[0].is_closed


def test_sync_client_failures_of_the_upstream_are_its_errors(serve: Serve) -> None:
    caller = serve("sync_client")
    assert caller.get("/status/200").text == '"status 200\\n"'
    assert caller.get("/status/500").status_code == 502
    assert serve("sync_client", UPSTREAM_URL="http://127.0.0.1:1").get("/item").status_code == 502


# two_clients.py, plain_starlette.py


def test_two_clients_each_have_their_own_credentials(serve: Serve) -> None:
    caller = serve("two_clients")
    assert caller.get("/stock").json()["authorization"] == "Bearer stock"
    assert caller.get("/model").json()["authorization"] == "Bearer model"


def test_two_clients_have_a_pool_and_timeouts_each() -> None:
    with TestClient(imported("two_clients", "http://127.0.0.1:1")) as caller:
        stock, model = caller.app_state["stock_client"], caller.app_state["model_client"]
    assert stock is not model
    assert (stock.timeout.read, model.timeout.read) == (2, None)


def test_plain_starlette_streams_and_buffers(serve: Serve) -> None:
    caller = serve("plain_starlette")
    with caller.stream("GET", "/events?count=3") as response:
        chunks = arrivals(response)
    assert chunks[-1][0] - chunks[0][0] > 0.15, "the events came together"
    response = caller.get("/item")
    assert response.json() == {"name": "lamp", "price": 20}
    assert response.headers["x-upstream"] == "yes"


# merge.py


def test_merge_answers_from_two_upstreams(serve: Serve) -> None:
    caller = serve("merge")
    page = caller.get("/page").json()
    assert page["item"] == {"name": "lamp", "price": 20}
    assert "user-agent" in page["headers"]
    assert caller.get("/page-without-extras").json() == {"item": page["item"], "extras": False}


# own_lifespan.py


def test_own_lifespan_has_the_database_beside_the_client(serve: Serve, tmp_path: Path) -> None:
    caller = serve("own_lifespan", DATABASE=str(tmp_path / "served.db"))
    assert caller.get("/served").json() == {}
    for _ in range(2):
        assert caller.get("/text").text.startswith("one\n")
    until(lambda: bool(caller.get("/served").json() == {"/text": 2}))


def test_own_lifespan_opens_database_first_and_closes_it_last(tmp_path: Path) -> None:
    app = imported("own_lifespan", "http://127.0.0.1:1", DATABASE=str(tmp_path / "served.db"))
    with TestClient(app) as caller:
        assert list(caller.app_state) == ["database", "client"]
        database, client = caller.app_state["database"], caller.app_state["client"]
    assert client.is_closed
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database.execute("SELECT 1")


# The folder, and the documents that show code


def examples() -> list[Path]:
    paths = sorted((ROOT / "examples").glob("*.py"))
    return [path for path in paths if path.stem not in ("__init__", "demo", "demo_app")]


@pytest.mark.parametrize("path", examples(), ids=lambda path: path.stem)
def test_an_example_says_what_it_shows_and_how_to_run_it(path: Path) -> None:
    assert f"uvicorn examples.{path.stem}:app" in (
        ast.get_docstring(ast.parse(path.read_text())) or ""
    )


def test_the_list_of_examples_is_whole() -> None:
    listed = re.findall(r"^- \[`(\w+)\.py`\]", (ROOT / "docs/examples.md").read_text(), re.M)
    assert sorted(listed) == [path.stem for path in examples()]


def test_the_tutorials_code_runs_and_its_tests_pass(tmp_path: Path) -> None:
    for name, code in files("docs/tutorial.md").items():
        (tmp_path / name).write_text(code)
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(asgi_upstream.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 passed" in run.stdout
