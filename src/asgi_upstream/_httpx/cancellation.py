"""Puts off cancellation while an exchange is closed."""

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any

_SCOPE_CANCELLATIONS = ("Cancelled via cancel scope", "Cancelled by cancel scope")


@types.coroutine
def defer_cancellation(coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await a coroutine to its end, and raise a cancellation of the task only then.

    A shielded scope of anyio does not hold off `task.cancel()`, which servers, `asyncio.timeout`
    and `asyncio.wait_for` use. If it hits httpcore while httpcore closes a response, the connection
    stays in the pool for good. To close each response in a task of its own would cost more.

    The coroutine must have its own time limit in a shielded cancel scope. That scope still works.
    """
    deferred: asyncio.CancelledError | None = None
    thrown: BaseException | None = None
    sent: Any = None
    while True:
        try:
            awaited = coroutine.throw(thrown) if thrown is not None else coroutine.send(sent)
        except StopIteration:
            if deferred is not None:
                raise deferred from None
            return
        sent, thrown = None, None
        while True:
            try:
                sent = yield _shield(awaited)
            except asyncio.CancelledError as exc:
                if not _is_scope_cancellation(exc):
                    deferred = exc
                elif awaited is not None:  # the coroutine's own time limit
                    thrown = exc
                    if asyncio.isfuture(awaited):
                        awaited.cancel()
                    break
            except BaseException as exc:
                thrown = exc
                break
            if not asyncio.isfuture(awaited) or awaited.done():
                break


def _shield(awaited: Any) -> Any:
    """Return a future that ends with `awaited`. Its cancellation does not reach `awaited`."""
    if not asyncio.isfuture(awaited):
        return awaited  # a turn of the event loop, or a wait of trio
    future: asyncio.Future[Any] = awaited
    proxy: asyncio.Future[None] = future.get_loop().create_future()

    def finish(_: object) -> None:
        if not proxy.done():
            proxy.set_result(None)

    future.add_done_callback(finish)
    # The event loop's task reads this mark of a future that is awaited. See `Future.__await__`.
    vars_of_awaited: Any = future
    vars_of_awaited._asyncio_future_blocking = False
    marked: Any = proxy
    marked._asyncio_future_blocking = True
    return marked


def _is_scope_cancellation(exc: asyncio.CancelledError) -> bool:
    """Return whether a cancel scope of anyio raised this, which it does again if it must."""
    return bool(exc.args) and str(exc.args[0]).startswith(_SCOPE_CANCELLATIONS)
