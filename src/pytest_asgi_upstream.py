"""The pytest plugin: fixtures `upstream`, `serve` and `no_leaks`, and a marker `no_leaks`.

It is outside the package and imports the package only if a test uses it, so that pytest starts as
fast as without it. (PYTEST_DONT_REWRITE: this module has no asserts.)
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
    """A scripted upstream on loopback: `upstream.get("/item").json({...})`."""
    from asgi_upstream.testing import Upstream

    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serve an app with uvicorn until the end of the test: `url = serve(app)`."""
    from asgi_upstream.testing import serve

    with ExitStack() as stack:

        def start(app: "ASGIApp", **options: Any) -> str:
            return stack.enter_context(serve(app, **options))

        yield start


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> None:
    """Fail the test if it leaves an exchange or a client open."""
    if request.session.stash.get(_LEAK_CHECK, None) is None:
        raise RuntimeError(
            "no_leaks must be a test argument or a marker; getfixturevalue() requests it too late"
        )


# `no_leaks` works in these hooks, because a fixture would be torn down after other fixtures.

_LEAK_CHECK: pytest.StashKey["testing.no_leaks"] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Start the leak check before the first fixture."""
    marker = item.get_closest_marker("no_leaks")
    if marker is not None or "no_leaks" in getattr(item, "fixturenames", ()):
        from asgi_upstream.testing import no_leaks

        if marker is not None and (marker.args or marker.kwargs.keys() - {"within"}):
            yield  # pytest's teardown needs its setup.
            raise TypeError(f"{MARKER.partition(':')[0]} has one argument, within=, in seconds")
        item.session.stash[_LEAK_CHECK] = leak_check = no_leaks(**(marker.kwargs if marker else {}))
        leak_check.begin()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    """Ignore resources that a fixture opens for more than one test."""
    leak_check = request.session.stash.get(_LEAK_CHECK, None)
    if leak_check is None or request.scope == "function":
        return (yield)
    with leak_check.paused():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Check for open exchanges right after the test, before its fixtures are torn down."""
    leak_check = item.session.stash.get(_LEAK_CHECK, None)
    if leak_check is None:
        return (yield)
    try:
        if isinstance(item, pytest.Function) and (checked := _wrap_test(item, leak_check)):
            with _replaced(item, checked):
                return (yield)
        yield
        leak_check.check_exchanges()
    except BaseException:
        # Report one failure only. A failed test may leave things open.
        _stop(item, leak_check)
        raise
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Check for open clients after all fixtures of the test are torn down."""
    leak_check = item.session.stash.get(_LEAK_CHECK, None)
    if leak_check is None:
        return (yield)
    try:
        yield
        leak_check.check_clients()
    finally:
        _stop(item, leak_check)
    return None


def _wrap_test(item: pytest.Function, leak_check: "testing.no_leaks") -> Callable[..., Any] | None:
    """Return the test with the check as its last step, or None if the check can follow the test."""
    if inspect.iscoroutinefunction(test := item.obj):
        # Check inside the event loop, because closing the loop may end open exchanges.
        return _with_async_check(test, leak_check)
    if _is_unittest(item):
        # Check before the functions of `addCleanup` run.
        return _with_check(test, leak_check)
    return None


def _is_unittest(item: pytest.Function) -> bool:
    return hasattr(item, "addFailure")  # pytest's item for a unittest test is its result too.


@contextmanager
def _replaced(item: pytest.Function, checked: Callable[..., Any]) -> Generator[None]:
    """Replace the test. For an async unittest test, replace the method of its instance too."""
    test: Any = item.obj
    case: object = item.instance if _is_unittest(item) else None
    item.obj = checked
    if case is not None and inspect.iscoroutinefunction(checked):
        setattr(case, item.name, checked)
    try:
        yield
    finally:
        item.obj = test
        if case is not None:
            case.__dict__.pop(item.name, None)


def _stop(item: pytest.Item, leak_check: "testing.no_leaks") -> None:
    leak_check.end()
    del item.session.stash[_LEAK_CHECK]


def _with_async_check(
    test: Callable[..., Awaitable[None]], leak_check: "testing.no_leaks"
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def checked(*args: Any, **options: Any) -> None:
        await test(*args, **options)
        await leak_check.acheck_exchanges()

    return checked


def _with_check(test: Callable[..., None], leak_check: "testing.no_leaks") -> Callable[..., None]:
    @functools.wraps(test)
    def checked(*args: Any, **options: Any) -> None:
        test(*args, **options)
        leak_check.check_exchanges()

    return checked
