"""Imports between the modules of the package only point down the list of layers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import asgi_upstream

PACKAGE = Path(asgi_upstream.__file__).parent

LAYERS = (  # from top to bottom; a module may import its own layer and the layers below
    ("__init__", "__main__"),
    ("instrumentation", "testing"),
    ("_websockets", "_forwarding"),
    ("responses", "calls", "lifespan", "dependencies"),
    ("transport",),
    ("_exchange",),
    ("records", "errors", "_clients", "_app_state"),
    ("_httpx",),
    ("_caching", "_headers", "_hooks", "_logging", "_methods"),
)
RANKS = {name: rank for rank, names in enumerate(reversed(LAYERS)) for name in names}
APART = {"transport", "instrumentation", "testing"}  # these do not import each other


def find_imports(source: str, module: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Yield the top-level name and the line of each import from the package.

    Imports in functions and under TYPE_CHECKING count as well.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((n[1], node.lineno) for n in names if n[0] == "asgi_upstream" and n[1:])
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = list(module[: len(module) - node.level])
            elif (node.module or "").split(".")[0] == "asgi_upstream":
                base = []
            else:
                continue
            path = (node.module or "").removeprefix("asgi_upstream").strip(".")
            parts = base + (path.split(".") if path else [])
            for alias in node.names:
                yield (parts or [alias.name])[0], node.lineno


def find_violations(source: str, module: tuple[str, ...]) -> list[str]:
    own = module[0]
    violations: list[str] = []
    for name, line in find_imports(source, module):
        if name not in RANKS:
            name = "__init__"  # a public name of the package
        apart = own != name and {own, name} <= APART
        if own != "__init__" and (RANKS[name] > RANKS[own] or apart):
            violations.append(f"{'/'.join(module)}.py:{line} imports {name}")
    return violations


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_point_down(path: Path) -> None:
    module = path.relative_to(PACKAGE).with_suffix("").parts
    assert module[0] in RANKS, f"{module[0]} has no layer: add it here and to contributing.md"
    assert find_violations(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (("_httpx", "flavors"), "from .._exchange.body import DecodedBody"),
        (("_httpx", "flavors"), "from .. import errors"),
        (("_headers",), "from ._httpx import flavors"),
        (("_headers",), "from . import _clients"),
        (("errors",), "import asgi_upstream.responses"),
        (("errors",), "from asgi_upstream import StreamedResponse"),
        (("_exchange", "scope"), "def f():\n    from ..transport import _pool"),
        (("_exchange", "scope"), "if TYPE_CHECKING:\n    from ..responses import BufferedResponse"),
        (("transport", "_pool"), "from ..testing import Upstream"),
    ],
)
def test_import_upwards_is_a_violation(module: tuple[str, ...], source: str) -> None:
    assert len(find_violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (("_exchange", "scope"), "from .body import DecodedBody"),
        (("_exchange", "scope"), "from .. import errors\nfrom .._httpx import flavors"),
        (("lifespan",), "from .transport import AsyncioTransport"),
        (("_headers",), "import asyncio\nfrom collections import abc"),
    ],
)
def test_import_downwards_is_allowed(module: tuple[str, ...], source: str) -> None:
    assert find_violations(source, module) == []
