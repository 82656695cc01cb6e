"""Shows what the library does, on real input: `make demo`, or `python -m examples.demo`.

It starts two servers on loopback: `examples.upstream`, and the app `examples.demo_app`, which
relays it. Then it plays the callers. The exit status is 0 if every check passed. With `--serve`,
both servers keep running.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

MB = 1_000_000
FILE_SIZE = 200 * MB
MAX_MEMORY_GROWTH = 10 * MB  # of the app during the download; uvloop reads 8 MB at once
MAX_NOTICE_DELAY = 1.0  # seconds until the upstream notices a disconnect of the caller
STEP_TIMEOUT = 20.0  # seconds for each part of the demo
START_TIMEOUT = 20.0  # seconds for a server to start
STOP_TIMEOUT = 5.0  # seconds for a server to stop by itself

UTF8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
TICK, CROSS = ("✓", "✗") if UTF8 else ("ok", "FAILED")
GREEN, RED, PLAIN = ("\x1b[32m", "\x1b[31m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")


class Failed(Exception):
    """The demo cannot continue."""


@dataclass
class Server:
    """An ASGI app on uvicorn, in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    log: Path

    def memory(self) -> int | None:
        """Return the resident memory in bytes, or None if the system has no /proc."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        lines = dict(line.split(":", 1) for line in status.splitlines())
        return int(lines["VmRSS"].split()[0]) * 1024


@contextlib.asynccontextmanager
async def run_server(app: str, log: Path, **environment: str) -> AsyncIterator[Server]:
    """Serve `app` on a free port. The process always ends with the block."""
    process = start(app, log, environment)
    # Nothing is awaited before `try`, so a cancellation cannot leave the process behind.
    try:
        port = await wait_for_port(process, log)
        yield Server(process, f"http://127.0.0.1:{port}", port, log)
    finally:
        stop(process)


def start(app: str, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that serves `app`, in a session of its own, which Ctrl-C does not reach."""
    command = [sys.executable, "-m", "uvicorn", app, "--port", "0"]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "--timeout-graceful-shutdown", "1"],
            env={**os.environ, **environment, "NO_PROXY": "*", "no_proxy": "*"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


async def wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the server listens, and return the port that it chose."""
    give_up = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < give_up:
        if (port := find_port(log)) is not None:
            return port
        await asyncio.sleep(0.05)
    raise Failed(f"a server did not start; its log:\n{read_log(log)}")


def find_port(log: Path) -> int | None:
    found = re.search(r"running on http://127\.0\.0\.1:(\d+)", read_log(log))
    return int(found[1]) if found else None


def read_log(log: Path) -> str:
    return log.read_text(errors="replace")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process. Blocks, so that nothing interrupts it."""
    for end in (process.terminate, process.kill):
        if process.poll() is not None:
            return
        end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)


def create_caller(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10)


@dataclass
class Demo:
    """The two servers, their clients, and the checks that failed."""

    upstream: Server
    app: Server
    caller: httpx.AsyncClient
    direct: httpx.AsyncClient
    failures: list[str] = field(default_factory=list[str])

    def check(self, ok: bool, what: str, seen: str) -> None:
        """Print the result of one check."""
        mark = f"{GREEN}{TICK}{PLAIN}" if ok else f"{RED}{CROSS}{PLAIN}"
        print(f"  {mark} {what:<44} {seen}", flush=True)
        if not ok:
            self.failures.append(what)

    async def ask_upstream(self) -> tuple[int, list[float]]:
        """Return the number of open exchanges, and the times of disconnects by time.monotonic()."""
        answer = (await self.direct.get("/open")).raise_for_status().json()
        return answer["open"], [caller["at"] for caller in answer["left"]]

    async def wait_for_open(self, count: int) -> bool:
        """Wait until `count` exchanges are open at the upstream. Return False after 5 seconds."""
        give_up = time.monotonic() + 5
        while time.monotonic() < give_up:
            if (await self.ask_upstream())[0] == count:
                return True
            await asyncio.sleep(0.01)
        return False


