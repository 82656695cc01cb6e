"""The pages of docs/compositions: their code is the examples'."""

import re
from pathlib import Path

import pytest

from tests.support.servers import ROOT

PAGES = sorted((ROOT / "docs/compositions").glob("*.md"))


def example_of(page: Path) -> Path:
    return ROOT / "examples/compositions" / f"{page.stem.replace('-', '_')}.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_on_a_page_is_the_examples(page: Path) -> None:
    example = example_of(page).read_text()
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        assert block.strip("\n") in example
    assert f"uvicorn examples.compositions.{example_of(page).stem}:app" in example


def test_each_example_has_its_page_and_is_in_the_list_of_examples() -> None:
    examples = set((ROOT / "examples/compositions").glob("*.py"))
    assert {example_of(page) for page in PAGES} == examples - {example_of(Path("network"))}
    listed = re.findall(
        r"^\| \[`compositions/(\w+)\.py`\]", (ROOT / "docs/examples.md").read_text(), re.M
    )
    assert sorted(listed) == sorted(example_of(page).stem for page in PAGES)
