"""The report of a run, and docs/performance.md with its plot."""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.servers import ROOT

PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"
BEGIN = "<!-- begin: written by `make bench` -->"
END = "<!-- end: written by `make bench` -->"


@dataclass(frozen=True)
class Figure:
    """The median of one way in one row: seconds or bytes, and seconds of lag."""

    value: float = 0.0
    lag: float = 0.0
    failed: str = ""


Results = dict[str, dict[str, Figure]]

COLUMNS = {
    "bare": "bare",
    "bare_build_request": "bare + build_request",
    "streamed": "AsyncioTransport",
    "aiohttp": "aiohttp by hand",
    "httpx_aiohttp": "httpx-aiohttp",
    "pyreqwest": "pyreqwest",
    "httpx2": "httpx2",
    "idiom": "idiom",
    "fastapi_proxy_lib": "fastapi-proxy-lib",
    "nginx": "nginx",
    "go": "Go",
}
FORWARDING = {"streamed": "forwarded"}
"""Where a row is through `forward_request`, the way that is in the column of another."""

PACKAGES = ["httpx", "starlette", "uvicorn", "uvloop", "httptools", "aiohttp", "httpx-aiohttp"]
PACKAGES += ["pyreqwest", "httpx2", "fastapi-proxy-lib"]


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    title: str
    row: str
    unit: str
    scale: float
    digits: int = 0
    forwards: bool = False

    def way(self, column: str) -> str:
        return FORWARDING.get(column, column) if self.forwards else column

    def has(self, column: str) -> bool:
        if self.forwards:
            return column in ("bare", "streamed", "fastapi_proxy_lib")
        return column != "fastapi_proxy_lib" or not self.row.startswith("small")

    def figure(self, results: Results, column: str) -> Figure | None:
        return results.get(self.row, {}).get(self.way(column)) if self.has(column) else None

    def text(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f}"


def _small(concurrency: int) -> list[Line]:
    title, row = f"1 KB, {concurrency:,} concurrent", f"small_{concurrency}"
    return [
        Line(title, row, "us", 1e6),
        Line(f"{title}, forwarded", row, "us", 1e6, forwards=True),
    ]


LINES = [
    *_small(10),
    *_small(100),
    *_small(1000),
    Line("100 event streams of 20 a second, an event", "events", "us", 1e6),
    Line("body of 1 GB", "body", "s", 1, 2),
    Line("upload of 1 GB, forwarded", "upload", "s", 1, 2),
    Line("resident memory of one event stream of 1,000", "memory", "KB", 1 / 1024, 1),
]


def report(results: Results, missing: list[str], rounds: int, seconds: float) -> str:
    """In Markdown."""
    parts = [
        _machine(rounds, seconds),
        _table(results, missing),
        _ahead(results),
        _what_costs_what(results),
        _stock(results),
        _aims(results),
    ]
    return "\n\n".join(part for part in parts if part)


def _machine(rounds: int, seconds: float) -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0].split(":", 1)[1].strip() if names else platform.machine()
    packages = ", ".join(f"{each} {version(each)}" for each in PACKAGES if _installed(each))
    return (
        f"Medians of {rounds} rounds, in one run of {seconds / 60:.0f} minutes, on "
        f"{os.cpu_count()} cores of {name}, "
        f"{platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}; {packages}."
    )


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except ModuleNotFoundError:
        return False


