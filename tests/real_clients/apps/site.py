"""A real application in a virtual environment of its own, behind the proxy, in Chromium."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Response

from tests.real_clients.programs import clean_environment
from tests.support.servers import ROOT, Server, free_port
from tests.support.waiting import eventually

# A public name, because several applications exempt 127.0.0.1 from their checks.
HOST = "apps.example"
OTHER_HOST = "other.example"
ALL_HOSTS_ARE_LOCAL = "--host-resolver-rules=MAP *.example 127.0.0.1"
PATIENCE = 60.0  # seconds that a page may take on a busy machine
STARTUP_TIMEOUT = 300.0  # MLflow takes 20 seconds on an idle machine


@dataclass(frozen=True)
class Recipe:
    """How to run an application behind the proxy: a line of docs/reverse-proxy-apps.md."""

    name: str  # of the virtual environment
    mount: str
    command: Callable[[int], list[str]]  # for a port
    options: dict[str, Any] = field(default_factory=dict)  # of ReverseProxy
    ready: str = "/"  # a path that the application answers when it is ready
    environment: dict[str, str] = field(default_factory=dict)
    own_errors: tuple[str, ...] = ()  # which the application answers without the proxy too


class Application:
    """The application's process. It keeps its port and its folder when it is restarted."""

    def __init__(self, recipe: Recipe, home: Path) -> None:
        self.recipe, self.home, self.port = recipe, home, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        programs = bin_folder(self.recipe.name)
        environment = clean_environment(self.home) | self.recipe.environment
        environment.pop("PYTHONPATH")
        environment["PATH"] = f"{programs}:{environment['PATH']}"
        command = self.recipe.command(self.port)
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(programs / command[0]), *command[1:]],
                cwd=self.home,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            eventually(self._listens, STARTUP_TIMEOUT)
        except BaseException:
            self.stop()
            raise AssertionError(self.log()) from None

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
            sock.settimeout(60)
            sock.sendall(b"GET %s HTTP/1.0\r\n\r\n" % self.recipe.ready.encode())
            return sock.recv(5) == b"HTTP/"
        return False

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        for number in (SIGTERM, SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")


class Site:
    """The application at its public address."""

    def __init__(self, recipe: Recipe, application: Application, server: Server) -> None:
        self.recipe, self.application, self._server = recipe, application, server
        self.root = f"http://{HOST}:{server.port}"
        self.url = self.root + recipe.mount
        self._browser: Browser | None = None

    def use(self, browser: Browser) -> None:
        self._browser = browser

    @property
    def open_exchanges(self) -> int:
        count: int = self._server.state()["open"]
        return count

    def proxy_log(self) -> str:
        return self._server.log()

    def wait_until_idle(self) -> None:
        eventually(lambda: self.open_exchanges == 0)

    @contextmanager
    def visitor(self) -> Iterator["Visitor"]:
        """Open a browser profile of its own. No response to it may be an error."""
        assert self._browser is not None
        context = self._browser.new_context(accept_downloads=True)
        context.set_default_timeout(PATIENCE * 1000)
        visitor = Visitor(self, context)
        try:
            yield visitor
        finally:
            context.close()
        unexpected = [seen for seen in visitor.errors if not visitor.is_expected(seen)]
        assert unexpected == [], unexpected
        self.wait_until_idle()


class Visitor:
    """A browser profile, and the errors that it was answered."""

    def __init__(self, site: Site, context: BrowserContext) -> None:
        self.site, self.context = site, context
        self.errors: list[str] = []
        self.expected: tuple[str, ...] = ()
        context.on("response", self._note)

    def is_expected(self, seen: str) -> bool:
        return any(part in seen for part in self.expected + self.site.recipe.own_errors)

    def _note(self, response: Response) -> None:
        if response.status >= 400:
            self.errors.append(f"{response.status} {response.request.method} {response.url}")

    def open(self, path: str = "/") -> Page:
        page = self.context.new_page()
        page.goto(self.site.url + path)
        return page


def run(page: Page, script: str, *arguments: object) -> Any:
    """Run the body of an async function in a page. It gets `args`."""
    return page.evaluate(f"async (args) => {{ {script} }}", list(arguments))


def download(page: Page, path: str) -> bytes:
    """Return what the browser saves from a link to the path."""
    with page.expect_download() as downloading:
        run(
            page,
            """
            const link = document.createElement("a");
            link.href = args[0]; link.download = ""; document.body.append(link); link.click();
            """,
            path,
        )
    return downloading.value.path().read_bytes()


def bin_folder(name: str) -> Path:
    """Return where the programs of an application's virtual environment are."""
    return ROOT / ".venv/apps" / name / "bin"


def has(name: str) -> bool:
    return (bin_folder(name) / "python").exists()


def skip_without(name: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a module of tests."""
    reason = f"there is no {name} in .venv/apps/{name}: run `make apps`"
    return [
        pytest.mark.slow,
        pytest.mark.chromium,
        pytest.mark.skipif(not has(name), reason=reason),
    ]


@contextmanager
def serve(recipe: Recipe, home: Path, server_name: str) -> Iterator[Site]:
    """Run the application and the proxy in front of it."""
    application = Application(recipe, home)
    try:
        with pytest.MonkeyPatch.context() as patch:
            value = json.dumps({"mount": recipe.mount, "options": recipe.options})
            patch.setenv("RECIPE", value)
            server = Server(
                server_name,
                f"http://127.0.0.1:{application.port}",
                app="tests.real_clients.apps.relay:app",
                dev_mode=False,
            )
        try:
            yield Site(recipe, application, server)
        finally:
            server.stop()
    finally:
        application.stop()
