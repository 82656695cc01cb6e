"""The chart of README.md and docs/performance.md, from the table of that page."""

from html import escape

from tests.support.servers import ROOT

from .page import PAGE

CHART = ROOT / "docs" / "images" / "cost.svg"
ROWS = {  # of the table, and their names in the chart
    "1 KB, 10 at a time": "a body of 1 KB",
    "an event, of 100 streams": "a server-sent event",
    "body of 1 GB": "a body of 1 GB",
}
WAYS = {
    "bare": "bare minimum",
    "asgi-upstream": "asgi-upstream",
    "aiohttp": "aiohttp by hand",
    "httpx": "httpx by hand",
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


def figures() -> dict[str, dict[str, float]]:
    """Return the ratios to the bare relay, by row and column."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    table = [[cell.strip(" *") for cell in line[1:-1].split("|")] for line in lines]
    start = next(index for index, row in enumerate(table) if row[:2] == ["work", "bare"])
    names = table[start][1:]
    found: dict[str, dict[str, float]] = {}
    for title, *cells in table[start + 1 :]:
        if title in ROWS:
            found[title] = {name: _ratio(cell) for name, cell in zip(names, cells, strict=True)}
    return found


def _ratio(cell: str) -> float:
    """Return the number of a cell. The bare relay's has a unit."""
    return float(cell) if cell.replace(".", "").isdigit() else 1.0


def svg() -> str:
    parts: list[str] = []
    y = 30
    title = "Processor time of a relay (bare minimum = 1)"
    parts.append(f'<text class="h" x="16" y="{y}">{title}</text>')
    for row, ratios in figures().items():
        y += 34
        parts.append(f'<text class="s" x="16" y="{y}">{escape(ROWS[row])}</text>')
        largest = max(ratios[way] for way in WAYS)
        for way, name in WAYS.items():
            y += LINE
            kind = {"bare": "least", "asgi-upstream": "ours"}.get(way, "theirs")
            width = BARS * ratios[way] / largest
            bar = f'x="{NAMES}" y="{y - 11}" width="{width:.1f}" height="13" rx="2"'
            digits = 0 if ratios[way] >= 10 else 1
            parts += [
                f'<text x="{NAMES - 8}" y="{y}" text-anchor="end">{escape(name)}</text>',
                f'<rect class="{kind}" {bar}/>',
                f'<text x="{NAMES + width + 6:.1f}" y="{y}">{ratios[way]:.{digits}f}</text>',
            ]
    height = y + 20
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>',
            *parts,
            "</svg>\n",
        )
    )


def write() -> None:
    CHART.write_text(svg())


if __name__ == "__main__":
    write()
