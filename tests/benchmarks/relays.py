"""The processes that are measured: one for each way, under uvicorn."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from tests.support import go
from tests.support.servers import ROOT, free_port
from tests.support.waiting import eventually

from .upstreams import NGINX

NOT_PYTHON = {"nginx": NGINX, "go": go.GO}
"""Ways that are programs of their own, and where they are. One process and one thread of work."""

NGINX_CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 1000000; proxy_buffering off;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    upstream behind {{ server {upstream}; keepalive 4096; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://behind;
            proxy_http_version 1.1; proxy_set_header Connection "";
        }}
    }}
}}
"""

UVICORN = ["-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--log-level", "error"]


class Relay:
    """One way in a process of its own."""

    def __init__(
        self,
        way: str,
        upstream_url: str,
        log: IO[bytes],
        app: str = "tests.benchmarks.app:app",
        **variables: str,
    ) -> None:
        self.port = free_port()
        self._folder = TemporaryDirectory()
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--backlog", "4096"]
        address += ["--timeout-keep-alive", "120"]  # a slow way is not cut off while it is busy
        proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
        environment = {k: v for k, v in os.environ.items() if k.lower() not in proxies}
        self._process = subprocess.Popen(
            self._program(way, upstream_url) or [sys.executable, *UVICORN, *address, app],
            cwd=ROOT,
            env=environment
            | {"WAY": way, "UPSTREAM_URL": upstream_url, "GOMAXPROCS": "1"}
            | variables,
            stdout=log,
            stderr=log,
        )

    def _program(self, way: str, upstream_url: str) -> list[str]:
        """The command of a way that is not Python."""
        folder = Path(self._folder.name)
        if way == "nginx":
            behind = upstream_url.removeprefix("http://")
            text = NGINX_CONFIG.format(folder=folder, port=self.port, upstream=behind)
            (folder / "nginx.conf").write_text(text)
            return [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")]
        if way == "go":
            return [str(go.built(folder)), str(self.port), upstream_url, "60s"]
        return []

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
        self._folder.cleanup()


class Relays:
    """The relays of some ways behind one upstream."""

    def __init__(self, upstream_url: str, log: IO[bytes], **variables: str) -> None:
        self._upstream_url = upstream_url
        self._log = log
        self._variables = variables
        self._running: dict[str, Relay] = {}

    def start(self, ways: list[str]) -> None:
        """Start what is not running, all at once."""
        for way in ways:
            if way not in self._running:
                self._running[way] = Relay(way, self._upstream_url, self._log, **self._variables)
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
