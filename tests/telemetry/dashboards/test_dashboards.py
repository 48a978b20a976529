"""Every query of every dashboard gives numbers where the hotel runs, and asks for what there is."""

import asyncio
import contextlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus import prometheus

from meshkit.telemetry.dashboards.boards import dashboards
from meshkit.telemetry.metrics.catalogue import CATALOGUE, CLIENT_QUEUE, SERVER_QUEUE
from meshkit.telemetry.metrics.monitoring import SERVER_CATALOGUE

HOTEL = Path(__file__).parents[3] / "examples" / "hotel"
WORKERS = 9
# A service beside the hotel's: it cannot handle every message, and has a job.
LAUNDRY = """
import asyncio
from meshkit import Mesh, Redeliver, Reject, Service, StreamConfig

service = Service("laundry")

@service.consume("laundry.sheet", stream=StreamConfig("LAUNDRY", ["laundry.>"]), max_deliver=2)
async def wash(sheet: int) -> None:
    if not sheet % 3:
        raise Redeliver(delay="10ms") if sheet % 2 else Reject("torn")

@service.lifespan
async def work(mesh: Mesh):
    async def bring():
        job = mesh.job("sheets", total=1_000_000)
        while True:
            await mesh.publish("laundry.sheet", job.sent, durable=True)
            job.sent += 1
            job.done += 1
            await asyncio.sleep(0.05)

    bringing = asyncio.create_task(bring())
    yield
    bringing.cancel()
"""
ALL = {metric.prometheus: metric for metric in (*CATALOGUE, *SERVER_CATALOGUE)}
COMMON = {"service_name", "service_instance_id", "job", "le"}
DASHBOARDS = dashboards()


def queries(dashboard):
    """The queries, each with its panel's title."""
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def variables(dashboard):
    """Of each variable, the series and the label that its values are of."""
    listed = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return {
        each["name"]: re.fullmatch(r"label_values\((.*), (\w+)\)", each["query"]["query"]).groups()
        for each in listed
    }


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_what_grafana_reads(name):
    dashboard = DASHBOARDS[name]
    assert json.loads(json.dumps(dashboard)) == dashboard
    assert dashboard["uid"] == f"meshkit-{name}"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        squares = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & squares, panel["title"]
        taken |= squares
        refs = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(refs)) == len(refs)
        assert bool(refs) == (panel["type"] != "row")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_asks_for_metrics_of_the_catalogue_by_labels_that_they_have(name):
    known = {"datasource", "__rate_interval", *variables(DASHBOARDS[name])}
    for title, query in queries(DASHBOARDS[name]):
        asked = re.findall(
            r"((?!by)[a-z_]+)\{(.*?)\}", re.sub(r"error_type=~\".*?\"", 'error_type=""', query)
        )
        assert asked, query
        for series, where in asked:
            metric = ALL.get(series) or ALL[re.sub("_(count|bucket)$", "", series)]
            labels = {label.replace(".", "_") for label in metric.labels}
            assert set(re.findall(r"(\w+)[=!]~?\"", where)) <= labels | COMMON, (title, query)
        assert set(re.findall(r"\$(\w+)", query)) <= known, (title, query)


def test_every_metric_of_the_catalogue_is_shown_somewhere():
    shown = " ".join(query for dashboard in DASHBOARDS.values() for _, query in queries(dashboard))
    assert [metric.name for metric in CATALOGUE if metric.prometheus not in shown] == []


def test_links_lead_to_dashboards_with_the_variable_that_they_set():
    found = set()
    for dashboard in DASHBOARDS.values():
        for url in re.findall(r'"url": "(.*?)"', json.dumps(dashboard)):
            name, variable = re.match(r"/d/meshkit-(\w+)\?var-(\w+)=", url).groups()
            assert variable in variables(DASHBOARDS[name])
            found.add((dashboard["uid"], name))
    assert {("meshkit-mesh", "service"), ("meshkit-service", "endpoint")} <= found


