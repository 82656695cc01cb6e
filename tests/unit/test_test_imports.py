"""Test modules are not libraries: what several of them need is in tests/support."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def walk_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield each statement in a module. Expressions, where no import can be, take long."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, name, ()):
            yield statement
            yield from walk_statements(statement)


def find_imports(source: str, package: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the parts of each name imported from `tests`, without `tests`, and its line."""
    for node in walk_statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(("tests", *package)[: 1 + len(package) - node.level + 1])
            start = ".".join(filter(None, [base if node.level else "", node.module]))
            names = [(f"{start}.{alias.name}", node.lineno) for alias in node.names]
        else:
            continue
        yield from ((tuple(n.split(".")[1:]), line) for n, line in names if n.startswith("tests."))


def find_violations(source: str, package: tuple[str, ...]) -> list[str]:
    violations = []
    for parts, line in find_imports(source, package):
        folders = [name for name in parts[:1] if (TESTS / name).is_dir()]
        if any(name.startswith("test_") or name == "conftest" for name in parts):
            violations.append(f"line {line} imports a module of tests or fixtures")
        elif any(name not in ("support", *package[:1]) for name in folders):
            violations.append(f"line {line} imports from another folder of tests")
    return violations


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=str)
def test_modules_share_only_what_is_in_support(path: Path) -> None:
    assert find_violations(path.read_text(), path.relative_to(TESTS).parts[:-1]) == []


@pytest.mark.parametrize(
    "source",
    [
        "from tests.unit.test_errors import REQUEST",
        "from tests.unit import test_errors",
        "from tests.unit.conftest import upstream",
        "import tests.soak.callers",
        "def test_it():\n    from tests.soak import callers",
        "try:\n    pass\nexcept OSError:\n    import tests.soak.callers",
        "match 1:\n    case 1:\n        import tests.soak.callers",
        "for _ in ():\n    pass\nelse:\n    with a:\n        import tests.soak.callers",
        "from .test_errors import REQUEST",
        "from ..soak import callers",
    ],
)
def test_import_of_tests_is_a_violation(source: str) -> None:
    assert len(find_violations(source, ("unit",))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from tests.support.flavor import ON_HTTPX2",
        "from tests.support.asgi import Caller",
        "from tests.unit.testing.leaky import make_app",
        "from .testing import leaky",
        "import testsuite.unit",
    ],
)
def test_import_of_helpers_is_allowed(source: str) -> None:
    assert find_violations(source, ("unit",)) == []
