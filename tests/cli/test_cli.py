"""The frame of the command line, and its small commands."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from meshkit.cli.group import COMMANDS, group
from meshkit.errors import ConfigError, ConnectionLost, DeclarationError, Disconnected, NotFound

COMMAND = [sys.executable, "-m", "meshkit"]


def python(code, *args):
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, check=False, text=True)


def meshkit(*args):
    """Run a command in this process, as far as that shows the same."""
    return CliRunner().invoke(group, args, prog_name="meshkit")


def test_command_and_module_are_the_same():
    script = Path(sys.executable).with_name("meshkit")
    for command in ([script], COMMAND):
        ran = subprocess.run([*command, "--version"], capture_output=True, check=True, text=True)
        assert ran.stdout == f"meshkit {version('meshkit')}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command_with_a_sentence(flag):
    printed = meshkit(flag).stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command}  +\w.*\.", printed, re.MULTILINE), command


def test_unknown_command_is_a_usage_error():
    ran = meshkit("rum")
    assert ran.exit_code == 2
    assert "No such command 'rum'" in ran.stderr


def test_command_imports_only_its_own_module():
    loaded = python("""
import sys
from meshkit.cli.group import group
group.get_command(None, "completion")
print(*(name for name in sys.modules if name.startswith("meshkit.")))
""").stdout.split()
    assert "meshkit.cli.completion" in loaded
    others = {target.partition(":")[0] for target in COMMANDS.values()} - {"meshkit.cli.completion"}
    assert not others & set(loaded)
    assert "meshkit.launcher" not in loaded


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_extra_is_named(missing):
    ran = python(f"""
import sys
sys.modules[{missing!r}] = None
sys.argv = ["meshkit", "--help"]
from meshkit.cli import main
main()
""")
    assert (ran.returncode, ran.stderr) == (
        1,
        f"meshkit: the command line needs {missing}: pip install 'meshkit[cli]'\n",
    )


@pytest.mark.parametrize("imported", ["click", "meshkit.cli.run", "watchfiles"])
def test_ctrl_c_before_anything_runs(imported):
    """While the command is found, while its module is imported, and when its event loop has just started."""
    ran = python(f"""
import os, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {imported!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
sys.argv = ["meshkit", "run", "rooms", "--reload"]
from meshkit.cli import main
main()
""")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["--version"], ["run", "-h"], ["completion", "bash"]])
def test_full_standard_output_is_a_sentence(args):
    # What is buffered must not fail a second time when Python ends.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [*COMMAND, *args], stdout=full, stderr=subprocess.PIPE, env=environment, check=False
        )
    assert (ran.returncode, ran.stderr) == (1, b"meshkit: standard output is full\n")


def called(error):
    error.target = "rooms.get"
    return error


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Disconnected("nobody answers"), 69, "nobody answers"),
        (ConnectionLost("it broke"), 69, "it broke"),
        (ConfigError("wrong file"), 78, "wrong file"),
        (DeclarationError("wrong name"), 78, "wrong name"),
        (NotFound("no such service"), 1, "no such service"),
        (called(NotFound("no such room")), 1, "rooms.get: 404 NotFound: no such room (attempt 1)"),
    ],
)
def test_error_is_a_sentence_with_an_exit_code(monkeypatch, error, code, sentence):
    monkeypatch.setitem(COMMANDS, "fail", f"{__name__}:fail")
    ran = CliRunner().invoke(group, ["fail"], obj=error)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (code, "", f"meshkit: {sentence}\n")


@click.command()
@click.pass_obj
def fail(error):
    raise error


def test_reader_that_has_enough_is_no_error():
    code = """
import click
from meshkit.cli.output import table
click.command()(lambda: table(['n'], [[n] for n in range(100_000)]))()
"""
    command = ["sh", "-c", '"$0" -c "$1" | head -n 1', sys.executable, code]
    ran = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (ran.stdout, ran.stderr) == ("n\n", "")


ROWS = """
from meshkit.cli.output import print_json, table
table(["name", "calls"], [("rooms", 12), ("b\\til\\x1bls\\n", None)])
print_json({"a": 1})
"""


def test_pipe_gets_tabs_and_one_line_of_json():
    assert python(ROWS).stdout == 'name\tcalls\nrooms\t12\nb il ls \t\n{"a":1}\n'


def test_terminal_gets_a_table_and_indented_json():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
        subprocess.run([sys.executable, "-c", ROWS], stdout=theirs, env=environment, check=True)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that the other side is closed
            while chunk := terminal.read(10_000):
                shown += chunk
    plain = re.sub(r"\x1b\[[0-9;]*m|\r", "", shown.decode())
    assert plain == 'name       calls\n────────────────\nrooms         12\nb il ls         \n{\n  "a": 1\n}\n'


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(shell):
    assert f"_MESHKIT_COMPLETE={shell}_complete" in meshkit("completion", shell).stdout


def test_completion_completes():
    script = meshkit("completion", "bash").stdout
    typed = """
PATH=$1:$PATH; COMP_WORDS=(meshkit comp); COMP_CWORD=1; _meshkit_completion meshkit; echo "${COMPREPLY[@]}"
"""
    command = ["bash", "-c", script + typed, "bash", str(Path(sys.executable).parent)]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "completion\n"


@pytest.fixture
def server():
    running = []

    def start(*args):
        running.append(subprocess.Popen([*COMMAND, "server", *args], stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        with process:
            process.terminate()


def test_server_runs_until_a_signal_and_keeps_its_store(server, unused_port, tmp_path):
    process = server("--port", str(unused_port), "--store", str(tmp_path / "store"))
    assert re.fullmatch(rf"nats-server \S+ nats://127\.0\.0\.1:{unused_port}\n", process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert list((tmp_path / "store").iterdir())


def test_server_prints_json(server):
    said = json.loads(server("--port", "0", "--json").stdout.readline())
    assert said["url"].startswith("nats://127.0.0.1:")
    assert set(said) == {"url", "version"}


def test_server_on_a_taken_port(nats_server):
    ran = meshkit("server", "--port", str(nats_server.port))
    assert ran.exit_code == 78
    assert re.fullmatch(r'meshkit: nats-server did not start: .*address already in use"?\n', ran.stderr)
