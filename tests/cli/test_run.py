import asyncio
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap

import pytest

import meshkit

COMMAND = [sys.executable, "-m", "meshkit", "run"]
ROOMS = '''
    from meshkit import Service

    service = Service("rooms", version="1.0.0")

    @service.endpoint("hotel.rooms.book")
    async def book() -> None:
        """Book a room, which can be a rather long story that fills more than one line."""

    @service.endpoint("hotel.rooms.{room}.price", queue=None)
    async def price(room: int) -> float:
        return room

    @service.subscribe("hotel.*.*.error")
    async def on_error() -> None: ...
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rooms.py").write_text(textwrap.dedent(ROOMS))
    return tmp_path


def environment(**more):
    """The environment without what would change what is run and how it looks."""
    ours = ("NATS_", "MESHKIT_", "NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def run_until_ready(folder, *args, stdout, read, **env):
    """Run, end it by Ctrl-C when a worker is ready, and return what `read` has read."""
    with subprocess.Popen([*COMMAND, *args], cwd=folder, env=environment(**env), stdout=stdout) as process:
        printed = ""
        while "#1 ready" not in without_colour(printed):
            printed += (chunk := read(process))
            assert chunk, printed
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    return printed


def without_colour(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def run_in_pipe(folder, *args, **env):
    def read(process):
        return process.stdout.readline().decode()

    return run_until_ready(folder, *args, stdout=subprocess.PIPE, read=read, **env)


def run_on_terminal(folder, columns, **env):
    ours, theirs = os.openpty()

    def read(_):
        readable, _, _ = select.select([ours], [], [], 20)
        return os.read(ours, 10_000).decode() if readable else ""

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        return run_until_ready(
            folder,
            "rooms.py",
            stdout=theirs,
            read=read,
            TERM="xterm",
            **env,
        ).replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)


def test_pipe_gets_one_plain_fact_a_line(folder):
    printed = run_in_pipe(folder, "rooms.py", FORCE_COLOR="1", MESHKIT_RUN_WORKERS="2", COLUMNS="40")
    expected = r"""
        meshkit \S+
        nats-server \S+ \(embedded\) nats://127\.0\.0\.1:\d+
        service rooms 1\.0\.0, 2 workers on uvloop
        endpoint hotel\.rooms\.book, queue group q: Book a room, which .* more than one line\.
        endpoint hotel\.rooms\.\{room\}\.price, no queue group
        subscription hotel\.\*\.\*\.error
        (\d\d:\d\d:\d\d rooms#2 ready
        )?\d\d:\d\d:\d\d rooms#1 ready
    """
    assert re.fullmatch(textwrap.dedent(expected).strip(), printed.strip())


def test_terminal_of_60_columns_gets_a_banner_that_fits(folder):
    printed = run_on_terminal(folder, 60, MESHKIT_RUN_LOOP="asyncio")
    assert "\x1b[1mrooms\x1b[0m 1.0.0 · 1 worker on asyncio\n" in printed
    plain = without_colour(printed)
    assert max(map(len, plain.splitlines())) <= 60
    assert textwrap.dedent("""
        rooms 1.0.0 · 1 worker on asyncio
          hotel.rooms.book          q  Book a room, which can be a
                                       rather long story that fills
                                       more than one line.
          hotel.rooms.{room}.price  ·
          hotel.*.*.error           ·  (subscription)
    """) in re.sub(r" +\n", "\n", plain)


def test_narrow_terminal_loses_no_word(folder):
    lines = without_colour(run_on_terminal(folder, 40)).splitlines()
    assert max(map(len, lines)) <= 40
    [said] = re.findall('"""(.*)"""', ROOMS)
    words = iter(" ".join(lines).split())
    assert all(word in words for word in said.split())  # in this order


def test_terminal_that_is_closed_stops_nothing(folder):
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*COMMAND, "rooms.py"],
        cwd=folder,
        env=environment(TERM="xterm"),
        stdout=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        printed = ""
        while "#1 ready" not in without_colour(printed):
            printed += os.read(ours, 10_000).decode()
        os.close(ours)
        process.send_signal(signal.SIGINT)  # what it says of that has no reader
        assert process.wait(20) == 0


def test_terminal_of_its_own_that_is_closed_drains(folder):
    ours, theirs = os.openpty()
    take = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", take, *COMMAND, "rooms.py"],
        cwd=folder,
        env=environment(TERM="xterm"),
        stdin=theirs,
    ) as process:
        os.close(theirs)
        printed = ""
        while "#1 ready" not in without_colour(printed):
            printed += os.read(ours, 10_000).decode()
        os.close(ours)
        assert process.wait(20) == 0


def test_no_color_means_no_color(folder):
    assert not re.search(r"\x1b\[[0-9;]*3\d", run_on_terminal(folder, 80, NO_COLOR="1"))


def test_flag_wins_and_the_password_in_it_is_not_shown(folder, nats_server):
    (folder / "meshkit.toml").write_text('nats = "nats://toml:1"\n[services.rooms]\nworkers = 9\n')
    url = nats_server.url.replace("//", "//ann:secret@")
    printed = run_in_pipe(folder, "--nats", url, "--workers", "1", NATS_URL="nats://variable:1")
    assert re.search(rf"^nats-server \S+ {nats_server.url}$", printed, re.MULTILINE)
    assert "service rooms 1.0.0, 1 worker on" in printed


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["wrong"], 78, r"^meshkit: wrong/meshkit.toml, \[call.\"a\"\], retries is a whole [^\n]*\n$"),
        (["nothing.py"], 78, r"^meshkit: nothing.py: there is no file [^\n]*/nothing.py\n$"),
        (
            ["rooms.py", "--nats", "nats://127.0.0.1:{port}"],
            69,
            r"^meshkit: [^\n]*nats://127.0.0.1:{port}[^\n]*\n$",
        ),
        (
            ["bug.py"],
            1,
            r"^Traceback.*\nmeshkit: bug.py cannot be imported: ZeroDivisionError: division by zero\n$",
        ),
        (["rooms.py", "--workers", "0"], 2, r"^Usage: meshkit run .*--workers"),
        (["rooms.py", "--workers", "rooms="], 2, r"^Usage: .*--workers.*such as mapper=10\.\n$"),
        (
            ["rooms.py", "--workers", "2", "--workers", "room=3"],
            78,
            r"^meshkit: --workers: there is no service 'room' here, only rooms\n$",
        ),
    ],
)
def test_failure_has_its_exit_code_and_prints_no_banner(folder, unused_port, args, code, said):
    (folder / "bug.py").write_text("1 / 0")
    (folder / "wrong").mkdir()
    (folder / "wrong" / "meshkit.toml").write_text('[services.rooms]\n[call."a"]\nretries = -1')
    command = [*COMMAND, *(arg.format(port=unused_port) for arg in args)]
    ran = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=False, text=True)
    assert ran.returncode == code
    assert re.search(said.format(port=unused_port), ran.stderr, re.DOTALL)
    assert not ran.stdout


def test_numbers_of_workers_for_all_and_for_one(folder):
    (folder / "others.py").write_text("from meshkit import Service\nbills = Service('bills')\n")
    workers = ("--workers", "bills=2", "--workers", "1")
    printed = run_in_pipe(folder, "rooms.py", "others.py", *workers)
    assert "service rooms 1.0.0, 1 worker on" in printed
    assert "service bills 0.1.0, 2 workers on" in printed


def test_reader_that_goes_away_stops_nothing(folder):
    async def call(url):
        async with meshkit.connect(url) as mesh, asyncio.timeout(20):
            while not await mesh.services():
                await asyncio.sleep(0.05)
            return await mesh.call("hotel.rooms.12.price")

    command = [*COMMAND, "rooms.py"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE) as process:
        head = process.stdout.readline() + process.stdout.readline()
        process.stdout.close()
        assert asyncio.run(call(re.search(rb"nats://\S+", head)[0].decode())) == 12
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
