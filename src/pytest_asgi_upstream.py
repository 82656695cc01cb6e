"""The pytest plugin: fixtures `upstream`, `serve` and `no_leaks`, and a marker of that name.

It lies beside the package, and imports that only where a test uses it, so that it costs the start
of pytest nothing. (PYTEST_DONT_REWRITE: there are no asserts in here.)
"""

import functools
import inspect
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from asgi_upstream import testing

MARKER = "no_leaks(within=5.0): fail each test that leaves an exchange or a client open"


@pytest.fixture
def upstream() -> Iterator["testing.Upstream"]:
    """An upstream on loopback, to be scripted: `upstream.get("/item").json({...})`."""
    from asgi_upstream.testing import Upstream

    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serves an app under uvicorn until the end of the test: `url = serve(app)`."""
    from asgi_upstream.testing import serve

    with ExitStack() as stack:

        def start(app: "ASGIApp", **options: Any) -> str:
            return stack.enter_context(serve(app, **options))

        yield start


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> None:
    """Fails the test if it leaves an exchange open, or a client that it never closed."""
    if request.session.stash.get(_LEAK_CHECK, None) is None:
        raise RuntimeError(
            "no_leaks must be a test argument or a marker; getfixturevalue() requests it too late"
        )


# What `no_leaks` does is done in these hooks, for a fixture is torn down when others are already.

_LEAK_CHECK: pytest.StashKey["testing.no_leaks"] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Watch from before the first fixture."""
    marker = item.get_closest_marker("no_leaks")
    if marker is not None or "no_leaks" in getattr(item, "fixturenames", ()):
        from asgi_upstream.testing import no_leaks

        if marker is not None and (marker.args or marker.kwargs.keys() - {"within"}):
            yield  # pytest's own teardown needs its own setup
            raise TypeError(f"{MARKER.partition(':')[0]} has one argument, within=, in seconds")
        item.session.stash[_LEAK_CHECK] = watch = no_leaks(**(marker.kwargs if marker else {}))
        watch.begin()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    """What a fixture opens for many tests is not of the one that comes first."""
    watch = request.session.stash.get(_LEAK_CHECK, None)
    if watch is None or request.scope == "function":
        return (yield)
    with watch.paused():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Look for exchanges as soon as the test is over, while its fixtures are still there."""
    watch = item.session.stash.get(_LEAK_CHECK, None)
    if watch is None:
        return (yield)
    try:
        if isinstance(item, pytest.Function) and (checked := _wrap_test(item, watch)):
            with _replaced(item, checked):
                return (yield)
        yield
        watch.check_exchanges()
    except BaseException:
        # One failure is enough: what it left open is told of, or is that of a test cut short.
        _stop(item, watch)
        raise
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Look for clients when all fixtures of the test had their turn to close them."""
    watch = item.session.stash.get(_LEAK_CHECK, None)
    if watch is None:
        return (yield)
    try:
        yield
        watch.check_clients()
    finally:
        _stop(item, watch)
    return None


def _wrap_test(item: pytest.Function, watch: "testing.no_leaks") -> Callable[..., Any] | None:
    """The test with the check as its last step; None where that can follow it."""
    if inspect.iscoroutinefunction(test := item.obj):
        # In its event loop, which may be closed at its end with all that goes on in it.
        return _with_async_check(test, watch)
    if _is_of_unittest(item):
        # Before what `addCleanup` has, as before the fixtures of others.
        return _with_check(test, watch)
    return None


def _is_of_unittest(item: pytest.Function) -> bool:
    return hasattr(item, "addFailure")  # pytest's item of one is its result too


@contextmanager
def _replaced(item: pytest.Function, checked: Callable[..., Any]) -> Generator[None]:
    """The test is that; unittest asks its own object for an async one."""
    test: Any = item.obj
    case: object = item.instance if _is_of_unittest(item) else None
    item.obj = checked
    if case is not None and inspect.iscoroutinefunction(checked):
        setattr(case, item.name, checked)
    try:
        yield
    finally:
        item.obj = test
        if case is not None:
            case.__dict__.pop(item.name, None)


def _stop(item: pytest.Item, watch: "testing.no_leaks") -> None:
    watch.end()
    del item.session.stash[_LEAK_CHECK]


def _with_async_check(
    test: Callable[..., Awaitable[None]], watch: "testing.no_leaks"
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def checked(*args: Any, **options: Any) -> None:
        await test(*args, **options)
        await watch.acheck_exchanges()

    return checked


def _with_check(test: Callable[..., None], watch: "testing.no_leaks") -> Callable[..., None]:
    @functools.wraps(test)
    def checked(*args: Any, **options: Any) -> None:
        test(*args, **options)
        watch.check_exchanges()

    return checked
