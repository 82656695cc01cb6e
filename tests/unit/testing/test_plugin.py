"""The pytest plugin, in runs of pytest of its own: what fails, what does not, and what is said."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asgi_upstream.testing import no_leaks
from asgi_upstream.testing._malformed import MALFORMED
from tests.support.flavor import httpx

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/testing.md"
PREAMBLE = "from tests.unit.testing.leaky import *"
OPTIONS = [
    "-ppytest_asgi_upstream",
    "-pno:cacheprovider",
    "-oasyncio_default_fixture_loop_scope=function",
    "--strict-markers",
]
Told = dict[str, str]
Run = Callable[..., Told]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs tests in a process of its own, since some of them leak; what was said of each failure,
    by its name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))

    def run(code: str, *options: str, passed: int, failed: int = 0, errors: int = 0) -> Told:
        pytester.makepyfile(code.replace("# preamble", PREAMBLE))
        result = pytester.runpytest_subprocess(*OPTIONS, *options)
        result.assert_outcomes(passed=passed, failed=failed, errors=errors)
        failures = result.stdout.str().partition("= short test summary info =")[0]
        names_and_sayings = re.split(r"^_{3,} (.+?) _{3,}$", failures, flags=re.M)[1:]
        return dict(zip(names_and_sayings[::2], names_and_sayings[1::2], strict=True))

    return run


def lines_of(told: Told, pattern: str) -> dict[str, list[str]]:
    """The lines of each failure that are like that, with U for the URLs of upstreams."""
    line = re.compile(rf"^E +{pattern}$", re.M)
    url = re.compile(r"http://127\.0\.0\.1:\d+")
    return {name: line.findall(url.sub("U", said)) for name, said in told.items()}


def test_a_test_that_leaves_an_exchange_open_fails_and_names_it(run: Run) -> None:
    told = run(
        """# preamble
@quick
@pytest.mark.asyncio
async def test_asyncio(upstream):
    await leave_running(upstream, lambda get: kept.append(asyncio.create_task(get())))

@quick
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_anyio(upstream, anyio_backend):
    await leave_running(upstream, lambda get: kept.append(asyncio.create_task(get())))

@quick
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio(upstream, anyio_backend):
    import trio
    await leave_running(upstream, trio.lowlevel.spawn_system_task)

@quick
def test_client_in_a_thread(upstream, tested):
    upstream.get("/never").stall(1)
    later(lambda: tested.get("/never"))
    eventually(lambda: upstream.open_exchanges == 1)

@quick
def test_server(upstream, served):
    upstream.get("/never").stall()
    leave_open(served)
    eventually(lambda: upstream.open_exchanges == 1)

@quick
def test_app_in_another_process(upstream):
    upstream.get("/never").stall()
    leave_open(upstream.url)  # in the place of the app
    eventually(lambda: upstream.open_exchanges == 1)

@quick
class TestClass:
    def test_method(self, upstream, served):
        upstream.get("/never").stall()
        leave_open(served)
        eventually(lambda: upstream.open_exchanges == 1)

# The fixture has no `within`, so this takes its time.
def test_fixture(served, upstream, no_leaks):
    upstream.get("/never").stall()
    leave_open(served)
    eventually(lambda: upstream.open_exchanges == 1)
""",
        passed=0,
        failed=9,
    )
    by_outer, by_client = "sent by a client without a lifespan", "sent by the client 'client'"
    assert lines_of(told, "GET U/never, (.*)") == {
        "test_asyncio": [by_outer, "at the upstream"],
        "test_anyio[asyncio]": [by_outer, "at the upstream"],
        "test_trio[trio]": [by_outer, "at the upstream"],
        "test_client_in_a_thread[TestClient0]": [by_client, "at the upstream"],
        "test_client_in_a_thread[TestClient1]": [by_client, "at the upstream"],
        "test_server": [by_client, "at the upstream"],
        "test_app_in_another_process": ["at the upstream"],
        "TestClass.test_method": [by_client, "at the upstream"],
        "test_fixture": [by_client, "at the upstream"],
    }
    assert "AssertionError: exchanges still open 0.3 s after the end:" in told["test_server"]


def test_unclosed_response_of_any_length_is_reported(run: Run) -> None:
    told = run(
        """# preamble
