"""docs/comparison.md: each cell of its table is what is measured here."""

import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from asgi_upstream.testing import ScriptedResponse
from tests.support.go import GO, built
from tests.support.nginx import PROXY, configure_nginx, needs_nginx
from tests.support.page_apps import serving
from tests.support.pages import ROOT, files
from tests.support.peers import CODE as PEERS
from tests.support.servers import Server, SocketCaller, ask, free_port
from tests.support.upstream import BEHAVIOURS, Upstream
from tests.support.waiting import eventually

SHORT = "timeout=0.7"  # seconds that the upstream may be silent
PATH, WITH_QUERY = '"/" + path)', '"/" + path + "?code=404")'  # by hand, no query is passed on
WAYS = {
    "asgi-upstream": files("docs/migrating.md")["forward.py"].replace(
        "timeout=httpx.Timeout(5, read=60)", SHORT
    ),
    "httpx by hand": files("docs/why.md")["before.py"]
    .replace("base_url", f"{SHORT}, base_url")
    .replace(PATH, WITH_QUERY),
    "aiohttp by hand": PEERS["aiohttp by hand"]
    .replace("total=60", "sock_read=0.7")
    .replace('9000/" + path', '9000/" + path + "?code=404"'),
    "fastapi-proxy-lib": PEERS["fastapi-proxy-lib"].replace("timeout=60", SHORT),
    "fastapi-reverse-proxy": PEERS["fastapi-reverse-proxy"].replace("timeout=60", SHORT),
    "asgiproxy": PEERS["asgiproxy"].replace(
        "\n\napp =",
        """
    def get_upstream_http_options(self, **arguments):
        import aiohttp

        options = super().get_upstream_http_options(**arguments)
        return options | {"timeout": aiohttp.ClientTimeout(sock_read=0.7)}


app =""",
    ),
    "nginx": "",
    "Go": "",
}
# What waits for a caller's leaving must not end by itself meanwhile.
PATIENT = {SHORT: "timeout=60", "sock_read=0.7": "sock_read=60"}
FIELDS = [
    ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("connection", "x-private"), ("x-private", "1")
]  # fmt: skip
BEHAVIOURS["session"] = ScriptedResponse().content(b"ok", headers=FIELDS)

Probe = Callable[[Server, Upstream], str]
PROBES: dict[str, Probe] = {}


def probe(what: str) -> Callable[[Probe], Probe]:
    def named(function: Probe) -> Probe:
        PROBES[what] = function
        return function

    return named


@probe("status, if the upstream sends 404")
def status(server: Server, upstream: Upstream) -> str:
    return str(ask(server, "/api/status?code=404").status)


@probe("cookies, if the upstream sets two")
def repeated(server: Server, upstream: Upstream) -> str:
    return str(len(ask(server, "/api/session").all(b"set-cookie")))


@probe("sends one caller's cookies for the next")
def cookies(server: Server, upstream: Upstream) -> str:
    ask(server, "/api/session")
    return "**yes**" if b"a=1" in ask(server, "/api/echo").body else "no"


@probe("relays hop-by-hop headers")
def hop_by_hop(server: Server, upstream: Upstream) -> str:
    answer = ask(server, "/api/session")
    return "no" if answer.field(b"x-private") is None else "**yes**"


@probe("status, if the upstream times out")
def silent(server: Server, upstream: Upstream) -> str:
    return str(ask(server, "/api/never").status)


@probe("body, if the upstream fails in the middle")
def truncated(server: Server, upstream: Upstream) -> str:
    return "**looks whole**" if ask(server, "/api/short_chunked").complete else "cut"


@probe("`%2F` in the path")
def encoded(server: Server, upstream: Upstream) -> str:
    ask(server, "/api/a%2Fb/echo")
    return "kept" if "a%2Fb/echo" in upstream.requests[-1].target else "decoded"


@probe("`/api/..%2fecho`")
def escaping(server: Server, upstream: Upstream) -> str:
    before = len(upstream.requests)
    ask(server, "/api/..%2fecho")
    return "**sent**" if len(upstream.requests) > before else "not sent"


