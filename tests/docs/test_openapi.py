"""FastAPI's OpenAPI schema of each example, and of the catch-all routes that pages show."""

import importlib
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.pages import blocks, pages

ROOT = Path(__file__).parents[2]
CATCH_ALL = re.compile(r"^@\w+\.(?:api_route|route)\(.*?\)$", re.M | re.S)


def example_apps() -> list[str]:
    """Return the modules of examples that have a FastAPI app."""
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "examples").rglob("*.py")
        if re.search(r"^app = FastAPI\(", path.read_text(), re.M)
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", example_apps())
def test_openapi_of_example_has_no_duplicates(name: str) -> None:
    app = importlib.import_module(name).app
    assert isinstance(app, FastAPI)
    app.openapi_schema = None  # which an earlier test may have made
    paths = TestClient(app).get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))


def test_catch_all_routes_of_pages_are_not_in_the_schema() -> None:
    routes = [
        (page, route)
        for page in pages()
        for block in blocks(page)
        if block.language == "python"
        for route in CATCH_ALL.findall(block.code)
    ]
    assert len(routes) > 3
    assert [route for route in routes if "include_in_schema=False" not in route[1]] == []
