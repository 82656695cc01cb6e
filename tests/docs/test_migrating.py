"""docs/migrating.md: what is there before, and after, answers alike where all is well."""

import asyncio
import ssl
from unittest.mock import Mock

import httpx
import pytest

from tests.support.go import SOURCE
from tests.support.nginx import PROXY
from tests.support.page_apps import Serve
from tests.support.pages import UPSTREAM, blocks, files
from tests.support.servers import ask
from tests.support.upstream import Upstream

CODE = files("docs/migrating.md")
WAYS = sorted({name.rsplit("_", 1)[0] for name in CODE if "_" in name})


@pytest.mark.parametrize(
    "name", [f"{way}_{side}.py" for way in WAYS for side in ("before", "after")]
)
def test_each_app_of_the_page_relays(serve_page: Serve, upstream: Upstream, name: str) -> None:
    answer = ask(serve_page(CODE[name]), "/api/item", fields="x-mine: 1\r\n")
    assert answer.status == 200
    assert answer.body.strip(b'"') == b"x" * 1024
    assert "x-mine" not in upstream.requests[-1].headers


def test_nginx_and_go_lines_are_those_of_the_comparison(
    serve_page: Serve, upstream: Upstream
) -> None:
    """Those are the lines that docs/comparison.md is measured by."""
    parts = {block.language: block.code.strip() for block in blocks("docs/migrating.md")}
    config = PROXY.format(port=0, upstream=UPSTREAM)
    assert parts["nginx"] in config
    program = SOURCE.read_text().replace("os.Args[2]", f'"{UPSTREAM}"')
    for line in parts["go"].splitlines():
        assert line in program
    answer = ask(serve_page(CODE["forward.py"]), "/api/item", fields="x-mine: 1\r\n")
    assert (answer.status, answer.body) == (200, b"x" * 1024)
    assert upstream.requests[-1].headers["x-mine"] == "1"


def test_an_app_with_a_lifespan_runs_no_on_event_handlers(serve_page: Serve) -> None:
    before = CODE["on_event_before.py"]
    lifespan = "\n\nasync def lifespan(app):\n    yield\n\n\napp = FastAPI(lifespan=lifespan)"
    with_lifespan = before.replace("\n\napp = FastAPI()", lifespan).replace(
        "async def lifespan", "@contextlib.asynccontextmanager\nasync def lifespan"
    )
    server = serve_page("import contextlib\n" + with_lifespan)
    assert ask(server, "/api/item").status == 500
    assert "has no attribute 'client'" in server.log()


def test_client_per_request_connects_and_loads_certificates(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Mock(side_effect=ssl.create_default_context)
    monkeypatch.setattr(ssl, "create_default_context", loaded)

    async def by_each() -> None:
        for _ in range(3):
            async with httpx.AsyncClient() as client:
                await client.get(f"{upstream.url}/item")

    async def by_shared() -> None:
        async with httpx.AsyncClient() as client:
            for _ in range(3):
                await client.get(f"{upstream.url}/item")

    costs = []
    for calls in (by_each, by_shared):
        loaded.reset_mock()
        before = upstream.total_connections
        asyncio.run(calls())
        costs.append((loaded.call_count, upstream.total_connections - before))
    assert costs == [(3, 3), (1, 1)]


def test_each_way_has_both_sides() -> None:
    sides = {f"{way}_{side}.py" for way in WAYS for side in ("before", "after")}
    assert sides | {"forward.py"} == set(CODE)
