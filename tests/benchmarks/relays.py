"""The processes that are measured: one for each way, under uvicorn."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from tests.integration.servers import ROOT, eventually, free_port

UVICORN = ["-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--log-level", "error"]


class Relay:
    """One way in a process of its own."""

    def __init__(
        self, way: str, upstream_url: str, log: IO[bytes], app: str = "tests.benchmarks.app:app"
    ) -> None:
        self.port = free_port()
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--backlog", "4096"]
        address += ["--timeout-keep-alive", "120"]  # a slow way is not cut off while it is busy
        proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
        environment = {k: v for k, v in os.environ.items() if k.lower() not in proxies}
        self._process = subprocess.Popen(
            [sys.executable, *UVICORN, *address, app],
            cwd=ROOT,
            env=environment | {"WAY": way, "UPSTREAM_URL": upstream_url},
            stdout=log,
            stderr=log,
        )

    def wait_until_ready(self) -> None:
        eventually(lambda: self.has_ended or self._listens(), 60)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def _listens(self) -> bool:
        listening = f"0100007F:{self.port:04X} 00000000:0000 0A"
        return listening in Path("/proc/net/tcp").read_text()

    def seconds(self) -> float:
        """Processor time until now: utime and stime of /proc/PID/stat, but to the nanosecond."""
        return time.clock_gettime(~self._process.pid << 3 | 2)  # as clock_getcpuclockid(3) does

    def resident(self) -> int:
        """Bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Relays:
    """The relays of some ways behind one upstream."""

    def __init__(self, upstream_url: str, log: IO[bytes]) -> None:
        self._upstream_url = upstream_url
        self._log = log
        self._running: dict[str, Relay] = {}

    def start(self, ways: list[str]) -> None:
        """Start what is not running, all at once."""
        for way in ways:
            if way not in self._running:
                self._running[way] = Relay(way, self._upstream_url, self._log)
        for way in ways:
            self._running[way].wait_until_ready()

    def __getitem__(self, way: str) -> Relay:
        return self._running[way]

    def stop(self, way: str) -> None:
        self._running.pop(way).stop()

    def stop_all(self) -> None:
        with ExitStack() as stack:
            for relay in self._running.values():
                stack.callback(relay.stop)
        self._running.clear()
