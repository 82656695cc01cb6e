from tests.benchmarks import chart


def test_chart_has_the_figures_of_the_performance_page() -> None:
    """`python -m tests.benchmarks.chart` writes it."""
    assert chart.CHART.read_text() == chart.svg()
