"""docs/exchange-records.md: its names and its observer."""

import dataclasses
import importlib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from asgi_upstream import ExchangeRecord, Outcome
from tests.support.example_apps import ROOT, served, until


def page() -> str:
    return (ROOT / "docs/exchange-records.md").read_text()


@pytest.fixture(scope="module")
def documented() -> Iterator[dict[str, Any]]:
    """What the blocks of code in the page define, run one after the other."""
    with served(importlib.import_module("examples.upstream").app) as url:
        names: dict[str, Any] = {"__name__": "records"}
        for code in re.findall(r"```python\n(.*?)```", page(), re.S):
            exec(code.replace("http://127.0.0.1:9000", url), names)
        yield names


def test_the_page_has_each_outcome_and_each_field() -> None:
    outcomes = re.findall(r"^- `(\w+)`: ", page(), re.M)
    assert sorted(outcomes) == sorted(Outcome)
    (sentence,) = re.findall(r"^A record has (.*?)\.", page(), re.M | re.S)
    fields = [field.name for field in dataclasses.fields(ExchangeRecord)]
    assert re.findall(r"`(\w+)`", sentence) == fields


def test_the_documented_observer_counts_outcomes(documented: dict[str, Any]) -> None:
    with (
        served(documented["app"]) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as caller,
    ):
        assert caller.get("/api/item").status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            caller.get("/api/dies")
        until(lambda: documented["outcomes"].total() == 2)
    assert {outcome for _, outcome in documented["outcomes"]} == {"completed", "body_failed"}
