"""The app under test: what real clients talk to. Each upstream is mounted under its own name."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from asgi_upstream import ExchangeRecord, ReverseProxy, combine_lifespans
from tests.support.apps.relay_app import client

passed: defaultdict[str | None, Counter[str]] = defaultdict(Counter)


def count(record: ExchangeRecord) -> None:
    """What came through here, for a client may get by without."""
    passed[record.client] += Counter(
        {
            f"{record.method} {record.status}": 1,
            "sent": record.bytes_sent,
            "received": record.bytes_received,
        }
    )


async def state(request: Request) -> Response:
    return JSONResponse({"pid": os.getpid(), "passed": passed, "peer": request.client})


def use_path_of_destination(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    host = dict(headers).get(b"x-forwarded-host", b"")

    def path_of(destination: bytes) -> bytes:
        path = destination.partition(b"://" + host)[2]
        if not path.startswith(b"/dav/"):
            raise HTTPException(502, "The destination is on another server")  # RFC 4918 9.9.4
        return path

    return [(name, path_of(v) if name == b"destination" else v) for name, v in headers]


def build(upstreams: Mapping[str, str]) -> Starlette:
    """One mount a name, `web` in more forms, and `s3` at the root, for a signature covers paths."""
    return Starlette(
        lifespan=combine_lifespans(
            *(
                client(name=name, base_url=url, timeout=30, observers=[count])
                for name, url in upstreams.items()
            )
        ),
        routes=[
            Route("/state", state),
            *(Mount(f"/{name}", ReverseProxy(name, rewrite_redirects=True)) for name in upstreams),
            Mount("/as-it-comes", ReverseProxy("web")),
            Mount("/trusting", ReverseProxy("web", trust_forwarded_headers=True)),
            Mount("/dav", ReverseProxy("webdav", prefix="", headers=use_path_of_destination)),
            Mount("/by-host", ReverseProxy("by_host", prefix="", preserve_host=True)),
            Mount("/v2", ReverseProxy("registry", prefix="", rewrite_redirects=True)),
            Mount("/", ReverseProxy("s3", preserve_host=True)),
        ],
    )


app = build(json.loads(os.environ.get("UPSTREAMS", "{}")))
