"""Clients that open and close with the app."""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_upstream import combine_lifespans
from tests.support.flavor import client_lifespan, httpx

Lifespan = Callable[[None], AbstractAsyncContextManager[Mapping[str, object]]]

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


class Resource:
    """Any object with `aclose`; writes down what happens to it."""

    def __init__(self, log: list[str] | None = None, called: str = "resource") -> None:
        self.log = [] if log is None else log
        self.called = called
        self.log.append(f"open {called}")

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append(f"close {self.called}")


# --- opening and closing -------------------------------------------------------------------


async def test_the_client_is_in_the_state_and_closed_at_shutdown() -> None:
    async with client_lifespan()(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        assert list(state) == ["client"]
        assert not client.is_closed
    assert client.is_closed


async def test_options_reach_the_client() -> None:
    options: dict[str, Any] = {"base_url": "https://api.example", "headers": {"x-own": "1"}}
    async with client_lifespan(**options, timeout=3.5)(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        assert client.base_url == "https://api.example"
        assert client.headers["x-own"] == "1"
        assert client.timeout == httpx.Timeout(3.5)


async def test_a_client_has_the_name_it_was_given() -> None:
    async with client_lifespan(name="billing")(None) as state:
        assert list(state) == ["billing"]


async def test_every_start_up_opens_a_client_of_its_own() -> None:
    lifespan = client_lifespan()
    async with lifespan(None) as first:
        pass
    async with lifespan(None) as second:
        assert first["client"] is not second["client"]
        assert isinstance(second["client"], httpx.AsyncClient)
        assert not second["client"].is_closed


async def test_nothing_is_opened_before_start_up() -> None:
    log: list[str] = []
    lifespan = client_lifespan(lambda: Resource(log))
    assert log == []
    async with lifespan(None):
        assert log == ["open resource"]
    assert log == ["open resource", "close resource"]


@pytest.mark.real_time
async def test_a_sync_client_is_closed_in_a_worker_thread() -> None:
    closed_in: list[int] = []

    class ThreadRecordingClient(httpx.Client):
        def close(self) -> None:
            closed_in.append(threading.get_ident())
            super().close()

    async with client_lifespan(ThreadRecordingClient)(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.Client)
        assert not client.is_closed
    assert client.is_closed
    assert closed_in
    assert threading.get_ident() not in closed_in


async def test_a_subclass_is_a_factory() -> None:
    class Subclass(httpx.AsyncClient):
        pass

    async with client_lifespan(Subclass, base_url="http://x")(None) as state:
        client = state["client"]
        assert isinstance(client, Subclass)
    assert client.is_closed


async def test_a_lambda_is_a_factory() -> None:
    async with client_lifespan(lambda: httpx.AsyncClient(base_url="http://x"))(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
    assert client.is_closed


async def test_an_async_function_is_a_factory() -> None:
    async def make(*, base_url: str) -> httpx.AsyncClient:
        await anyio.lowlevel.checkpoint()
        return httpx.AsyncClient(base_url=base_url)

    async with client_lifespan(make, base_url="http://x")(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        assert client.base_url == "http://x"
    assert client.is_closed


async def test_a_client_of_httpx2_is_shared_too() -> None:
    async with client_lifespan(httpx2.AsyncClient, base_url="http://x")(None) as state:
        client = state["client"]
        assert isinstance(client, httpx2.AsyncClient)
        assert not client.is_closed
    assert client.is_closed


async def test_factory_may_return_an_object_that_only_closes() -> None:
    resource = Resource()
    async with client_lifespan(lambda: resource)(None) as state:
        assert state["client"] is resource
    assert resource.log[-1] == "close resource"


async def test_a_factory_may_return_a_client_that_is_open_already() -> None:
    async def make() -> httpx.AsyncClient:
        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, text="warm")

        client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://x")
        await client.get("/warm-up")
        return client

    async with client_lifespan(make)(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        assert (await client.get("/")).text == "warm"
    assert client.is_closed


async def test_what_cannot_be_closed_is_no_client() -> None:
    with pytest.raises(TypeError, match="aclose"):
        async with client_lifespan(lambda: 3)(None):
            pass


async def test_an_exception_of_the_app_closes_the_client_and_passes_on() -> None:
    resource = Resource()
    with pytest.raises(KeyError, match="the app's own"):
        async with client_lifespan(lambda: resource)(None):
            raise KeyError("the app's own")
    assert resource.log[-1] == "close resource"


async def test_a_cancelled_app_closes_its_client_whole() -> None:
    resource = Resource()
    with anyio.CancelScope() as scope:
        async with client_lifespan(lambda: resource)(None):
            scope.cancel()
            await anyio.sleep(5)
    assert scope.cancelled_caught
    assert resource.log[-1] == "close resource"


# --- failures ------------------------------------------------------------------------------


async def test_factory_that_raises_fails_start_up_with_its_exception() -> None:
    class OwnError(Exception):
        pass

    def make() -> httpx.AsyncClient:
        raise OwnError("no such certificate")

    with pytest.raises(OwnError, match="no such certificate"):
        async with client_lifespan(make)(None):
            pytest.fail("the app must not start")


async def test_options_that_the_factory_refuses_raise_its_own_error() -> None:
    lifespan = client_lifespan(base_ulr="http://x")
    with pytest.raises(TypeError, match="base_ulr"):
        async with lifespan(None):
            pytest.fail("the app must not start")


async def test_what_was_opened_before_a_factory_that_raises_is_closed() -> None:
    log: list[str] = []

    def fails() -> httpx.AsyncClient:
        raise ValueError("the third")

    lifespan = combine_lifespans(
        client_lifespan(lambda: Resource(log, "a"), name="a"),
        client_lifespan(lambda: Resource(log, "b"), name="b"),
        client_lifespan(fails, name="c"),
    )
    with pytest.raises(ValueError, match="the third"):
        async with lifespan(None):
            pytest.fail("the app must not start")
    assert log == ["open a", "open b", "close b", "close a"]


async def test_a_client_whose_opening_fails_is_closed() -> None:
    class Unwilling(Resource):
        async def __aenter__(self) -> None:
            raise ValueError("will not open")

    resource = Unwilling()
    with pytest.raises(ValueError, match="will not open"):
        async with client_lifespan(lambda: resource)(None):
            pytest.fail("the app must not start")
    assert resource.log[-1] == "close resource"


@pytest.mark.parametrize("sync", [False, True])
async def test_a_close_that_hangs_is_given_up_and_logged(
    sync: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("asgi_upstream.lifespan.CLIENT_CLOSE_TIMEOUT", 0.05)
    released = threading.Event()

    class HangsAsync:
        async def aclose(self) -> None:
            await anyio.sleep_forever()

    class HangsSync:
        def close(self) -> None:
            released.wait(60)

    began = anyio.current_time()
    async with client_lifespan(HangsSync if sync else HangsAsync, name="slow")(None):
        pass
    assert anyio.current_time() - began < 30  # a shielded close does not heed fail_after
    released.set()
    records = [record for record in caplog.records if record.name == "asgi_upstream"]
    assert len(records) == 1
    assert records[0].levelno >= logging.WARNING
    assert "slow" in records[0].getMessage()


async def test_a_close_that_hangs_does_not_keep_others_from_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asgi_upstream.lifespan.CLIENT_CLOSE_TIMEOUT", 0.05)
    log: list[str] = []

    class Hangs:
        async def aclose(self) -> None:
            await anyio.sleep_forever()

    lifespan = combine_lifespans(
        client_lifespan(lambda: Resource(log, "a"), name="a"), client_lifespan(Hangs, name="b")
    )
    with anyio.fail_after(60):
        async with lifespan(None):
            pass
    assert log == ["open a", "close a"]


async def test_a_close_that_raises_does_not_keep_others_from_closing() -> None:
    log: list[str] = []

    class Fails:
        async def aclose(self) -> None:
            raise OSError("cannot close")

    lifespan = combine_lifespans(
        client_lifespan(lambda: Resource(log, "a"), name="a"), client_lifespan(Fails, name="b")
    )
    with pytest.raises(OSError, match="cannot close"):
        async with lifespan(None):
            pass
    assert log == ["open a", "close a"]


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "two words", "1st", "a-b", "class", "None", "_state", "a."])
async def test_name_that_is_not_an_identifier_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="name="):
        client_lifespan(name=name)


async def test_two_lifespans_with_one_key_fail_start_up_naming_both() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def own_cache(app: object) -> AsyncIterator[Mapping[str, object]]:
        yield {"shared": 1}

    lifespan = combine_lifespans(
        client_lifespan(lambda: Resource(log), name="before"),
        own_cache,
        client_lifespan(lambda: Resource(log, "second"), name="shared"),
    )
    with pytest.raises(RuntimeError) as caught:
        async with lifespan(None):
            pytest.fail("the app must not start")
    message = str(caught.value)
    assert "'shared'" in message
    assert "own_cache" in message
    assert "client_lifespan(name='shared')" in message
    assert log == ["open resource", "open second", "close second", "close resource"]


async def test_the_class_of_a_transport_is_refused_at_definition() -> None:
    with pytest.raises(TypeError, match=r"transport=MockTransport\(\)"):
        client_lifespan(transport=httpx.MockTransport)


@pytest.mark.parametrize(
    ("base_url", "error", "says"),
    [
        (None, TypeError, "environment"),
        ("localhost:9000", ValueError, "write 'http://localhost:9000'"),
        ("api.example", ValueError, "'https://api.example'"),
    ],
)
async def test_an_invalid_base_url_is_refused_at_definition(
    base_url: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        client_lifespan(base_url=base_url)
    client_lifespan(base_url="")
    client_lifespan(base_url=httpx.URL("http://x"))


async def test_secret_with_line_break_is_refused_and_not_shown() -> None:
    lifespan = client_lifespan(headers={"Authorization": "Bearer secret\n"})
    with pytest.raises(ValueError, match=r"header 'Authorization'.*\.strip\(\)") as caught:
        async with lifespan(None):
            pytest.fail("the app must not start")
    assert "secret" not in str(caught.value)


async def test_a_client_in_place_of_a_factory_is_refused_at_definition() -> None:
    the_client: Any = httpx.AsyncClient()
    with pytest.raises(TypeError, match=r"lambda: httpx\.AsyncClient"):
        client_lifespan(the_client)


async def test_lifespan_that_was_not_called_is_refused_at_start_up() -> None:
    lifespan: Any = client_lifespan
    app = Starlette(lifespan=lifespan)
    with pytest.raises(TypeError, match=r"lifespan=client_lifespan\(base_url=\.\.\.\)"):
        async with app.router.lifespan_context(app):
            pytest.fail("the app must not start")


# --- combine_lifespans ---------------------------------------------------------------------


async def test_a_list_of_lifespans_is_refused_at_definition() -> None:
    both: Any = [client_lifespan(), client_lifespan(name="other")]
    with pytest.raises(TypeError, match=r"combine_lifespans\(one, another\)"):
        combine_lifespans(both)
    with pytest.raises(TypeError, match="None"):
        combine_lifespans(client_lifespan(), None)  # type: ignore[arg-type]


async def test_lifespans_are_entered_in_order_and_left_in_reverse() -> None:
    log: list[str] = []
    lifespan = combine_lifespans(
        *(client_lifespan(lambda n=name: Resource(log, n), name=name) for name in "abc")
    )
    async with lifespan(None) as state:
        assert sorted(state) == ["a", "b", "c"]
        assert log == ["open a", "open b", "open c"]
        log.clear()
    assert log == ["close c", "close b", "close a"]


async def test_every_lifespan_gets_the_app_and_states_are_merged() -> None:
    seen: list[object] = []

    @asynccontextmanager
    async def database(app: object) -> AsyncIterator[Mapping[str, object]]:
        seen.append(app)
        yield {"database": "d", "pool": 4}

    @asynccontextmanager
    async def logs_only(app: object) -> AsyncIterator[None]:
        seen.append(app)
        yield

    app = object()
    async with combine_lifespans(database, logs_only, client_lifespan())(app) as state:
        assert sorted(state) == ["client", "database", "pool"]
    assert seen == [app, app]


async def test_no_lifespans_at_all_yield_an_empty_state() -> None:
    nothing: Lifespan = combine_lifespans()
    async with nothing(None) as state:
        assert state == {}


async def test_combined_lifespans_can_be_combined_again() -> None:
    inner = combine_lifespans(client_lifespan(name="a"), client_lifespan(name="b"))
    async with combine_lifespans(inner, client_lifespan())(None) as state:
        assert sorted(state) == ["a", "b", "client"]


# --- cookies -------------------------------------------------------------------------------


def session_upstream(seen: list[str | None]) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"set-cookie": "session=alice"})

    return httpx.MockTransport(answer)


async def cookies_sent(**options: Any) -> list[str | None]:
    seen: list[str | None] = []
    lifespan = client_lifespan(
        transport=session_upstream(seen), base_url="http://x.example", **options
    )
    async with lifespan(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        for _ in range(2):
            response = await client.get("/")
            assert response.headers["set-cookie"] == "session=alice"
            assert response.cookies["session"] == "alice"
    return seen


async def test_one_callers_session_is_not_sent_for_the_next() -> None:
    assert await cookies_sent() == [None, None]


@pytest.mark.parametrize("cookies", [None, {}])
async def test_a_client_given_cookies_keeps_those_it_gets(cookies: dict[str, str] | None) -> None:
    assert await cookies_sent(cookies=cookies) == [None, "session=alice"]


async def test_cookies_given_are_sent_beside_those_kept() -> None:
    first, second = await cookies_sent(cookies={"own": "1"})
    assert first == "own=1"
    assert second is not None
    assert sorted(second.split("; ")) == ["own=1", "session=alice"]


async def test_a_client_whose_factory_put_cookies_there_keeps_cookies() -> None:
    seen: list[str | None] = []

    def make() -> httpx.AsyncClient:
        client = httpx.AsyncClient(transport=session_upstream(seen), base_url="http://x.example")
        client.cookies.set("own", "1")
        return client

    async with client_lifespan(make)(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        await client.get("/")
        await client.get("/")
    first, second = seen
    assert first == "own=1"
    assert second is not None
    assert sorted(second.split("; ")) == ["own=1", "session=alice"]


async def test_cookies_put_on_a_client_that_keeps_none_are_sent() -> None:
    seen: list[str | None] = []
    lifespan = client_lifespan(transport=session_upstream(seen), base_url="http://x.example")
    async with lifespan(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        client.cookies.set("own", "1")
        await client.get("/")
        await client.get("/")
    assert seen == ["own=1", "own=1"]


async def test_a_sync_client_keeps_no_cookies_either() -> None:
    seen: list[str | None] = []
    async with client_lifespan(
        httpx.Client, transport=session_upstream(seen), base_url="http://x.example"
    )(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.Client)
        client.get("/")
        client.get("/")
    assert seen == [None, None]


async def test_a_client_of_httpx2_keeps_no_cookies_either() -> None:
    seen: list[str | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("cookie"))
        return httpx2.Response(200, headers={"set-cookie": "session=alice"})

    async with client_lifespan(
        httpx2.AsyncClient, transport=httpx2.MockTransport(answer), base_url="http://x.example"
    )(None) as state:
        client = state["client"]
        assert isinstance(client, httpx2.AsyncClient)
        await client.get("/")
        await client.get("/")
    assert seen == [None, None]


# --- as the lifespan of an app -------------------------------------------------------------


async def lifespan_of(app: Starlette) -> dict[str, Any]:
    """Run start-up and shutdown as a server does; the state that the app filled."""
    state: dict[str, Any] = {}
    to_app = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    from_app: list[str] = []

    async def receive() -> dict[str, Any]:
        return to_app.pop(0)

    async def send(message: Any) -> None:
        from_app.append(message["type"])
        if message["type"] == "lifespan.startup.complete":
            assert not state["client"].is_closed

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}, receive, send)
    assert from_app == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    return state


async def test_it_is_a_lifespan_of_starlette() -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    app = Starlette(lifespan=client_lifespan(), routes=[Route("/", endpoint)])
    assert (await lifespan_of(app))["client"].is_closed


async def test_it_is_a_lifespan_of_fastapi() -> None:
    app = FastAPI(lifespan=client_lifespan(base_url="http://x"))
    assert (await lifespan_of(app))["client"].is_closed


async def test_combined_it_is_a_lifespan_of_fastapi() -> None:
    app = FastAPI(lifespan=combine_lifespans(client_lifespan(), client_lifespan(name="other")))
    state = await lifespan_of(app)
    assert sorted(state) == ["client", "other"]
    assert state["client"].is_closed
    assert state["other"].is_closed


async def test_a_failed_start_up_is_the_apps_own_failure() -> None:
    def make() -> httpx.AsyncClient:
        raise ValueError("no such certificate")

    with pytest.raises(ValueError, match="no such certificate"):
        await lifespan_of(FastAPI(lifespan=client_lifespan(make)))
