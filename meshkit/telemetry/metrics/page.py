"""The page that Prometheus reads, in its text format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from meshkit.telemetry.distribution import BOUNDS, Distribution
from meshkit.telemetry.metrics.catalogue import Family, Labels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The last bin's has no bound. Numbers are written as Prometheus 3 and OpenMetrics write them.
_LE = [*(f'le="{bound!r}"' for bound in BOUNDS), 'le="+Inf"']
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def page(families: Iterable[Family]) -> str:
    """Metrics and their values, as text; numbers lose nothing.

    Args:
        families: Each metric at most once.
    """
    return "\n".join(line for family in families for line in _lines(family)) + "\n"


def _lines(family: Family) -> Iterator[str]:
    metric = family.metric
    name = metric.prometheus
    yield f"# HELP {name} {metric.help}"
    yield f"# TYPE {name} {metric.kind}"
    for labels, value in family.samples:
        written = _labels(labels)
        if isinstance(value, Distribution):
            yield from _histogram(name, written, value)
        else:
            yield f"{name}{_braced(written)} {value!r}"


def _histogram(name: str, labels: str, value: Distribution) -> Iterator[str]:
    before = f"{labels}," if labels else ""
    so_far = 0
    for le, so_far in zip(_LE, accumulate(value.counts), strict=True):
        yield f"{name}_bucket{{{before}{le}}} {so_far}"
    yield f"{name}_sum{_braced(labels)} {value.sum!r}"
    yield f"{name}_count{_braced(labels)} {so_far}"


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _labels(labels: Labels) -> str:
    return ",".join(f'{key.replace(".", "_")}="{value.translate(_ESCAPES)}"' for key, value in labels.items())
