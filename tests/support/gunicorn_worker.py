"""The worker class of docs/graceful-shutdown.md, which runs uvicorn in gunicorn."""

from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker

from tests.support.servers import GRACE


class Worker(UvicornWorker):  # type: ignore[misc]
    """Cancels what is open before gunicorn kills it."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **UvicornWorker.CONFIG_KWARGS,
        "timeout_graceful_shutdown": GRACE,
    }
