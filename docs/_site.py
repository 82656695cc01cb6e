"""Hooks of mkdocs: what lies beside docs/ and belongs on the site.

README.md is the first page, CHANGELOG.md the last. A link to a source file leads to a page that
shows the file, so that the site needs no repository on the web.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
FROM_OUTSIDE = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
WIDE = {"comparison.md", "migrating.md", "performance.md"}  # need the room of the list of contents
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, name in FROM_OUTSIDE.items():
        files.append(_page(config, uri, (ROOT / name).read_text(), InclusionLevel.INCLUDED))
    shown: set[str] = set()
    for file in list(files.documentation_pages()):
        for link in LINK.findall(file.content_string):
            _show(_path(file.src_uri, link), files, config, shown)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]

    def link(match: re.Match[str]) -> str:
        path = _path(page.file.src_uri, match[1])
        if path.startswith("docs/"):
            target = path.removeprefix("docs/")
        else:
            target = next((u for u, name in FROM_OUTSIDE.items() if name == path), _shown(path))
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return markdown if page.file.src_uri.startswith("source/") else LINK.sub(link, markdown)


def _path(uri: str, link: str) -> str:
    """Where a link of a page leads, from the top of the repository."""
    page = FROM_OUTSIDE.get(uri, f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _shown(path: str) -> str:
    return f"source/{path}.md"


def _show(path: str, files: Files, config: MkDocsConfig, shown: set[str]) -> None:
    """Add the page of a source file; of a folder, the list of its files, and theirs."""
    source = ROOT / path
    if path.startswith("docs/") or path in (*FROM_OUTSIDE.values(), *shown) or not source.exists():
        return
    shown.add(path)
    if source.is_dir():
        names = [entry.name for entry in _sources(source)]
        text = "".join(f"- [{name}]({source.name}/{name}.md)\n" for name in names)
        for name in names:
            _show(f"{path}/{name}", files, config, shown)
    else:
        text = f"````{source.suffix[1:]}\n{source.read_text()}````\n"
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    files.append(_page(config, _shown(path), head + text, InclusionLevel.NOT_IN_NAV))


def _sources(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.suffix in (".py", ".html", ".css", ".js"):
            yield entry


def _page(config: MkDocsConfig, uri: str, text: str, inclusion: InclusionLevel) -> File:
    return File.generated(config, uri, content=text, inclusion=inclusion)
