"""Harm on the way to the upstream: another kind every second."""

import asyncio
import itertools

from tests.support.fault_proxy import End, Fault, FaultProxy

FAULTS = [
    Fault(),
    Fault(delay=0.2),
    Fault(End.RESET, down=3000),
    Fault(delay=0.001, piece=1),
    Fault(End.CLOSE, down=100),
    Fault(End.SILENT, down=500),
    Fault(End.RESET, up=100),
    Fault(End.DEAF, up=2000),
    Fault(End.SILENT),
    Fault(End.RESET),
]


async def rotate(proxy: FaultProxy) -> None:
    """Until it is cancelled. A new fault holds for what is open, too."""
    for fault in itertools.cycle(FAULTS):
        proxy.fault = fault
        await asyncio.sleep(1)
