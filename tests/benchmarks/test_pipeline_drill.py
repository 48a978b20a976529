import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import pipeline
from benchmarks.pipeline_chaos import KINDS, plan

ROOT = Path(__file__).parents[2]


def python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)


def test_everything_is_saved_once_whatever_is_killed(tmp_path):
    figures = tmp_path / "drill.json"
    done = python(
        *("-m", "benchmarks.pipeline", "--chaos", "--quick"),
        *("--objects", "2000", "--kills", "4", "--json", figures),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is lost, nothing is doubled" in done.stdout
    told = json.loads(figures.read_text())
    assert told["settings"]["objects"] == 2000
    table = told["parts"]["pipeline"]["tables"][0]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    for row, variant in zip(rows, ("core", "durable"), strict=True):
        assert [row[kind] for kind in KINDS] == [1, 1, 1, 1]
        assert (row["variant"], row["saved"], row["lost"], row["checksum"]) == (variant, 2000, 0, "equal")


# The run with crashes has none, and at the end a row less and one that is not what it was.
BROKEN = """
import sqlite3
from collections import Counter
from benchmarks import command, pipeline, pipeline_chaos
from benchmarks import pipeline
from benchmarks.pipeline_chaos import Outcome, hold
from benchmarks.pipeline_run import Result, Run

whole, runs = Run.result, []

def result(run):
    with sqlite3.connect(run.data / "cities.sqlite") as db:
        db.execute("DELETE FROM cities WHERE geonameid = (SELECT max(geonameid) FROM cities)")
    return whole(run)

def held(*given, **how):
    if not runs:
        runs.append(None)
        return Outcome(Result(200, 0, "another"), 1.0, 0, Counter(), [])
    return hold(*given, **how)

Run.result = result
pipeline_chaos.hold = held
pipeline_chaos.plan = lambda *given: []
command.run(pipeline.main)
"""


def test_drill_fails_and_says_so_if_something_is_lost():
    done = python("-c", BROKEN, "--chaos", "--quick", "--variant", "core", "--objects", "200")
    assert done.returncode == 1, done.stdout + done.stderr
    lost, kept, different = done.stderr.splitlines()
    assert lost == "core: 1 of 200 objects are lost"
    assert different == "core: the results are not those of the run without crashes"
    assert "DIFFERENT" in done.stdout
    folder = Path(kept.removeprefix("core: what it left is in "))
    assert (folder / "data" / "cities.sqlite").exists()
    shutil.rmtree(folder)


STUCK = """
from benchmarks import command, pipeline_chaos
from benchmarks.pipeline_run import Size

command.run(lambda: pipeline_chaos.hold("core", Size(2000, 1, patience=0.5)))
"""


def test_run_that_is_stuck_ends_and_says_how_far_it_came():
    done = python("-c", STUCK)
    assert done.returncode == 1, done.stdout + done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("nothing more is saved for 0.5 s; 0 of 2,000 objects are saved; running: ")
    log = Path(first.rpartition("the end of ")[2].removesuffix(":"))
    assert log.exists()
    assert "Listening for client connections" in (log.parent / "nats-server.log").read_text()
    shutil.rmtree(log.parent)


def test_kills_are_of_every_kind_and_spread_over_the_run():
    planned = plan(100_000, 24, seed=3)
    kinds = Counter(kill.what for kill in planned)
    assert kinds == dict.fromkeys(KINDS, 6) | {"everything": 1}
    times = [kill.at for kill in planned]
    assert times == sorted(times)
    assert times[0] < 10_000
    assert 75_000 < times[-1] < 90_000
    assert len(set(times)) > 20
    assert planned == plan(100_000, 24, seed=3) != plan(100_000, 24, seed=4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kills", "0"], "'0'"),
        (["--service-time", "0"], "more than 0 seconds"),
        (["--variant", "triple"], "triple"),
        (["--json", "/nowhere/figures.json"], "not a file that can be written"),
    ],
)
def test_what_makes_no_sense_is_said(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    with pytest.raises(SystemExit) as ended:
        pipeline.arguments()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
