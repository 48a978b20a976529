import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def suite(*arguments):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


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
    assert figures.keys() == {"bare nats-py, no headers", "meshkit, everything"}
    for figure in figures.values():
        assert len(figure["calls/s"]["rounds"]) == 1
        assert 0 < figure["p50 µs"]["median"] < figure["p99 µs"]["median"]
    assert figures["bare nats-py, no headers"]["/ no headers"]["rounds"] == [1]
    together = next(row for row in told["parts"]["peers"]["tables"][-1]["rows"] if "ten calls" in row[1])
    assert together[-1] == "ok"
    for shown in (done.stdout, page.read_text()):
        assert calls["title"] in shown
        assert "meshkit, everything" in shown
    assert {file.name for file in plots.iterdir()} >= {"calls-asyncio.svg", "p50-alone-asyncio.svg"}
    assert (plots / "calls-asyncio.svg").read_text().count("meshkit, everything") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["pears"], "pears: no such part"), (["--loop", "trio"], "trio: no such loop")],
)
def test_what_there_is_not_is_said(arguments, said):
    done = suite(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
