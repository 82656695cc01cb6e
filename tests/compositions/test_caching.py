"""hishel under a relay: what is answered from the cache, and what never is, for nobody else."""

import math
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hishel import AsyncSqliteStorage
from hishel.httpx import AsyncCacheTransport

from asgi_upstream import ReverseProxy, client_lifespan
from asgi_upstream.transport import AsyncioTransport
from tests.compositions.callers import Serve
from tests.compositions.upstream import arrivals
from tests.support.upstream import Upstream
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "cache.db"


@pytest.fixture
def caller(serve: Serve, database: Path) -> httpx.Client:
    """Calls examples/compositions/caching.py with its SQLite store."""
    return serve("caching", DATABASE=str(database))


Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(caller: httpx.Client, request: pytest.FixtureRequest) -> Ask:
    """Asks for what the upstream makes for this test alone."""

    def get(
        headers: dict[str, str] | None = None, method: str = "GET", **params: Any
    ) -> httpx.Response:
        params = {name.replace("_", "-"): value for name, value in params.items()}
        key = {"key": request.node.name}
        return caller.request(method, "/api/kept", params=key | params, headers=headers)

    return get


@pytest.fixture
def asked(request: pytest.FixtureRequest, ask: Ask) -> Callable[[], int]:
    """How often the upstream was asked for what it makes for this test."""
    return lambda: len(arrivals[request.node.name])


Asked = Callable[[], int]
ANN, BOB = {"authorization": "ann"}, {"authorization": "bob"}


def test_a_second_request_is_answered_from_the_cache(ask: Ask, asked: Asked) -> None:
    began = time.monotonic()
    first, second = ask(cache="max-age=60"), ask(cache="max-age=60")
    assert first.text == second.text == "1 for anybody\n"
    assert (asked(), "age" in first.headers) == (1, False)
    assert int(second.headers["age"]) <= math.ceil(time.monotonic() - began)
    assert second.headers["content-length"] == first.headers["content-length"]


def test_a_long_body_is_kept_when_it_is_whole(ask: Ask, asked: Asked) -> None:
    first, second = (ask(cache="max-age=60", parts=80) for _ in range(2))
    assert len(first.content) == len(b"1 for anybody\n") + 79 * 50_000
    assert (second.content, asked()) == (first.content, 1)


def test_body_is_streamed_and_not_cached_after_a_disconnect(
    caller: httpx.Client, request: pytest.FixtureRequest, asked: Asked, upstream: Upstream
) -> None:
    params = {"key": request.node.name, "cache": "max-age=60", "parts": "5", "stall": "1"}
    with caller.stream("GET", "/api/kept", params=params) as response:
        assert next(response.iter_raw()).startswith(b"1 ")
    eventually(lambda: upstream.open_exchanges == 0)
    whole = caller.get("/api/kept", params=params).content
    assert (whole[:1], len(whole), asked()) == (b"2", len(b"2 for anybody\n") + 200_000, 2)


def test_a_body_that_breaks_off_is_not_kept(ask: Ask, asked: Asked) -> None:
    for times in (1, 2):
        with pytest.raises(httpx.RemoteProtocolError):
            ask(cache="max-age=60", parts=4, broken=2)
        assert asked() == times


def test_a_body_past_the_largest_is_relayed_whole_and_not_kept(ask: Ask, asked: Asked) -> None:
    for times in (1, 2):
        response = ask(cache="max-age=60", parts=220)
        assert (len(response.content) > 10 * 1024 * 1024, asked()) == (True, times)


def test_a_variant_is_answered_only_to_who_asks_for_it(ask: Ask, asked: Asked) -> None:
    for _ in range(2):
        for language in ("de", "en"):
            headers = {"accept-language": language}
            response = ask(headers, cache="max-age=60", vary="Accept-Language")
            assert response.text.endswith(f"for {language}\n")
    assert asked() == 2
    ask(cache="max-age=60", vary="Accept-Language")
    assert asked() == 3


def test_response_that_varies_by_everything_is_never_cached(ask: Ask, asked: Asked) -> None:
    for times in (1, 2):
        ask(cache="max-age=60", vary="*")
        assert asked() == times


PRIVATE = ["private", "private, max-age=60", "max-age=60, Private", "PRIVATE,s-maxage=60"]


@pytest.mark.parametrize("cache", [*PRIVATE, "public, private", "no-store", "no-cache"])
@pytest.mark.parametrize("who", [{}, ANN], ids=["anybody", "ann"])
def test_what_is_private_is_asked_for_each_time(
    ask: Ask, asked: Asked, cache: str, who: dict[str, str]
) -> None:
    for times in (1, 2):
        number = 1 if (cache, who) == ("no-cache", {}) else times  # else by its tag, as it may
        assert ask(who, cache=cache, etag='"x"').text.startswith(f"{number} ")
        assert asked() == times


