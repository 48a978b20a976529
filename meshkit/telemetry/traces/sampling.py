"""What a provider's sampler says, without asking it where that is known: that takes 3 µs."""

import logging
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace.sampling import (
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind

log = logging.getLogger("meshkit.telemetry")

# Samplers that have raised: each says so once.
_BROKEN: set[int] = set()


def share(sampler: Sampler) -> tuple[float | None, bool]:
    """The share of roots that a sampler samples, None where it has to be asked; and whether traces are off.

    Args:
        sampler: The provider's. What is derived from the SDK's may do otherwise, and is asked.
    """
    root: Any = sampler
    if type(sampler) in {ParentBased, ParentBasedTraceIdRatio}:
        root = root._root  # noqa: SLF001 # nothing else tells
    if type(root) is TraceIdRatioBased:
        return root.rate, False
    if type(root) is StaticSampler:
        is_on = root.should_sample(None, 0, "").decision.is_sampled()
        return float(is_on), not is_on
    return None, False


def asked(sampler: Sampler, trace_id: int, name: str, kind: SpanKind, attributes: Mapping[str, Any]) -> bool:
    """Whether a sampler wants a trace that begins; one that raises wants none.

    Args:
        sampler: The provider's.
        trace_id: The trace's id.
        name: Of the span that it begins with.
        kind: That span's.
        attributes: Likewise.
    """
    try:
        return sampler.should_sample(None, trace_id, name, kind, dict(attributes)).decision.is_sampled()
    except Exception:
        # The user's own: no reason for a call to fail.
        if id(sampler) not in _BROKEN:
            _BROKEN.add(id(sampler))
            log.exception("the sampler failed; what it does not decide is not sampled")
        return False
