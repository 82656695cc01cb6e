"""README.md shows what `make bench` measured and what `make demo` prints."""

import html
import re
import subprocess
import sys
from collections import defaultdict

import pytest

from examples.demo import PARTS
from tests.benchmarks import chart
from tests.pages import ROOT

DEMO = ROOT / "docs/images/demo.svg"


def lines(svg: str) -> list[str]:
    """The text of a picture, a line each; empty ones are left out."""
    found: dict[int, str] = defaultdict(str)
    for number, part in re.findall(r'clip-path="url\(#demo-line-(\d+)\)">(.*?)</text>', svg):
        found[int(number)] += html.unescape(part).replace("\xa0", " ")
    return [line.rstrip() for _, line in sorted(found.items()) if line.strip()]


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
    """`python -m tests.demo_picture` makes it."""
    shown = lines(DEMO.read_text())
    for title, _ in PARTS:
        assert title in shown


@pytest.mark.slow
def test_the_picture_of_the_demo_shows_each_line_that_it_prints() -> None:
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-m", "examples.demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf8",
        timeout=120,
    )
    assert run.returncode == 0, run.stdout
    printed = [line for line in run.stdout.splitlines() if line.strip()]
    shown = lines(DEMO.read_text())
    assert shown[0] == "$ make demo"
    assert [*map(without_figures, shown[1:])] == [*map(without_figures, printed)]
