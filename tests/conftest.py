"""Skips are named at the end of a run; on CI a skip is a failure. What `make test` leaves out, and
what is of httpx alone."""

import gc
import os
import ssl
from collections.abc import Generator, Iterator
from pathlib import Path

import certifi
import hypothesis
import pytest
import trustme

from tests.support.asgi import collect_garbage
from tests.support.clock import make_jumping_backend
from tests.support.flavor import ON_HTTPX2
from tests.support.page_apps import Serve, serving
from tests.support.server_choice import choose_servers
from tests.support.upstream import Upstream

hypothesis.settings.register_profile(
    "any-speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-speed")

BACKENDS: dict[str, object] = {
    "asyncio": "asyncio",
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": "trio",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers",
        choices=["fast", "all"],
        default="fast",
        help="the servers for tests of the server interface (tests/support/server_choice.py)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    item = metafunc.definition
    if "server_name" in metafunc.fixturenames:
        marker = item.get_closest_marker("servers")
        names = choose_servers(marker, choose_all=metafunc.config.getoption("servers") == "all")
        metafunc.parametrize("server_name", names, scope="session")
    own = any("anyio_backend" in mark.args[0] for mark in item.iter_markers("parametrize"))
    if "anyio_backend" in metafunc.fixturenames and not own:
        names = choose_backends(item)
        metafunc.parametrize("anyio_backend", names, indirect=True)


def choose_backends(item: pytest.Item) -> tuple[str, ...]:
    if item.get_closest_marker("asyncio_only"):
        return ("asyncio",)
    marker = item.get_closest_marker("backends")
    return marker.args if marker else ("asyncio", "trio")


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> object:
    is_virtual, is_real = map(request.node.get_closest_marker, ("virtual_time", "real_time"))
    if is_virtual and not is_real:
        return make_jumping_backend(request.param)
    return BACKENDS[request.param]


@pytest.fixture
def loop_name(anyio_backend: object) -> str:
    """`asyncio` or `trio`."""
    return str(anyio_backend[0] if isinstance(anyio_backend, tuple) else anyio_backend)


@pytest.fixture(autouse=True)
def _report_leaks_where_they_happen() -> Iterator[None]:
    yield
    collect_garbage()


@pytest.fixture(autouse=True, scope="session")
def _trust_a_short_list_of_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each client loads the list of certifi or of the machine, which takes 20 ms or more.

    No test needs what is on it. Processes that tests start have the short list too.
    """
    file = tmp_path_factory.mktemp("authorities") / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(file))
        paths = ssl.get_default_verify_paths()._replace(openssl_cafile=str(file), openssl_capath="")
        patch.setattr(ssl, "get_default_verify_paths", lambda: paths)  # httpx2 asks it
        patch.setenv("SSL_CERT_FILE", str(file))
        patch.delenv("SSL_CERT_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def serve_page(upstream: Upstream, tmp_path: Path) -> Iterator[Serve]:
    with serving(tmp_path, upstream.url) as serve:
        yield serve


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Do not look for garbage while tests are collected, nor later in what they keep alive.

    That takes half of the time of a collection, in each worker.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [
        item for item in items if needs_other_loop(item) or (ON_HTTPX2 and is_of_httpx(item))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        unwanted = set(left_out)
        items[:] = [item for item in items if item not in unwanted]


def needs_other_loop(item: pytest.Item) -> bool:
    backend = item.callspec.params.get("anyio_backend") if hasattr(item, "callspec") else None
    other = {"asyncio": "trio_only", "uvloop": "trio_only", "trio": "asyncio_only"}.get(
        str(backend)
    )
    return other is not None and item.get_closest_marker(other) is not None


def is_of_httpx(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return item.get_closest_marker("of_httpx") is not None or "httpx_mock" in fixtures


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):  # type: ignore[no-untyped-def]
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped on CI, where nothing may be: {report.longrepr[2]}"
    return report
