"""Runs the parts of `make test` many times, and counts failures by test.

make test-stability RUNS=20
make test-stability RUNS=10 LOAD=1
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.pages import ROOT

PARTS = ("test-parallel", "test-serial", "test-flavor")
BURNERS = 4
"""Processes that keep the processors busy with `--load`."""


@contextmanager
def burn_cpu(processes: int) -> Iterator[None]:
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    burners = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def run_part(part: str, report: Path) -> tuple[list[str], int]:
    """Run one target of the Makefile, and return the failed tests and the number of all."""
    options = f"{os.environ.get('PYTEST_ADDOPTS', '')} --junitxml={report} -o junit_family=xunit1"
    done = subprocess.run(
        ["make", part],
        cwd=ROOT,
        env=os.environ | {"PYTEST_ADDOPTS": options},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    report.with_suffix(".log").write_text(done.stdout)
    if not report.exists():
        return [f"{part}: no report, exit status {done.returncode}"], 0
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{case.get('file')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    if done.returncode and not failed:
        failed = [f"{part}: exit status {done.returncode}"]
    return failed, len(cases)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.stability", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--load", action="store_true", help="keep the processors busy meanwhile")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--reports", type=Path, help="default: a temporary folder")
    options = parser.parse_args()
    folder = options.reports or Path(tempfile.mkdtemp(prefix="stability-"))
    folder.mkdir(parents=True, exist_ok=True)
    failures: Counter[str] = Counter()
    runs_with_failures = tests = 0
    with burn_cpu(BURNERS if options.load else 0):
        for number in range(1, options.runs + 1):
            start, failed = time.monotonic(), []
            for part in options.parts:
                more, count = run_part(part, folder / f"{number:02}-{part}.xml")
                failed += more
                tests += count
            failures.update(failed)
            runs_with_failures += bool(failed)
            seconds = time.monotonic() - start
            print(f"run {number}: {seconds:.0f} s, {len(failed)} failed", *failed, sep="\n  ")
            sys.stdout.flush()
    print(
        f"{options.runs} runs, {tests} tests, {runs_with_failures} runs with failures in {folder}"
    )
    for name, count in failures.most_common():
        print(f"{count:4}  {name}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
