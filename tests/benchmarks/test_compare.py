import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compare(tmp_path):
    """Compares two runs through the command line; gives its lines of figures."""

    def run(before, after):
        files = []
        for name, (about, rows) in {"A": before, "B": after}.items():
            table = {"title": "Calls", "columns": ["loop", "contender", "calls/s", "p50 µs"], "rows": rows}
            files.append(tmp_path / f"{name}.json")
            files[-1].write_text(json.dumps({**about, "parts": {"peers": {"tables": [table]}}}))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.compare", *files],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        return [line.rstrip() for line in done.stdout.splitlines()]

    return run


def rounds(*values):
    return {"median": sorted(values)[len(values) // 2], "rounds": values}


def figure(lines, name):
    """What is said of a figure, up to its name."""
    (line,) = (line for line in lines if line.endswith(name))
    return line.removesuffix(name).split()


def test_change_beyond_the_spread_of_the_rounds_is_marked(compare):
    lines = compare(
        ({}, [["uvloop", "meshkit", rounds(95, 100, 105), rounds(9, 10, 11)]]),
        ({}, [["uvloop", "meshkit", rounds(145, 150, 155), rounds(10, 11, 12)]]),
    )
    assert figure(lines, "peers | Calls | uvloop, meshkit | calls/s") == [
        "1.50",
        "10.0",
        "better",
        "100",
        "150",
    ]
    assert figure(lines, "peers | Calls | uvloop, meshkit | p50 µs") == ["1.10", "20.0", "10.0", "11.0"]


def test_largest_change_comes_first_whether_up_or_down(compare):
    lines = compare(
        ({}, [["uvloop", "one", 100.0, 10.0], ["uvloop", "two", 100.0, 10.0]]),
        ({}, [["uvloop", "one", 110.0, 30.0], ["uvloop", "two", 25.0, 20.0]]),
    )
    order = [line.partition(" | Calls | uvloop, ")[2] for line in lines if " | Calls | " in line]
    assert order == ["two | calls/s", "one | p50 µs", "two | p50 µs", "one | calls/s"]


def test_marked_change_comes_before_a_larger_one_within_the_spread(compare):
    lines = compare(
        ({}, [["uvloop", "meshkit", rounds(50, 100, 150), rounds(10, 10, 10)]]),
        ({}, [["uvloop", "meshkit", rounds(70, 140, 210), rounds(12, 12, 12)]]),
    )
    order = [line.rpartition(" | ")[2] for line in lines if " | Calls | " in line]
    assert order == ["p50 µs", "calls/s"]


def test_what_was_measured_once_is_judged_by_the_usual_spread(compare):
    lines = compare(
        ({}, [["uvloop", "meshkit", rounds(90, 100, 110), 10.0]]),
        ({}, [["uvloop", "meshkit", rounds(90, 100, 110), 13.0]]),
    )
    assert figure(lines, "peers | Calls | uvloop, meshkit | p50 µs") == ["1.30", "-", "worse", "10.0", "13.0"]


def test_without_rounds_nothing_is_marked(compare):
    lines = compare(({}, [["uvloop", "meshkit", 100.0, 10]]), ({}, [["uvloop", "meshkit", 500.0, 10]]))
    assert figure(lines, "peers | Calls | uvloop, meshkit | calls/s") == ["5.00", "-", "100", "500"]


def test_what_only_one_has_is_counted(compare):
    lines = compare(
        ({}, [["uvloop", "meshkit", 100.0, 10], ["uvloop", "FastStream", 30.0, 40]]),
        ({}, [["uvloop", "meshkit", 100.0, 10], ["uvloop", "FastStream: missing", None, None]]),
    )
    assert lines[-1] == "- Figures that only A has: 2; that only B has: 0."


def test_what_differs_between_the_runs_is_told(compare):
    lines = compare(
        ({"versions": {"CPython": "3.11.7", "nats-py": "2.16.0"}}, []),
        ({"versions": {"CPython": "3.12.1", "nats-py": "2.16.0"}}, []),
    )
    assert ["versions", "CPython", "3.11.7", "3.12.1"] in [line.split() for line in lines]
    assert not any("nats-py" in line for line in lines)


@pytest.mark.parametrize("content", ["figures", "[1]", '{"parts": {"peers": 3}}', None])
def test_what_is_no_run_is_said_in_a_sentence(tmp_path, content):
    file = tmp_path / "run.json"
    if content is not None:
        file.write_text(content)
    command = [sys.executable, "-m", "benchmarks.compare", file, file]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(str(file))
