"""The claims of docs/compositions/middleware.md about each middleware, by real sockets."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.compositions.callers import Serve, leave_when
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

TIMEOUT = 1.5
ORIGIN = "https://page.example"
STACKS = ["none", "cors", "gzip", "session", "hosts", "base", "whole-timeout", "head-timeout"]


@pytest.fixture
def caller(serve: Serve) -> httpx.Client:
    caller = serve("middleware", TIMEOUT=str(TIMEOUT))
    caller.headers["origin"] = ORIGIN  # without it the middleware of CORS does nothing
    return caller


def flow(caller: httpx.Client, path: str) -> str:
    """Whether the first part is there while the upstream is silent, or at an end that is ours."""
    try:
        with caller.stream("GET", path, timeout=60) as response:
            assert response.status_code == 200
            return "as sent" if next(response.iter_bytes()) else "held back"
    except (httpx.ReadTimeout, httpx.RemoteProtocolError):
        return "held back"


def parts(caller: httpx.Client, stack: str) -> str:
    return flow(caller, f"/{stack}/api/silent_mid_body")


def events(caller: httpx.Client, stack: str) -> str:
    return flow(caller, f"/{stack}/api/quiet")


def head(caller: httpx.Client, stack: str) -> str:
    try:
        with caller.stream("GET", f"/{stack}/api/silent_after_head", timeout=60) as response:
            assert response.status_code == 200
    except (httpx.ReadTimeout, httpx.RemoteProtocolError):
        return "held back"
    return "at once"


def whole(caller: httpx.Client, path: str) -> bool:
    try:
        return caller.get(path).status_code == 200
    except httpx.RemoteProtocolError:
        return False


def broken(caller: httpx.Client, stack: str) -> str:
    return "looks whole" if whole(caller, f"/{stack}/api/short_chunked") else "cut"


def longer(caller: httpx.Client, stack: str) -> str:
    return "continues" if whole(caller, f"/{stack}/api/chunks?count=25&delay=0.1") else "cut"


def refused(caller: httpx.Client, stack: str) -> str:
    return str(caller.get(f"/{stack}/api/close_at_once").status_code)


def buffered(caller: httpx.Client, stack: str) -> str:
    response = caller.get(f"/{stack}/buffered/item?size=3000")
    assert int(response.headers["content-length"]) == response.num_bytes_downloaded
    return "complete" if response.content == b"x" * 3000 else "changed"


PROBES: list[tuple[Callable[[httpx.Client, str], str], str]] = [
    (parts, "as sent"),
    (events, "as sent"),
    (head, "at once"),
    (broken, "cut"),
    (longer, "continues"),
    (refused, "502"),
    (buffered, "complete"),
]


@pytest.mark.parametrize(("probe", "expected"), PROBES)
def test_streams_pass_through_each_middleware(
    caller: httpx.Client, probe: Callable[[httpx.Client, str], str], expected: str
) -> None:
    with ThreadPoolExecutor(len(STACKS)) as pool:
        found = dict(zip(STACKS, pool.map(lambda stack: probe(caller, stack), STACKS), strict=True))
    exceptions = {"whole-timeout": "cut"} if probe is longer else {}
    assert found == {**dict.fromkeys(STACKS, expected), **exceptions}


@pytest.mark.parametrize("stack", STACKS)
def test_a_caller_who_leaves_frees_the_upstream_behind_each(
    caller: httpx.Client, upstream: Upstream, stack: str
) -> None:
    leave_when(caller, f"/{stack}/api/never", lambda: upstream.open_exchanges == 1)
    eventually(lambda: upstream.open_exchanges == 0)
    with caller.stream("GET", f"/{stack}/api/silent_mid_body") as response:
        next(response.iter_bytes())
    eventually(lambda: upstream.open_exchanges == 0)


def test_what_the_middleware_is_for_it_does(caller: httpx.Client) -> None:
    params = {"key": "cors", "access-control-allow-origin": "*"}
    response = caller.get("/cors/api/kept", params=params)
    assert response.headers.get_list("access-control-allow-origin") == [ORIGIN]
    other = {"origin": "https://other.example"}
    response = caller.get("/cors/api/kept", params=params, headers=other)
    assert "access-control-allow-origin" not in response.headers
    for path in ("api", "buffered"):
        response = caller.get(f"/session/{path}/item")
        assert response.headers["set-cookie"].startswith("session=")
    response = caller.get("/hosts/api/item", headers={"host": "elsewhere"})
    assert response.status_code == 400
    assert caller.get("/base/api/item").headers["x-stamp"] == "1"
    assert caller.get("/gzip/api/item").headers["content-encoding"] == "gzip"
    for stack in ("whole-timeout", "head-timeout"):
        assert caller.get(f"/{stack}/api/never").status_code == 504
