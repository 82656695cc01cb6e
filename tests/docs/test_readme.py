"""README.md shows what `make bench` measured and what `make demo` prints."""

import html
import re
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from asgi_upstream import StreamedResponse, get_client
from asgi_upstream.testing import Upstream
from examples.demo import PARTS
from tests.benchmarks import chart
from tests.support.pages import ROOT, blocks

DEMO = ROOT / "docs/images/demo.svg"


def lines(svg: str) -> list[str]:
    """The text of a picture, a line each; empty ones are left out."""
    found: dict[int, str] = defaultdict(str)
    for number, part in re.findall(r'clip-path="url\(#demo-line-(\d+)\)">(.*?)</text>', svg):
        found[int(number)] += html.unescape(part).replace("\xa0", " ")
    return [line.rstrip() for _, line in sorted(found.items()) if line.strip()]


@pytest.fixture
def apps(upstream: Upstream) -> list[FastAPI]:
    """Those that the README makes, one after the other; the first is the idiom that leaks."""
    names: dict[str, Any] = {}
    made: list[FastAPI] = []
    for block in blocks("README.md"):
        if block.language == "python":
            exec(re.sub(r"https://(api|billing)\.example", upstream.url, block.code), names)
            if names["app"] not in made:
                made.append(names["app"])
    return made[1:]


@pytest.mark.of_httpx
@pytest.mark.no_leaks
def test_the_code_of_the_readme_runs(
    upstream: Upstream, apps: list[FastAPI], capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.get("/report").json({"total": 3})
    upstream.get("/item").json({"price": 2, "name": "lamp", "of": "many"})
    upstream.get("/events").events("a", "b")
    upstream.get("/bill").json({"due": 1})
    first, forwards, watched, several = apps
    with TestClient(first) as caller:
        assert caller.get("/report").json() == {"total": 3}
        assert caller.get("/price").json() == {"price": 2}
        assert "data: b" in caller.get("/events").text
        assert caller.get("/name").json() == "lamp"
    with TestClient(forwards) as caller:
        assert caller.get("/api/item").json() == caller.get("/orders/item").json()
    with TestClient(several) as caller:
        assert caller.get("/bill").json() == {"due": 1}
    add_route(watched)
    upstream.get("/report").close()
    with TestClient(watched) as caller:
        assert caller.get("/").status_code == 502
    assert "protocol_failed: RemoteProtocolError(" in capsys.readouterr().out


def add_route(app: FastAPI) -> None:
    """To an app that the README shows without."""

    @app.get("/")
    async def report(request: Request) -> StreamedResponse:
        client = await get_client(request)
        return StreamedResponse(client, client.build_request("GET", "/report"))


def without_figures(line: str) -> str:
    return re.sub(r"[\d.]+(?= (?:MB|ms|s)\b|\})", "…", line.strip())


def test_the_rows_and_the_chart_have_the_figures_of_the_page_of_performance() -> None:
    """`python -m tests.benchmarks.chart` writes them."""
    readme = (ROOT / "README.md").read_text().splitlines()
    assert len(chart.table()) == len(chart.ROWS)
    for row in chart.table():
        assert row in readme
    assert chart.CHART.read_text() == chart.svg()


def test_the_picture_of_the_demo_shows_each_of_its_parts() -> None:
    """`python -m tests.support.demo_picture` makes it."""
    shown = lines(DEMO.read_text())
    for title, _ in PARTS:
        assert title in shown


@pytest.mark.slow
def test_the_picture_of_the_demo_shows_each_line_that_it_prints() -> None:
    for _ in range(3):  # it measures times, which do not hold on a busy machine
        run = subprocess.run(
            [sys.executable, "-X", "utf8", "-m", "examples.demo"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf8",
            timeout=120,
        )
        if run.returncode == 0:
            break
    assert run.returncode == 0, run.stdout
    printed = [line for line in run.stdout.splitlines() if line.strip()]
    shown = lines(DEMO.read_text())
    assert shown[0] == "$ make demo"
    assert [*map(without_figures, shown[1:])] == [*map(without_figures, printed)]
