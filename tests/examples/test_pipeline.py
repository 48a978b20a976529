"""The services of `examples/pipeline` one by one: what each does, and what it tells the others."""

import asyncio
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pipelines
import pytest
from support import until, until_by

from meshkit import ConfigError, Context, Service, Unavailable


@pytest.fixture(scope="module")
def imported():
    with pytest.MonkeyPatch.context() as patch, pipelines.modules(patch, PIPELINE_OBJECTS="250") as modules:
        yield modules


@pytest.fixture
def pipeline(imported, tmp_path, monkeypatch):
    monkeypatch.setattr(imported.database, "FOLDER", tmp_path)
    return imported


@pytest.mark.parametrize(
    ("one", "other", "km"),
    [
        ((0, 0), (0, 1), 111.2),
        ((0, 179.5), (0, -179.5), 111.2),
        ((90, 0), (-90, 77), 20015.1),
        ((51.5074, -0.1278), (48.8566, 2.3522), 343.6),  # London, Paris
        ((60.1699, 24.9384), (59.3293, 18.0686), 395.7),  # Helsinki, Stockholm
        ((-33.8688, 151.2093), (-34.6037, -58.3816), 11801.5),  # Sydney, Buenos Aires
        ((60, 25), (60, 25), 0.0),
    ],
)
def test_great_circles(pipeline, one, other, km):
    a, b = pipeline.geography.direction(*one), pipeline.geography.direction(*other)
    assert pipeline.geography.kilometres(sum(map(math.prod, zip(a, b, strict=True)))) == pytest.approx(
        km, abs=0.5
    )


def haversine(one, other):
    """The distance in km, by another formula."""
    phi, psi = math.radians(one.latitude), math.radians(other.latitude)
    half = (psi - phi) / 2, math.radians(other.longitude - one.longitude) / 2
    square = math.sin(half[0]) ** 2 + math.cos(phi) * math.cos(psi) * math.sin(half[1]) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(square))


def test_work_agrees_with_another_formula(pipeline):
    world = pipeline.geography.world()
    for each in pipeline.cities.first_cities()[::50]:
        others = [(haversine(each, other), other) for other in world.cities]
        near = sorted((km, other.geonameid) for km, other in others if other.geonameid != each.geonameid)[:10]
        mapped = pipeline.geography.mapped(each, world)
        assert [other.geonameid for other in mapped.nearest] == [number for _, number in near]
        assert [other.km for other in mapped.nearest] == pytest.approx([km for km, _ in near], abs=0.06)
        assert mapped.population_100km == sum(other.population for km, other in others if km <= 100)


def test_city_is_not_near_to_itself_but_its_people_live_there(pipeline):
    larger = pipeline.cities.larger_cities(500_000)
    [helsinki] = [city for city in larger if city.name == "Helsinki"]
    place = (helsinki.geonameid, helsinki.name, helsinki.latitude, helsinki.longitude)
    city = pipeline.messages.City(*place, "FI", helsinki.population, "", "", [])
    mapped = pipeline.geography.mapped(city, pipeline.geography.world())
    near = [other.name for other in mapped.nearest]
    assert {"Espoo", "Vantaa", "Tallinn"} <= set(near)
    assert "Helsinki" not in near
    assert mapped.population_100km > helsinki.population + 500_000


def test_data_is_the_first_cities_in_order_and_in_chunks_of_100(pipeline):
    cities = pipeline.cities.first_cities()
    numbers = [city.geonameid for city in cities]
    assert (len(cities), numbers[0]) == (250, 12)
    assert numbers == sorted(set(numbers))
    parts = [pipeline.cities.part(cities, number) for number in range(pipeline.cities.CHUNKS)]
    assert [len(part) for part in parts] == [100, 100, 50]
    assert sum(parts, []) == cities  # noqa: RUF017 - three


