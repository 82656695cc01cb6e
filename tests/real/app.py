"""The app under test: what real clients talk to. Each upstream is mounted under its own name."""

import json
import os
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from asgi_upstream import ForwardApp, combine_lifespans
from tests.integration.app import client


async def state(request: Request) -> Response:
    return JSONResponse({"pid": os.getpid()})


def with_the_callers_host(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    host = dict(fields)[b"x-forwarded-host"]
    return [(name, host if name == b"host" else value) for name, value in fields]


def build(upstreams: Mapping[str, str]) -> Starlette:
    """One mount a name, `web` in more forms, and `s3` at the root, for a signature covers paths."""
    return Starlette(
        lifespan=combine_lifespans(
            *(client(name=name, base_url=url, timeout=30) for name, url in upstreams.items())
        ),
        routes=[
            Route("/state", state),
            *(Mount(f"/{name}", ForwardApp(name, rewrite_redirects=True)) for name in upstreams),
            Mount("/as-it-comes", ForwardApp("web")),
            Mount("/trusting", ForwardApp("web", trust_forwarded=True)),
            Mount("/", ForwardApp("s3", headers=with_the_callers_host)),
        ],
    )


app = build(json.loads(os.environ.get("UPSTREAMS", "{}")))
