"""The application of a module, on each transport, and a visitor of it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.real_clients.apps.site import ALL_HOSTS_ARE_LOCAL, Site, Visitor, serve
from tests.real_clients.upstreams import ASYNCIO, STOCK
from tests.support.chromium import running_chromium
from tests.support.servers import NOISE


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium(ALL_HOSTS_ARE_LOCAL) as browser:
        yield browser


@pytest.fixture(scope="module", params=[ASYNCIO, STOCK])
def site(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The application of the module's `RECIPE`."""
    recipe = request.module.RECIPE
    prepare = getattr(request.module, "prepare", None)
    home = tmp_path_factory.mktemp(recipe.name)
    if prepare is not None:
        prepare(home)
    with serve(recipe, home, request.param) as site:
        site.use(browser)
        yield site
        log = site.proxy_log()
        assert [noise for noise in NOISE if noise in log] == []


@pytest.fixture
def visitor(site: Site) -> Iterator[Visitor]:
    with site.visitor() as visitor:
        yield visitor
