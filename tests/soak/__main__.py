"""`make soak MINUTES=10`, or `python -m tests.soak --minutes 10`."""

import argparse
import asyncio
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.support.server_choice import ALL_SERVERS
from tests.support.servers import COMMANDS

from .report import plot
from .soak import soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--server", choices=COMMANDS, default="uvicorn-httptools")
    parser.add_argument("--transport", choices=["stock", "asyncio"], default="asyncio")
    parser.add_argument("--all", action="store_true", help="every server, and both transports")
    parser.add_argument("--faults", action="store_true", help="harm on the way to the upstream")
    parser.add_argument("--callers", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the plans")
    parser.add_argument(
        "--plot",
        type=Path,
        help="a folder for the log, and for the plot if matplotlib is installed",
    )
    options = parser.parse_args()
    one = options.server + ("+asyncio" if options.transport == "asyncio" else "")
    if not options.all and one not in ALL_SERVERS:
        parser.error("AsyncioTransport does not run on trio: give --transport stock")
    folder = options.plot or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in ALL_SERVERS if options.all else [one]:
        report = asyncio.run(
            soak(
                name,
                seconds=options.minutes * 60,
                with_faults=options.faults,
                callers=options.callers,
                seed=options.seed,
                say=lambda line: print(line, flush=True),
            )
        )
        print(report, flush=True)
        (folder / f"{name}.log").write_text(report.log)
        print(f"  log          {folder}/{name}.log", flush=True)
        if find_spec("matplotlib") is not None:
            plot(report, folder / f"{name}.svg")
            print(f"  plot         {folder}/{name}.svg", flush=True)
        failed = failed or bool(report.failures())
    return failed


if __name__ == "__main__":
    sys.exit(main())
