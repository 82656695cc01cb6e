"""OAuth2 client credentials with authlib: one token for all callers, fetched when needed.

uvicorn examples.compositions.authentication:app
curl http://127.0.0.1:8000/api/headers    # the request as the upstream got it
"""

import os
from collections.abc import AsyncGenerator

import httpx
from authlib.integrations.httpx_client import AsyncOAuth2Client
from fastapi import FastAPI

from asgi_upstream import ReverseProxy, UpstreamError, client_lifespan, combine_lifespans

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
TOKEN_URL = os.environ.get("TOKEN_URL", f"{UPSTREAM_URL}/token")
NONE_YET = {"access_token": "", "token_type": "bearer", "expires_at": 1}


class Bearer(httpx.Auth):
    """Adds authlib's token to each request. Concurrent requests share one fetch."""

    def __init__(self, tokens: AsyncOAuth2Client) -> None:
        self.tokens = tokens

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        token = await self.token()
        request.headers["authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401 and isinstance(request.stream, httpx.ByteStream):
            token = await self.token(
                refused=token
            )  # Revoked. A streamed body cannot be sent again.
            request.headers["authorization"] = f"Bearer {token}"
            yield request

    async def token(self, refused: str | None = None) -> str:
        if self.tokens.token["access_token"] == refused:
            self.tokens.token["expires_at"] = 1
        try:
            await self.tokens.ensure_active_token(self.tokens.token)
        except Exception as exc:  # authlib's exceptions, or those of its client
            raise UpstreamError from exc
        token: str = self.tokens.token["access_token"]
        return token


tokens = AsyncOAuth2Client(
    os.environ.get("CLIENT_ID", "gateway"),
    os.environ.get("CLIENT_SECRET", "secret"),
    token_endpoint=TOKEN_URL,
    grant_type="client_credentials",
    token=NONE_YET,
    timeout=5,
)


app = FastAPI(
    lifespan=combine_lifespans(
        client_lifespan(lambda: tokens, name="tokens"),
        client_lifespan(base_url=UPSTREAM_URL, auth=Bearer(tokens)),
    )
)
app.mount("/api", ReverseProxy())
