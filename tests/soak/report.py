"""What a soak has come to: a line as it goes, the sum at its end, a plot."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment. Latencies are the seconds to the heads of small responses since the last one."""

    at: float  # seconds since the start
    memory: int  # bytes
    descriptors: int
    open: int  # exchanges at the upstream
    connections: int
    exchanges: int  # so far
    median: float
    slow: float  # the 99th of a hundred


@dataclass
class Report:
    """The sum of it.

    Attributes:
        right: exchanges that came to what they must, by the fate that the plan gave them.
        wrongs: what did not, with the plan.
        open, connections: at the upstream at the end.
        descriptors: of the relay's process, before and after.
        reached: exchanges that the app began.
        records: of these, by outcome; None where the library keeps none.
        log: the server's.
        noise: what that has and should not.
    """

    name: str
    seed: int
    right: Counter[str] = field(default_factory=Counter)
    wrongs: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    redone: int = 0
    open: int = 0
    connections: int = 0
    descriptors: tuple[int, int] = (0, 0)
    reached: int = 0
    records: dict[str, int] | None = None
    log: str = ""
    noise: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Of the relay's memory in bytes an hour: the slope of the second half."""
        half = self.samples[len(self.samples) // 2 :]
        if len(half) < 2:
            return 0.0
        line = statistics.linear_regression([s.at for s in half], [s.memory for s in half])
        return line.slope * 3600

    def failures(self) -> list[str]:
        """Why this is no success."""
        recorded = None if self.records is None else sum(self.records.values())
        before, after = self.descriptors
        # Hypercorn 0.18 keeps a connection for good when an app answers by itself, as with a 502,
        # before it has read the upload: the end waits for a place in a queue that nobody reads.
        leaked = 0 if self.name.startswith("hypercorn") else after - before
        if self.name.startswith("granian"):
            leaked -= 2  # its own come and go by one, idle too
        found = {
            f"{len(self.wrongs)} exchanges went wrong": self.wrongs,
            "no exchange was right": not self.right,
            f"{self.open} exchanges are open at the upstream": self.open,
            f"{self.connections} connections are open at the upstream": self.connections,
            f"{leaked} descriptors more than before": leaked > 0,
            f"{recorded} records of {self.reached} exchanges": recorded not in (None, self.reached),
            f"in the log: {', '.join(self.noise)}": self.noise,
        }
        return [failure for failure, holds in found.items() if holds]

    def __str__(self) -> str:
        fates = ", ".join(f"{fate} {n}" for fate, n in sorted(self.right.items()))
        outcomes = sorted((self.records or {}).items())
        records = ", ".join(f"{outcome} {n}" for outcome, n in outcomes) or "not kept"
        first, last = self.samples[0].memory / MB, self.samples[-1].memory / MB
        lines = [
            f"{self.name}, seed {self.seed}:",
            f"  right        {self.right.total()} ({fates}); asked twice {self.redone}",
            f"  wrong        {len(self.wrongs)}",
            f"  open         {self.open} exchanges, {self.connections} connections at the upstream",
            f"  memory       {first:.0f} to {last:.0f} MB, {self.growth / MB:+.1f} MB an hour",
            f"  descriptors  {self.descriptors[0]} before, {self.descriptors[1]} after",
            f"  exchanges    {self.reached} reached the relay; records: {records}",
            *(f"  FAILED       {failure}" for failure in self.failures()),
        ]
        return "\n".join(lines)


def progress(sample: Sample, wrong: int) -> str:
    return (
        f"{sample.at:6.0f} s  {sample.exchanges:7d} exchanges, {wrong} wrong  "
        f"open {sample.open:3d}  memory {sample.memory / MB:6.1f} MB  "
        f"descriptors {sample.descriptors:4d}  "
        f"latency {sample.median * 1000:5.1f} ms, p99 {sample.slow * 1000:6.1f} ms"
    )


def plot(report: Report, file: Path) -> None:
    """Memory, latency and open exchanges over time."""
    import_module("matplotlib").use("svg")
    figure: Any = import_module("matplotlib.figure").Figure(figsize=(9, 8), layout="constrained")
    memory, latency, opened = figure.subplots(3, 1, sharex=True)
    at = [sample.at for sample in report.samples]
    memory.plot(at, [sample.memory / MB for sample in report.samples])
    memory.set_ylabel("resident memory, MB")
    latency.plot(at, [sample.median * 1000 for sample in report.samples], label="median")
    latency.plot(at, [sample.slow * 1000 for sample in report.samples], label="p99")
    latency.set_yscale("log")
    latency.set_ylabel("to the head, ms")
    opened.plot(at, [sample.open for sample in report.samples], label="exchanges")
    opened.plot(at, [sample.connections for sample in report.samples], label="connections")
    opened.plot(at, [sample.descriptors for sample in report.samples], label="descriptors")
    opened.set_ylabel("open")
    opened.set_xlabel("seconds")
    for axes in (latency, opened):
        axes.legend(loc="upper right")
    figure.suptitle(f"{report.name}: {report.right.total()} right, {len(report.wrongs)} wrong")
    figure.savefig(file)