def _table(results: Results, missing: list[str]) -> str:
    used = {way for row in results.values() for way in row}
    columns = [c for c in COLUMNS if c in used or (c == "streamed" and "forwarded" in used)]
    notes: list[str] = []

    def cell(line: Line, column: str) -> str:
        figure = line.figure(results, column)
        if figure is None:
            return ""
        if figure.failed:
            note = f"{COLUMNS[column]}: {figure.failed}"
            if note not in notes:
                notes.append(note)
            return f"— [{notes.index(note) + 1}]"
        bare = line.figure(results, "bare")
        text = line.text(figure.value)
        if column != "bare" and bare and not bare.failed:
            text += f" ({figure.value / bare.value:.{1 if figure.value < 20 * bare.value else 0}f})"
        return f"**{text}**" if column == "streamed" else text

    rows = [
        [f"{line.title}, {line.unit}", *(cell(line, column) for column in columns)]
        for line in LINES
        if any(line.figure(results, column) for column in columns)
    ]
    if events := results.get("events"):
        lags = {way: f"{figure.lag * 1e3:.1f}" for way, figure in events.items() if figure.lag}
        title = "lag of these events, 95th percentile, ms"
        index = next(i for i, row in enumerate(rows) if "event streams" in row[0])
        rows.insert(index + 1, [title, *(lags.get(column, "") for column in columns)])
    text = _markdown(["work", *(COLUMNS[column] for column in columns)], rows)
    text += "\n\nIn brackets: times bare."
    text += "\n" if notes else ""
    text += "".join(f"\n- [{i}] {note}." for i, note in enumerate(notes, 1))
    if missing:
        names = ", ".join(COLUMNS[way] for way in missing)
        text += f"\n\nLeft out, for it is not installed: {names}."
    return text


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ratio(results: Results, row: str, way: str, other: str) -> float | None:
    first, second = (results.get(row, {}).get(each, Figure(failed="x")) for each in (way, other))
    return None if first.failed or second.failed else first.value / second.value


def _ahead(results: Results) -> str:
    """Each figure in which a peer is better by more than 3 in 100."""
    found = [
        f"- {line.title}: {COLUMNS[column]}, at {line.text(theirs.value)} {line.unit} "
        f"to {line.text(ours.value)}."
        for line in LINES
        for column in COLUMNS
        if not column.startswith("bare")
        and column != "streamed"
        and (ours := line.figure(results, "streamed"))
        and (theirs := line.figure(results, column))
        and not (ours.failed or theirs.failed)
        and theirs.value < 0.97 * ours.value
    ]
    text = "\n".join(found) or "In none of these rows, in this run."
    return "**Where a peer is ahead of AsyncioTransport**\n\n" + text


def _what_costs_what(results: Results) -> str:
    row = {way: f.value for way, f in results.get("small_10", {}).items() if not f.failed}
    parts = [
        ("a Starlette endpoint that answers 1 KB by itself, with the server", "alone", None),
        ("no framework, but a hop to an upstream: bare", "bare", None),
        ("`client.build_request`", "bare_build_request", "bare"),
        (
            "AsyncioTransport, `StreamedResponse` and the framework",
            "streamed",
            "bare_build_request",
        ),
        ("the same with stock httpx as the transport", "stock_streamed", "bare_build_request"),
        ("`forward_request` in place of `build_request`", "forwarded", "streamed"),
        ("`BufferedResponse` in place of `StreamedResponse`", "buffered", "streamed"),
    ]
    lines = [
        [title, f"{(row[way] - (row[less] if less else 0)) * 1e6:{'+' if less else ''},.0f}"]
        for title, way, less in parts
        if way in row and (less is None or less in row)
    ]
    if not lines:
        return ""
    head = ["1 KB, 10 concurrent", "us"]
    return f"**What costs what**\n\n{_markdown(head, lines)}"