@pytest.mark.parametrize("objects", ["0", "many", "1000000"])
def test_number_of_objects_that_cannot_be(monkeypatch, objects):
    with (
        pytest.raises(ConfigError, match=f"^PIPELINE_OBJECTS is a number from 1 to 170000, not '{objects}'$"),
        pipelines.modules(monkeypatch, PIPELINE_OBJECTS=objects),
    ):
        pass


@pytest.mark.parametrize("seconds", ["x", "-1", "inf"])
def test_service_time_that_cannot_be(monkeypatch, seconds):
    with (
        pytest.raises(
            ConfigError,
            match=f"^PIPELINE_SERVICE_TIME is a number of seconds, such as 0.5, not '{seconds}'$",
        ),
        pipelines.modules(monkeypatch, PIPELINE_SERVICE_TIME=seconds),
    ):
        pass


async def test_folder_that_cannot_be(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.database, "FOLDER", Path("/dev/null"))
    sentence = "^PIPELINE_DATA is a folder to write to, not /dev/null: "
    with pytest.raises(ConfigError, match=sentence), pipeline.record.record():
        pass
    with pytest.raises(ConfigError, match=sentence):
        pipeline.database.prepare()


async def test_record_gives_each_chunk_once_until_patience_is_over(pipeline):
    with pipeline.record.record() as record:
        assert [record.take(100), record.take(101), record.take(102), record.take(103)] == [0, 1, 2, None]
        assert await record.cross_off(1)
        assert not await record.cross_off(1)
        later = 100 + pipeline.record.PATIENCE
        assert [record.take(later), record.take(later), record.take(later + 2)] == [0, None, 2]
        assert len(record) == 2


async def test_record_survives(pipeline):
    with pipeline.record.record() as record:
        record.take(100)
        await record.cross_off(1)
    with pipeline.record.record() as record:
        assert [record.take(0), record.take(0), record.take(0)] == [0, 2, None]


async def test_record_is_one_fetchers(pipeline, monkeypatch):
    with pipeline.record.record():
        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda file, **options: connect(file, timeout=0, **options))
        with (
            pytest.raises(ConfigError, match=r"record.sqlite: .* locked; there can be only one fetcher$"),
            pipeline.record.record(),
        ):
            pass


async def test_record_of_another_number_of_objects_is_not_taken(pipeline, monkeypatch, tmp_path):
    with pipeline.record.record():
        pass
    monkeypatch.setattr(pipeline.record, "OBJECTS", 300)
    message = rf"of 250 objects in SQLite, not of 300 objects in SQLite; to begin anew remove {tmp_path}$"
    with pytest.raises(ConfigError, match=message), pipeline.record.record():
        pass


async def test_record_of_another_database_is_not_taken(pipeline, monkeypatch):
    with pipeline.record.record():
        pass
    monkeypatch.setattr(pipeline.database, "URL", "postgresql://me:secret@db.example:5433/cities")
    message = (
        "of 250 objects in SQLite, not of 250 objects in PostgreSQL host=db.example port=5433 dbname=cities;"
    )
    with pytest.raises(ConfigError, match=message), pipeline.record.record():
        pass


def chunk(pipeline, number, name="somewhere"):
    mapped = [
        pipeline.messages.MappedCity(city.geonameid, name, "FI", 7, [])
        for city in pipeline.cities.part(pipeline.cities.first_cities(), number)
    ]
    return pipeline.messages.MappedChunk(number, mapped)


async def test_what_is_saved_twice_is_there_once(pipeline):
    pipeline.database.prepare()
    for number in (2, 0, 1):
        pipeline.database.save(chunk(pipeline, number))
    report = pipeline.check.check()
    assert (report.ok, report.rows, report.missing) == (True, 250, 0)
    pipeline.database.save(chunk(pipeline, 1, "elsewhere"))
    assert pipeline.check.check() == report


