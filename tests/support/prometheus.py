"""Reads what Prometheus would read."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

TIMES = ["time_to_headers_seconds", "time_to_first_byte_seconds", "exchange_duration_seconds"]


class Scrape:
    """What Prometheus reads, by its own parser."""

    def __init__(self, text: str) -> None:
        self.families = {one.name: one for one in text_string_to_metric_families(text)}

    def all(self, name: str) -> list[tuple[Mapping[str, str], float]]:
        return [
            (sample.labels, sample.value)
            for family in self.families.values()
            for sample in family.samples
            if sample.name == f"asgi_upstream_{name}"
        ]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels."""
        return sum(v for of, v in self.all(name) if labels.items() <= of.items())


def scrape(registry: CollectorRegistry) -> Scrape:
    return Scrape(generate_latest(registry).decode())
