"""examples/pipeline, measured: how it scales with its mappers, or with --chaos whether it survives any crash.

Exits with 1 if a run is stuck, or if after the crashes anything is lost, doubled or different.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command, pipeline_chaos, pipeline_scale, report
from benchmarks.pipeline_run import CHUNK, TARGETS, Size

_OBJECTS, _KILLS, _MAPPERS = 100_000, 24, 4
_QUICK_OBJECTS, _QUICK_KILLS, _QUICK_MAPPERS = 2_000, 6, 2
# Seconds that a mapper waits for each chunk in a quick drill, in place of most of the work.
_QUICK_WAIT = 0.3


class Settings(NamedTuple):
    """What was asked for."""

    variants: list[str]
    chaos: bool
    quick: bool
    seed: int
    objects: int
    kills: int
    mappers: int
    service_time: float


def positive(text: str) -> int:
    """One at least."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def arguments() -> tuple[Settings, Path | None, Path | None]:
    """What was asked for, and where the figures and the plot go."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    add = parser.add_argument
    add("--chaos", action="store_true", help="kill fetcher, mappers, savers and nats-server while it runs")
    add("--variant", choices=[*TARGETS, "both"], default="both", help="of the example; both by default")
    add("--quick", action="store_true", help="far less, to see that it works")
    what = f"of --chaos: what is to be saved; {_OBJECTS}, and {_QUICK_OBJECTS} if quick"
    add("--objects", type=positive, metavar="N", help=what)
    what = f"of --chaos: how many processes are killed; {_KILLS}, and {_QUICK_KILLS} if quick"
    add("--kills", type=positive, metavar="N", help=what)
    what = f"of --chaos: how many mappers there are; {_MAPPERS}, and {_QUICK_MAPPERS} if quick"
    add("--mappers", type=positive, metavar="N", help=what)
    add("--seed", type=int, default=1, metavar="N", help="of --chaos: what chance begins with; 1")
    what = f"of scaling beyond the cores: what a mapper waits for each {CHUNK} objects; 0.25"
    add("--service-time", type=float, default=0.25, metavar="SECONDS", help=what)
    add("--json", type=Path, metavar="FILE", help="where to write every figure")
    add("--plots", type=Path, metavar="DIR", help="of scaling: where to write the plot, as SVG")
    given = parser.parse_args()
    if given.service_time <= 0:
        parser.error("--service-time: more than 0 seconds")
    # Now, not after ten minutes.
    if given.json and (given.json.is_dir() or not given.json.parent.is_dir()):
        parser.error(f"{given.json}: not a file that can be written")
    if given.plots and not importlib.util.find_spec("matplotlib"):
        parser.error("--plots needs matplotlib: pip install 'meshkit[bench]'")
    quick = given.quick
    settings = Settings(
        list(TARGETS) if given.variant == "both" else [given.variant],
        given.chaos,
        quick,
        given.seed,
        given.objects or (_QUICK_OBJECTS if quick else _OBJECTS),
        given.kills or (_QUICK_KILLS if quick else _KILLS),
        given.mappers or (_QUICK_MAPPERS if quick else _MAPPERS),
        given.service_time,
    )
    return settings, given.json, given.plots


def main() -> None:
    """Hold the drill, or measure the scaling."""
    settings, figures, plots = arguments()
    about = {"machine": report.machine(), "versions": report.versions()}
    print(f"{about['machine']['processor']}, {about['machine']['cores']} cores", flush=True)
    plot: dict[str, Any] | None = None
    wrong: list[str] = []
    if settings.chaos:
        size = Size(settings.objects, settings.mappers, _QUICK_WAIT if settings.quick else 0)
        table, wrong = pipeline_chaos.drill(settings.variants, size, settings.kills, settings.seed)
    else:
        table, plot = pipeline_scale.measure(settings.variants, settings.service_time, quick=settings.quick)
    print(report.text(table))
    if figures:
        parts = {"pipeline": {"tables": [table], "wrong": wrong}}
        report.write(figures, settings=settings, about=about, parts=parts)
    if plots and plot:
        from benchmarks.plots import draw  # matplotlib takes a second to import

        plots.mkdir(parents=True, exist_ok=True)
        print(draw(plot, plots))
    if wrong:
        sys.exit("\n".join(wrong))
    if settings.chaos:
        print("nothing is lost, nothing is doubled, and the results are those of the run without crashes")


if __name__ == "__main__":
    command.run(main)