@pytest.mark.parametrize(
    ("field", "cache", "more"),
    [
        ("authorization", "private", {}),
        ("authorization", "private, max-age=60", {}),
        ("authorization", "max-age=60", {}),  # RFC 9111 3.5
        ("authorization", None, {"last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"}),
        ("authorization", "max-age=60", {"etag": '"same"'}),
        ("cookie", "max-age=60", {}),
        ("x-api-key", "max-age=60", {}),
        ("x-api-key", "max-age=60", {"etag": '"same"'}),
        ("accept-language", "max-age=60", {"set_cookie": "session=1"}),
        ("accept-language", "public, max-age=60", {"set_cookie": "session=1"}),
        ("accept-language", "public, max-age=60", {"vary": "*"}),
        ("authorization", "public, max-age=60", {"vary": "*", "etag": '"same"'}),
    ],
)
def test_many_callers_at_once_never_get_what_is_anothers(
    ask: Ask, asked: Asked, field: str, cache: str | None, more: dict[str, str]
) -> None:
    if cache is not None:
        more = more | {"cache": cache}

    def get(number: int) -> tuple[str, str]:
        name = f"caller-{number % 10}"
        return name, ask({field: name}, **more).text

    with ThreadPoolExecutor(10) as pool:
        for name, text in pool.map(get, range(40)):
            assert text.endswith(f"{name}\n")
    assert asked() == 40


def test_public_response_is_shared_between_credentials(ask: Ask, asked: Asked) -> None:
    for who in (ANN, BOB):
        assert ask(who, cache="public, max-age=60").text == "1 for ann\n"
    assert asked() == 1


@pytest.mark.parametrize("field", ["authorization", "cookie", "accept-language"])
def test_public_response_that_varies_is_cached_for_each_caller(
    ask: Ask, asked: Asked, field: str
) -> None:
    for _ in range(2):
        for name in ("ann", "bob"):
            response = ask({field: name}, cache="public, max-age=60", vary=field)
            assert response.text.endswith(f"for {name}\n")
    assert asked() == 2


def test_response_to_credentials_is_not_given_without_them(ask: Ask) -> None:
    assert ask(ANN, cache="max-age=60").text == "1 for ann\n"
    assert ask(cache="max-age=60").text == "2 for anybody\n"


def test_a_caller_learns_that_what_sets_a_cookie_is_private(ask: Ask) -> None:
    response = ask(cache="max-age=60", set_cookie="session=1")
    assert response.headers["cache-control"] == "private, max-age=60"


def test_each_caller_may_have_a_cache_alone(
    caller: httpx.Client, request: pytest.FixtureRequest, asked: Asked
) -> None:
    params = {"key": request.node.name, "cache": "private, max-age=60"}
    for _ in range(3):
        for who in (ANN, BOB):
            response = caller.get("/mine/kept", params=params, headers=who)
            assert response.text.endswith(f" for {who['authorization']}\n")
    assert asked() == 2


def test_stale_private_response_is_revalidated_by_etag(
    caller: httpx.Client, request: pytest.FixtureRequest, asked: Asked
) -> None:
    params = {"key": request.node.name, "cache": "private, max-age=60", "age": "100"}
    for _ in range(2):
        response = caller.get("/mine/kept", params=params | {"etag": '"one"'}, headers=ANN)
        assert response.text == "1 for ann\n"
    assert asked() == 2


def test_what_is_stale_is_asked_for_again_by_its_tag(
    ask: Ask, asked: Asked, upstream: Upstream
) -> None:
    stale = {"cache": "max-age=60", "age": 100, "etag": '"one"'}
    first, second = ask(**stale), ask(**stale)
    assert (second.status_code, second.text, asked()) == (200, first.text, 2)
    assert upstream.requests[-1].headers["if-none-match"] == '"one"'


@pytest.mark.parametrize("field", ["authorization", "cookie", "x-api-key", "accept-language"])
def test_what_a_304_says_to_one_caller_is_told_to_no_other(
    ask: Ask, field: str, upstream: Upstream
) -> None:
    stale = {"cache": "max-age=60", "age": 100, "etag": '"x"', "renews": 1}
    ask(**stale)
    for name in ("ann", "bob"):
        response = ask({field: name}, **stale)
        assert (response.status_code, response.headers.get("set-cookie", name)) == (200, name)
    assert "set-cookie" not in ask(**stale).headers
    assert any("if-none-match" in request.headers for request in upstream.requests)