async def relay_file(demo: Demo) -> None:
    # A small download first, so that the memory that any first download takes does not count.
    await demo.caller.get("/file", params={"size": 5 * MB})
    before = most = demo.app.memory()
    digest, size, measured_at = hashlib.sha256(), 0, 0
    begun = time.monotonic()
    async with demo.caller.stream("GET", "/file", params={"size": FILE_SIZE}) as answer:
        async for chunk in answer.aiter_raw():
            digest.update(chunk)
            size += len(chunk)
            if size - measured_at > 5 * MB:
                measured_at, now = size, demo.app.memory()
                most = max(most, now) if most and now else None
    took = time.monotonic() - begun
    whole = size == FILE_SIZE == int(answer.headers["content-length"])
    demo.check(whole, "a file arrives whole", f"{size / MB:.0f} MB in {took:.1f} s")
    expected = answer.headers["x-sha256"]
    demo.check(
        digest.hexdigest() == expected, "its checksum is right", f"sha256 {expected[:16]}..."
    )
    if before is None or most is None:
        print("    the app's memory: not measured, because this system has no /proc")
    else:
        seen = f"{before / MB:.1f} MB before, {most / MB:.1f} MB at most"
        demo.check(most - before < MAX_MEMORY_GROWTH, "the app's memory stays flat", seen)


