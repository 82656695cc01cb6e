"""A soak: mixed traffic through a real server for a time, and the sum of what came of it."""

import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial

from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.servers import NOISE, Answer, Server, ask

from . import faults
from .app import KEPT_IDLE
from .callers import Seen, SoakCaller
from .plan import MID_BODY, Plan, Plans
from .report import Report, Sample, progress
from .upstream import SoakUpstream
from .verdict import wrong, wrong_upload

# The last exchange of each client, which closes its own connection: line and fate.
LAST = [("direct", "whole"), ("direct", "stall_before"), ("faulty", "whole")]

FREED_WITHIN = 10.0
"""Seconds until what a caller left must be closed at the upstream: 1 where there is no load."""


@dataclass
class Soak:
    """One run. `say` is given a line every few seconds."""

    server: Server
    upstream: SoakUpstream
    plans: Plans
    report: Report
    say: Callable[[str], None]
    proxy: FaultProxy | None = None
    exchanges: int = 0
    latencies: list[float] = field(default_factory=list)

    async def run(self, seconds: float, callers: int) -> None:
        start = time.monotonic()
        before = self._descriptors()
        beside = [asyncio.ensure_future(self._sample(start))]
        if self.proxy is not None:
            beside.append(asyncio.ensure_future(faults.rotate(self.proxy)))
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self._call_until(start + seconds))
        for task in beside:
            task.cancel()
        if self.proxy is not None:
            self.proxy.fault = Fault()
        await self._settle(before)
        self.report.open = self.upstream.open.total()
        self.report.connections = self.upstream.connections
        self.report.descriptors = before, self._descriptors()

    async def _call_until(self, end: float) -> None:
        with contextlib.closing(self._caller()) as caller:
            while time.monotonic() < end:
                await self._call(caller, self.plans.next())
            self.report.redone += caller.redone

    async def _settle(self, descriptors: int) -> None:
        """Wait until nothing is open any more, idle connections neither."""
        await _until(lambda: not self.upstream.open, FREED_WITHIN)
        # httpcore looks for those that have expired only when it is used.
        await asyncio.sleep(KEPT_IDLE + 0.2)
        with contextlib.closing(self._caller()) as caller:
            for number, (line, fate) in enumerate(LAST):
                await self._call(caller, Plan(number=number, line=line, fate=fate, framing="close"))
        await _until(
            lambda: not self.upstream.connections and self._descriptors() <= descriptors, 10
        )

    async def _call(self, caller: SoakCaller, plan: Plan) -> None:
        seen = await caller.carry_out(plan)
        why = wrong(plan, seen)
        if why == "500" and self.server.name == "granian" and plan.fate in MID_BODY:
            why = None  # it had held the head back until a part of the body, and there came none
        why = why or await self._wrong_upstream(plan, seen)
        self.exchanges += 1
        if why is None:
            self.report.right[plan.caller if plan.goes_away else plan.fate] += 1
            if plan.is_quick:
                self.latencies.append(seen.to_head)
        else:
            came = "" if plan.number in self.upstream.seen else "never reached the upstream: "
            self.report.wrongs.append(f"{came}{why}: {plan} saw {seen}")
            if len(self.report.wrongs) <= 20:
                self.say(f"WRONG {self.report.wrongs[-1]}")

    async def _wrong_upstream(self, plan: Plan, seen: Seen) -> str | None:
        """What is wrong there, as it is counted from outside."""
        left = plan.line == "direct" and plan.goes_away
        if left and not await _until(lambda: not self.upstream.open[plan.number], FREED_WITHIN):
            return "open at the upstream after the caller left"
        taken = self.upstream.taken.pop(plan.number, None)
        return wrong_upload(plan, seen, taken)

    async def _sample(self, start: float) -> None:
        said = start
        while True:
            now = time.monotonic()
            self.report.samples.append(self._now(now - start))
            if now - said >= 5 or now - start < 0.1:
                said = now
                self.say(progress(self.report.samples[-1], len(self.report.wrongs)))
            await asyncio.sleep(0.5)

    def _now(self, at: float) -> Sample:
        latencies = self.latencies if len(self.latencies) > 1 else [0.0, 0.0]
        self.latencies = []
        return Sample(
            at,
            self.server.memory(),
            self._descriptors(),
            self.upstream.open.total(),
            self.upstream.connections,
            self.exchanges,
            statistics.median(latencies),
            statistics.quantiles(latencies, n=100)[-1] if len(latencies) > 1 else 0.0,
        )

    def _caller(self) -> SoakCaller:
        return SoakCaller(self.server.port, self.upstream.seen.__contains__)

    def _descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))


async def soak(
    name: str,
    *,
    seconds: float,
    with_faults: bool = False,
    callers: int = 20,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Report:
    """Let a server, and a transport with it ("granian+asyncio"), stand mixed traffic."""
    title = f"{name}{' with faults' if with_faults else ''}, {seconds:g} s, {callers} callers"
    report = Report(title, seed)
    async with SoakUpstream() as upstream, _proxied(upstream, with_faults) as proxy:
        url = f"http://127.0.0.1:{upstream.port}"
        start = partial(Server, name, url, app="tests.soak.app:app", dev_mode=False)
        server = await asyncio.to_thread(start)
        try:
            run = Soak(server, upstream, Plans(seed, faults=with_faults), report, say, proxy)
            await run.run(seconds, callers)
            for _ in range(100):  # the last ones may still be ending
                answer: Answer = await asyncio.to_thread(ask, server, "/_records")
                counts = json.loads(answer.body)
                report.reached, report.records = counts["exchanges"], counts["records"]
                if sum(report.records.values()) == report.reached:
                    break
                await asyncio.sleep(0.1)
        finally:
            await asyncio.to_thread(server.stop)
        report.log = server.log()
        report.noise = [noise for noise in NOISE if noise in report.log]
    return report


@contextlib.asynccontextmanager
async def _proxied(upstream: SoakUpstream, with_faults: bool) -> AsyncIterator[FaultProxy | None]:
    if not with_faults:
        yield None
        return
    with FaultProxy(upstream.port) as proxy:
        os.environ["FAULTY_UPSTREAM_URL"] = f"http://127.0.0.1:{proxy.port}"
        try:
            yield proxy
        finally:
            del os.environ["FAULTY_UPSTREAM_URL"]


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for it at most so long; whether it holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True
