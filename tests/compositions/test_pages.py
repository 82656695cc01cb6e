"""The pages of the compositions: their code is the examples'."""

import re
from pathlib import Path

import pytest

from tests.support.servers import ROOT

PAGES = [*sorted((ROOT / "docs/compositions").glob("*.md")), ROOT / "docs/events.md"]


def example_of(page: Path) -> Path:
    return ROOT / "examples/compositions" / f"{page.stem.replace('-', '_')}.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_after_link_to_example_is_from_the_example(page: Path) -> None:
    example = example_of(page).read_text()
    text = page.read_text().partition(f"({'../' * len(page.relative_to(ROOT).parts[1:])}examples/")[
        2
    ]
    quoted = re.findall(r"```python\n(.*?)```", text, re.S)
    assert quoted
    for block in quoted:
        assert block.strip("\n") in example
    assert f"uvicorn examples.compositions.{example_of(page).stem}:app" in example


def test_each_example_has_its_page_and_is_listed() -> None:
    examples = set((ROOT / "examples/compositions").glob("*.py"))
    assert {example_of(page) for page in PAGES} == examples
    listed = re.findall(
        r"^- \[`compositions/(\w+)\.py`\]", (ROOT / "docs/examples.md").read_text(), re.M
    )
    assert sorted(listed) == sorted(example_of(page).stem for page in PAGES)
