import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
from contextlib import closing

import nats
import pytest
import trustme

from meshkit.errors import ConfigError
from meshkit.transport.server import EmbeddedServer, find_server

WHEEL = f"{sysconfig.get_path('scripts')}/nats-server"


@pytest.fixture
def temp(tmp_path, monkeypatch):
    """Where servers put their temporary directories."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def parent(temp):
    """Runs a script in another process, in a session of its own, which prints a line when it is ready."""
    started = []

    def run(script):
        process = subprocess.Popen(
            [sys.executable, "-c", f"from meshkit.transport.server import EmbeddedServer\n{script}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with process:
            process.kill()


def until(condition):
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def listens(port):
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def greeting(port):
    with socket.create_connection(("127.0.0.1", port)) as client, client.makefile("rb") as lines:
        return json.loads(lines.readline().removeprefix(b"INFO "))


async def names_of_streams(server):
    async with await nats.connect(server.url) as nc:
        return [stream.config.name for stream in await nc.jetstream().streams_info()]


async def add_stream(server, name):
    async with await nats.connect(server.url) as nc:
        await nc.jetstream().add_stream(name=name)


def test_is_ready_in_less_than_half_a_second():
    def start():
        began = time.perf_counter()
        with EmbeddedServer() as server:
            assert listens(server.port)
            return time.perf_counter() - began

    assert min(start() for _ in range(3)) < 0.5


def test_tells_what_runs():
    with EmbeddedServer() as server:
        assert server.version == greeting(server.port)["version"]
        assert server.url == f"nats://127.0.0.1:{server.port}"
        assert server.is_running
        assert f"[{server.pid}]" in server.log.read_text()
        assert "Server is ready" in server.log.read_text()
    assert not server.is_running
    assert not listens(server.port)


async def test_two_servers_share_nothing():
    with EmbeddedServer() as one, EmbeddedServer() as two:
        await add_stream(one, "events")
        assert await names_of_streams(one) == ["events"]
        assert await names_of_streams(two) == []


def test_leaves_nothing_behind(temp):
    server = EmbeddedServer()
    server.start()
    assert list(temp.iterdir()) == [server.log.parent]
    server.stop()
    server.stop()
    assert list(temp.iterdir()) == []


def test_stops_though_suspended():
    with EmbeddedServer() as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert not server.is_running


def test_starts_again_after_a_stop():
    server = EmbeddedServer()
    with server:
        port = server.port
    with server:
        assert server.port == port
        assert listens(port)


async def test_a_restart_keeps_the_port_and_the_streams():
    with EmbeddedServer() as server:
        port, pid = server.port, server.pid
        await add_stream(server, "events")
        server.restart()
        assert (server.port, server.is_running) == (port, True)
        assert server.pid != pid
        assert await names_of_streams(server) == ["events"]


async def test_comes_back_after_a_crash():
    with EmbeddedServer() as server:
        await add_stream(server, "events")
        server.kill()
        assert not server.is_running
        assert not listens(server.port)
        server.restart()
        assert await names_of_streams(server) == ["events"]


async def test_keeps_a_store_that_was_given(tmp_path):
    with EmbeddedServer(store=tmp_path / "store") as server:
        await add_stream(server, "events")
    with EmbeddedServer(store=tmp_path / "store") as server:
        assert await names_of_streams(server) == ["events"]


async def test_listens_where_it_is_told():
    with EmbeddedServer() as server:
        port = server.port
    with EmbeddedServer(port=port) as server:
        assert server.url == f"nats://127.0.0.1:{port}"
        assert listens(port)


def test_a_config_holds_except_for_the_address(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text("listen: 0.0.0.0:4222\nauthorization { user: ann, password: secret }\n")
    with EmbeddedServer(config=config) as server:
        info = greeting(server.port)
        assert info["auth_required"]
        assert not info.get("jetstream")
        assert server.port != 4222
        assert "connections on 127.0.0.1:" in server.log.read_text()


async def test_jetstream_of_a_config_has_a_directory_of_its_own(tmp_path, temp):
    config = tmp_path / "nats.conf"
    config.write_text("jetstream: enabled\n")
    with EmbeddedServer(config=config) as server:
        await add_stream(server, "events")
        assert list(temp.glob("*/**/events"))


async def test_tls_of_a_config(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    config = tmp_path / "nats.conf"
    config.write_text(f'tls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.pem" }}\n')
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with EmbeddedServer(config=config) as server:
        assert server.url == f"tls://127.0.0.1:{server.port}"
        async with await nats.connect(server.url, tls=context) as nc:
            await nc.flush()


def failure(**arguments):
    with pytest.raises(ConfigError) as raised:
        EmbeddedServer(**arguments).start()
    return raised.value


def test_a_port_in_use(temp):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        error = failure(port=port)
    assert str(error).startswith(f"nats-server did not start: Error listening on port: 127.0.0.1:{port}, ")
    assert "address already in use" in str(error)
    assert "Starting nats-server" in error.__notes__[0]
    assert list(temp.iterdir()) == []


def test_a_wrong_config(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text("lissten: 4222\n")
    assert str(failure(config=config)) == f'nats-server did not start: {config}:1:0: unknown field "lissten"'


def test_a_missing_config(tmp_path):
    path = tmp_path / "none.conf"
    assert str(failure(config=path)) == f"nats-server did not start: open {path}: no such file or directory"


def test_a_store_that_is_no_directory(tmp_path):
    (tmp_path / "store").touch()
    assert "storage directory is not a directory" in str(failure(store=tmp_path / "store"))


def test_a_server_that_dies_without_a_word(tmp_path, monkeypatch, no_wheel):
    write_program(tmp_path / "nats-server", "exit 3")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert str(failure()) == "nats-server did not start: it ended without a word"


def test_a_server_for_another_machine(tmp_path, monkeypatch, no_wheel, temp):
    (tmp_path / "nats-server").write_text("no program")
    (tmp_path / "nats-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(OSError, match="Exec format error"):
        EmbeddedServer().start()
    assert list(temp.iterdir()) == []


@pytest.fixture
def no_wheel(monkeypatch):
    """Hides what is installed beside this Python."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "site-packages" not in folder])


