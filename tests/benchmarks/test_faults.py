import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import course
from benchmarks.faults.course import Call, Course, Execution

ROOT = Path(__file__).parents[2]
QUICK = {"kill", "rolling", "all-failing", "server", "cancelled"}


def python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)


def test_short_form_holds_its_bounds_and_is_shown_as_tables_json_and_markdown(tmp_path):
    figures, page = tmp_path / "faults.json", tmp_path / "page.md"
    done = python("-m", "benchmarks.faults", "--quick", "--seed", "7", "--json", figures, "--markdown", page)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(figures.read_text())
    assert told["settings"] == {"quick": True, "seed": 7, "only": list(told["parts"])}
    assert told["parts"].keys() == QUICK
    assert told["versions"].keys() >= {"meshkit", "CPython", "nats-server", "nats-py", "uvloop"}
    for part in told["parts"].values():
        assert all(bound["is_kept"] for bound in part["bounds"])
    for kind in ("read", "write"):
        rolling = told["parts"]["rolling"]["kinds"][kind]
        assert rolling["answered"] == rolling["sent"] > 50
        assert rolling["errors"] == {}
        assert len(rolling["p50 ms"]) == 3
    for shown in (done.stdout, page.read_text()):
        assert "What became of the calls" in shown
        assert "What must hold" in shown
        assert "SIGTERM rolling restart" in shown
        assert "MISSED" not in shown
    assert "seed 7" in done.stdout


HARD = """
from benchmarks import command
from benchmarks.faults import __main__, bounds, callees
from benchmarks.faults.rows import ROWS

def breaks(pace):
    raise ValueError("it broke")

callees.at_most = lambda what, reached, most: bounds.at_most(what, reached, -1)
ROWS["kill"] = ROWS["kill"]._replace(drill=breaks)
command.run(__main__.main)
"""


def test_drills_that_miss_a_bound_or_break_are_named_and_the_rest_is_held():
    done = python("-c", HARD, "--quick", "--only", "kill", "cancelled")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "bounds are missed: kill, cancelled"
    missed = [line for line in done.stdout.splitlines() if line.endswith("MISSED")]
    assert any("ValueError: it broke" in line for line in missed)
    assert any("p99 ms until an execution was stopped" in line and "at most -1" in line for line in missed)


def test_drill_that_there_is_not_is_said():
    done = python("-m", "benchmarks.faults", "--only", "earthquake")
    assert done.returncode == 2
    assert "earthquake" in done.stderr


def call(n, due=0.0, took=0.01, came="answered", kind="write"):
    return Call(n, kind, due, took, took, came, 0 if came == "answered" else 503)


def at(calls, executions, fault=10.0, over=11.0):
    held = Course(slower=0.05)
    held.fault, held.over = fault, over
    held.join(calls)
    held.executions = executions
    return held


def test_executions_are_read_with_what_a_killed_process_left_unfinished(tmp_path):
    (tmp_path / "11.notes").write_text("begin 1 1 0.5\nbegin 2 1 0.6\nend 1 1 0.7\nstop 2 1 0.8\n")
    (tmp_path / "12.notes").write_text("begin 1 2 0.9\nbegin 3 1 1.0\nbegin 3 1 1.1\nend 3 1 1.2\n")
    assert course.executions(tmp_path) == [
        Execution(1, 1, 11, 0.5, 0.7, "end"),
        Execution(2, 1, 11, 0.6, 0.8, "stop"),
        Execution(1, 2, 12, 0.9),
        Execution(3, 1, 12, 1.0),
        Execution(3, 1, 12, 1.1, 1.2, "end"),
    ]


def test_what_was_executed_twice_answered_wrongly_or_lost_is_counted():
    calls = [call(1), call(2), call(3, came="wrong"), call(4), call(5, came="DeadlineExceeded")]
    executions = [Execution(n, 1, 11, 0.001) for n in (1, 2, 2, 3, 5)]
    figures = at(calls, executions).figures("write", until=11.0)
    assert figures["sent"] == 5
    assert figures["answered"] == 3
    assert figures["executed twice"] == 1
    assert figures["wrong"] == 2  # another's answer, and one that nobody gave
    assert figures["lost"] == 1
    assert figures["errors"] == {"503 wrong": 1, "503 DeadlineExceeded": 1}


def test_latency_is_told_for_before_during_and_after_by_when_calls_were_due():
    calls = [call(n, due=n / 10, took=0.5 if 100 <= n < 110 else 0.01) for n in range(200)]
    figures = at(calls, []).figures("write", until=11.0)
    assert figures["p50 ms"] == pytest.approx([10, 500, 10])
    assert figures["p99 ms"] == pytest.approx([10, 500, 10])


def test_fault_is_detected_with_the_first_error_or_second_attempt():
    calls = [call(n, due=n / 10) for n in range(200)]
    calls[102] = call(102, due=10.2, took=0.3, came="ConnectionLost")
    assert at(calls, []).detected("write") == pytest.approx(0.5)
    assert at(calls, [Execution(101, 2, 11, 10.15)]).detected("write") == pytest.approx(0.15)
    assert at(calls[:100], []).detected("write") is None


def test_recovery_ends_with_the_last_window_in_which_a_call_fails_or_half_are_slow():
    calls = [call(n, due=n / 100) for n in range(2000)]
    assert at(calls, []).recovered("write") == 0
    calls[1180] = call(1180, due=11.8, came="Unavailable")
    assert at(calls, []).recovered("write") == 1
    calls[1200:1225] = [call(n, due=n / 100, took=0.2) for n in range(1200, 1225)]
    assert at(calls, []).recovered("write") == 1.25
    calls[1990] = call(1990, due=19.9, came="Unavailable")
    assert at(calls, []).recovered("write") is None


def test_execution_that_nobody_waits_for_is_found():
    calls = [call(1, due=1.0, took=1.0, came="DeadlineExceeded"), call(2, due=1.0)]
    executions = [Execution(1, 1, 11, 1.5), Execution(1, 2, 11, 2.5), Execution(2, 1, 11, 9.0)]
    assert course.unheard(calls, executions) == [executions[1]]
