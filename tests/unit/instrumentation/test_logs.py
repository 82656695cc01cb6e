"""Each exchange is one line of `logging`, with all of its record."""

import logging
from dataclasses import fields

import pytest

from asgi_upstream.instrumentation.logs import LOGGER_NAME, log_observer
from asgi_upstream.records import ExchangeRecord, Outcome
from tests.support.flavor import httpx
from tests.support.records import failure, record

NO_FAILURES = {
    Outcome.COMPLETED,
    Outcome.REPLACED,
    Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS,
    Outcome.CALLER_DISCONNECTED_MID_BODY,
    Outcome.CANCELLED,
}


def logged(caplog: pytest.LogCaptureFixture, *records: ExchangeRecord) -> list[logging.LogRecord]:
    observe = log_observer()
    with caplog.at_level(logging.INFO, logger=LOGGER_NAME):
        for one in records:
            observe(one)
    return [line for line in caplog.records if line.name == LOGGER_NAME]


def test_a_line_says_in_words_what_happened(caplog: pytest.LogCaptureFixture) -> None:
    done, failed = logged(caplog, record(), failure())
    assert done.getMessage() == "GET api.example:8443 200: completed after 2.000 s"
    assert failed.getMessage() == "GET api.example:8443 -: connect_failed after 2.000 s"


def test_its_fields_are_those_of_the_record_by_their_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = record()
    (line,) = logged(caplog, one)
    for field in fields(ExchangeRecord):
        if field.name != "exception":
            assert vars(line)[field.name] == getattr(one, field.name), field.name
    assert type(vars(line)["outcome"]) is str
    assert vars(line)["error"] is None
    assert not hasattr(line, "exception")


def test_its_error_is_the_exception_in_words(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = logged(caplog, failure(exception=httpx.ConnectError("refused")))
    assert vars(line)["error"] == "ConnectError: refused"


def test_its_error_has_no_url(caplog: pytest.LogCaptureFixture) -> None:
    request = httpx.Request("GET", "https://api.example/items?key=secret")
    error = httpx.HTTPStatusError(
        f"404 for url {request.url}\nmore", request=request, response=httpx.Response(404)
    )
    (line,) = logged(caplog, failure(Outcome.APP_FAILED, exception=error))
    assert vars(line)["error"] == "HTTPStatusError: status 404"


@pytest.mark.parametrize("outcome", Outcome)
def test_failures_are_warnings_and_the_rest_is_not(
    outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    (line,) = logged(caplog, record(outcome=outcome))
    assert line.levelno == (logging.INFO if outcome in NO_FAILURES else logging.WARNING)
    assert outcome.is_failure is (outcome not in NO_FAILURES)


def test_nothing_is_made_of_a_line_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    class Unread(Exception):
        def __str__(self) -> str:
            pytest.fail("it was put into words")

    with caplog.at_level(logging.WARNING, logger=LOGGER_NAME):
        observe = log_observer()
        observe(record(exception=Unread()))
        observe(failure())
    assert [line.levelname for line in caplog.records] == ["WARNING"]


def test_it_logs_where_it_is_told_to(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_observer("by.name")(record())
        log_observer(logging.getLogger("by.itself"))(record())
    assert [line.name for line in caplog.records] == ["by.name", "by.itself"]
