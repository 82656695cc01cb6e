"""Skips are named at the end of a run; on CI a skip is a failure. What `make test` leaves out, and
what is of httpx alone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ON_HTTPX2
from tests.support.page_apps import Serve, serving
from tests.support.upstream import Upstream

HERE = Path(__file__).parent
# Of what runs on each server and transport, `make test` runs these, and `make test-all` the rest.
_MOST = ("uvicorn-httptools+asyncio", "hypercorn-trio", "granian")
EVERY_TIME = {
    "integration/test_conformance": _MOST,
    "integration/test_smuggling.py": _MOST,
    "integration/test_what_happens_when.py": _MOST,
    "integration/test_ending.py": ("uvicorn-h11", "hypercorn-trio", "granian+asyncio", "gunicorn"),
    "integration/test_faults.py": ("uvicorn-h11", "uvicorn-httptools+asyncio"),
    "integration/test_overload.py": (),  # 40 seconds each
    "integration/test_records.py": ("uvicorn-httptools+asyncio", "hypercorn-trio"),
    "integration/test_websockets.py": ("uvicorn-httptools+asyncio",),
    "integration/test_workers.py": ("uvicorn-httptools",),
    "real_clients/": ("uvicorn-httptools+asyncio",),
}
SERVERS = ("uvicorn", "hypercorn", "granian", "gunicorn")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def serve_page(upstream: Upstream, tmp_path: Path) -> Iterator[Serve]:
    with serving(tmp_path, upstream.url) as serve:
        yield serve


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and is_of_a_rarer_server(item):
            item.add_marker(pytest.mark.slow)
    left_out = [
        item for item in items if needs_other_loop(item) or (ON_HTTPX2 and is_of_httpx(item))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def is_of_a_rarer_server(item: pytest.Function) -> bool:
    path = item.path.relative_to(HERE).as_posix() if HERE in item.path.parents else ""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    names = [value for value in values if str(value).startswith(SERVERS)]
    usual = [servers for start, servers in EVERY_TIME.items() if path.startswith(start)]
    return bool(names and usual) and not any(name in usual[0] for name in names)


def needs_other_loop(item: pytest.Item) -> bool:
    backend = item.callspec.params.get("anyio_backend") if hasattr(item, "callspec") else None
    return backend == "trio" and item.get_closest_marker("asyncio_only") is not None


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
