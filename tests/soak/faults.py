"""Harm on the way to the upstream: another kind every second."""

import asyncio
import itertools

from tests.support.fault_proxy import Ending, Fault, FaultProxy

FAULTS = [
    Fault(),
    Fault(delay=0.2),
    Fault(Ending.RESET, down=3000),
    Fault(delay=0.001, piece=1),
    Fault(Ending.CLOSE, down=100),
    Fault(Ending.SILENT, down=500),
    Fault(Ending.RESET, up=100),
    Fault(Ending.DEAF, up=2000),
    Fault(Ending.SILENT),
    Fault(Ending.RESET),
]


async def rotate(proxy: FaultProxy) -> None:
    """Until it is cancelled. A new fault holds for what is open, too."""
    for fault in itertools.cycle(FAULTS):
        proxy.fault = fault
        await asyncio.sleep(1)
