"""What a relay costs, each way beside the others: `make bench`, or `python -m tests.benchmarks`.

The ways of one row take turns, round by round, so that a noisy machine is noisy for all of them;
what counts are the ratios of the medians. A run of all rows and ways is written to
docs/performance.md; one of some is only printed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import IO

import uvloop

from . import callers, page
from .app import NEEDS
from .relays import NOT_PYTHON, Relay, Relays
from .upstreams import nginx, small_server

PEERS = ["aiohttp", "httpx_aiohttp", "pyreqwest", "httpx2", "idiom", "fastapi_proxy_lib"]
LIMITS_AND_PEERS = ["bare", "bare_build_request", "streamed", "forwarded", *PEERS]
STOCK = ["stock_streamed", "stock_buffered", "stock_forwarded"]
WAYS = [*LIMITS_AND_PEERS, "alone", "buffered", *STOCK]

SMALL = 1024
BIG = 1 << 30

Values = tuple[float, ...]


@dataclass
class Row:
    """One kind of work, and the ways that do it."""

    name: str
    ways: list[str]
    upstream: str
    measure: Callable[[Relay, str], Values]
    fresh: bool = False
    """Each measurement in a new process."""


@dataclass
class Small:
    """Small bodies, so many at a time; as many a round as take this way about 0.3 s."""

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


def rows(nginx_url: str, server_url: str) -> list[Row]:
    streams = ["bare", "streamed", *PEERS]
    return [
        Row("small_10", [*WAYS, *NOT_PYTHON], nginx_url, Small(10, 100)),
        Row("small_100", [*WAYS, *NOT_PYTHON], nginx_url, Small(100, 1000)),
        Row("small_1000", LIMITS_AND_PEERS, nginx_url, Small(1000, 500, most=8)),
        Row(
            "events",
            [*streams, "stock_streamed"],
            server_url,
            lambda relay, way: uvloop.run(callers.events(relay, 100, 20, 1.2)),
        ),
        Row("body", streams, nginx_url, lambda relay, way: (callers.body(relay, BIG),)),
        Row(
            "upload",
            [*streams, "stock_forwarded"],
            server_url,
            lambda relay, way: (callers.upload(relay, BIG),),
        ),
        Row(
            "memory",
            streams,
            server_url,
            lambda relay, way: (uvloop.run(callers.memory(relay, 1000)),),
            fresh=True,
        ),
    ]


def measured(row: Row, ways: list[str], rounds: int, log: IO[bytes]) -> dict[str, page.Figure]:
    """The medians of one row; a way that fails is left out of the further rounds."""
    begun = time.monotonic()
    values: dict[str, list[Values]] = {way: [] for way in row.ways if way in ways}
    failed: dict[str, str] = {}
    relays = Relays(row.upstream, log)
    try:
        for _ in range(rounds):
            going = [way for way in values if way not in failed]
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
        "--rows", help="small (or small_10, small_100, small_1000), events, body, upload, memory"
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
        nginx((SMALL, BIG)) as nginx_url,
        small_server() as server_url,
        tempfile.NamedTemporaryFile(prefix="relays-", suffix=".log", delete=False) as log,
    ):
        print(f"what the relays say goes to {log.name}", file=sys.stderr)
        chosen = rows(nginx_url, server_url)
        if options.rows is not None:
            names = options.rows.split(",")
            chosen = [r for r in chosen if r.name in names or r.name.split("_")[0] in names]
        results = {row.name: measured(row, ways, options.rounds, log) for row in chosen}
    report = page.report(results, missing, options.rounds, time.monotonic() - begun)
    print(report)
    if options.rows is None and options.ways is None:
        page.write(report, results)


if __name__ == "__main__":
    main()
