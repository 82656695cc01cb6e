"""A backend for a single-page app. The browser has a session cookie, the upstream gets a token.

    uvicorn examples.bff:app

Open http://127.0.0.1:8000 in a browser, or:

    curl -c jar -d '' 'http://127.0.0.1:8000/login?user=ann'
    curl -b jar http://127.0.0.1:8000/api/item

The page talks only to this app, so it needs no CORS and holds no token that a script could steal.
The session cookie is not sent to the upstream. The upstream's own cookies are relayed, with their
paths under /api.
"""

import os
import secrets

import httpx
from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from asgi_upstream import ReverseProxy, client_lifespan

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
SESSION = "bff_session"
PAGE = """<!doctype html><title>Lamps</title>
<button onclick="fetch('/login?user=ann', {method: 'POST'})">Log in</button>
<button onclick="fetch('/api/item').then(r => r.text()).then(t => out.textContent = t)">Ask</button>
<pre id="out"></pre>"""

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
tokens: dict[str, str] = {}  # By session. With several processes, use a database.


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    """The single-page app."""
    return PAGE


@app.post("/login", status_code=204)
async def login(response: Response, user: str) -> None:
    """Start a session. A real app would check a password here, or finish an OAuth flow."""
    session = secrets.token_urlsafe()
    tokens[session] = f"token-of-{user}"
    # SameSite: the browser does not send it with requests from other sites.
    response.set_cookie(SESSION, session, httponly=True, samesite="strict")


@app.post("/logout", status_code=204)
async def logout(request: Request, response: Response) -> None:
    """End the session."""
    tokens.pop(request.cookies.get(SESSION, ""), None)
    response.delete_cookie(SESSION, httponly=True, samesite="strict")


def with_token(request: httpx.Request) -> Response | None:
    """Replace the session cookie with the token. Answer 401 without a session."""
    sent = "; ".join(request.headers.get_list("cookie")).split(";")
    cookies = [pair.strip() for pair in sent if pair.strip()]
    own = [pair for pair in cookies if pair.partition("=")[0].strip() == SESSION]
    token = tokens.get(own[0].partition("=")[2].strip()) if own else None
    if token is None:
        return JSONResponse({"error": "log in first"}, 401)
    request.headers["authorization"] = f"Bearer {token}"  # replaces the caller's
    if others := [pair for pair in cookies if pair not in own]:
        request.headers["cookie"] = "; ".join(others)
    else:
        del request.headers["cookie"]
    return None


app.mount("/api", ReverseProxy(on_request=with_token, rewrite_redirects=True, rewrite_cookies=True))
