"""Ten seconds of it; `make soak` and `make soak-all` are longer."""

import asyncio
import os

import pytest

from tests.soak.soak import soak

SERVER = os.environ.get("SOAK_SERVER", "uvicorn-httptools+asyncio")


@pytest.mark.serial
def test_mixed_traffic_with_faults_loses_nothing() -> None:
    report = asyncio.run(soak(SERVER, seconds=10, with_faults=True))
    assert report.failures() == [], f"{report}\n" + "\n".join(report.wrongs[:10])
