"""An app under a real uvicorn, in a thread of its own."""

import contextlib
import socket
import threading
from typing import Any

import anyio
import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._waiting import eventually

STARTUP_TIMEOUT = 10.0
"""Seconds that an app may take to start."""


class serve:
    """Serves an app on loopback, and yields its base URL.

        with serve(app) as url:  # or async with, on asyncio and trio
            httpx.get(f"{url}/item")

    At the end exchanges may finish for `grace` seconds, then they are cancelled.

    Arguments:
        app: any ASGI app. Its lifespan runs in the server's own event loop, so what the test opened
            in another loop cannot be used in it.
        grace: whole seconds.
        options: of `uvicorn.Config`, such as `http="h11"`, `loop="uvloop"` or `root_path="/api"`.

    Raises:
        Exception: at the start or at the end, whatever the app's lifespan raised there.
        RuntimeError: the app did not start or stop, and raised nothing.
    """

    def __init__(self, app: ASGIApp, *, grace: int = 1, **options: Any) -> None:
        self._app = _LifespanErrorCapture(app)
        self._options: dict[str, Any] = {
            "http": "auto",
            "loop": "asyncio",
            "log_config": None,  # what is logged is the test's to keep
            "access_log": False,
            "timeout_graceful_shutdown": grace,
            **options,
        }
        self._grace = grace

    def __enter__(self) -> str:
        try:
            import uvicorn
        except ImportError as exc:
            raise ImportError("serve() needs: pip install 'asgi-upstream[testing]'") from exc
        self._server = uvicorn.Server(uvicorn.Config(self._app, **self._options))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._thread = threading.Thread(target=self._run, name="serve", daemon=True)
        self._thread.start()
        with contextlib.suppress(AssertionError):
            eventually(lambda: self._server.started or not self._thread.is_alive(), STARTUP_TIMEOUT)
        if self._server.started:
            return f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._stop()
        raise self._app.failure or RuntimeError(
            f"the app did not start within {STARTUP_TIMEOUT:g} s: what does its lifespan wait for?"
        )

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._stop()
        if self._thread.is_alive():
            raise RuntimeError(
                f"the server did not stop within {self._grace + STARTUP_TIMEOUT:g} s: "
                f"what does the app's "
                f"lifespan wait for?"
            )
        if self._app.failure is not None and kind is None:
            raise self._app.failure

    async def __aenter__(self) -> str:
        url = ""
        with anyio.CancelScope(shield=True):  # else what was started would not be stopped
            url = await anyio.to_thread.run_sync(self.__enter__)
        return url  # noqa: RET504  a scope may leave its block early, as far as types tell

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.__exit__, kind)

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):  # uvicorn's, where the app did not start
            self._server.run(sockets=[self._listener])

    def _stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(self._grace + STARTUP_TIMEOUT)
        self._listener.close()


class _LifespanErrorCapture:
    """The app; what its lifespan raised is kept, which servers only log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        told: list[str] = []

        async def send_wrapper(message: Message) -> None:
            told.append(message["type"])
            await send(message)

        try:
            await self._app(scope, receive, send_wrapper)
        except Exception as exc:
            if told:  # else it has no lifespan, and says so by raising
                self.failure = exc
            raise
        finally:
            if self.failure is None and told and told[-1].endswith(".failed"):
                self.failure = RuntimeError(f"the app answered {told[-1]}")