@probe("disconnect before the headers")
def leaves_before(server: Server, upstream: Upstream) -> str:
    return _leaves(server, upstream, "/api/never", None)


@probe("disconnect in the middle of the body")
def leaves_within(server: Server, upstream: Upstream) -> str:
    return _leaves(server, upstream, "/api/silent_mid_body", b"first")


def _leaves(server: Server, upstream: Upstream, path: str, after: bytes | None) -> str:
    before = len(upstream.requests)
    caller = SocketCaller(server, path)
    eventually(lambda: len(upstream.requests) > before)
    if after is not None:
        caller.read(until=after)
    caller.leave()
    try:
        eventually(lambda: upstream.requests[before].disconnected, 30)
    except AssertionError:
        return "**not noticed**"
    return "noticed"


REFUSED = "status, if the upstream refuses the connection"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def serve_way(upstream: Upstream, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    processes: list[subprocess.Popen[bytes]] = []
    refusing = socket.socket()  # bound, so that nobody else gets its port, and not listening
    refusing.bind(("127.0.0.1", 0))
    deaf: int = refusing.getsockname()[1]

    def nginx(port: int, url: str, seconds: int) -> Sequence[object]:
        folder = tmp_path / f"nginx{port}"
        folder.mkdir()
        server = PROXY.format(port=port, upstream=url)
        return configure_nginx(folder, f"proxy_read_timeout {seconds}s; server {{ {server} }}")

    def go(port: int, url: str, seconds: int) -> Sequence[object]:
        return [built(tmp_path), port, url, f"{seconds}s"]

    def serve_program(command: Callable[..., Sequence[object]], url: str, seconds: int) -> Server:
        server = cast(Server, SimpleNamespace(port=free_port()))
        processes.append(subprocess.Popen([*map(str, command(server.port, url, seconds))]))
        eventually(lambda: _listens(server))
        return server

    programs = {"nginx": nginx, "Go": go}

    with serving(tmp_path, upstream.url) as serve:

        def serve_way(way: str, *, patient: bool = False, refused: bool = False) -> Server:
            # By a name, for aiohttp keeps no cookies of an address.
            url = f"http://localhost:{deaf if refused else upstream.port}"
            if way in programs:
                return serve_program(programs[way], url, 60 if patient else 1)
            code = WAYS[way].replace("http://127.0.0.1:9000", url)
            for old, new in PATIENT.items() if patient else ():
                code = code.replace(old, new)
            return serve(code)

        yield serve_way
    for process in processes:
        process.terminate()
        process.wait(10)
    refusing.close()


def _listens(server: Server) -> bool:
    try:
        return ask(server, "/").status > 0
    except OSError:
        return False


def table() -> dict[str, dict[str, str]]:
    """The cells of the page, by way and by what happens."""
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (ROOT / "docs/comparison.md").read_text().splitlines()
        if line.startswith("|")
    ]
    head, _, *body = rows[: 2 + len(PROBES) + 1]
    return {way: {row[0]: row[at] for row in body} for at, way in enumerate(head) if at}


MARKS = {
    "nginx": needs_nginx,
    "Go": (pytest.mark.skipif(GO is None, reason="there is no go"),),
}


@pytest.mark.parametrize("way", [pytest.param(way, marks=MARKS.get(way, ())) for way in WAYS])
@pytest.mark.slow
def test_each_cell_of_the_table_is_as_measured(
    way: str, serve_way: Callable[..., Server], upstream: Upstream
) -> None:
    server, measured = serve_way(way), {}
    for what, probe in PROBES.items():
        if probe is leaves_before:  # the first of those that take a timeout for a leaving
            eventually(lambda: upstream.open_exchanges == 0)
            server = serve_way(way, patient=True)
        measured[what] = probe(server, upstream)
    measured[REFUSED] = str(ask(serve_way(way, refused=True), "/api/item").status)
    assert table()[way] == measured, measured