async def relay_events(demo: Demo) -> None:
    delays: list[float] = []
    begun = time.monotonic()
    async with demo.caller.stream("GET", "/events", params={"count": 8}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                delays.append(time.time() - json.loads(line[5:])["sent"])
                print(f"      at {time.monotonic() - begun:5.3f} s   {line}", flush=True)
    demo.check(len(delays) == 8, "events arrive one by one", f"{len(delays)} of 8")
    worst = max(delays, default=0.0) * 1000
    demo.check(worst < 50, "each as soon as it is sent", f"{worst:.1f} ms at most")


async def disconnect_callers(demo: Demo) -> None:
    for path, what in (
        ("/never", "a caller disconnects before the first byte"),
        ("/events?count=1000", "a caller disconnects in the middle of the body"),
    ):
        _, earlier = await demo.ask_upstream()
        reader, writer = await asyncio.open_connection("127.0.0.1", demo.app.port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: demo\r\n\r\n".encode())
        reached = await demo.wait_for_open(1)
        if path != "/never":
            await reader.read(1)
        writer.close()
        disconnected_at = time.monotonic()
        closed = await demo.wait_for_open(0)
        _, later = await demo.ask_upstream()
        if reached and closed and len(later) > len(earlier):
            took = later[-1] - disconnected_at
            seen = f"the upstream noticed after {took * 1000:.0f} ms"
            demo.check(took < MAX_NOTICE_DELAY, what, seen)
        else:
            demo.check(False, what, "the upstream did not notice")


async def break_upstream(demo: Demo) -> None:
    size, cut = 0, ""
    try:
        async with demo.caller.stream("GET", "/dies") as answer:
            async for chunk in answer.aiter_raw():
                size += len(chunk)
    except httpx.RemoteProtocolError as exc:
        cut = type(exc).__name__
    demo.check(bool(cut), "the caller's connection is closed", f"{size} bytes, then {cut}")
    told = (await demo.caller.get("/dies/told")).text
    last = " ".join(told[told.rfind("event:") :].split("\n")).strip()
    demo.check("event: error" in told, "or it gets a last event, with on_stream_error", last)


async def provoke_errors(demo: Demo) -> None:
    await expect(demo, 502, "/refused", "the upstream does not listen")
    busy = asyncio.create_task(demo.caller.get("/narrow/never"))
    try:
        await demo.wait_for_open(1)
        await expect(demo, 503, "/narrow/item", "every connection of the pool is in use")
    finally:
        busy.cancel()
        await asyncio.wait([busy])
    await expect(demo, 504, "/never/timeout", "no answer within the read timeout")
    await expect(demo, 504, "/never/deadline", "no answer within the deadline")
    await expect(demo, 418, "/status/418", "the upstream's own error is relayed")


async def expect(demo: Demo, status: int, path: str, what: str) -> None:
    answer = await demo.caller.get(path)
    retry = answer.headers.get("retry-after")
    seen = f"{answer.status_code} {answer.reason_phrase}" + (
        f", retry-after: {retry}" * bool(retry)
    )
    demo.check(answer.status_code == status and bool(retry) is (status == 503), what, seen)


async def check_nothing_is_open(demo: Demo) -> None:
    await demo.wait_for_open(0)
    count, _ = await demo.ask_upstream()
    demo.check(count == 0, "upstream connections left open", str(count))


PARTS: tuple[tuple[str, Callable[[Demo], Awaitable[None]]], ...] = (
    ("A file of 200 MB", relay_file),
    ("An event stream, an event every 100 ms", relay_events),
    ("Callers that disconnect", disconnect_callers),
    ("An upstream that fails in the middle of the body", break_upstream),
    ("Different errors for different failures", provoke_errors),
    ("At the end", check_nothing_is_open),
)


async def show(demo: Demo) -> int:
    """Run every part. Return 0 if every check passed."""
    print("An app relays an upstream to its callers; all of them run on this machine.")
    for title, part in PARTS:
        print(f"\n{title}", flush=True)
        try:
            async with asyncio.timeout(STEP_TIMEOUT):
                await part(demo)
        except Exception as exc:
            demo.check(False, "this part failed", f"{type(exc).__name__}: {exc}")
    if not demo.failures:
        print("\nEvery check passed.")
        return 0
    for server in (demo.upstream, demo.app):
        print(f"\nThe log of {server.log.stem}:\n{read_log(server.log)}")
    print(f"{len(demo.failures)} checks failed: {', '.join(demo.failures)}")
    return 1


async def serve(demo: Demo) -> int:
    """Keep both servers running until Ctrl-C."""
    print(f"The upstream is {demo.upstream.url}, the app that relays it {demo.app.url}. Try:\n")
    for options, path, what in (
        ("-o /dev/null", "/file", "200 MB"),
        ("-N", "/events", "an event every 100 ms"),
        ("", "/item", "JSON"),
        ("", "/never", "no answer; Ctrl-C, and see /open"),
        ("", "/dies", "the upstream fails in the middle of the body; curl reports it"),
        ("", "/dies/told", "the same, with an on_stream_error"),
        ("-i", "/refused", "502"),
        ("-i", "/never/deadline", "504"),
        ("-i", "/status/418", "any status"),
    ):
        line = f"curl {options} {demo.app.url}{path}".replace("  ", " ")
        print(f"  {line:<52} # {what}")
    line = f"curl {demo.upstream.url}/open"
    print(f"  {line:<52} # exchanges open at the upstream")
    print("\nCtrl-C ends both.", flush=True)
    both = (demo.upstream.process, demo.app.process)
    while all(process.poll() is None for process in both):  # noqa: ASYNC110  a process has no event
        await asyncio.sleep(0.5)
    raise Failed("a server stopped unexpectedly")


async def run(play: Callable[[Demo], Awaitable[int]]) -> int:
    """Start both servers, play, and stop both."""
    # The servers must end after any of these signals, not only after Ctrl-C.
    task = asyncio.current_task()
    assert task is not None
    if sys.platform != "win32":  # asyncio handles Ctrl-C there
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        logs = Path(folder)
        async with (
            run_server("examples.upstream:app", logs / "upstream.log") as upstream,
            run_server("examples.demo_app:app", logs / "app.log", UPSTREAM_URL=upstream.url) as app,
            create_caller(app) as caller,
            create_caller(upstream) as direct,
        ):
            return await play(Demo(upstream, app, caller, direct))


def main() -> int:
    arguments = argparse.ArgumentParser(description="Shows what the library does.")
    arguments.add_argument("--serve", action="store_true", help="keep both servers running")
    is_serving = arguments.parse_args().serve
    try:
        return asyncio.run(run(serve if is_serving else show))
    except asyncio.CancelledError:
        print("\nStopped.")
        return 0 if is_serving else 130
    except Failed as exc:
        print(exc, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
