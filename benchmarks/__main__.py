"""The benchmark suite: `python -m benchmarks`. Exits with 1 if a part fails or a full run misses a bound."""

import argparse
import importlib
import importlib.util
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks import command, report
from benchmarks.field import CONTENDERS
from benchmarks.report import Settings

PARTS = ("peers", "latency", "scale", "start", "events")


def several(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(text.split(","))


def number_of_rounds(text: str) -> int:
    """One at least."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="far less, on uvloop, in two minutes")
    parser.add_argument("--loop", type=several, metavar="LOOPS", help="asyncio,uvloop: one or both")
    parser.add_argument("--rounds", type=number_of_rounds, metavar="N", help="rounds; 5, and 2 if quick")
    peers = f"of the part peers: {', '.join(CONTENDERS)}"
    parser.add_argument("--only", type=several, default=(), metavar="PEERS", help=peers)
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
    # Now, not after an hour.
    for file in filter(None, (given.json, given.markdown)):
        if file.is_dir() or not file.parent.is_dir():
            parser.error(f"{file}: not a file that can be written")
    if given.plots:
        if not importlib.util.find_spec("matplotlib"):
            parser.error("--plots needs matplotlib: pip install 'meshkit[bench]'")
        try:
            given.plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{given.plots}: {error.strerror}")
    return given


def measure(name: str, settings: Settings) -> dict[str, Any]:
    """A part; one that fails does not keep the others from being measured."""
    started = time.monotonic()
    try:
        part = importlib.import_module(f"benchmarks.{name}").measure(settings)
    except Exception as error:  # noqa: BLE001 # whatever it is
        traceback.print_exc()
        part = {"tables": [], "failed": f"{type(error).__name__}: {error}"}
    for table in report.tables(part):
        print(report.text(table))
    print(f"\n{name}: {time.monotonic() - started:.0f} s", flush=True)
    return part


def main() -> None:
    """Run parts, one after the other."""
    given = arguments()
    loops = given.loop or (("uvloop",) if given.quick else ("asyncio", "uvloop"))
    settings = Settings(given.quick, loops, given.rounds or (2 if given.quick else 5), given.only)
    about = {"machine": report.machine(), "versions": report.versions()}
    print(f"{about['machine']['processor']}, {about['machine']['cores']} cores; {', '.join(loops)}")
    if importlib.util.find_spec("aiohttp"):
        print("aiohttp is installed here: nats-py loads it, in meshkit too. `make bench` runs without.")
    if settings.quick:
        print("A quick run: few calls, few rounds, some peers; its figures are for nobody else.")
    measured = {name: measure(name, settings) for name in given.parts or PARTS}
    plots = [plot for part in measured.values() for plot in part.pop("plots", [])]
    if given.json:
        report.write(given.json, settings=settings, about=about, parts=measured)
    if given.markdown:
        pages = (report.markdown(table) for part in measured.values() for table in report.tables(part))
        given.markdown.write_text("\n".join(pages), encoding="utf-8")
    if given.plots:
        from benchmarks.plots import draw  # matplotlib takes a second to import

        for plot in plots:
            if plot.get("series") or plot.get("bars"):  # who should be in it may be missing
                draw(plot, given.plots)
    if failed := [name for name, part in measured.items() if "failed" in part]:
        sys.exit(f"failed: {', '.join(failed)}")
    if any(part.get("missed") for part in measured.values()):
        sys.exit("a bound is missed")


if __name__ == "__main__":
    command.run(main)
