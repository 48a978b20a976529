"""What dashboards and alerts ask Prometheus, in terms of the catalogue.

All functions take alike:

- `metric`: of a histogram, what was measured is counted.
- `window`: over how long a rate is taken, as Prometheus writes it.
- `where`: what picks series, as in braces: `service_name="rooms"`. Labels are those of the catalogue, with
  `_` for dots.
- `by`: the labels that stay, with commas.
"""

from meshkit.errors import FAULTS
from meshkit.layers.statistics import OTHER
from meshkit.telemetry.metrics.catalogue import Metric

# What is counted together with others may be one of them.
FAULT = f'error_type=~"{"|".join((*FAULTS, OTHER))}"'
"""Picks the failures that count against a service: `errors.FAULTS` says which, and why."""


def picked(metric: Metric, *where: str) -> str:
    """The series that count, or have the value."""
    return _picked(metric.prometheus + ("_count" if metric.kind == "histogram" else ""), *where)


def now(metric: Metric, *where: str, by: str) -> str:
    """The value of a gauge, added up."""
    return f"sum by ({by}) ({picked(metric, *where)})"


def alike(metric: Metric, *where: str, by: str) -> str:
    """The value of a gauge of which all instances report the same."""
    return f"max by ({by}) ({picked(metric, *where)})"


def rate(metric: Metric, window: str, *where: str, by: str = "") -> str:
    """How many a second."""
    return f"sum by ({by}) (rate({picked(metric, *where)}[{window}]))"


def increase(metric: Metric, window: str, *where: str, by: str = "") -> str:
    """How many there were within the window."""
    return f"sum by ({by}) (increase({picked(metric, *where)}[{window}]))"


def some_rate(metric: Metric, window: str, only: str, *where: str, by: str = "") -> str:
    """How many of some kind a second, which `only` picks: 0 before the first, if there are others."""
    all_of_them = rate(metric, window, *where, by=by)
    return f"({rate(metric, window, only, *where, by=by)} or 0 * {all_of_them})"


def succeeded(metric: Metric, window: str, *where: str, by: str = "") -> str:
    """The share without a fault, from 0 to 1; NaN without a call."""
    failed = some_rate(metric, window, FAULT, *where, by=by)
    return f"1 - {failed} / {rate(metric, window, *where, by=by)}"


def slower_rate(metric: Metric, window: str, seconds: float, *where: str, by: str = "") -> str:
    """How many a second took longer than `seconds`, which is one of the histogram's bounds."""
    quick = _picked(f"{metric.prometheus}_bucket", f'le="{seconds!r}"', *where)
    return f"{rate(metric, window, *where, by=by)} - sum by ({by}) (rate({quick}[{window}]))"


def quantile(share: float, metric: Metric, window: str, *where: str, by: str = "") -> str:
    """The seconds that a share of it, from 0 to 1, did not exceed; NaN if nothing was measured."""
    bins = _picked(f"{metric.prometheus}_bucket", *where)
    kept = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({kept}) (rate({bins}[{window}])))"


def _picked(name: str, *where: str) -> str:
    return f"{name}{{{', '.join(where)}}}" if where else name
