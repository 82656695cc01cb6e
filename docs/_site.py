"""Build or serve the site of the docs: `python docs/_site.py build` or `serve`.

zensical reads one folder. So this makes the folder .site: docs/, README.md as the first page,
CHANGELOG.md as the last, and a page for each source file that another page links to. Such a link
leads to that page, so the site needs no repository on the web.
"""

import argparse
import posixpath
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FROM_OUTSIDE = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
WIDE = {"comparison.md", "performance.md"}  # need the room of the list of contents
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def make_folder(folder: Path) -> None:
    """Write the configuration, the pages and their pictures."""
    config = (ROOT / "mkdocs.yml").read_text().replace("paths: [src]", f"paths: [{ROOT}/src]")
    _write(folder / "mkdocs.yml", config)
    shown: set[str] = set()
    for path in _pages_and_assets():
        uri = path.relative_to(ROOT / "docs").as_posix()
        if path.suffix == ".md":
            head = "---\nhide: [toc]\n---\n\n" if uri in WIDE else ""
            _write(folder / "docs" / uri, head + _relink(uri, path.read_text(), folder, shown))
        else:
            target = folder / "docs" / uri
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    for uri, name in FROM_OUTSIDE.items():
        text = (ROOT / name).read_text()
        _write(folder / "docs" / uri, _relink(uri, text, folder, shown))


def _pages_and_assets() -> Iterator[Path]:
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file() and not re.match(r"[._]", path.name) and "__pycache__" not in path.parts:
            yield path


def _write(path: Path, text: str) -> None:
    """Write a file if that changes it, so that a running server does not reload for nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _relink(uri: str, markdown: str, folder: Path, shown: set[str]) -> str:
    def relink(match: re.Match[str]) -> str:
        page = FROM_OUTSIDE.get(uri, f"docs/{uri}")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[1]))
        if path.startswith("docs/"):
            target = path.removeprefix("docs/")
        else:
            target = next((u for u, name in FROM_OUTSIDE.items() if name == path), "")
        if not target:
            _show_source(path, folder, shown)
            target = f"source/{path}.md"
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return LINK.sub(relink, markdown)


def _show_source(path: str, folder: Path, shown: set[str]) -> None:
    """Write the page of a source file, or of a folder with its files."""
    source = ROOT / path
    if path in shown or not source.exists():  # then the strict build reports the link
        return
    shown.add(path)
    if source.is_dir():
        suffixes = (".py", ".html", ".css", ".js")
        names = [entry.name for entry in sorted(source.iterdir()) if entry.suffix in suffixes]
        text = "".join(f"- [{name}]({source.name}/{name}.md)\n" for name in names)
        for name in names:
            _show_source(f"{path}/{name}", folder, shown)
    else:
        text = f"````{source.suffix[1:]}\n{source.read_text()}````\n"
    head = "---\nsearch: {exclude: true}\nhide: [navigation]\n---\n\n"
    _write(folder / f"docs/source/{path}.md", f"{head}# {path}\n\n{text}")


def build(folder: Path, site: Path) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if run.returncode:
        print(run.stdout, run.stderr, file=sys.stderr)
        return run.returncode
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(folder / "site", site)
    return 0


def serve(folder: Path, address: str) -> int:
    make_folder(folder)
    command = [sys.executable, "-m", "zensical", "serve", "--dev-addr", address]
    with subprocess.Popen(command, cwd=folder) as server:
        try:
            while server.poll() is None:
                time.sleep(1)
                make_folder(folder)
        except KeyboardInterrupt:
            server.terminate()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["build", "serve"])
    parser.add_argument("--folder", type=Path, default=ROOT / ".site", help="for the sources")
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="for the site")
    parser.add_argument("--address", default="127.0.0.1:8080")
    options = parser.parse_args()
    if options.command == "build":
        sys.exit(build(options.folder, options.site))
    sys.exit(serve(options.folder, options.address))
