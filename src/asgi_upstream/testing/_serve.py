"""Serves an app with uvicorn in a thread."""

import contextlib
import threading
from typing import Any

import anyio
import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._listening import listen
from ._waiting import eventually

STARTUP_TIMEOUT = 10.0
"""Maximum time in seconds for the app to start."""


class serve:
    """Serves an app on loopback, and yields its base URL.

        with serve(app) as url:  # or async with, on asyncio and trio
            httpx.get(f"{url}/item")

    On exit, open exchanges get `grace` seconds to finish. Then they are cancelled.

    Arguments:
        app: The ASGI app. Its lifespan runs in the server's event loop, so it cannot use resources
            that the test opened in another loop.
        grace: Time for open exchanges to finish, in whole seconds.
        options: Options of `uvicorn.Config`, such as `http="h11"` or `root_path="/api"`.

    Raises:
        Exception: If the app's lifespan raises at startup or shutdown.
        RuntimeError: If the app does not start or stop in time.
    """

    def __init__(self, app: ASGIApp, *, grace: int = 1, **options: Any) -> None:
        self._app = _LifespanErrorCapture(app)
        self._options: dict[str, Any] = {
            "http": "auto",
            "loop": "asyncio",
            "log_config": None,  # The test configures logging.
            "access_log": False,
            "timeout_graceful_shutdown": grace,
            # Longer than clients keep idle connections (5 s in httpx), as uvicorn's 5 s would race.
            "timeout_keep_alive": 75,
            **options,
        }
        self._grace = grace

    def __enter__(self) -> str:
        try:
            import uvicorn
        except ImportError as exc:
            raise ImportError("serve() needs uvicorn: pip install uvicorn") from exc
        self._server = uvicorn.Server(uvicorn.Config(self._app, **self._options))
        self._listener = listen()
        self._thread = threading.Thread(target=self._run, name="serve", daemon=True)
        self._thread.start()
        with contextlib.suppress(AssertionError):
            eventually(lambda: self._server.started or not self._thread.is_alive(), STARTUP_TIMEOUT)
        if self._server.started:
            return f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._stop()
        raise self._app.failure or RuntimeError(
            f"the app did not start within {STARTUP_TIMEOUT:g} s; check its lifespan"
        )

    def __exit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        self._stop()
        if self._thread.is_alive():
            raise RuntimeError(
                f"the server did not stop within {self._grace + STARTUP_TIMEOUT:g} s; check the "
                f"app's lifespan"
            )
        if self._app.failure is not None and exc_type is None:
            raise self._app.failure

    async def __aenter__(self) -> str:
        url = ""
        with anyio.CancelScope(shield=True):  # Otherwise the server might not be stopped.
            url = await anyio.to_thread.run_sync(self.__enter__)
        return url  # noqa: RET504  a cancel scope may end its block early

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.__exit__, exc_type)

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):  # Raised by uvicorn if the app does not start.
            self._server.run(sockets=[self._listener])

    def _stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(self._grace + STARTUP_TIMEOUT)
        self._listener.close()


class _LifespanErrorCapture:
    """Keeps the exception that the app's lifespan raises, because servers only log it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        sent: list[str] = []

        async def send_wrapper(message: Message) -> None:
            sent.append(message["type"])
            await send(message)

        try:
            await self._app(scope, receive, send_wrapper)
        except Exception as exc:
            if sent:  # An app without a lifespan raises before it sends anything.
                self.failure = exc
            raise
        finally:
            if self.failure is None and sent and sent[-1].endswith(".failed"):
                self.failure = RuntimeError(f"the app sent {sent[-1]}")