from tests.support.flavor import AsyncioTransport
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

@pytest.fixture(params=[None, AsyncioTransport])
def leaking(request, upstream):
    upstream.get("/short").text("x")
    made = request.param and request.param()

    async def leak(request):
        client = await get_client(request)
        kept.append(await client.send(client.build_request("GET", "/short"), stream=True))
        return PlainTextResponse("fine")

    lifespan = client_lifespan(base_url=upstream.url, transport=made)
    with TestClient(Starlette(routes=[Route("/", leak)], lifespan=lifespan)) as caller:
        yield caller

@quick
def test_once(leaking):
    assert leaking.get("/").text == "fine"

@quick
def test_twice(leaking):
    assert [leaking.get("/").text for _ in range(2)] == ["fine"] * 2
""",
        passed=0,
        failed=4,
    )
    assert [*lines_of(told, "(.* unclosed .*)").values()] == [
        *[["an unclosed response of the client 'client'"]] * 2,
        *[["2 unclosed responses of the client 'client'"]] * 2,
    ]


def test_unittests_are_checked_before_their_cleanups(run: Run) -> None:
    told = run(
        """# preamble
import unittest

class Case:
    def scripted(self):
        upstream = Upstream()
        self.addCleanup(upstream.__exit__, None, None, None)
        upstream.__enter__().get("/never").stall()
        return upstream

@quick
class TestSync(Case, unittest.TestCase):
    def test_clean(self):
        self.scripted()

    def test_leak(self):
        upstream = self.scripted()
        leave_open(upstream.url)  # in the place of the app
        eventually(lambda: upstream.open_exchanges == 1)

@quick
class TestAsync(Case, unittest.IsolatedAsyncioTestCase):
    async def test_clean(self):
        self.scripted()

    async def test_leak(self):
        upstream = self.scripted()
        app = app_by(outer, upstream.url + "/never")
        kept.append(asyncio.create_task(calling(app).get("/")))
        await aeventually(lambda: upstream.open_exchanges == 1)
""",
        passed=2,
        failed=2,
        errors=1,  # the caller of the async one
    )
    by_outer = "sent by a client without a lifespan"
    told.pop("ERROR at teardown of TestAsync.test_leak")
    assert lines_of(told, "GET U/never, (.*)") == {
        "TestAsync.test_leak": [by_outer, "at the upstream"],
        "TestSync.test_leak": ["at the upstream"],
    }


def test_a_watch_that_would_see_nothing_is_refused(run: Run) -> None:
    told = run(
        """# preamble
def test_too_late(request):
    request.getfixturevalue("no_leaks")

@pytest.mark.no_leaks(0.3)
def test_by_position():
    pass

@pytest.mark.no_leaks(with_in=0.3)
def test_misspelt():
    pass
""",
        passed=0,
        failed=1,
        errors=2,
    )
    assert [*lines_of(told, "RuntimeError: (no_leaks must be a test argument).*").values()].count(
        ["no_leaks must be a test argument"]
    ) == 1
    assert [*lines_of(told, "TypeError: .* has one argument, (within=).*").values()].count(
        ["within="]
    ) == 2


def test_open_client_after_a_test_is_an_error_that_names_it(run: Run) -> None:
    told = run(
        """# preamble
import httpx2

@quick
@pytest.mark.anyio
@on_both
async def test_own(upstream, anyio_backend):
    client = httpx.AsyncClient(base_url=upstream.url, trust_env=False)
    async with calling(app_by(client, "/item")) as caller:
        assert (await caller.get("/")).status_code == 501

@quick
@pytest.mark.asyncio
async def test_of_the_test_itself(upstream):
    httpx.AsyncClient().build_request("GET", upstream.url)
    kept.append(httpx.AsyncClient(trust_env=False))
    assert (await kept[-1].get(upstream.url)).status_code == 501

@quick
def test_that_is_cut_short(loop):
    lifespan = client_lifespan(name="cut")(None)
    kept.append(lifespan)
    loop.run_until_complete(lifespan.__aenter__())
    raise ValueError

@quick
def test_one_for_each_request(upstream, serve):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            client = httpx2.AsyncClient(base_url=upstream.url, trust_env=False)
            await app_by(client, "/item")(scope, receive, send)

    httpx.get(serve(app), trust_env=False)

