"""What observing one exchange costs: `python -m tests.benchmarks.observers`.

In a loop that does nothing else, so that caches are warm: the least that it costs. The best of
several rounds, for anything slower was the machine. The parts that are not ours are rows of their
own: what `logging` makes of a line, and what the SDK of OpenTelemetry makes of a measurement.
"""

import logging
import timeit
from collections.abc import Callable, Iterator

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_tracer
from prometheus_client import CollectorRegistry

from asgi_upstream.instrumentation.logs import log_observer
from asgi_upstream.instrumentation.opentelemetry import opentelemetry_observer
from asgi_upstream.instrumentation.prometheus import prometheus_observer
from asgi_upstream.records import ExchangeRecord, Observer, Outcome

BUDGET = 3.0  # microseconds, of a record and one observer
ROUNDS, CALLS = 7, 20_000


def made() -> ExchangeRecord:
    return ExchangeRecord(
        client="client",
        method="GET",
        host="api.example",
        route="/items/{id}",
        status=200,
        outcome=Outcome.COMPLETED,
        exception=None,
        duration=0.021,
        time_to_headers=0.011,
        time_to_first_byte=0.012,
        bytes_sent=0,
        bytes_received=1024,
        connection_reused=True,
    )


def microseconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def silent(level: int) -> logging.Logger:
    logger = logging.Logger("silent", level)
    logger.addHandler(logging.NullHandler())
    return logger


def observers() -> Iterator[tuple[str, Observer]]:
    sdk = MeterProvider([InMemoryMetricReader()])
    yield "a function that does nothing", lambda record: None
    yield "log_observer, at a level that is not logged", log_observer(silent(logging.WARNING))
    yield "log_observer, and logging's own part", log_observer(silent(logging.INFO))
    yield "prometheus_observer", prometheus_observer(CollectorRegistry())
    yield "opentelemetry_observer, without an SDK", opentelemetry_observer()
    yield (
        "opentelemetry_observer, and the SDK's metrics",
        opentelemetry_observer(meter_provider=sdk),
    )


def main() -> None:
    print(f"{'microseconds':>52}  with its record")
    for name, observe in observers():
        record = made()
        alone = microseconds(lambda observe=observe, record=record: observe(record))  # type: ignore[misc]
        whole = microseconds(lambda observe=observe: observe(made()))  # type: ignore[misc]
        print(f"{name:46} {alone:5.2f}  {whole:5.2f}{'' if whole < BUDGET else '  over'}")
    traces = TracerProvider()
    with get_tracer("server", tracer_provider=traces).start_as_current_span("GET"):
        observe, record = opentelemetry_observer(), made()
        alone = microseconds(lambda: observe(record))
    print(f"{'opentelemetry_observer, and the SDK on a span':46} {alone:5.2f}")


if __name__ == "__main__":
    main()
