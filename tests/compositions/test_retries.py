"""httpx-retries under a relay: what is sent again, what is not, and when."""

import time
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate

import httpx
import pytest
from fastapi import FastAPI, Request
from httpx_retries import Retry, RetryTransport

from asgi_upstream import ReverseProxy, StreamedResponse, client_lifespan
from asgi_upstream.dependencies import get_client
from asgi_upstream.transport import AsyncioTransport
from tests.compositions.callers import Serve, leave_when
from tests.compositions.upstream import arrivals
from tests.support.upstream import Upstream


@pytest.fixture
def caller(
    request: pytest.FixtureRequest, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> httpx.Client:
    """Calls examples/compositions/retries.py."""
    transport = getattr(request, "param", AsyncioTransport)
    monkeypatch.setattr("asgi_upstream.transport.AsyncioTransport", transport)
    return serve("retries", TRANSPORT=transport.__name__)  # the name makes it another app


both = pytest.mark.parametrize(
    "caller", [httpx.AsyncHTTPTransport, AsyncioTransport], indirect=True
)
Params = dict[str, str | int]


def parts(*chunks: bytes) -> Iterator[bytes]:
    """An upload that comes in chunks."""
    yield from chunks


def bodies(upstream: Upstream) -> list[bytes]:
    return [request.body for request in upstream.requests]


@both
@pytest.mark.parametrize("how", ["503", "429", "reset"])
def test_a_get_is_sent_again_until_the_upstream_answers(caller: httpx.Client, how: str) -> None:
    response = caller.get("/api/flaky", params={"key": "get", "times": 2, "how": how})
    assert (response.status_code, response.text) == (200, "well")
    assert len(arrivals["get"]) == 3


def test_what_still_fails_in_the_end_is_relayed_as_it_is(caller: httpx.Client) -> None:
    response = caller.get("/api/flaky", params={"key": "end", "after": "0"})
    assert (response.status_code, response.text, len(arrivals["end"])) == (503, "no", 4)
    assert response.headers["retry-after"] == "0"
    response = caller.get("/api/flaky", params={"key": "reset", "how": "reset"})
    # AsyncioTransport sends a request again by itself where a kept connection was gone.
    assert (response.status_code, len(arrivals["reset"]) in (4, 5)) == (502, True)


@pytest.mark.parametrize("status", ["404", "500"])
def test_other_statuses_are_relayed_at_once(caller: httpx.Client, status: str) -> None:
    response = caller.get("/api/flaky", params={"key": status, "how": status})
    assert (response.status_code, len(arrivals[status])) == (int(status), 1)


def test_retry_after_is_obeyed(caller: httpx.Client) -> None:
    params: Params = {"key": "seconds", "times": 2, "after": "1"}
    assert caller.get("/api/flaky", params=params).status_code == 200
    first, second, third = arrivals["seconds"]
    assert second - first > 0.95
    assert third - second > 0.95


def test_retry_after_is_obeyed_as_a_date(caller: httpx.Client) -> None:
    earliest = time.monotonic() + 1
    date = formatdate(time.time() + 2, usegmt=True)  # in whole seconds
    params: Params = {"key": "date", "times": 1, "after": date}
    assert caller.get("/api/flaky", params=params).status_code == 200
    _, second = arrivals["date"]
    assert second > earliest - 0.05  # the clocks may differ


@both
def test_a_streamed_upload_is_sent_once_and_the_failure_relayed(
    caller: httpx.Client, upstream: Upstream
) -> None:
    params: Params = {"key": "put", "times": 1}
    response = caller.put("/api/flaky", params=params, content=parts(b"part", b"s"))
    assert (response.status_code, response.text, len(arrivals["put"])) == (503, "no", 1)
    assert bodies(upstream) == [b"parts"]


@both
def test_an_upload_that_is_held_is_sent_again_whole(
    caller: httpx.Client, upstream: Upstream
) -> None:
    params: Params = {"key": "held", "times": 2}
    response = caller.put("/held/flaky", params=params, content=parts(b"part", b"s"))
    assert (response.status_code, response.text) == (200, "well")
    assert bodies(upstream) == [b"parts"] * 3


def test_a_post_is_sent_once(caller: httpx.Client) -> None:
    response = caller.post("/api/flaky", params={"key": "post", "times": 1})
    assert (response.status_code, len(arrivals["post"])) == (503, 1)


def test_a_body_that_breaks_off_is_not_asked_for_again(
    caller: httpx.Client, upstream: Upstream
) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        caller.get("/api/short_chunked")
    assert len(upstream.requests) == 1


def test_a_caller_who_leaves_during_the_wait_ends_the_retries(caller: httpx.Client) -> None:
    path = "/api/flaky?key=left&after=1"
    leave_when(caller, path, lambda: len(arrivals["left"]) == 1)
    time.sleep(1.5)  # longer than the wait would have been
    assert len(arrivals["left"]) == 1


def test_the_deadline_bounds_all_attempts_together(caller: httpx.Client) -> None:
    response = caller.get("/brief/flaky", params={"key": "brief", "after": "2"})
    assert (response.status_code, len(arrivals["brief"])) == (504, 1)


# What happens to a stream without `send_streams_once`, and how else to say it.


class Again:
    """A body that can be sent as often as it is asked for."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"part"
        yield b"s"


retrying = FastAPI(
    lifespan=client_lifespan(transport=RetryTransport(AsyncioTransport(), retry=Retry(total=3)))
)
retrying.mount("/api", ReverseProxy())


@retrying.put("/{how}")
async def put(request: Request, how: str, to: str) -> StreamedResponse:
    client = await get_client(request)
    body = Again() if how == "again" else request.stream()
    outgoing = client.build_request("PUT", to, content=body)
    if how == "once":
        outgoing.extensions["retry"] = Retry(total=0)
    return StreamedResponse(client, outgoing)


def test_streamed_upload_that_would_be_retried_is_500(serve: Serve, upstream: Upstream) -> None:
    to = f"{upstream.url}/flaky?key=twice&times=1"
    response = serve(retrying).put("/unsaid", params={"to": to}, content=b"parts")
    assert (response.status_code, len(arrivals["twice"])) == (500, 1)


def test_a_request_says_by_an_extension_that_it_is_sent_once(
    serve: Serve, upstream: Upstream
) -> None:
    to = f"{upstream.url}/flaky?key=once&times=1"
    response = serve(retrying).put("/once", params={"to": to}, content=b"parts")
    assert (response.status_code, len(arrivals["once"])) == (503, 1)


def test_a_stream_that_begins_anew_each_time_can_be_sent_again(
    serve: Serve, upstream: Upstream
) -> None:
    to = f"{upstream.url}/flaky?key=again&times=2"
    response = serve(retrying).put("/again", params={"to": to})
    assert (response.status_code, len(arrivals["again"])) == (200, 3)
    assert bodies(upstream) == [b"parts"] * 3


def test_a_retry_after_past_the_longest_wait_is_cut_to_it(serve: Serve, upstream: Upstream) -> None:
    impatient = FastAPI(
        lifespan=client_lifespan(
            base_url=upstream.url,
            transport=RetryTransport(
                AsyncioTransport(), retry=Retry(total=1, max_backoff_wait=0.1)
            ),
        )
    )
    impatient.mount("/", ReverseProxy())
    began = time.monotonic()
    response = serve(impatient).get("/flaky", params={"key": "cut", "after": "3600"})
    assert (response.status_code, len(arrivals["cut"])) == (503, 2)
    assert time.monotonic() - began < 60
