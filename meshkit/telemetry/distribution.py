"""How long things took: counts in bins, so that any number of processes can be added up exactly."""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Annotated, Self

import msgspec

# Upper bounds of the bins in seconds, inclusive; what took longer is in one more. From 5 ms to 10 s they are
# those that OpenTelemetry recommends for calls, too coarse for a hop that takes a third of a millisecond.
# https://opentelemetry.io/docs/specs/semconv/rpc/rpc-metrics/
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025),
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(30.0, 60.0),
)

# What others report is checked when it is decoded: such numbers can be added up, and turned into floats.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e18)]


class Distribution(msgspec.Struct, gc=False):
    """Durations by bin.

    Attributes:
        counts: How many were in each bin; the last bin has no upper bound.
        sum: Seconds of all of them together.
    """

    counts: list[Count] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: Seconds = 0.0

    def __post_init__(self) -> None:
        if len(self.counts) != len(BOUNDS) + 1:  # from another version of meshkit
            raise ValueError(f"{len(self.counts)} bins, not {len(BOUNDS) + 1}")

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The seconds that a share of them did not exceed; None if there were none.

        As Prometheus estimates it: evenly spread within a bin, and the last bound for what is beyond it.
        https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile

        Args:
            share: From 0 to 1.
        """
        rank = share * self.count
        if not self.count:
            return None
        for at, so_far in enumerate(accumulate(self.counts)):
            if so_far >= rank and self.counts[at] and at < len(BOUNDS):
                low = BOUNDS[at - 1] if at else 0.0
                return low + (BOUNDS[at] - low) * (rank - so_far + self.counts[at]) / self.counts[at]
        return BOUNDS[-1]

    def since(self, before: Self) -> "Distribution":
        """What was counted after an earlier state of the same; all of it, if that is not what it is."""
        counts = [now - then for now, then in zip(self.counts, before.counts, strict=True)]
        return self if min(counts) < 0 else Distribution(counts, self.sum - before.sum)


def total(distributions: Iterable[Distribution]) -> Distribution:
    """All of them in one."""
    whole = Distribution()
    for one in distributions:
        whole.counts = [ours + theirs for ours, theirs in zip(whole.counts, one.counts, strict=True)]
        whole.sum += one.sum
    return whole