def ports(count):
    """The first of so many free ports in a row."""
    for first in range(20_000 + os.getpid() % 1000 * 10, 32_000, count):
        with contextlib.ExitStack() as taken:
            try:
                for port in range(first, first + count):
                    sock = taken.enter_context(socket.socket())
                    sock.bind(("0.0.0.0", port))
            except OSError:
                continue
            return first
    raise AssertionError("no ports")


@contextlib.asynccontextmanager
async def running(*command, until, **options):
    """A `meshkit` command that has written something."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshkit", *command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )

    async def read():
        while line := await process.stdout.readline():
            text.append(line.decode())

    text = []
    reading = asyncio.create_task(read())
    try:
        async with asyncio.timeout(60):
            while not re.search(until, "".join(text)):
                assert not reading.done(), "".join(text)
                await asyncio.sleep(0.05)
        yield text
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(reading, 60)
        await process.wait()


@pytest.fixture
async def observed(tmp_path):
    """A Prometheus that sees a hurried hotel both ways: as job `mesh`, and as jobs `process-…`."""
    shutil.copytree(HOTEL, tmp_path / "hotel", ignore=shutil.ignore_patterns("*.sqlite*", "__pycache__"))
    (tmp_path / "hotel" / "laundry.py").write_text(LAUNDRY)
    with (tmp_path / "hotel" / "meshkit.toml").open("a") as config:
        config.write("[services.laundry]\n")
    env = {
        **{name: value for name, value in os.environ.items() if name != "NATS_URL"},
        "HOTEL_ARRIVALS_PER_SECOND": "10",
        "HOTEL_NIGHT_SECONDS": "0.1",
        "MESHKIT_RUN_METRICS_PORT": str(first := ports(WORKERS + 2)),
    }
    mesh, monitor = first + WORKERS, f"http://127.0.0.1:{first + WORKERS + 1}"
    hotel = ("run", "hotel", "--monitor-port", str(first + WORKERS + 1))
    async with running(*hotel, until=r"audit: \d\d+ stays over", cwd=tmp_path, env=env) as text:
        env["NATS_URL"] = re.search(r"nats://[\d.:]+", "".join(text))[0]
        gather = ("metrics", "--port", str(mesh), "--server", monitor)
        async with running(*gather, until="is shown", cwd=tmp_path, env=env):
            targets = {f"process-{number}": f"127.0.0.1:{first + number}" for number in range(WORKERS)}
            with prometheus({"mesh": f"127.0.0.1:{mesh}", **targets}, interval="1s") as server:
                yield server


def filled(query, values):
    for name, value in values.items():
        query = query.replace(f"${name}", value)
    return query


def choices(server, dashboard, job):
    """What may be picked in a dashboard, one after the other."""
    found = [{"job": job, "__rate_interval": "10s"}]
    for name, (series, label) in variables(dashboard).items():
        if name != "job":
            found = [
                chosen | {name: each["metric"][label]}
                for chosen in found
                for each in server.query(f"group by ({label}) ({filled(series, chosen)})")
                if each["metric"].get(label)
            ]
    return found


def is_number(query, value):
    """How long calls waited for a slot is no number if none had to."""
    return not math.isnan(float(value)) or any(
        each.prometheus in query for each in (CLIENT_QUEUE, SERVER_QUEUE)
    )


def nothing(server, dashboard, job):
    """Panels and queries that give no number, whatever is picked."""
    picked = choices(server, dashboard, job)
    assert picked
    return [
        (title, query)
        for title, query in queries(dashboard)
        if not any(
            is_number(query, each["value"][1])
            for chosen in picked
            for each in server.query(filled(query, chosen))
        )
    ]


async def test_every_query_gives_a_number_where_the_hotel_runs(observed):
    async with asyncio.timeout(60):
        while [state for state, _ in observed.targets().values()] != ["up"] * (WORKERS + 1):
            await asyncio.sleep(0.2)
        await asyncio.sleep(12)  # of what is measured again and again, several
    empty = [
        (name, job, *query)
        for name, dashboard in DASHBOARDS.items()
        for job in (("mesh",) if name == "nats" else ("mesh", "process-.*"))
        for query in nothing(observed, dashboard, job)
    ]
    assert not empty, "\n".join(map(str, empty))
