"""Apps that pages show, each under a real uvicorn as a process of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.pages import UPSTREAM
from tests.support.servers import Server

Serve = Callable[..., Server]

# What tests/support/servers.py asks of an app: that it says which process it is.
_STATE = """
import os as _os
from starlette.applications import Starlette as _Starlette
from starlette.responses import JSONResponse as _JSONResponse
from starlette.routing import Mount as _Mount, Route as _Route

_state = _Route("/state", lambda request: _JSONResponse({"pid": _os.getpid()}))
if hasattr(app, "router"):
    app.router.routes.insert(0, _state)
else:
    app = _Starlette(routes=[_state, _Mount("/", app)])
"""


@contextmanager
def serving(folder: Path, upstream_url: str) -> Iterator[Serve]:
    """Serves code of a page, with replacements; each app is stopped at the end."""
    with ExitStack() as stack:

        def serve(code: str, *options: str, **replaced: str) -> Server:
            name = f"page_app_{len(list(folder.iterdir()))}"
            code = code.replace(UPSTREAM, upstream_url)
            for old, new in replaced.items():
                assert old in code, f"the page has no {old}"
                code = code.replace(old, new)
            (folder / f"{name}.py").write_text(code + _STATE)
            server = Server(
                "uvicorn-h11",
                upstream_url,
                app=f"{name}:app",
                options=["--app-dir", str(folder), *options],
                dev_mode=False,
            )
            stack.callback(server.stop)
            return server

        yield serve
