"""What the peers must show, as ratios of one run, and whether they do.

A row without a bound is shown beside the others because it puts them in perspective.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.report import Settings, figure

# A figure of a contender in a round: at("meshkit", "rate").
At = Callable[[str, str], float]


class Bound(NamedTuple):
    """One of them.

    Attributes:
        what: What is compared.
        formula: How, for each round; the median of the rounds is judged.
        least: It must reach that; for both loops, or for each.
        most: It must not exceed that.
    """

    what: str
    formula: Callable[[At], float]
    least: float | Mapping[str, float] | None = None
    most: float | None = None


def over(what: str, one: str, other: str) -> Callable[[At], float]:
    """The ratio of a figure of two contenders."""
    return lambda at: at(one, what) / at(other, what)


def more(one: str, other: str, what: str) -> Callable[[At], float]:
    """By how much a figure of one contender exceeds that of another."""
    return lambda at: at(one, what) - at(other, what)


def _beside_envoy(kind: str) -> Callable[[At], float]:
    """Memory of meshkit's process, to that of an Envoy and a bare nats-py process."""
    return lambda at: (
        at("meshkit", f"server {kind}")
        / (at("grpc_envoy", f"proxy {kind}") + at("nats_py", f"server {kind}"))
    )


# What came of each round, of each contender and loop.
Measured = Mapping[tuple[str, str], Mapping[str, list[float]]]

BOUNDS = (
    Bound(
        "calls/s: meshkit without optional layers / bare nats-py with three headers",
        over("rate", "meshkit_bare", "nats_py_headers"),
        least={"uvloop": 2.2, "asyncio": 2.0},
    ),
    Bound(
        "calls/s: meshkit without optional layers / bare nats-py, headers there only",
        over("rate", "meshkit_bare", "nats_py_headers_there"),
    ),
    Bound(
        "calls/s: meshkit without optional layers / the limit with three headers",
        over("rate", "meshkit_bare", "wire_headers"),
        least={"uvloop": 0.7, "asyncio": 0.65},
    ),
    Bound(
        "calls/s: meshkit without optional layers / the limit, headers there only",
        over("rate", "meshkit_bare", "wire_headers_there"),
    ),
    Bound(
        "calls/s: meshkit as it is / bare nats-py without headers",
        over("rate", "meshkit", "nats_py"),
        least=1.1,
    ),
    Bound(
        "p50 alone: meshkit as it is / bare nats-py with three headers",
        over("alone p50", "meshkit", "nats_py_headers"),
        most=1.0,
    ),
    Bound(
        "p50 alone: meshkit as it is / bare nats-py, headers there only",
        over("alone p50", "meshkit", "nats_py_headers_there"),
        most=1.0,
    ),
    Bound(
        "caller's processor time, in µs: every layer there is, more than no optional layer",
        more("meshkit_all", "meshkit_bare", "client"),
        most=15,
    ),
    Bound(
        "callee's processor time, in µs: every layer there is, more than no optional layer",
        more("meshkit_all", "meshkit_bare", "server"),
        most=15,
    ),
    *(
        Bound(
            f"{side}'s processor time, in µs: counted and traced {how}, more than neither",
            more("meshkit_traced_" + which, "meshkit_uncounted", process),
            most=most,
        )
        for which, how, most in (
            ("1", "at 1 %", 5),
            ("100", "at 100 %", 30),
            ("100_otlp", "at 100 % by OTLP", None),
        )
        for side, process in (("caller", "client"), ("callee", "server"))
    ),
    Bound("calls/s: meshkit / gRPC behind two Envoys", over("rate", "meshkit", "grpc_envoy"), least=10),
    Bound(
        "p50 alone: meshkit / gRPC behind two Envoys",
        over("alone p50", "meshkit", "grpc_envoy"),
        most=1 / 3,
    ),
    Bound("p50 at 64: meshkit / gRPC behind two Envoys", over("p50", "meshkit", "grpc_envoy"), most=1 / 3),
    Bound(
        "processor time: meshkit / gRPC behind two Envoys", over("total", "meshkit", "grpc_envoy"), most=0.1
    ),
    Bound(
        "calls/s: meshkit / gRPC behind two Envoys, both with mutual TLS",
        over("rate", "meshkit_mtls", "grpc_envoy_mtls"),
    ),
    Bound("calls/s: meshkit / FastStream", over("rate", "meshkit", "faststream"), least=4),
    Bound(
        "calls/s, handlers wait 5 ms: meshkit / FastStream",
        over("waiting rate", "meshkit", "faststream"),
        least=45,
    ),
    Bound(
        "calls/s, handlers wait 5 ms: meshkit / FastStream with max_workers=64",
        over("waiting rate", "meshkit", "faststream_64"),
    ),
    Bound(
        "resident memory: meshkit / FastStream",
        over("server rss", "meshkit", "faststream"),
        most=1.0,
    ),
    Bound("resident memory: meshkit / an Envoy and bare nats-py", _beside_envoy("rss"), most=0.5),
    Bound("private memory: meshkit / an Envoy and bare nats-py", _beside_envoy("private")),
    Bound(
        "seconds: ten calls at once to a handler that sleeps 0.1 s",
        lambda at: at("meshkit", "together"),
        most=0.2,
    ),
)


def judge(measured: Measured, settings: Settings) -> dict[str, Any]:
    """All of them on every loop, as a table; of those asked for, what could be measured."""
    rows = [_row(bound, measured, loop, settings.rounds) for loop in settings.loops for bound in BOUNDS]
    if settings.only:
        rows = [row for row in rows if row[2] is not None]
    notes = ["Medians of the rounds' ratios. A row without a bound is there for perspective."]
    if settings.quick:
        notes.append("A quick run decides nothing.")
    return {
        "title": "What must hold",
        "columns": ["loop", "what", "reached", "bound", "verdict"],
        "rows": rows,
        "notes": notes,
    }


def hold(table: dict[str, Any]) -> bool:
    """Whether every bound was measured and kept."""
    return all(row[-1] in {"ok", ""} for row in table["rows"])


def _row(bound: Bound, measured: Measured, loop: str, rounds: int) -> list[Any]:
    least = bound.least.get(loop) if isinstance(bound.least, Mapping) else bound.least
    limit = f"at least {least:.3g}" if least is not None else ""
    limit = f"at most {bound.most:.3g}" if bound.most is not None else limit
    try:
        reached = figure(
            bound.formula(lambda name, what, number=number: measured[name, loop][what][number])
            for number in range(rounds)
        )
    except LookupError:
        return [loop, bound.what, None, limit, "not measured" if limit else ""]
    kept = (least is None or reached["median"] >= least) and (
        bound.most is None or reached["median"] <= bound.most
    )
    return [loop, bound.what, reached, limit, "" if not limit else "ok" if kept else "MISSED"]
