"""docs/logging.md: the request id, the access log and the JSON lines."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from fastapi.testclient import TestClient

from asgi_upstream._clients import get_client_state
from asgi_upstream.instrumentation.logs import log_observer
from asgi_upstream.records import ExchangeRecord
from asgi_upstream.testing import Upstream
from tests.support.pages import blocks

pytestmark = pytest.mark.of_httpx
TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADER = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def page(upstream: Upstream) -> Iterator[dict[str, Any]]:
    """Run the page's code, and undo its changes to the loggers."""
    names: dict[str, Any] = {"__name__": "page"}
    own, root, httpx = map(logging.getLogger, ("asgi_upstream", None, "httpx"))
    before = list(own.filters), list(root.handlers), root.level, httpx.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "basicConfig", lambda **options: names.update(options))
        for block in blocks("docs/logging.md"):
            if block.language == "python":
                exec(block.code.replace("https://api.example", upstream.url), names)
    root.setLevel(logging.INFO)
    yield names
    own.filters[:], root.handlers[:] = before[0], before[1]
    root.setLevel(before[2])
    httpx.setLevel(before[3])


class Lines(logging.Handler):
    """Collects the lines that the page's formatter writes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        assert "\n" not in text
        self.lines.append(json.loads(text))

    def of(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["logger"] == logger]


@pytest.fixture
def lines(page: dict[str, Any]) -> Lines:
    (handler,) = page["handlers"]
    collected = Lines(handler.formatter)
    logging.getLogger().addHandler(collected)
    return collected


def test_the_callers_trace_id_reaches_the_upstream(
    page: dict[str, Any], upstream: Upstream
) -> None:
    upstream.get("/item").json(1)
    with TestClient(page["app"]) as caller:
        response = caller.get("/api/item", headers={"traceparent": HEADER})
    received = upstream.requests[0].headers
    assert response.headers["x-request-id"] == received["x-request-id"] == TRACE
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", received["traceparent"])
    assert received["traceparent"] != HEADER


@pytest.mark.parametrize("sent", ["", "00-xyz", HEADER + "\t1", HEADER.upper()])
def test_a_request_without_a_valid_traceparent_gets_an_id(
    page: dict[str, Any], upstream: Upstream, sent: str
) -> None:
    upstream.get("/item").json(1)
    with TestClient(page["app"]) as caller:
        first = caller.get("/api/item", headers={"traceparent": sent}).headers["x-request-id"]
        second = caller.get("/api/item").headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


def test_all_lines_of_a_request_have_its_id(
    page: dict[str, Any], upstream: Upstream, lines: Lines
) -> None:
    upstream.get("/item").json(1)
    with TestClient(page["app"]) as caller:
        caller.get("/api/item?token=secret", headers={"traceparent": HEADER})
    (access,) = lines.of("access")
    (exchange,) = lines.of("asgi_upstream.exchanges")
    assert access["request_id"] == exchange["request_id"] == TRACE
    assert (access["message"], access["status"]) == ("GET /api/item", 200)
    assert access["duration"] >= 0
    assert (exchange["outcome"], exchange["status"]) == ("completed", 200)
    assert "secret" not in json.dumps([line for line in lines.lines if line["logger"] != "httpx2"])


def test_a_failed_exchange_is_logged_once_with_its_cause(
    page: dict[str, Any], upstream: Upstream, lines: Lines
) -> None:
    upstream.get("/item").close()
    with TestClient(page["app"]) as caller:
        assert caller.get("/api/item").status_code == 502
    assert [line["status"] for line in lines.of("access")] == [502]
    assert lines.of("asgi_upstream") == []
    (exchange,) = lines.of("asgi_upstream.exchanges")
    assert (exchange["level"], exchange["outcome"]) == ("WARNING", "protocol_failed")
    assert exchange["error"].startswith("RemoteProtocolError")


def test_a_line_of_an_exchange_has_every_field(
    page: dict[str, Any], upstream: Upstream, lines: Lines
) -> None:
    upstream.get("/item").json(1)
    records: list[ExchangeRecord] = []
    with TestClient(page["app"]) as caller:
        get_client_state(caller.app_state["client"]).observers = [log_observer(), records.append]
        caller.get("/api/item")
    (written,) = lines.of("asgi_upstream.exchanges")
    for field in fields(ExchangeRecord):
        if field.name != "exception":
            assert written[field.name] == getattr(records[0], field.name)
    assert written["error"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", written["time"])


def test_the_filter_keeps_errors_of_the_library(page: dict[str, Any], lines: Lines) -> None:
    logging.getLogger("asgi_upstream").warning("an upstream failed")
    logging.getLogger("asgi_upstream").error("an observer failed")
    assert [line["message"] for line in lines.of("asgi_upstream")] == ["an observer failed"]


def test_a_traceback_is_one_line(page: dict[str, Any], lines: Lines) -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("app").exception("failed")
    (line,) = lines.of("app")
    assert line["traceback"].startswith("Traceback")
    assert line["request_id"] is None
