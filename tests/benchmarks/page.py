"""The report of a run, and the table of docs/performance.md."""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from tests.support.servers import ROOT

PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- begin: written by `make bench` -->"
END = "<!-- end: written by `make bench` -->"


@dataclass(frozen=True)
class Figure:
    """The medians of one way in one row: seconds or bytes."""

    value: float = 0.0
    second: float = 0.0
    failed: str = ""


Results = dict[str, dict[str, Figure]]

COLUMNS = {
    "bare": "bare",
    "streamed": "asgi-upstream",
    "stock_streamed": "on httpx's transport",
    "aiohttp": "aiohttp",
    "httpx_aiohttp": "httpx-aiohttp",
    "pyreqwest": "pyreqwest",
    "httpx2": "httpx2",
    "idiom": "httpx",
    "fastapi_proxy_lib": "fastapi-proxy-lib",
    "bare_build_request": "bare + build_request",
    "nginx": "nginx",
    "go": "Go",
}
OURS = ("streamed", "stock_streamed")
PAGE_COLUMNS = list(COLUMNS)[:9]

PACKAGES = ["httpx", "starlette", "fastapi", "uvicorn", "uvloop", "aiohttp", "httpx-aiohttp"]
PACKAGES += ["pyreqwest", "httpx2", "fastapi-proxy-lib"]


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        ways: The ways in the columns of others, if the request is forwarded.
        is_second: Whether it shows the second figure.
    """

    title: str
    row: str
    unit: str
    scale: float
    digits: int = 0
    ways: tuple[tuple[str, str], ...] = ()
    is_second: bool = False

    def figure(self, results: Results, column: str) -> Figure | None:
        forwards_whole = ("bare", "fastapi_proxy_lib", *(each for each, _ in self.ways))
        if self.ways and column not in forwards_whole:
            return None
        if column == "fastapi_proxy_lib" and self.row.startswith("small") and not self.ways:
            return None
        figure = results.get(self.row, {}).get(dict(self.ways).get(column, column))
        if figure is None or figure.failed or not self.is_second:
            return figure
        return Figure(figure.second)

    def text(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f} {self.unit}"


FORWARDED = (("streamed", "forwarded"), ("stock_streamed", "stock_forwarded"))
MOUNTED = (("streamed", "mounted"),)
LINES = [
    Line("1 KB, 10 at a time", "small_10", "us", 1e6),
    Line("… forwarded", "small_10", "us", 1e6, ways=FORWARDED),
    Line("… through a mounted `ReverseProxy`", "small_10", "us", 1e6, ways=MOUNTED),
    Line("… in FastAPI, client by `Depends`", "fastapi_10", "us", 1e6),
    Line("… https", "https_10", "us", 1e6),
    Line("1 KB, 100 at a time", "small_100", "us", 1e6),
    Line("… forwarded", "small_100", "us", 1e6, ways=FORWARDED),
    Line("… https", "https_100", "us", 1e6),
    Line("1 KB, 1,000 at a time", "small_1000", "us", 1e6),
    Line("an event, of 100 streams", "events", "us", 1e6),
    Line("… https", "events_https", "us", 1e6),
    Line("body of 1 GB", "body", "s", 1, 2),
    Line("… https", "body_https", "s", 1, 2),
    Line("upload of 1 GB", "upload", "s", 1, 2),
    Line("memory of an open stream", "memory", "KB", 1 / 1024, 1),
    Line("latency at 500 requests a second, median", "latency", "ms", 1e3, 2),
    Line("… 99th percentile", "latency", "ms", 1e3, 2, is_second=True),
    Line("start of an app", "idle", "s", 1, 2),
    Line("memory of an idle app", "idle", "MB", 1 / 1024**2, 1, is_second=True),
]


def report(results: Results, missing: list[str], rounds: int, seconds: float) -> str:
    """Return it in Markdown."""
    parts = [_table(results, missing), _ahead(results), _machine(rounds, seconds)]
    return "\n\n".join(part for part in parts if part)


def _machine(rounds: int, seconds: float) -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0].split(":", 1)[1].strip() if names else platform.machine()
    packages = ", ".join(f"{each} {version(each)}" for each in PACKAGES if _installed(each))
    return (
        f"Medians of {rounds} rounds in {seconds / 60:.0f} minutes, on {os.cpu_count()} cores of "
        f"{name}, {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, {packages}."
    )


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except ModuleNotFoundError:
        return False


def _table(results: Results, missing: list[str]) -> str:
    """Return the ratios to the bare relay, and the time or size of that."""
    used = {way for row in results.values() for way in row}
    is_whole = {"idle", "small_10"} <= results.keys()
    columns = [c for c in COLUMNS if c in used and (c in PAGE_COLUMNS or not is_whole)]
    if "streamed" not in columns and used & {"forwarded", "mounted"}:
        columns.append("streamed")
    notes: list[str] = []

    def cell(line: Line, column: str) -> str:
        figure = line.figure(results, column)
        if figure is None:
            return ""
        if figure.failed:
            note = f"{COLUMNS[column]}: {figure.failed}"
            if note not in notes:
                notes.append(note)
            return f"[{notes.index(note) + 1}]"
        bare = line.figure(results, "bare")
        if column == "bare" or bare is None or bare.failed or not bare.value:
            return line.text(figure.value)
        ratio = figure.value / bare.value
        text = f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"
        return f"**{text}**" if column == "streamed" else text

    rows = [
        [line.title, *(cell(line, column) for column in columns)]
        for line in LINES
        if any(line.figure(results, column) for column in columns)
    ]
    text = _markdown(["work", *(COLUMNS[column] for column in columns)], rows)
    text += "\n" if notes else ""
    text += "".join(f"\n- [{i}] {note}." for i, note in enumerate(notes, 1))
    if missing:
        names = ", ".join(COLUMNS[way] for way in missing)
        text += f"\n\nNot installed: {names}."
    return text


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "|".join(line) + "|" for line in lines)


def _ahead(results: Results) -> str:
    """Return each figure in which a peer is better by more than 3 %."""
    found: dict[str, list[str]] = {}
    for line in LINES:
        ours = line.figure(results, "streamed")
        for column in PAGE_COLUMNS:
            theirs = line.figure(results, column)
            if column == "bare" or column in OURS or ours is None or theirs is None:
                continue
            if not (ours.failed or theirs.failed) and theirs.value < 0.97 * ours.value:
                title = _full_title(line)
                found.setdefault(title, []).append(COLUMNS[column])
    if not found:
        return "No peer is ahead in any row."
    rows = "; ".join(f"{title} ({', '.join(names)})" for title, names in found.items())
    return f"A peer is ahead here: {rows}."


def _full_title(line: Line) -> str:
    """Return the title with the one that "…" stands for."""
    before = LINES[: LINES.index(line) + 1]
    main = next(each.title for each in reversed(before) if not each.title.startswith("…"))
    return line.title.replace("…", f"{main},") if line.title.startswith("…") else main


def write(report: str) -> None:
    """Replace the generated part of the page, and the chart."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    assert after, f"{PAGE.name} has lost its marks"
    PAGE.write_text(f"{before}{BEGIN}\n\n{report}\n\n{END}{after}")
    import_module("tests.benchmarks.chart").write()
