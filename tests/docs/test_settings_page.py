"""docs/settings.md: its tests pass, and its settings behave as the page describes."""

from collections.abc import Iterator
from typing import Any

import pytest

from asgi_upstream.testing import Upstream
from tests.support.pages import blocks

pytest.importorskip("pydantic_settings")
pytestmark = pytest.mark.of_httpx


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def page() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks("docs/settings.md"):
        if block.language == "python":
            exec(block.code, names)
    return names


def test_the_factory_test_of_the_page_passes(page: dict[str, Any], upstream: Upstream) -> None:
    page["test_token_is_sent"](upstream)


def test_the_module_level_test_of_the_page_passes(
    page: dict[str, Any], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    page["test_app"](monkeypatch, upstream)
    assert upstream.requests[0].headers["authorization"] == "Bearer test"


def test_the_factory_reads_the_environment(
    page: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_UPSTREAM_TOKEN", "secret")
    with pytest.raises(ValueError, match="upstream_url"):
        page["create_app"]()
    monkeypatch.setenv("APP_UPSTREAM_URL", "https://api.example")
    page["create_app"]()


def test_a_secret_is_masked_and_a_url_is_not_a_string(page: dict[str, Any]) -> None:
    """Why the page calls `get_secret_value()` and `str()`."""
    settings = page["Settings"](upstream_url="https://api.example", upstream_token="secret")
    assert str(settings.upstream_token) == "**********"
    assert str(settings.upstream_url) == "https://api.example/"
    with pytest.raises(TypeError):
        page["httpx"].AsyncClient(base_url=settings.upstream_url)