def test_the_condition_of_a_caller_is_answered_to_it_alone(ask: Ask) -> None:
    stale = {"cache": "max-age=60", "age": 100, "etag": '"x"', "renews": 1}
    for _ in range(2):  # with nothing kept, and with what anybody may have
        response = ask({"if-none-match": '"x"', "cookie": "ann"}, **stale)
        assert (response.status_code, response.headers["etag"]) == (304, '"x"')
        assert response.headers["set-cookie"] == "ann"
        assert "set-cookie" not in ask(**stale).headers


def test_a_response_without_a_date_gets_stale_too(ask: Ask) -> None:
    ask(cache="max-age=1", undated=1)
    eventually(lambda: ask(cache="max-age=1", undated=1).text.startswith("2"))


def test_a_change_makes_the_cache_forget(ask: Ask, asked: Asked) -> None:
    ask(cache="max-age=60")
    assert ask(method="POST", cache="max-age=60").text == "2 for anybody\n"
    assert (ask(cache="max-age=60").text, asked()) == ("3 for anybody\n", 3)


def test_head_and_get_are_not_taken_for_each_other(ask: Ask, asked: Asked) -> None:
    assert ask(method="HEAD", cache="max-age=60").text == ""
    assert ask(cache="max-age=60").text == "2 for anybody\n"
    assert (ask(method="HEAD", cache="max-age=60").content, asked()) == (b"", 2)


def test_a_part_is_not_answered_from_the_whole(ask: Ask, asked: Asked) -> None:
    ask(cache="max-age=60")
    ask({"range": "bytes=0-1"}, cache="max-age=60")
    assert asked() == 2


def test_a_cache_that_is_broken_does_not_fail_the_answer(
    serve: Serve, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    caller = serve("caching", DATABASE=str(tmp_path / "broken.db"))
    params = {"key": request.node.name, "cache": "max-age=60"}
    assert caller.get("/api/kept", params=params).text == "1 for anybody\n"
    with sqlite3.connect(tmp_path / "broken.db") as connection:
        connection.execute("DROP TABLE streams")
        connection.execute("DROP TABLE entries")
    connection.close()
    assert caller.get("/api/kept", params=params).text == "2 for anybody\n"


# Why the example, and its page, are as they are.


def test_callers_host_is_forwarded_and_not_in_the_cache_key(
    ask: Ask, asked: Asked, upstream: Upstream
) -> None:
    ask({"host": "elsewhere.example"}, cache="max-age=60")
    assert upstream.requests[-1].headers["x-forwarded-host"] == "elsewhere.example"
    assert (ask(cache="max-age=60").text, asked()) == ("1 for anybody\n", 1)


def by(upstream: Upstream, transport: httpx.AsyncBaseTransport) -> FastAPI:
    app = FastAPI(lifespan=client_lifespan(base_url=upstream.url, transport=transport))
    app.mount("/", ReverseProxy())
    return app


def test_hishel_without_rules_shares_private_responses(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    storage = AsyncSqliteStorage(database_path=tmp_path / "cache.db")
    caller = serve(by(upstream, AsyncCacheTransport(AsyncioTransport(), storage)))
    params = {"key": "lawless", "cache": "private, no-store"}
    for who in (ANN, BOB):
        assert caller.get("/kept", params=params, headers=who).text == "1 for ann\n"


@pytest.mark.parametrize(
    ("field", "more"), [("x-api-key", {}), ("cookie", {}), ("x-any", {"set-cookie": "session=1"})]
)
def test_hishels_rules_alone_share_what_depends_on_the_caller(
    serve: Serve, upstream: Upstream, tmp_path: Path, field: str, more: dict[str, str]
) -> None:
    storage = AsyncSqliteStorage(database_path=tmp_path / "cache.db")
    caller = serve(by(upstream, AsyncCacheTransport(AsyncioTransport(), storage, rfc=True)))
    params = {"key": "rules", "cache": "max-age=60"} | more
    texts = {caller.get("/kept", params=params, headers={field: who}).text for who in ("a", "b")}
    assert len(texts) == 1


@pytest.mark.slow
def test_response_without_date_is_always_fresh_for_hishel(
    serve: Serve, upstream: Upstream, tmp_path: Path
) -> None:
    storage = AsyncSqliteStorage(database_path=tmp_path / "cache.db")
    caller = serve(by(upstream, AsyncCacheTransport(AsyncioTransport(), storage, rfc=True)))
    params = {"key": "dateless", "cache": "max-age=1", "undated": "1"}
    caller.get("/kept", params=params)
    time.sleep(2.1)
    assert caller.get("/kept", params=params).text == "1 for anybody\n"