def _stock(results: Results) -> str:
    """The library on the stock transport, beside the idiom on the same."""
    titles = {"stock_streamed": "StreamedResponse", "stock_buffered": "BufferedResponse"}
    titles["stock_forwarded"] = "StreamedResponse of forward_request"
    rows = [
        [line.title, *(_times(_ratio(results, line.row, way, "idiom")) for way in titles)]
        for line in LINES
        if not line.forwards and any(way in results.get(line.row, {}) for way in titles)
    ]
    if not rows:
        return ""
    table = _markdown(["work", *titles.values()], rows)
    return f"**On stock httpx**: times the idiom's cost\n\n{table}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _aims(results: Results) -> str:
    small = [f"small_{n}" for n in (10, 100, 1000)]
    aims = [
        *((row, "streamed", "bare_build_request", 1.6) for row in small),
        *((row, "forwarded", "bare", 2.4) for row in small),
        ("events", "streamed", "bare", 1.7),
        ("body", "streamed", "bare", 1.1),
        ("upload", "streamed", "bare", 1.2),
        ("memory", "streamed", "bare", 1.7),
    ]
    rows = [
        [_title(row, way), f"{most} times {COLUMNS[to]}", _times(ratio), _met(ratio <= most)]
        for row, way, to, most in aims
        if (ratio := _ratio(results, row, way, to)) is not None
    ]
    for row, least in (("small_10", 9), ("small_100", 35)):
        if (ratio := _ratio(results, row, "idiom", "streamed")) is not None:
            aim = f"{least} times less than the idiom"
            rows.append([_title(row, "streamed"), aim, f"{ratio:.1f}", _met(ratio >= least)])
    if (figure := results.get("events", {}).get("streamed")) and not figure.failed:
        lag = f"{figure.lag * 1e3:.1f}"
        rows.append(["lag of events", "under 5 ms", lag, _met(figure.lag < 0.005)])
    if not rows:
        return ""
    return "**What was aimed at**\n\n" + _markdown(["work", "aim", "measured", ""], rows)


def _title(row: str, way: str) -> str:
    return next(
        line.title for line in LINES if line.row == row and line.forwards == (way == "forwarded")
    )


def _met(met: bool) -> str:
    return "met" if met else "missed"


def write(report: str, results: Results) -> None:
    """Replace the generated part of the page, and the plot."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    assert after, f"{PAGE.name} has lost its marks"
    PAGE.write_text(f"{before}{BEGIN}\n\n{report}\n\n{END}{after}")
    _plot(results)
    import_module("tests.benchmarks.chart").write()


def _plot(results: Results) -> None:
    matplotlib = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "performance", "svg.fonttype": "none", "font.size": 8}
    )
    figure_of = import_module("matplotlib.figure").Figure
    lines = [line for line in LINES if not line.forwards]
    figure: Any = figure_of(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(3, 3).flat
    for ax, line in zip(axes, lines, strict=False):
        _panel(ax, line, results)
    for ax in list(figure.axes)[len(lines) :]:
        ax.set_axis_off()
    figure.suptitle("What a relay costs, in times of the bare limit (logarithmic; less is better)")
    figure.savefig(PLOT, metadata={"Date": None, "Creator": None}, facecolor="white")


def _panel(ax: Any, line: Line, results: Results) -> None:
    row = results.get(line.row, {})
    bare = row["bare"].value
    names = COLUMNS | {"forwarded": "AsyncioTransport, forwarded"}
    bars = [
        (names[way], row[way].value / bare, line.text(row[way].value), way)
        for way in ("bare", "bare_build_request", "streamed", "forwarded", *list(COLUMNS)[3:])
        if way in row and not row[way].failed
    ]
    bars.reverse()
    colours = {"streamed": "#0b6e4f", "forwarded": "#0b6e4f", "bare": "#666666"}
    colours["bare_build_request"] = "#666666"
    ax.hlines(
        [name for name, *_ in bars],
        1,
        [ratio for _, ratio, _, _ in bars],
        colors=[colours.get(way, "#c9803b") for *_, way in bars],
        linewidth=2,
    )
    for name, ratio, text, way in bars:
        ax.plot(ratio, name, "o", color=colours.get(way, "#c9803b"), markersize=4)
        ax.annotate(
            f"{ratio:.{1 if ratio < 20 else 0}f} ({text} {line.unit})",
            (ratio, name),
            va="center",
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=7,
        )
    ax.set_xscale("log")
    top = max(ratio for _, ratio, _, _ in bars)
    low = min(0.9, *(0.9 * ratio for _, ratio, _, _ in bars))
    ax.set_xlim(low, top * (top / low) ** 0.6)
    ax.axvline(1, color="#666666", linewidth=0.6)
    ax.set_xticks([], minor=True)
    ticks = [t for t in (1, 2, 3, 5, 10, 30, 100, 300) if t <= top]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_title(line.title, fontsize=9, loc="left")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
