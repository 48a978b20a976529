import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def suite(*arguments):
    return python("-m", "benchmarks", *arguments)


def test_peers_are_measured_and_shown_as_tables_json_markdown_and_plots(tmp_path):
    measured, page, plots = tmp_path / "figures.json", tmp_path / "page.md", tmp_path / "plots"
    done = suite(
        *("peers", "--quick", "--rounds", "1", "--loop", "asyncio", "--only", "nats_py,meshkit"),
        *("--json", measured, "--markdown", page, "--plots", plots),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(measured.read_text())
    assert told["machine"]["cores"]
    assert told["versions"]["nats-py"]
    calls = told["parts"]["peers"]["tables"][0]
    figures = {row[1]: dict(zip(calls["columns"], row, strict=True)) for row in calls["rows"]}
    assert figures.keys() == {"bare nats-py, no headers", "meshkit, as it is"}
    for figure in figures.values():
        assert len(figure["calls/s"]["rounds"]) == 1
        assert 0 < figure["p50 µs"]["median"] < figure["p99 µs"]["median"]
    assert figures["bare nats-py, no headers"]["/ no headers"]["rounds"] == [1]
    together = next(row for row in told["parts"]["peers"]["tables"][-1]["rows"] if "ten calls" in row[1])
    assert together[-1] == "ok"
    for shown in (done.stdout, page.read_text()):
        assert calls["title"] in shown
        assert "meshkit, as it is" in shown
    assert {file.name for file in plots.iterdir()} >= {"calls-asyncio.svg", "p50-alone-asyncio.svg"}
    assert (plots / "calls-asyncio.svg").read_text().count("meshkit, as it is") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pears"], "pears: no such part"),
        (["--loop", "trio"], "trio: no such loop"),
        (["--rounds", "0"], "value: '0'"),
        (["--json", "/nowhere/figures.json"], "not a file that can be written"),
    ],
)
def test_what_there_is_not_is_said(arguments, said):
    done = suite(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


BROKEN = """
from benchmarks import __main__, command, events
from benchmarks.field import CONTENDERS

CONTENDERS["faststream"] = CONTENDERS["nats_py"]._replace(title="FastStream", module="nowhere")
events.CONTENDERS = None
command.run(__main__.main)
"""


def test_what_fails_is_reported_and_the_rest_measured(tmp_path):
    measured = tmp_path / "figures.json"
    done = python(
        *("-c", BROKEN, "events", "peers", "--quick", "--rounds", "1", "--only", "nats_py,faststream"),
        *("--loop", "asyncio", "--json", measured),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "failed: events"
    told = json.loads(measured.read_text())
    calls = told["parts"]["peers"]["tables"][0]
    assert [row[1] for row in calls["rows"]] == ["bare nats-py, no headers", "FastStream: failed"]
    assert "FastStream, asyncio: failed: ModuleNotFoundError: No module named" in calls["notes"][-1]
    assert told["parts"]["events"]["failed"].startswith("AttributeError")


def test_figure_that_is_no_number_is_null_in_json():
    code = (
        "import json, math; from benchmarks.report import figure; print(json.dumps(figure([1, math.nan, 3])))"
    )
    assert json.loads(python("-c", code).stdout) == {"median": None, "rounds": [1, None, 3]}
