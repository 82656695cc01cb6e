"""docs/reverse-proxy-apps.md says what the tests do."""

import importlib
import re

import pytest

from tests.real_clients.apps.site import Recipe
from tests.support.servers import ROOT

LINE = re.compile(r"^- \*\*(\w+).*?\*\*: (.*)$", re.M)
GROUP = re.compile(r"^## `ReverseProxy\((.*?)\)`$(.*?)(?=^#|\Z)", re.M | re.S)
LINES = [
    (name, settings, options)
    for options, text in GROUP.findall((ROOT / "docs/reverse-proxy-apps.md").read_text())
    for name, settings in LINE.findall(text)
]
MODULES = {"JupyterLab": "jupyter"}


def test_page_marks_the_applications_that_are_tested() -> None:
    tested = {path.stem[5:] for path in (ROOT / "tests/real_clients/apps").glob("test_*.py")}
    marked = {MODULES.get(name, name.lower()) for name, *_ in LINES}
    assert marked == tested - {"page", "ray"}


@pytest.mark.parametrize(("name", "settings", "options"), LINES, ids=[line[0] for line in LINES])
def test_line_of_the_page_is_the_recipe(name: str, settings: str, options: str) -> None:
    module = importlib.import_module(
        f"tests.real_clients.apps.test_{MODULES.get(name, name.lower())}"
    )
    recipe: Recipe = module.RECIPE
    code = " ".join(recipe.command(1)) + getattr(module, "MANAGE", getattr(module, "APP", ""))
    assert recipe.options == eval(f"dict({options})")
    told = settings.split(". With")[0].replace("/app", recipe.mount)
    for setting in re.findall(r"`(.*?)`", told):
        for word in setting.removeprefix("launch(").removesuffix(")").split():
            assert word.replace("https://host", "http://apps.example") in code
