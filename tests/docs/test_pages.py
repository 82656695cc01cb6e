"""README.md and docs/: the Python is right, links lead somewhere, the map is whole."""

import ast
import inspect
import itertools
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from functools import cache
from pathlib import Path

import pytest

import asgi_upstream
from asgi_upstream import (
    ReverseProxy,
    StreamedResponse,
    client_dependency,
    client_lifespan,
    fetch,
    testing,
    transport,
)
from tests.support.pages import ROOT, Block, blocks, files, headings, pages

PAGES = pages()
PUBLIC = [*asgi_upstream.__all__, "relay_websocket"]  # which is imported when it is first used
SOURCE = ROOT / "src/asgi_upstream"


@cache
def _examples() -> str:
    """All of examples/, without indentation."""
    texts = (path.read_text() for path in sorted((ROOT / "examples").rglob("*.py")))
    return "\n".join(map(_flat, texts))


def _flat(code: str) -> str:
    return "\n".join(map(str.strip, code.splitlines()))


def is_quoted(block: Block) -> bool:
    """Whether it is parts of an example, which are type-checked and tested where they are."""
    parts = re.split(r"(?m)^\.\.\.$", _flat(block.code))
    return all(part.strip() in _examples() for part in parts)


def python(page: str) -> list[Block]:
    return [b for b in blocks(page) if b.language == "python" and not is_quoted(b)]


@pytest.mark.parametrize("page", PAGES)
def test_each_block_of_python_can_be_parsed(page: str) -> None:
    for block in blocks(page):
        if block.language == "python":
            code = block.code if not is_quoted(block) else textwrap.dedent(block.code)
            try:
                ast.parse(code)
            except SyntaxError as exc:
                pytest.fail(f"{page}:{block.line + (exc.lineno or 1) - 1}: {exc.msg}")


@pytest.mark.slow  # `make check` runs it
def test_the_code_of_each_page_type_checks(tmp_path: Path) -> None:
    """Blocks that are files by themselves, all others of a page together, in their order."""
    for page in PAGES:
        folder = tmp_path / re.sub(r"\W", "_", page)
        folder.mkdir()
        modules = "|".join(Path(name).stem for name in files(page)) or "-"
        rest = ""
        for block in python(page):
            if block.name:
                sibling = rf"(?m)^import ({modules})\b"
                with (folder / block.name).open("a") as file:
                    file.write(re.sub(sibling, r"from . import \1", block.code))
            else:  # on the line that it has in the page
                rest += "\n" * (block.line - 1 - rest.count("\n")) + block.code
        (folder / "page.py").write_text(rest)
        (folder / "__init__.py").write_text("")
    options = ["--check-untyped-defs", "--allow-redefinition", "--disable-error-code=no-redef"]
    options += ["--ignore-missing-imports", "--explicit-package-bases", "--config-file="]
    options += ["--disable-error-code=import-untyped", f"--cache-dir={ROOT}/.mypy_cache/docs"]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "."],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": f"{ROOT}/src{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("page", PAGES)
def test_each_command_names_what_is_there(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for block in blocks(page):
        if block.language in ("sh", "console"):
            for target in re.findall(r"^make ([a-z-]+)", block.code, re.M):
                assert target in targets
            for module in re.findall(r"^uvicorn (examples[\w.]+):app", block.code, re.M):
                path = ROOT / module.replace(".", "/")
                assert path.with_suffix(".py").exists() or path.is_dir()


def test_only_the_readme_installs_the_package() -> None:
    """So that one place changes when the package is published, or when an extra is added."""
    own = re.compile(r"pip install [^\n`]*(asgi-upstream|(?<=[ '\"])\.(?=[\s\[]))")
    assert [page for page in PAGES if own.search((ROOT / page).read_text())] == ["README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_to_a_file_that_is_there(page: str) -> None:
    """And to a heading, by the name that GitHub gives it; the site's build checks its own."""
    text = re.sub(r"^( *)```.*?^\1```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:|mailto:", link):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in headings(target), link


@pytest.mark.slow  # `make check` runs it
def test_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ["--folder", str(tmp_path / "s"), "--site", str(site)]
    command = [sys.executable, "docs/_site.py", "build", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="https?:[^"]*"', path.read_text()
        )
        assert [tag for tag in loaded if 'rel="canonical"' not in tag] == []
    assert not [*site.rglob("__pycache__"), *site.rglob("_site.py")]


def test_each_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"(?m)^ +- [^#\n]+: (\S+\.md)$", nav)
    shown = ["index.md" if page == "README.md" else page.removeprefix("docs/") for page in PAGES]
    assert sorted(listed) == sorted([*shown, "changelog.md"])


def test_the_api_details_have_each_public_name() -> None:
    text = (ROOT / "docs/api.md").read_text()
    shown = re.findall(r"^::: asgi_upstream\.([\w.]+)$", text, re.M)
    public = ["_websockets.relay.relay_websocket" if n == "relay_websocket" else n for n in PUBLIC]
    assert sorted(name for name in shown if not name.startswith("instrumentation.")) == sorted(
        [
            *public,
            *(f"transport.{name}" for name in transport.__all__),
            *(f"testing.{name}" for name in testing.__all__),
        ]
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_has_each_public_name(name: str) -> None:
    assert re.search(
        rf"`(await |with |async with )?{name}\b", (ROOT / "docs/reference.md").read_text()
    )


def test_the_reference_has_each_option() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    for function in (StreamedResponse, ReverseProxy, client_lifespan, client_dependency, fetch):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in ("client", "request", "options"):
                assert re.search(rf"\b{parameter.name}\b", text), parameter.name


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first = re.search(r"(?m)^## (.+)$", (ROOT / "CHANGELOG.md").read_text())
    assert first is not None
    assert first[1].split(" - ")[0] in (version, "Unreleased")


def test_compatibility_has_the_lowest_versions_that_are_declared() -> None:
    table = (ROOT / "docs/compatibility.md").read_text().partition("## ")[0].lower()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *itertools.chain(*extras.values())]:
        name, version = re.fullmatch(r"([\w-]+)>=([\w.]+).*", requirement).groups()  # type: ignore[union-attr]
        row = next(line for line in table.splitlines() if name in line)
        assert f" {version} " in re.sub(r"[,|]", " ", row), requirement
    assert f"| python | {project['requires-python'].removeprefix('>=')} to" in table
