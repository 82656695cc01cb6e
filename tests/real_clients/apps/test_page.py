"""docs/reverse-proxy-apps.md says what the tests do."""

import importlib
import re

import pytest

from tests.real_clients.apps.site import Recipe
from tests.support.servers import ROOT

ROW = re.compile(r"^\| \*\*(\w+).*?\*\* \| (.*?) \| (\w+) \| (.*?) \|$", re.M)
ROWS = ROW.findall((ROOT / "docs/reverse-proxy-apps.md").read_text())
MODULES = {"JupyterLab": "jupyter"}


def test_page_marks_the_applications_that_are_tested() -> None:
    tested = {path.stem[5:] for path in (ROOT / "tests/real_clients/apps").glob("test_*.py")}
    marked = {MODULES.get(name, name.lower()) for name, *_ in ROWS}
    assert marked == tested - {"page", "ray"}


@pytest.mark.parametrize(("name", "settings", "path", "host"), ROWS, ids=[row[0] for row in ROWS])
def test_row_of_the_page_is_the_recipe(name: str, settings: str, path: str, host: str) -> None:
    module = importlib.import_module(
        f"tests.real_clients.apps.test_{MODULES.get(name, name.lower())}"
    )
    recipe: Recipe = module.RECIPE
    code = " ".join(recipe.command(1)) + getattr(module, "MANAGE", getattr(module, "APP", ""))
    assert recipe.options.get("prefix") == ("" if path == "keep" else None)
    assert recipe.options.get("preserve_host", False) == host.startswith("yes")
    told = settings.split(". With")[0].replace("/app", recipe.mount)
    for setting in re.findall(r"`(.*?)`", told):
        for word in setting.removeprefix("launch(").removesuffix(")").split():
            assert word.replace("https://host", "http://apps.example") in code
