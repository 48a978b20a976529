"""The page of metrics is the catalogue; run this file as a program, and it rewrites the page's tables."""

from pathlib import Path

import msgspec
import pytest

from meshkit.job import JobReport
from meshkit.layers.statistics import CallStatistics, Statistics
from meshkit.telemetry.distribution import Distribution
from meshkit.telemetry.metrics.catalogue import CATALOGUE
from meshkit.telemetry.metrics.families import families
from meshkit.telemetry.metrics.gather import GATHER_CATALOGUE
from meshkit.telemetry.metrics.monitoring import SERVER_CATALOGUE
from meshkit.telemetry.metrics.page import page
from meshkit.telemetry.report import Bound, Called, Consumed, Report, Served

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
MARK = "<!-- the catalogue -->\n"
COMMAND = "python tests/telemetry/metrics/test_catalogue.py"

SERVER_TEXT = """\
Those of `gnatsd_` and `jetstream_` are named as prometheus-nats-exporter names them. There is a
`gnatsd_varz_` for each number in `/varz`; these are the usual ones.
"""


def tables():
    """What follows the mark on the page."""
    return "\n".join(
        [
            "",
            *table(CATALOGUE, "Istio", "Linkerd"),
            "\n## What `meshkit metrics` adds\n",
            *table(GATHER_CATALOGUE),
            "\n## What nats-server says\n",
            SERVER_TEXT,
            *table(SERVER_CATALOGUE),
            "",
        ]
    )


def table(metrics, *others):
    yield row("metric", "", "labels", "what it is", *others)
    yield row(*["---"] * (4 + len(others)))
    for metric in metrics:
        labels = ", ".join(f"`{label.replace('.', '_')}`" for label in metric.labels)
        names = [code(getattr(metric, other.lower())) for other in others]
        yield row(f"`{metric.prometheus}`", metric.kind, labels, metric.help, *names)


def code(names):
    return ", ".join(f"`{name}`" for name in names.split(", ") if name)


def row(*cells):
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def rewritten():
    return PAGE.read_text().partition(MARK)[0] + MARK + tables()


def test_the_page_has_what_the_catalogue_has():
    assert PAGE.read_text() == rewritten(), f"the tables of docs/metrics.md are not up to date: run {COMMAND}"


def test_no_two_metrics_have_the_same_name():
    names = [metric.prometheus for metric in (*CATALOGUE, *GATHER_CATALOGUE, *SERVER_CATALOGUE)]
    assert len(names) == len(set(names))


BOUND = Bound(1, 2, 3, 4)
TWICE = {"ok": Distribution(), "NotFound": Distribution()}
CONSUMED = Served("a", "a", is_event=True, outcomes=Statistics().outcomes, consumed=Consumed("S", "a"))
CALLED = {"outcomes": CallStatistics().outcomes, "attempts": CallStatistics().attempts}


@pytest.mark.parametrize(
    ("what", "more"),
    [
        ({}, 0),
        ({"served": [Served("a", "a", outcomes=Statistics().outcomes)]}, 51),
        ({"served": [Served("a", "a", outcomes=TWICE, bound=BOUND)]}, 51 + 24 + 3),
        ({"served": [Served("a", "a", is_event=True, outcomes=Statistics().outcomes)]}, 26),
        ({"served": [CONSUMED]}, 26 + 5),
        ({"served": [msgspec.structs.replace(CONSUMED, bound=BOUND)]}, 26 + 7),
        ({"jobs": [JobReport("cities", 1)]}, 4),
        ({"jobs": [JobReport("cities", 1, seconds_left=2.0)]}, 5),
        ({"called": [Called("a", **CALLED)]}, 59),
        ({"called": [Called("a", outcomes=TWICE, attempts={"ok": 1, "NotFound": 1})]}, 59 + 25),
    ],
)
def test_there_are_as_many_series_as_the_page_says(what, more):
    shown = page(families([Report("rooms", "1", "1.0.0", bound=BOUND, **what)]))
    assert sum(not line.startswith("#") for line in shown.splitlines()) == 32 + more


def test_what_others_leave_empty_makes_no_series_twice():
    empty = {"": Distribution(), "ok": Distribution()}
    served = [Served("a", "a", outcomes=empty), Served("b", "")]
    called = [Called("b", outcomes=empty, attempts={"": 7, "ok": 1}, refusals={"": 7}), Called("")]
    report = Report("evil", "1", "1.0.0", served=served, called=called, bound=BOUND)
    lines = [line for line in page(families([report])).split("\n") if line]
    assert not any('=""' in line for line in lines)
    assert any("rpc_server_call_duration" in line and 'rpc_method="a"' in line for line in lines)
    names = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(names) == len(set(names))


if __name__ == "__main__":
    PAGE.write_text(rewritten())
