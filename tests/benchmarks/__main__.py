"""The cost of a relay, each way beside the others: `make bench`, or `python -m tests.benchmarks`.

The ways of one row take turns, round by round, so that a noisy machine is noisy for all of them.
Compare the ratios of the medians. A run of all rows and ways is written to docs/performance.md. A
run of some is only printed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import IO

import uvloop

from . import callers, page
from .app import NEEDS
from .relays import NOT_PYTHON, Relay, Relays
from .upstreams import certificates, nginx, small_server

PEERS = ["aiohttp", "httpx_aiohttp", "pyreqwest", "httpx2", "idiom"]
LIMITS = ["bare", "bare_build_request"]
FORWARDING = ["forwarded", "mounted", "fastapi_proxy_lib"]
STREAMS = ["bare", "streamed", *PEERS, "fastapi_proxy_lib", "stock_streamed"]
EXTRAS = ["alone", "buffered", "stock_buffered", "stock_forwarded"]
WAYS = [*LIMITS, "streamed", *PEERS, *FORWARDING, "stock_streamed", *EXTRAS]

SMALL = 1024
BIG = 1 << 30
RATE = 500  # requests a second: about half of the load that saturates httpx by hand

Values = tuple[float, ...]


@dataclass
class Row:
    """One kind of work, and the ways that do it."""

    name: str
    ways: list[str]
    upstream: str
    measure: Callable[[Relay, str], Values]
    fresh: bool = False
    """Whether each measurement has a new process."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of the relays."""


@dataclass
class Small:
    """Small bodies, `concurrency` at a time. A round takes each way about 0.3 s."""

    concurrency: int
    least: int  # requests a round, so that most of them find a connection
    most: float = 60  # seconds a round
    requests: dict[str, int] = field(default_factory=dict)

    def __call__(self, relay: Relay, way: str) -> Values:
        if way not in self.requests:
            first = self._spent(relay, self.least)  # also warms up
            self.requests[way] = max(self.least, int(0.3 / max(first, 20e-6)))
        return (self._spent(relay, self.requests[way]),)

    def _spent(self, relay: Relay, requests: int) -> float:
        call = callers.small(relay, f"/{SMALL}", self.concurrency, requests, self.most)
        return uvloop.run(call)


@dataclass
class Upstreams:
    """The URLs of the upstreams, and the file of the authority that signed their certificates."""

    nginx: str
    server: str
    nginx_tls: str
    server_tls: str
    authority: str

    @classmethod
    @contextmanager
    def start(cls) -> "Iterator[Upstreams]":
        with (
            certificates() as files,
            nginx((SMALL, BIG)) as nginx_url,
            small_server() as server_url,
            nginx((SMALL, BIG), files.server) as nginx_tls,
            small_server(files.server) as server_tls,
        ):
            yield cls(nginx_url, server_url, nginx_tls, server_tls, str(files.authority))


def rows(upstreams: Upstreams) -> list[Row]:
    ways = ["bare", "streamed", *PEERS, "stock_streamed"]
    tls = {"SSL_CERT_FILE": upstreams.authority}
    plain, server = upstreams.nginx, upstreams.server

    def run_small(name: str, ways: list[str], small: Small, **variables: str) -> Row:
        url = upstreams.nginx_tls if "SSL_CERT_FILE" in variables else plain
        return Row(name, ways, url, small, variables=variables)

    def run_events(relay: Relay, way: str) -> Values:
        return uvloop.run(callers.events(relay, 100, 20, 1.2))

    def run_body(relay: Relay, way: str) -> Values:
        return (callers.body(relay, BIG),)

    return [
        run_small("small_10", [*WAYS, *NOT_PYTHON], Small(10, 100)),
        run_small("small_100", [*WAYS, *NOT_PYTHON], Small(100, 1000)),
        run_small("small_1000", [*LIMITS, "streamed", *PEERS, "forwarded"], Small(1000, 500, 8)),
        run_small("fastapi_10", ways, Small(10, 100), FRAMEWORK="fastapi"),
        run_small("https_10", ways, Small(10, 100), **tls),
        run_small("https_100", ways, Small(100, 1000), **tls),
        Row("events", STREAMS, server, run_events),
        Row("events_https", STREAMS, upstreams.server_tls, run_events, variables=tls),
        Row("body", STREAMS, plain, run_body),
        Row("body_https", STREAMS, upstreams.nginx_tls, run_body, variables=tls),
        Row(
            "upload",
            [*STREAMS, "stock_forwarded"],
            server,
            lambda relay, way: (callers.upload(relay, BIG),),
        ),
        Row(
            "memory",
            STREAMS,
            server,
            lambda relay, way: (uvloop.run(callers.memory(relay, 1000)),),
            fresh=True,
        ),
        Row(
            "latency",
            ways,
            plain,
            lambda relay, way: uvloop.run(callers.latency(relay, f"/{SMALL}", RATE)),
        ),
        Row("idle", ways, plain, lambda relay, way: callers.idle(relay), fresh=True),
    ]


def measured(row: Row, ways: list[str], rounds: int, log: IO[bytes]) -> dict[str, page.Figure]:
    """Return the medians of one row. A way that fails is left out of the further rounds."""
    begun = time.monotonic()
    values: dict[str, list[Values]] = {way: [] for way in row.ways if way in ways}
    failed: dict[str, str] = {}
    relays = Relays(row.upstream, log, **row.variables)
    try:
        for number in range(rounds):
            going = [way for way in values if way not in failed]
            first = number % max(len(going), 1)
            going = going[first:] + going[:first]  # another way is the first in each round
            relays.start(going)
            for way in going:
                try:
                    if relays[way].has_ended:
                        raise callers.Failed("its relay does not start, or ended by itself")
                    values[way].append(row.measure(relays[way], way))
                except (callers.Failed, OSError) as exc:
                    failed[way] = str(exc)
                    relays.stop(way)  # whatever it is still at
            if row.fresh:
                relays.stop_all()
    finally:
        relays.stop_all()
    print(f"{row.name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return {
        way: page.Figure(failed=failed[way])
        if way in failed
        else page.Figure(*(statistics.median(column) for column in zip(*each, strict=True)))
        for way, each in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--rows",
        help="small, fastapi_10, https, events, events_https, body, body_https, upload, memory, "
        "latency, idle; small is small_10, small_100 and small_1000",
    )
    parser.add_argument(
        "--ways", help=", ".join([*WAYS, *NOT_PYTHON]) + "; the last two only where named"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    missing = [way for way, module in NEEDS.items() if find_spec(module) is None]
    ways = [way for way in (options.ways or ",".join(WAYS)).split(",") if way not in missing]
    if unknown := set(ways) - {*WAYS, *(way for way, program in NOT_PYTHON.items() if program)}:
        parser.error(f"no such way here: {', '.join(sorted(unknown))}")
    begun = time.monotonic()
    with (
        Upstreams.start() as upstreams,
        tempfile.NamedTemporaryFile(prefix="relays-", suffix=".log", delete=False) as log,
    ):
        print(f"the output of the relays goes to {log.name}", file=sys.stderr)
        chosen = rows(upstreams)
        if options.rows is not None:
            names = options.rows.split(",")
            groups = {"small", "https"} & set(names)
            chosen = [r for r in chosen if r.name in names or r.name.split("_")[0] in groups]
        results = {row.name: measured(row, ways, options.rounds, log) for row in chosen}
    report = page.report(results, missing, options.rounds, time.monotonic() - begun)
    print(report)
    if options.rows is None and options.ways is None:
        page.write(report)


if __name__ == "__main__":
    main()