def write_program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_server_of_the_wheel_comes_first(tmp_path, monkeypatch):
    write_program(tmp_path / "nats-server", "exit 3")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == WHEEL


def test_without_the_wheel_the_server_on_the_path_is_used(tmp_path, monkeypatch, no_wheel):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    write_program(tmp_path / "nats-server", f'exec "{WHEEL}" "$@"')
    assert find_server() == str(tmp_path / "nats-server")
    with EmbeddedServer() as server:
        assert listens(server.port)


def test_without_any_server_the_extra_is_named(tmp_path, monkeypatch, no_wheel):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pip install 'meshkit[server]'" in str(failure())


RUN = "with EmbeddedServer() as server: print(server.port, server.pid, flush=True); input()"


def test_ends_with_a_parent_that_is_killed(parent, temp):
    process = parent(RUN)
    port, _pid = map(int, process.stdout.readline().split())
    assert listens(port)
    process.kill()
    until(lambda: not list(temp.iterdir()))
    assert not listens(port)


def test_ends_with_a_killed_parent_even_if_suspended(parent, temp):
    process = parent(RUN)
    _port, pid = map(int, process.stdout.readline().split())
    os.kill(pid, signal.SIGSTOP)
    process.kill()
    until(lambda: not list(temp.iterdir()))


def test_ends_with_a_parent_that_is_killed_while_it_starts(parent, temp):
    process = parent(RUN)
    until(lambda: list(temp.glob("*/nats-server.log")))
    process.kill()
    until(lambda: not list(temp.iterdir()))


def test_cleans_up_after_a_parent_that_is_killed_after_the_server(parent, temp):
    process = parent(RUN)
    _port, pid = map(int, process.stdout.readline().split())
    os.kill(pid, signal.SIGKILL)
    process.kill()
    until(lambda: not list(temp.iterdir()))


def test_ends_with_a_parent_that_does_not_stop_it(parent, temp):
    process = parent("server = EmbeddedServer(); server.start()")
    process.wait(timeout=10)
    until(lambda: not list(temp.iterdir()))


def test_an_interrupt_from_the_terminal_does_not_reach_it(parent, temp):
    process = parent("""
import signal
with EmbeddedServer() as server:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    print(server.port, flush=True)
    signal.sigwait({signal.SIGINT})
    print("interrupted", flush=True)
    input()
""")
    port = int(process.stdout.readline())
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert listens(port)
    process.communicate("\n", timeout=10)
    assert not list(temp.iterdir())


def test_does_not_hold_the_output_of_its_parent(parent):
    process = parent("""
import os
with EmbeddedServer() as server:
    print(server.port, flush=True)
    os.close(1)
    os.close(2)
    input()
""")
    port = int(process.stdout.readline())
    assert process.stdout.read() == process.stderr.read() == ""
    assert listens(port)


def test_stops_though_a_fork_of_its_parent_lives(parent, temp):
    process = parent("""
import os, signal
server = EmbeddedServer()
server.start()
if (fork := os.fork()) == 0:
    signal.pause()
server.stop()
os.kill(fork, signal.SIGKILL)
print("stopped", flush=True)
""")
    assert process.communicate(timeout=10)[0] == "stopped\n"
    assert not list(temp.iterdir())
