"""The benchmark suite: `python -m benchmarks`. Exits with 1 if a full run misses a bound."""

import argparse
import importlib
import importlib.util
import signal
import sys
import time
from pathlib import Path

from benchmarks import report
from benchmarks.field import CONTENDERS
from benchmarks.report import Settings

PARTS = ("peers", "latency", "scale", "start", "events")


def several(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(text.split(","))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="far less, on uvloop, in two minutes")
    parser.add_argument("--loop", type=several, metavar="LOOPS", help="asyncio,uvloop: one or both")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds; 5, and 2 if quick")
    parser.add_argument("--only", type=several, default=(), metavar="PEERS", help="peers to measure, by name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where to write the tables for a page")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="where to write plots, as SVG")
    given = parser.parse_args()
    for what, names, known in (
        ("part", given.parts, PARTS),
        ("loop", given.loop or (), ("asyncio", "uvloop")),
        ("peer", given.only, CONTENDERS),
    ):
        if unknown := set(names) - set(known):
            parser.error(f"{', '.join(unknown)}: no such {what}; there are {', '.join(known)}")
    return given


def main() -> None:
    """Run parts, one after the other."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no proxy is left behind
    loops = given.loop or (("uvloop",) if given.quick else ("asyncio", "uvloop"))
    settings = Settings(given.quick, loops, given.rounds or (2 if given.quick else 5), given.only)
    about = {"machine": report.machine(), "versions": report.versions()}
    print(f"{about['machine']['processor']}, {about['machine']['cores']} cores; {', '.join(loops)}")
    if importlib.util.find_spec("aiohttp"):
        print("aiohttp is installed here: nats-py loads it, in meshkit too. `make bench` runs without.")
    if settings.quick:
        print("A quick run: few calls, few rounds, some peers; its figures are for nobody else.")
    measured = {}
    for name in given.parts or PARTS:
        started = time.monotonic()
        measured[name] = importlib.import_module(f"benchmarks.{name}").measure(settings)
        for table in report.tables(measured[name]):
            print(report.text(table))
        print(f"\n{name}: {time.monotonic() - started:.0f} s", flush=True)
    plots = {name: part.pop("plots", []) for name, part in measured.items()}
    if given.json:
        report.write(given.json, settings=settings, about=about, parts=measured)
    if given.markdown:
        pages = (report.markdown(table) for part in measured.values() for table in report.tables(part))
        given.markdown.write_text("\n".join(pages), encoding="utf-8")
    if given.plots:
        from benchmarks.plots import draw  # matplotlib takes a second to import

        given.plots.mkdir(parents=True, exist_ok=True)
        for plot in (plot for part in plots.values() for plot in part):
            draw(plot, given.plots)
    if any(part.get("missed") for part in measured.values()):
        sys.exit("a bound is missed")


if __name__ == "__main__":
    main()