async def test_check_finds_what_is_missing_too_much_or_different(pipeline):
    pipeline.database.prepare()
    pipeline.database.save(chunk(pipeline, 0))
    assert (pipeline.check.check().ok, pipeline.check.check().missing) == (False, 150)
    for number in (1, 2):
        pipeline.database.save(chunk(pipeline, number))
    report = pipeline.check.check()
    with pipeline.database.database() as db:
        db.execute("UPDATE cities SET population_100km = 8 WHERE geonameid = 12")
    assert pipeline.check.check().checksum != report.checksum
    with pipeline.database.database() as db:
        db.execute("UPDATE cities SET geonameid = 13 WHERE geonameid = 12")
    assert (pipeline.check.check().ok, pipeline.check.check().missing) == (False, 1)


def checked(folder, **environment):
    """`python check.py`: its exit code, and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, pipelines.PIPELINE / "check.py"],
        env=os.environ | {"PIPELINE_DATA": str(folder), "DATABASE_URL": ""} | environment,
        capture_output=True,
        check=False,
        text=True,
    )
    return done.returncode, done.stderr


def test_check_without_a_database_says_so_and_makes_none(tmp_path):
    folder = tmp_path / "none"
    sentence = f"check.py: the database {folder / 'cities.sqlite'}: unable to open database file\n"
    assert checked(folder) == (1, sentence)
    assert not folder.exists()
    code, said = checked(folder, DATABASE_URL="mysql://x")
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("check.py: DATABASE_URL is no URL of a PostgreSQL database: ")


@pytest.fixture
async def told(mesh, pipeline):
    """What is told on the four subjects."""
    listener = Service("listener")
    heard = []

    @listener.subscribe("mapper_status")
    @listener.subscribe("mapper_data")
    @listener.subscribe("saver_data")
    @listener.subscribe("processed_data")
    async def listen(message: dict[str, Any], ctx: Context):
        heard.append((ctx.subject, message))

    async with mesh.serve(listener):
        yield heard


async def test_fetcher_sends_who_is_ready_and_sends_again_what_is_not_saved(mesh, pipeline, told, clock):
    """There is no mapper: what is sent is lost."""

    def sent():
        return [message["number"] for subject, message in told if subject == "mapper_data"]

    ready = pipeline.messages.Ready(2)
    async with mesh.serve(pipeline.fetcher.service) as instance:
        await mesh.publish("mapper_status", ready)
        await until_by(clock, lambda: sent() == [0, 1])
        await mesh.publish("processed_data", pipeline.messages.Saved(0))
        await until_by(clock, lambda: len(instance.state.record) == 2)
        await mesh.publish("mapper_status", ready)
        await until_by(clock, lambda: sent() == [0, 1, 2])
        await clock.advance(pipeline.record.PATIENCE)
        await mesh.publish("mapper_status", ready)
        await until_by(clock, lambda: sent() == [0, 1, 2, 1, 2])
        [job] = instance.report().jobs
        assert (job.total, job.sent, job.done) == (3, 3, 1)
    assert next(message["cities"][0]["geonameid"] for _, message in told if "cities" in message) == 12


async def test_fetcher_says_that_all_is_saved_and_says_it_again_when_it_is_started_again(
    mesh, pipeline, caplog
):
    caplog.set_level("INFO", logger="pipeline")
    end = "All 3 chunks are saved: 250 objects"
    async with mesh.serve(pipeline.fetcher.service) as instance:
        for number in (0, 1, 1):
            await mesh.publish("processed_data", pipeline.messages.Saved(number))
        await until(lambda: len(instance.state.record) == 1)
        assert end not in caplog.messages
        await mesh.publish("processed_data", pipeline.messages.Saved(2))
        await until(lambda: end in caplog.messages)
    caplog.clear()
    async with mesh.serve(pipeline.fetcher.service):
        assert caplog.messages == ["0 of 3 chunks are to be saved", end]


async def test_durable_fetcher_that_starts_again_knows_how_far_it_is(mesh, pipeline, caplog):
    """The streams know it; what the other variant sends on the same server is not for them."""
    caplog.set_level("INFO", logger="pipeline")
    durable = pipeline.durable
    end = "All 3 chunks are saved: 250 objects"

    async def save(number):
        await mesh.publish(durable.PROCESSED, pipeline.messages.Saved(number), durable=True)

    async with mesh.serve(durable.fetcher) as instance:
        await mesh.publish(pipeline.messages.PROCESSED_DATA, pipeline.messages.Saved(0))
        for number in (2, 0):
            await save(number)
        await until(lambda: instance.state.done == 2)
    assert [line for line in caplog.messages if line.startswith("Saved")] == [
        "Saved data #2, 2 remaining",
        "Saved data #0, 1 remaining",
    ]
    await save(1)
    jetstream = durable.JetStream(mesh.transport)
    # The third message waits for the next fetcher, which has counted it already; none for the one after.
    for delivered in (["Saved data #1, 0 remaining", end], []):
        caplog.clear()
        async with mesh.serve(durable.fetcher) as instance, asyncio.timeout(20):
            while (await jetstream.consumer("PIPELINE_DONE", "fetcher-count")).ack_floor.stream_seq < 3:
                await asyncio.sleep(0.01)
            [job] = instance.report().jobs
            assert (job.total, job.sent, job.done) == (3, 3, 3)
        assert caplog.messages == ["Sent data, all 3 chunks of it", end, *delivered]


async def test_mapper_says_that_it_is_ready_until_it_is_heard(mesh, pipeline, told, clock, monkeypatch):
    few = pipeline.geography.World([], [])
    monkeypatch.setattr(pipeline.mapper, "world", lambda: few)
    async with mesh.serve(pipeline.mapper.service):
        ready = ("mapper_status", {"chunks": 1})
        await until_by(clock, lambda: told == [ready, ready])
        cities = pipeline.cities.part(pipeline.cities.first_cities(), 2)
        told.clear()
        await mesh.publish("mapper_data", pipeline.messages.Chunk(2, cities))
        await until_by(clock, lambda: len(told) == 3)
    assert [subject for subject, _ in told] == ["mapper_data", "saver_data", "mapper_status"]
    assert told[2] == ("mapper_status", {"chunks": pipeline.mapper.IN_HAND})
    assert (told[1][1]["number"], len(told[1][1]["cities"])) == (2, 50)


async def test_saver_acknowledges_what_is_saved_and_nothing_else(mesh, pipeline, told, caplog):
    async with mesh.serve(pipeline.saver.service) as instance:
        assert await instance.health() == {"answers": "ok"}
        await mesh.publish("saver_data", chunk(pipeline, 0))
        await until(lambda: told[1:] == [("processed_data", {"number": 0})])
        with pipeline.database.database() as db:
            assert db.execute("SELECT count(*) FROM cities").fetchone() == (100,)
            db.execute("DROP TABLE cities")
        await mesh.publish("saver_data", chunk(pipeline, 1))
        await until(lambda: "no such table: cities" in caplog.text)
        assert len(told) == 3
        assert "no such table" in (await instance.health())["answers"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("url", "error", "sentence"),
    [
        ("", Unavailable, "the database .*cities.sqlite: unable to open database file$"),
        (
            "postgresql:///x?host={folder}",
            Unavailable,
            "the database: connection .*No such file or directory",
        ),
        ("mysql://x", ConfigError, "^DATABASE_URL is no URL of a PostgreSQL database: "),
    ],
)
async def test_saver_without_a_database(mesh, pipeline, tmp_path, monkeypatch, url, error, sentence):
    (tmp_path / "cities.sqlite").mkdir()
    monkeypatch.setattr(pipeline.database, "URL", url.format(folder=tmp_path))
    with pytest.raises(error, match=sentence) as raised:
        async with mesh.serve(pipeline.saver.service):
            raise AssertionError("there is none")
    assert "\n" not in str(raised.value)
