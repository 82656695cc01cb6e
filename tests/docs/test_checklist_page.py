"""docs/production-checklist.md: the app that it shows."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from asgi_upstream.testing import Upstream
from tests.support.pages import blocks

pytestmark = pytest.mark.of_httpx


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def page(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    httpx_logger = logging.getLogger("httpx")
    level = httpx_logger.level
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks("docs/production-checklist.md"):
        if block.language == "python":
            exec(block.code.replace("https://api.example", upstream.url), names)
    yield names
    httpx_logger.setLevel(level)


def test_origin_wide_headers_are_dropped_and_others_relayed(
    page: dict[str, Any], upstream: Upstream
) -> None:
    dropped = dict.fromkeys(page["ORIGIN_WIDE"], "x")
    upstream.get("/item").json(1, headers={**dropped, "x-kept": "1", "etag": '"a"'})
    with TestClient(page["app"]) as caller:
        response = caller.get("/api/item")
    assert response.json() == 1
    assert (response.headers["x-kept"], response.headers["etag"]) == ("1", '"a"')
    assert not dropped.keys() & response.headers.keys()


def test_the_client_has_the_limits_of_the_page(page: dict[str, Any]) -> None:
    with TestClient(page["app"]) as caller:
        client: Any = caller.app_state["client"]
    assert client._transport._pool._max_connections == 25
    assert client.timeout.as_dict() == {"connect": 5, "read": 30, "write": 5, "pool": 1}