@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()

@quick
def test_lifespan(loop):
    lifespan = client_lifespan(name="billing")(None)
    kept.append(lifespan)
    loop.run_until_complete(lifespan.__aenter__())

def test_last():
    pass
""",
        passed=6,
        failed=1,  # and no error besides
        errors=5,
    )
    stray = ["an AsyncClient for U: use `async with`, or aclose()"]
    assert "ValueError" in told.pop("test_that_is_cut_short")
    assert lines_of(told, r"(an? .*|the client .*)") == {
        "ERROR at teardown of test_own[asyncio]": stray,
        "ERROR at teardown of test_own[trio]": stray,
        "ERROR at teardown of test_of_the_test_itself": [
            "an AsyncClient: use `async with`, or aclose()",
        ],
        "ERROR at teardown of test_one_for_each_request": stray,
        "ERROR at teardown of test_lifespan": [
            "the client 'billing': its lifespan was not exited",
        ],
    }


def test_clean_tests_pass_with_warnings_as_errors(run: Run) -> None:
    run(
        """# preamble
pytestmark = pytest.mark.no_leaks

@pytest.fixture(scope="module")
def shared():  # a client that is first used in a test, and closed after all
    client = httpx.AsyncClient(trust_env=False)
    yield client
    asyncio.run(client.aclose())

@pytest.fixture(scope="module")
def shared_app():
    with Upstream() as upstream, serve(make_app(upstream.url)) as url:
        upstream.any().json(1)
        yield url

@pytest.fixture
def own(upstream):
    client = httpx.AsyncClient(base_url=upstream.url, trust_env=False)
    yield client
    asyncio.run(client.aclose())

@pytest.mark.asyncio
async def test_what_others_share_and_is_new(upstream, shared):
    upstream.get("/item").json(1)
    async with calling(app_by(shared, upstream.url + "/item")) as caller:
        assert (await caller.get("/")).json() == 1
    await shared._transport.aclose()  # the loop ends with the test

@pytest.mark.asyncio
async def test_asyncio(upstream, own, no_leaks):
    upstream.get("/item").json(1)
    async with calling(app_by(own, "/item")) as caller:
        assert (await caller.get("/")).json() == 1
    await own._transport.aclose()

@pytest.mark.asyncio
async def test_a_task_that_is_cancelled_at_the_last_moment(upstream):
    upstream.get("/never").stall()
    async with httpx.AsyncClient(base_url=upstream.url, trust_env=False) as client:
        async with calling(app_by(client, "/never")) as caller:
            task = asyncio.create_task(caller.get("/"))
            await aeventually(lambda: upstream.open_exchanges == 1)
            task.cancel()

@pytest.mark.anyio
@on_both
async def test_anyio(upstream, anyio_backend):
    upstream.get("/item").json(1)
    async with httpx.AsyncClient(base_url=upstream.url, trust_env=False) as client:
        async with calling(app_by(client, "/item")) as caller:
            assert (await caller.get("/")).json() == 1

@pytest.mark.anyio
@on_both
async def test_a_server(upstream, anyio_backend):
    upstream.get("/item").json(1)
    async with serve(make_app(upstream.url)) as url, httpx.AsyncClient(trust_env=False) as caller:
        assert (await caller.get(f"{url}/item")).json() == 1

def test_a_test_client(upstream, tested):
    upstream.get("/item").json(1)
    assert tested.get("/item").json() == 1

def test_a_caller_who_leaves_at_the_last_moment(upstream, served):
    upstream.get("/events").events("tick", every=0.05, forever=True)
    with httpx.stream("GET", f"{served}/events", trust_env=False) as response:
        assert next(response.iter_raw()) == b"data: tick\\n\\n"

def test_what_others_share(shared_app):
    assert httpx.get(f"{shared_app}/item", trust_env=False).json() == 1

def test_without_any_exchange():
    pass
""",
        "-Werror",
        passed=12,
    )


@pytest.mark.parametrize("name", [pytest.param("httpx", marks=pytest.mark.of_httpx), "httpx2"])
def test_test_clients_on_httpx_and_on_httpx2_are_seen(run: Run, name: str) -> None:
    hide = "" if name == "httpx2" else "import sys; sys.modules['httpx2'] = None"
    told = run(
        f"""{hide}
