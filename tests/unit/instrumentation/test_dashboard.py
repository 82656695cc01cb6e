"""Every query of the dashboard and of the docs asks for what a scrape has."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser
import pytest
from prometheus_client import CollectorRegistry
from promql_parser import AggregateExpr, Expr, Matcher, MatchOp, VectorSelector

from asgi_upstream.instrumentation.prometheus import prometheus_observer
from asgi_upstream.records import Outcome
from tests.support.example_apps import ROOT
from tests.support.prometheus import scrape
from tests.support.records import Busy, failure, open_clients_are, record

DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs/dashboards/asgi-upstream.json").read_text())
PAGE = (ROOT / "docs/metrics-and-tracing.md").read_text()
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
VARIABLES = {"$__rate_interval": "5m", "$client": ".*"}

OF_DASHBOARD = [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]


def queries(page: str) -> list[str]:
    """The queries of a page, with an empty line between two, except prometheus-client's own."""
    return [
        query.strip()
        for block in re.findall(r"```promql\n(.*?)```", page, re.S)
        for query in re.sub(r"#.*", "", block).split("\n\n")
        if "asgi_upstream_" in query
    ]


QUERIES = [*OF_DASHBOARD, *queries(PAGE), *queries(RUNBOOK)]
Scraped = Mapping[str, Mapping[str, set[str]]]


@pytest.fixture
def scraped(monkeypatch: pytest.MonkeyPatch) -> Scraped:
    """The values of each label of each metric, when everything has happened once."""
    registry = CollectorRegistry()
    observe = prometheus_observer(registry)
    for outcome in Outcome:
        observe(record(outcome=outcome))
    observe(record(status=404))
    observe(record(status=500))
    observe(failure())
    open_clients_are(monkeypatch, ("client", Busy(open=2, waiting=1)))
    found: dict[str, dict[str, set[str]]] = {}
    for family in scrape(registry).families.values():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def parsed(query: str) -> Expr:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query
    return promql_parser.parse(query)


def parts(expr: Expr) -> list[Expr]:
    found: list[Expr] = []

    def keep(one: Expr) -> bool:
        found.append(one)
        return True

    promql_parser.walk(expr, keep)
    return found


def selectors(expr: Expr) -> list[VectorSelector]:
    return [one for one in parts(expr) if isinstance(one, VectorSelector)]


def chosen(matcher: Matcher, values: set[str]) -> set[str]:
    is_pattern = matcher.op in (MatchOp.Re, MatchOp.NotRe)
    pattern = matcher.value if is_pattern else re.escape(matcher.value)
    fitting = {value for value in values if re.fullmatch(pattern, value)}
    return fitting if matcher.op in (MatchOp.Equal, MatchOp.Re) else values - fitting


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_asks_for_metrics_and_labels_of_a_scrape(query: str, scraped: Scraped) -> None:
    expr = parsed(query)
    assert selectors(expr)
    for selector in selectors(expr):
        assert selector.name is not None
        assert selector.name in scraped
        for matcher in selector.matchers.matchers:
            assert matcher.name in scraped[selector.name], matcher
            assert chosen(matcher, scraped[selector.name][matcher.name]), matcher
    for part in parts(expr):
        if isinstance(part, AggregateExpr) and part.modifier is not None:
            for selector in selectors(part.expr):
                assert selector.name is not None
                assert set(part.modifier.labels) <= scraped[selector.name].keys()


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_for_failures_asks_for_all_of_them(query: str) -> None:
    for selector in selectors(parsed(query)):
        for matcher in selector.matchers.matchers:
            if matcher.op in (MatchOp.NotRe, MatchOp.NotEqual):
                assert matcher.name == "outcome"
                failures = {outcome.value for outcome in Outcome if outcome.is_failure}
                assert chosen(matcher, {outcome.value for outcome in Outcome}) == failures


@pytest.mark.parametrize("query", QUERIES)
def test_queries_use_rates_of_counters_and_values_of_gauges(query: str) -> None:
    rated = set(re.findall(r"(?:rate|increase)\((\w+)", query))
    for selector in selectors(parsed(query)):
        assert selector.name is not None
        is_counter = selector.name.endswith(("_total", "_bucket", "_count", "_sum"))
        assert (selector.name in rated) is is_counter


def test_the_dashboard_leaves_no_metric_out(scraped: Scraped) -> None:
    def metric(sample: str) -> str:
        return re.sub(r"_(bucket|count|sum|total|created)$", "", sample)

    asked = {metric(s.name or "") for query in OF_DASHBOARD for s in selectors(parsed(query))}
    assert asked == {metric(name) for name in scraped}


def test_the_page_names_every_metric_and_label(scraped: Scraped) -> None:
    rows = set(re.findall(r"^- `(\w+)`", PAGE, re.M))
    (sentences,) = re.findall(r"^The labels are .*?\n\n", PAGE, re.M | re.S)
    named = set(re.findall(r"`(\w+)`", sentences))
    for name, labels in scraped.items():
        assert re.sub(r"_(bucket|count|sum|created)$", "", name) in rows | {
            "asgi_upstream_exchanges"  # of `_created`
        }
        assert labels.keys() - {"le"} <= named


def test_variables_ask_for_a_label_of_a_scrape(scraped: Scraped) -> None:
    source, client = DASHBOARD["templating"]["list"]
    assert source["type"] == "datasource"
    match = re.fullmatch(r"label_values\((\w+), (\w+)\)", client["query"]["query"])
    assert match is not None
    assert match[2] in scraped[match[1]]
    names = {"datasource", "client", "__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) == names


def test_legends_are_of_labels_that_the_query_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            kept = {
                label
                for part in parts(parsed(target["expr"]))
                if isinstance(part, AggregateExpr) and part.modifier
                for label in part.modifier.labels
            }
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept - {"le"}


def test_panels_have_a_place_of_their_own_and_say_what_they_show() -> None:
    def cells(panel: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
        at = panel["gridPos"]
        return itertools.product(
            range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        )

    panels = DASHBOARD["panels"]
    taken = [cell for panel in panels for cell in cells(panel)]
    assert len(taken) == len(set(taken))
    assert all(x < 24 for x, _ in taken)
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
