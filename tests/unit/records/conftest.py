"""An upstream, a client of each transport, and the records of its exchanges."""

from collections.abc import AsyncIterator

import pytest

from tests.support.recorded import OWN, STOCK, Observed, observing
from tests.support.upstream import Upstream


@pytest.fixture(
    params=[
        pytest.param(OWN, marks=pytest.mark.asyncio_only),
        pytest.param(STOCK, marks=pytest.mark.trio_only),
        pytest.param(STOCK, marks=[pytest.mark.asyncio_only, pytest.mark.slow]),
    ]
)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def seen(upstream: Upstream, transport: str) -> AsyncIterator[Observed]:
    async with observing(upstream, transport) as observed:
        yield observed