# preamble
import {name}

@quick
def test_leak(upstream, tested):
    assert isinstance(tested, {name}.Client)
    upstream.get("/never").stall(1)
    later(lambda: tested.get("/never"))
    eventually(lambda: upstream.open_exchanges == 1)

@quick
def test_clean(upstream, tested):
    upstream.get("/item").json(1)
    assert tested.get("/item").json() == 1
""",
        passed=2,
        failed=2,
    )
    for lines in lines_of(told, "GET U/never, (.*)").values():
        assert lines[0] == "sent by the client 'client'"


def test_module_marker_reports_leaks_and_hides_no_failure(run: Run) -> None:
    told = run(
        """# preamble
pytestmark = pytest.mark.no_leaks(within=0.3)

def test_leaks(upstream, served):
    upstream.get("/never").stall()
    leave_open(served)
    eventually(lambda: upstream.open_exchanges == 1)

def test_raises(upstream, served):
    upstream.get("/never").stall()
    leave_open(served)
    eventually(lambda: upstream.open_exchanges == 1)
    raise ValueError("of the test itself")

@pytest.mark.asyncio
async def test_raises_too(upstream, served):
    upstream.get("/never").stall()
    leave_open(served)
    await aeventually(lambda: upstream.open_exchanges == 1)
    raise ValueError("of the test itself")

def test_other():
    pass
""",
        passed=1,
        failed=3,
    )
    assert "still open" in told["test_leaks"]
    for name in ("test_raises", "test_raises_too"):
        assert "ValueError: of the test itself" in told[name]
        assert "still open" not in told[name]


def test_leak_of_an_unmarked_test_does_not_blame_the_next(run: Run) -> None:
    run(
        """# preamble
@pytest.fixture(scope="module")
def module():
    with Upstream() as upstream, serve(make_app(upstream.url)) as url:
        upstream.get("/never").stall()
        yield upstream, url

def test_leaves_it_open(module):
    leave_open(module[1])
    eventually(lambda: module[0].open_exchanges == 1)

@quick
def test_comes_after(module):
    assert module[0].open_exchanges == 1
""",
        passed=2,
    )


def test_it_works_without_pytest() -> None:
    code = """
lifespan = client_lifespan(name="billing")(None)

async def leaks():
    async with watching(within=0.1):
        await lifespan.__aenter__()

with watching():
    pass
asyncio.run(leaks())
"""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr.splitlines()[-2:] == [
        "AssertionError: clients that were never closed:",
        "  the client 'billing': its lifespan was not exited",
    ]


def test_clients_are_made_as_ever_when_nobody_watches() -> None:
    constructor = httpx.AsyncClient.__init__
    with no_leaks(), no_leaks():
        assert httpx.AsyncClient.__init__ is not constructor
    assert httpx.AsyncClient.__init__ is constructor


def test_exchanges_take_the_same_way_when_somebody_watches() -> None:
    code = """
import httpx2
from asgi_upstream._httpx.fast_path import direct_transport

async def main():
    with watching():
        async with client_lifespan(httpx2.AsyncClient, name="client")(None) as state:
            client = state["client"]
            print(direct_transport(client, client.build_request("GET", "http://any")) is not None)

asyncio.run(main())
"""
    command = [sys.executable, "-c", PREAMBLE + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout == "True\n", done.stderr


def test_a_test_that_uses_nothing_of_it_does_not_import_it(run: Run) -> None:
    run("import sys\ndef test_it(): assert 'asgi_upstream' not in sys.modules", passed=1)


def test_pytest_finds_the_plugin_where_the_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\npytest_asgi_upstream = "pytest_asgi_upstream"' in text


def test_the_code_of_the_docs_runs_as_it_stands(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == PAGE.read_text().count("```python") == 4
    pytester.makepyfile(**dict(blocks))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("NO_PROXY", "*")
    pytester.runpytest_subprocess(*OPTIONS, "-Werror").assert_outcomes(passed=5)


def test_the_docs_name_every_broken_message() -> None:
    (row,) = re.findall(r"^- .*`\.broken\(kind\)`: (.*)\.$", PAGE.read_text(), re.M)
    assert re.findall("`([^`]+)`", row) == list(MALFORMED)
