"""Panels as the dashboards have them: numbers, lines and tables of the catalogue's metrics."""

from meshkit.telemetry.dashboards.grafana import Column, Panel
from meshkit.telemetry.dashboards.promql import quantile, rate, succeeded
from meshkit.telemetry.metrics.catalogue import Metric

WINDOW = "$__rate_interval"
"""Several scrapes, as far as a point of the line stands for."""
MESH = 'job=~"$job"'
"""Picks the series of the scrape jobs that are picked."""
SECONDS, SHARE, RATE, BYTES, NUMBER = "s", "percentunit", "cps", "Bps", "short"
"""What panels show of a number, as Grafana calls it."""


def stat(title: str, unit: str, query: str, called: str = "") -> Panel:
    """A number.

    Args:
        title: What it is.
        unit: As Grafana calls it.
        query: What it comes from.
        called: What else is shown beside it.
    """
    return Panel(title, unit, {called: query}, kind="stat")


def lines(title: str, unit: str, queries: dict[str, str], by: str, note: str = "") -> Panel:
    """Lines over time; the arguments are as in Panel."""
    return Panel(title, unit, queries, by, note=note)


def table(title: str, metric: Metric, by: str, where: str) -> Panel:
    """Rate, success and latency of what a histogram measures.

    Args:
        title: What it is of.
        metric: The histogram.
        by: The label with a row for each value.
        where: Picks the series, as in `promql`.
    """
    columns = [
        Column("Calls", RATE, rate(metric, WINDOW, where, by=by)),
        Column("Success", SHARE, succeeded(metric, WINDOW, where, by=by)),
        Column("p50", SECONDS, quantile(0.5, metric, WINDOW, where, by=by)),
        Column("p99", SECONDS, quantile(0.99, metric, WINDOW, where, by=by)),
    ]
    return Panel(title, "", {}, by, kind="table", columns=columns)


def quantiles(metric: Metric, by: str, where: str) -> dict[str, str]:
    """Three quantiles of a histogram; the arguments are as in `promql`."""
    return {f"p{share * 100:g}": quantile(share, metric, WINDOW, where, by=by) for share in (0.5, 0.95, 0.99)}


def both(received: Metric, sent: Metric, by: str, where: str) -> dict[str, str]:
    """What came and what went, a second; the arguments are as in `promql`."""
    return {"received": rate(received, WINDOW, where, by=by), "sent": rate(sent, WINDOW, where, by=by)}


def by_kind(metric: Metric, where: str, of_all: Metric) -> str:
    """Errors a second, by kind.

    Args:
        metric: Counts them, by `error_type`.
        where: Picks the series, as in `promql`.
        of_all: What is there even if there is no error.
    """
    found = rate(metric, WINDOW, 'error_type!=""', where, by="error_type")
    return or_none(found, "error_type", rate(of_all, WINDOW, where))


def or_none(found: str, label: str, there: str) -> str:
    """What was found or, if nothing was, a line at 0 as long as something is there.

    Args:
        found: A query.
        label: Its series' label, which is `none` for that line.
        there: A query that finds something.
    """
    return f'{found} or on () label_replace(0 * {there}, "{label}", "none", "", "")'
