"""A fault at each step of each kind of exchange: nothing is left, and the fault itself comes out.

A step is an iteration of the event loop. At the n-th one the task or a scope around it is
cancelled, the caller disconnects, or the server's `receive` or `send` raises. Then the same with
the next n, until the exchange is over before.
"""

import asyncio
import functools
import os
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from _pytest.mark.structures import ParameterSet

from asgi_upstream import count_open_exchanges
from asgi_upstream._exchange import disconnect, upload
from tests.support.exchanges import KINDS, Kind
from tests.support.faults import FAULTS, TASK_FAULTS, Inject, Run, is_trio
from tests.support.flavor import AsyncioTransport, client_lifespan, httpx
from tests.support.marks import ignore_httpcore_generators
from tests.support.steps import LoopbackUpstream

pytestmark = [
    pytest.mark.anyio,
    ignore_httpcore_generators,
]

MAX_STEPS = 400
SETTLING_STEPS = 300
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and created once because it takes long


async def settle(is_settled: Callable[[], bool]) -> None:
    """Wait until connections and tasks that are no longer used have ended."""
    for step in range(2 * SETTLING_STEPS):
        if is_settled():
            return
        await anyio.sleep(0 if step < SETTLING_STEPS else 0.01)


def is_pool_free(transport: Any) -> bool:
    if isinstance(transport, AsyncioTransport):
        state = transport.pool_state()
        return state.open == state.idle and not state.waiting and not state.connecting
    pool: Any = transport._pool
    return not pool._requests and all(c.is_idle() for c in pool._connections)


async def check_each_step(kind: Kind, inject: Inject, transport_class: Any) -> int:
    """Inject the fault at each step. Return the number of steps."""
    upstream, complaints = LoopbackUpstream(), list[Any]()
    if not is_trio():
        asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))

    def remaining() -> tuple[int, int, int]:
        return count_descriptors(), count_tasks(), upstream.connections

    async with upstream.serve():
        async with httpx.AsyncClient(verify=TLS) as first:
            await first.get(upstream.url)  # The loop opens descriptors of its own at its first use.
        await settle(lambda: upstream.connections == 0)
        before = remaining()
        for step in range(MAX_STEPS):
            limits = httpx.Limits(max_connections=kind.connections)
            transport = transport_class(verify=TLS, limits=limits, trust_env=False)
            lifespan = client_lifespan(transport=transport, base_url=upstream.url, timeout=None)
            async with lifespan(None) as state:
                client: Any = state["client"]
                caller = kind.caller()
                run = Run(functools.partial(kind.run, client, caller), caller, step)
                try:
                    reached = await inject(run)
                    assert count_open_exchanges(client) == 0
                    await settle(functools.partial(is_pool_free, transport))
                    assert is_pool_free(transport), "a pool slot is lost"
                    again = await client.get("/", timeout=httpx.Timeout(60))
                    assert again.text == "half"
                except BaseException as exc:
                    exc.add_note(f"with a fault at step {step}")
                    raise
            await settle(lambda: remaining() == before)
            assert remaining() == before, f"step {step}"
            assert complaints == [], f"step {step}"
            if not reached:
                return step
    pytest.fail("the exchange has more steps than were tried")


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def count_tasks() -> int:
    return 0 if is_trio() else len(asyncio.all_tasks())


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen for the caller at once, so that nothing waits for a clock."""
    monkeypatch.setattr(disconnect, "LISTEN_DELAY", 0)
    monkeypatch.setattr(disconnect, "DRAIN_INTERVAL", 0)
    monkeypatch.setattr(upload, "POLL_INTERVAL", 0)


COMBINATIONS = [
    ("fast", "asyncio"), ("httpx", "asyncio"), ("fast", "uvloop"), ("httpx", "trio"),
    ("httpx", "uvloop"),
]  # fmt: skip
RARE_FAULTS = (
    "scope", "cancel twice at once", "disconnect,, scope", "scope, disconnect",
    "disconnect just before scope", "disconnect just after scope", "disconnect just after cancel",
    "disconnect and cancel",
)  # fmt: skip


def all_cases() -> Iterator[ParameterSet]:
    """Combine everything. `make test` runs each kind with each fault on one combination.

    `make test-unit` runs each kind with some of the faults.
    """
    for number, kind in enumerate(KINDS):
        for offset, fault in enumerate([*FAULTS, *TASK_FAULTS]):
            combinations = COMBINATIONS
            if fault in TASK_FAULTS:
                combinations = [each for each in COMBINATIONS if each[1] != "trio"]
            usual = combinations[(number + offset) % len(combinations)]
            for combination in combinations:
                # The fast path takes back its own cancellation.
                takes_back = (
                    kind == "streamed" and "disconnect" in fault and combination[0] == "fast"
                )
                is_usual = combination == usual and fault not in RARE_FAULTS
                marks = [] if is_usual or takes_back else [pytest.mark.slow]
                if (number + offset) % len(KINDS) > 0:
                    marks.append(pytest.mark.exhaustive)
                yield pytest.param(
                    kind, fault, *combination, marks=marks, id="-".join((kind, fault, *combination))
                )


@pytest.mark.parametrize(
    ("kind", "fault", "transport", "anyio_backend"), list(all_cases()), indirect=["anyio_backend"]
)
async def test_fault_at_each_step_leaves_nothing(kind: str, fault: str, transport: str) -> None:
    transport_class = AsyncioTransport if transport == "fast" else httpx.AsyncHTTPTransport
    steps = await check_each_step(KINDS[kind], {**FAULTS, **TASK_FAULTS}[fault], transport_class)
    assert steps > 5
