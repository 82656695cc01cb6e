"""Faults at one step of an exchange: a cancellation, a disconnect, or an error of the server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import anyio
import anyio.lowlevel
from starlette.exceptions import HTTPException

from tests.support.steps import SteppedCaller

HANG_TIMEOUT = 60.0

Disconnect = Literal["", "before", "just before", "just after", "after"]


def is_trio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class ThrownError(Exception):
    """Raised by the server's `receive` or `send`."""


class Run:
    """One exchange, with one fault at one step."""

    def __init__(
        self, exchange: Callable[[], Awaitable[None]], caller: SteppedCaller, step: int
    ) -> None:
        self.exchange = exchange
        self.caller = caller
        self.step = step
        self.finished = False
        self.done = anyio.Event()
        self.error: BaseException | None = None

    async def run(self) -> None:
        """Run the exchange, and keep an error that is not a cancellation."""
        try:
            await self.exchange()
        except Exception as exc:
            self.error = exc
        self.finished = True
        self.done.set()

    async def wait(self) -> bool:
        """Wait for the step. Return False if the exchange is over before it."""
        for _ in range(self.step):
            if self.finished:
                return False
            await anyio.lowlevel.checkpoint()
        return not self.finished


Inject = Callable[[Run], Awaitable[bool]]
"""Runs the exchange, and returns False if it is over before the step of the fault."""


def cancel_task(*gaps: int, disconnect: Disconnect = "") -> Inject:
    """Cancel the task, and again after each of `gaps` iterations."""

    async def inject(run: Run) -> bool:
        task = asyncio.ensure_future(run.run())
        requested = False

        def cancel() -> None:
            nonlocal requested
            requested |= task.cancel()

        if reached := await run.wait():
            await _cancel(run, cancel, disconnect)
            for gap in gaps:
                await _spin(gap)
                cancel()
        await asyncio.wait([task], timeout=HANG_TIMEOUT)
        assert task.done(), "the exchange hangs"
        assert task.cancelled() == requested, run.error or "a cancellation was swallowed"
        return reached

    return inject


async def expire_timeouts(run: Run) -> bool:
    """Let two nested `asyncio.timeout` expire, two iterations apart."""
    outer, inner = asyncio.timeout(None), asyncio.timeout(None)
    caught = []

    async def limited() -> None:
        try:
            async with outer:
                try:
                    async with inner:
                        await run.run()
                        await asyncio.sleep(3600)
                except TimeoutError:
                    caught.append(inner)
                    await asyncio.sleep(3600)
        except TimeoutError:
            caught.append(outer)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # No late cancellation arrives.

    task = asyncio.ensure_future(limited())
    await asyncio.sleep(0)  # until both are entered
    reached = await run.wait()
    inner.reschedule(0)
    await _spin(2)
    outer.reschedule(0)
    await asyncio.wait([task], timeout=HANG_TIMEOUT)
    assert task.done(), "the exchange hangs"
    task.result()
    assert caught[-1] is outer
    return reached


def cancel_scope(*, disconnect: Disconnect = "", gap: int = 0) -> Inject:
    """Cancel a scope of anyio around the exchange."""

    async def inject(run: Run) -> bool:
        scope = anyio.CancelScope()
        escaped: list[BaseException] = []

        async def scoped() -> None:
            try:
                with scope:
                    await run.run()
                    await anyio.sleep_forever()
            except BaseException as exc:
                escaped.append(exc)
                raise
            await anyio.lowlevel.checkpoint()  # No late cancellation arrives.

        async with anyio.create_task_group() as group:
            group.start_soon(scoped)
            reached = await run.wait()
            await _cancel(run, scope.cancel, disconnect if reached else "", gap)
        assert not escaped, escaped
        assert scope.cancelled_caught
        return reached

    return inject


async def _cancel(
    run: Run, cancel: Callable[[], object], disconnect: Disconnect, gap: int = 0
) -> None:
    """Cancel, with a disconnect `gap` iterations before or after it.

    "just before" and "just after" mean that the exchange's listener notices the disconnect in the
    same iteration.
    """
    if disconnect.startswith("just") and not is_trio():
        loop = asyncio.get_running_loop()
        if disconnect == "just after":
            loop.call_soon(cancel)
        run.caller.fail()
        if disconnect == "just before":
            loop.call_soon(cancel)
        return
    if disconnect.endswith("before"):
        run.caller.fail()
        await _spin(gap)
    cancel()
    if disconnect.endswith("after"):
        await _spin(gap)
        run.caller.fail()


async def _spin(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def fail_caller(
    *, receive: type[Exception] | None = None, send: type[Exception] | None = None
) -> Inject:
    """Disconnect the caller, or let `receive` or `send` raise."""

    async def inject(run: Run) -> bool:
        error = (receive or send or ThrownError)("thrown")
        async with anyio.create_task_group() as group:
            group.start_soon(run.run)
            if reached := await run.wait():
                run.caller.fail(receive=error if receive else None, send=error if send else None)
            with anyio.move_on_after(HANG_TIMEOUT):
                await run.done.wait()
            assert run.finished, "the exchange hangs"
            group.cancel_scope.cancel()
        if isinstance(run.error, HTTPException):
            assert run.error.status_code == 499
        else:
            assert run.error is None or (run.error is error and isinstance(error, ThrownError))
        return reached

    return inject


FAULTS: dict[str, Inject] = {
    "disconnect": fail_caller(),
    "receive raises OSError": fail_caller(receive=OSError),
    "receive raises": fail_caller(receive=ThrownError),
    "send raises OSError": fail_caller(send=OSError),
    "send raises": fail_caller(send=ThrownError),
    "scope": cancel_scope(),
    "disconnect and scope": cancel_scope(disconnect="before"),
    "disconnect, scope": cancel_scope(disconnect="before", gap=1),
    "disconnect,, scope": cancel_scope(disconnect="before", gap=2),
    "disconnect just before scope": cancel_scope(disconnect="just before"),
    "disconnect just after scope": cancel_scope(disconnect="just after"),
    "scope, disconnect": cancel_scope(disconnect="after", gap=1),
}
TASK_FAULTS: dict[str, Inject] = {
    "cancel": cancel_task(),
    "disconnect and cancel": cancel_task(disconnect="before"),
    "disconnect just before cancel": cancel_task(disconnect="just before"),
    "disconnect just after cancel": cancel_task(disconnect="just after"),
    "cancel twice at once": cancel_task(0),
    "cancel twice": cancel_task(1),
    "cancel three times": cancel_task(2, 3),
    "timeouts": expire_timeouts,
}
