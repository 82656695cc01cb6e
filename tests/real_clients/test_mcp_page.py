"""The apps of docs/mcp.md, called by the real MCP client at `https://localhost/mcp`."""

import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import trustme
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)
from pydantic import AnyUrl

from tests.real_clients.programs import listening
from tests.support.pages import files
from tests.support.servers import free_port

pytestmark = pytest.mark.asyncio
UPSTREAM = "http://127.0.0.1:9000"
Serve = Callable[..., str]

# The sentence on Starlette, as code.
STARLETTE = """
from starlette.applications import Starlette
app = Starlette(
    routes=[Route("/mcp", mcp), Route("/.well-known/{path:path}", mcp)],
    lifespan=client_lifespan(base_url="http://127.0.0.1:9000", timeout=30),
)
"""
# The sentence on servers that issue the tokens.
ISSUER = """
app.router.routes += [Route(f"/{name}", mcp) for name in ("authorize", "token", "register")]
"""


class MCPSite:
    """The page's apps behind TLS, and the MCP server that they forward to."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        authority = trustme.CA()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            folder / "localhost.pem"
        )
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)

    def serve(self, code: str, server: str = "tests.real_clients.mcp_server:app") -> str:
        """Start the MCP server and the app in front of it. Return the public URL."""
        port, upstream_port = free_port(), free_port()
        url = f"https://localhost:{port}"
        uvicorn = [sys.executable, "-m", "uvicorn", "--timeout-graceful-shutdown", "1"]
        self._stack.enter_context(
            listening(
                [*uvicorn, "--port", str(upstream_port), server],
                upstream_port,
                self._folder,
                {"PUBLIC_URL": url},
            )
        )
        name = f"page_{port}"
        own = code.replace(UPSTREAM, f"http://127.0.0.1:{upstream_port}")
        (self._folder / f"{name}.py").write_text(own)
        command = [*uvicorn, "--port", str(port), "--ssl-keyfile", "localhost.pem"]
        command += ["--ssl-certfile", "localhost.pem", "--app-dir", ".", f"{name}:app"]
        self._stack.enter_context(listening(command, port, self._folder))
        return url

    def connect(
        self, auth: httpx2.Auth | None = None, headers: dict[str, str] | None = None
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            trust_env=False, verify=self.trust, timeout=60, auth=auth, headers=headers
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MCPSite]:
    with ExitStack() as stack:
        yield MCPSite(stack, tmp_path)


async def add(http: httpx2.AsyncClient, url: str, mode: str = "auto") -> object:
    async with http, Client(streamable_http_client(url, http_client=http), mode=mode) as client:
        result = await client.call_tool("add", {"a": 1, "b": 2})
        return result.structured_content


@pytest.mark.parametrize(
    ("addition", "mode"),
    [
        pytest.param("", "auto", id="fastapi"),
        pytest.param("", "legacy", id="fastapi-legacy", marks=pytest.mark.slow),
        pytest.param(STARLETTE, "auto", id="starlette", marks=pytest.mark.slow),
        pytest.param(STARLETTE, "legacy", id="starlette-legacy"),
    ],
)
async def test_bare_path_is_called_without_a_redirect(
    site: MCPSite, addition: str, mode: str
) -> None:
    url = site.serve(files("docs/mcp.md")["app.py"] + addition)
    statuses: list[int] = []
    http = site.connect()

    async def note(response: httpx2.Response) -> None:
        statuses.append(response.status_code)

    http.event_hooks["response"].append(note)
    assert await add(http, f"{url}/mcp", mode) == {"result": 3}
    assert all(200 <= status < 300 for status in statuses)


async def test_checked_endpoint_refuses_and_forwards(site: MCPSite) -> None:
    url = site.serve(files("docs/mcp.md")["checked.py"])
    async with site.connect() as http:
        assert (await http.post(f"{url}/mcp", json={})).status_code in (401, 403)
    http = site.connect(headers={"x-api-key": "key-of-ann"})
    assert await add(http, f"{url}/mcp") == {"result": 3}


class Storage:
    """The client's tokens, in memory."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def test_oauth_metadata_leads_the_client_to_a_token(site: MCPSite) -> None:
    code = files("docs/mcp.md")["app.py"] + ISSUER
    url = site.serve(code, "tests.real_clients.mcp_oauth_server:app")
    came_back: list[dict[str, list[str]]] = []
    storage = Storage()

    async def open_browser(authorization_url: str) -> None:
        assert authorization_url.startswith(f"{url}/authorize?")
        async with site.connect() as browser:
            answer = await browser.get(authorization_url)
        came_back.append(parse_qs(urlsplit(answer.headers["location"]).query))

    async def await_redirect() -> AuthorizationCodeResult:
        query = came_back.pop()
        return AuthorizationCodeResult(code=query["code"][0], state=query["state"][0])

    auth = OAuthClientProvider(
        f"{url}/mcp",
        OAuthClientMetadata(
            client_name="test", redirect_uris=[AnyUrl("http://localhost:1/callback")]
        ),
        storage,
        open_browser,
        await_redirect,
    )
    assert await add(site.connect(auth), f"{url}/mcp") == {"result": 3}
    assert storage.tokens is not None
    async with site.connect() as http:
        refused = await http.post(f"{url}/mcp", json={})
    assert refused.status_code == 401
    metadata = f"{url}/.well-known/oauth-protected-resource/mcp"
    assert f'resource_metadata="{metadata}"' in refused.headers["www-authenticate"]
