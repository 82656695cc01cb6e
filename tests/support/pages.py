"""The code of README.md and of the pages in docs/."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
UPSTREAM = "http://127.0.0.1:9000"  # where the pages' upstream is
# A comment is code that a reader takes for granted, such as imports shown further up.
_FENCE = re.compile(r"^( *)(?:```|<!-- )(\w+)[^\n]*\n(.*?)^\1(?:```|-->)$", re.M | re.S)
_NAME = re.compile(r"# ([\w.]+\.\w+)(?:, continued)?\n")


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of the first line of code
    language: str
    code: str

    @property
    def name(self) -> str | None:
        """The file that the first line names."""
        return match[1] if (match := _NAME.match(self.code)) else None


def pages() -> list[str]:
    return ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(page, text[: m.start()].count("\n") + 2, m[2], re.sub(rf"(?m)^{m[1]}", "", m[3]))
        for m in _FENCE.finditer(text)
    ]


def files(page: str) -> dict[str, str]:
    """The blocks that are files, by their names. A block may continue a file."""
    found: dict[str, str] = {}
    for block in blocks(page):
        if block.name:
            found[block.name] = found.get(block.name, "") + block.code
    return found


def run_page(page: str, **urls: str) -> dict[str, Any]:
    """Run the Python of a page, except quotations of examples, and return the names it defines.

    Arguments:
        page: The page, such as "docs/uploads.md".
        urls: The addresses of upstreams, by the port that they have on the page: `p9000=`.
    """
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and "AsyncIterator[bytes]" not in block.code:
            code = block.code
            for port, url in urls.items():
                code = code.replace(f"http://127.0.0.1:{port[1:]}", url)
            exec(code, names)
    return names


def headings(path: Path) -> list[str]:
    """The anchors of a page, as GitHub makes them."""
    texts = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts]
