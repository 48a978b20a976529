"""`meshkit jobs`: how far bounded work is, once and until it is done."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import sys

import msgspec
import pytest

from meshkit import Service
from meshkit.job import JobReport
from meshkit.telemetry.report import STATS, Report
from meshkit.transport.server import EmbeddedServer


@pytest.fixture
def nats_server():
    """One of its own: who else reports jobs would be seen."""
    with EmbeddedServer() as server:
        yield server


@contextlib.asynccontextmanager
async def serving(mesh, name):
    """An instance of a service that does nothing but what is done with its mesh, which this gives."""
    service, given = Service(name), []

    @service.lifespan
    async def life(mesh):
        given.append(mesh)
        yield

    async with mesh.serve(service):
        yield given[0]


@pytest.fixture
async def fetcher(mesh):
    async with serving(mesh, "fetcher") as fetcher:
        yield fetcher


async def watch(nats_server, *arguments):
    """Starts `meshkit jobs --watch` in a pipe."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshkit", "jobs", "--watch", "--interval", "0.5", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NATS_URL": nats_server.url},
    )


async def test_a_job_by_all_who_report_it(command, mesh, fetcher):
    fetcher.job("villages", 10, sent=4, done=3, failed=1)
    async with serving(mesh, "saver") as one, serving(mesh, "saver") as two:
        fetcher.job("cities", 1000, sent=600)
        one.job("cities", 900, done=300)
        two.job("cities", 900, done=200, failed=5)
        code, out, err = await command("jobs")
        assert (code, err) == (0, "")
        assert [line.split("\t") for line in out.splitlines()] == [
            ["job", "total", "sent", "done", "failed", "left", "seconds left"],
            ["cities", "1000", "600", "500", "5", "495", ""],
            ["villages", "10", "4", "3", "1", "6", ""],
        ]
        code, out, _ = await command("jobs", "cities", "--json")
        [cities] = json.loads(out)
        assert (cities["done"], cities["left"], cities["services"]) == (500, 495, ["fetcher", "saver"])


async def test_the_time_to_go_is_that_at_the_rate_of_all_together(command, mesh):
    async with serving(mesh, "saver") as one, serving(mesh, "saver") as two:
        jobs = [each.job("cities", 1000) for each in (one, two)]
        await asyncio.sleep(0.2)
        for job in jobs:
            job.done = 100
        [alone] = [report.seconds_left for report in one.jobs()]
        [cities] = json.loads((await command("jobs", "--json"))[1])
    assert (cities["done"], cities["left"]) == (200, 800)
    # Each needs `alone` for 900 at its rate; both together for 800 less than half of it.
    assert alone / 3 < cities["seconds_left"] < alone


async def test_no_job(command, fetcher):
    assert await command("jobs") == (0, "", "Nobody reports a job.\n")
    assert await command("jobs", "cities") == (1, "", "Nobody reports a job 'cities'.\n")
    assert await command("jobs", "--json") == (0, "[]\n", "Nobody reports a job.\n")
    fetcher.job("nothing to do", 0)
    assert (await command("jobs"))[1].splitlines()[1] == "nothing to do\t0\t0\t0\t0\t0\t0.0"


async def test_watched_in_a_pipe_until_it_is_done(nats_server, fetcher):
    job = fetcher.job("cities", 4)
    watched = await watch(nats_server)
    seen = [(await watched.stdout.readline()).decode().split("\t") for _ in range(2)]
    assert seen[1][:6] == ["cities", "4", "0", "0", "0", "4"]
    job.done, job.failed = 1, 1
    assert (await watched.stdout.readline()).decode().split("\t")[:6] == ["cities", "4", "0", "1", "1", "2"]
    job.done = 3
    out, err = await watched.communicate()
    # Then it ends, and prints nothing where nothing has changed.
    assert (out, err, watched.returncode) == (b"cities\t4\t0\t3\t1\t0\t0.0\n", b"", 0)


async def test_watched_until_who_does_it_is_gone(nats_server, mesh):
    async with serving(mesh, "fetcher") as fetcher:
        fetcher.job("cities", 4)
        watched = await watch(nats_server, "cities", "--json")
        assert json.loads(await watched.stdout.readline())[0]["left"] == 4
    async with asyncio.timeout(20):
        out, err = await watched.communicate()
    assert (out, watched.returncode) == (b"", 1)
    assert err == b"meshkit: nobody reports the job 'cities' any more\n"


async def test_watched_on_a_narrow_terminal(on_terminal, fetcher, mesh):
    job = fetcher.job("cities", 100_000, sent=100_000, done=40_000, failed=20)

    looks = itertools.count(1)

    def answer(message):
        if next(looks) == 3:
            job.done = 99_980
        # Others may call their jobs what they like.
        other = Report("other", id="1", jobs=[JobReport("b\x1b]0;x\n", 1, done=1)])
        mesh.transport.tell(message.reply, msgspec.json.encode(other))

    await mesh.transport.subscribe(STATS, answer)
    shown = await on_terminal("jobs", "--watch", "--interval", "0.5")
    assert "b ]0;x " in shown
    assert "\x1b]0" not in shown
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", shown)  # where the cursor goes
    lines = [line for line in shown.splitlines() if "cities" in line]
    assert "  40%   40,000  " in lines[0]
    assert lines[-1].split()[-4:] == ["99,980", "20", "0", "done"]
    assert "━" in lines[-1]
    assert all(len(line) <= 60 for line in lines)
