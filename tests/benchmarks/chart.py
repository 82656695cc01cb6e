"""The chart of README.md, from the figures of docs/performance.md."""

from html import escape

from .page import PAGE, PLOT

CHART = PLOT.parent / "images" / "cost.svg"
ROWS = {  # of that page, as the chart calls them
    "1 KB, 10 concurrent, us": "1 KB, 10 at a time",
    "100 event streams of 20 a second, an event, us": "an event, of 100 streams",
    "body of 1 GB, s": "a body of 1 GB",
}
WAYS = {
    "bare": "the least possible",
    "AsyncioTransport": "AsyncioTransport",
    "aiohttp by hand": "aiohttp by hand",
    "idiom": "httpx by hand",
}

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.h { font-weight: 600 } .s { fill: #57606a }
.ground { fill: #f6f8fa } .ours { fill: #00897b } .theirs { fill: #c9803b } .least { fill: #8c959f }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ef } .s { fill: #b4bcc8 }
  .ground { fill: #1f242d }
  .ours { fill: #4db6ac } .theirs { fill: #d99a5b } .least { fill: #7d8590 }
}
"""
WIDTH, LINE, NAMES, BARS = 480, 20, 200, 180


def figures() -> dict[str, dict[str, str]]:
    """The cells of the page, such as "113 us", by row and by way."""
    table = [
        [cell.strip(" *") for cell in line.strip("|").split(" | ")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    start = next(at for at, row in enumerate(table) if row[:2] == ["work", "bare"])
    ways = table[start]
    found: dict[str, dict[str, str]] = {}
    for row in table[start + 1 :]:
        if row[0] in ROWS and row[0] not in found:
            unit = row[0].rsplit(" ", 1)[1]
            cells = zip(ways, row, strict=True)
            found[row[0]] = {
                way: f"{cell.partition(' ')[0].strip('*')} {unit}" for way, cell in cells
            }
    return found


def svg() -> str:
    parts: list[str] = []
    y = 30
    parts.append(f'<text class="h" x="16" y="{y}">Processor time of a relay: less is better</text>')
    for row, cells in figures().items():
        y += 34
        parts.append(f'<text class="s" x="16" y="{y}">{escape(ROWS[row])}</text>')
        most = max(_number(cells[way]) for way in WAYS)
        for way, name in WAYS.items():
            y += LINE
            kind = {"bare": "least", "AsyncioTransport": "ours"}.get(way, "theirs")
            width = BARS * _number(cells[way]) / most
            bar = f'x="{NAMES}" y="{y - 11}" width="{width:.1f}" height="13" rx="2"'
            parts += [
                f'<text x="{NAMES - 8}" y="{y}" text-anchor="end">{escape(name)}</text>',
                f'<rect class="{kind}" {bar}/>',
                f'<text x="{NAMES + width + 6:.1f}" y="{y}">{cells[way]}</text>',
            ]
    height = y + 20
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">',
            "<title>Processor time of a relay</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>',
            *parts,
            "</svg>\n",
        )
    )


def _number(cell: str) -> float:
    return float(cell.split(" ")[0].replace(",", ""))


def write() -> None:
    CHART.write_text(svg())


if __name__ == "__main__":
    write()
