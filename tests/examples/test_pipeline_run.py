"""`meshkit run examples/pipeline`: what is saved is what the work makes, whoever is killed."""

import pipelines
import pytest
from pipelines import OBJECTS, PIPELINE, running

from meshkit import Unavailable

CHUNKS = OBJECTS // 100
END = rf"All {CHUNKS} chunks are saved: {OBJECTS} objects"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The modules, with the data's folder of their own, in which all of it is done in this process."""
    folder = tmp_path_factory.mktemp("expected")
    with (
        pytest.MonkeyPatch.context() as patch,
        pipelines.modules(patch, PIPELINE_OBJECTS=str(OBJECTS), PIPELINE_DATA=str(folder)) as modules,
    ):
        modules.expected = checksum_of_the_work(modules)
        yield modules


def checksum_of_the_work(pipeline):
    world = pipeline.geography.world()
    cities = [pipeline.geography.mapped(city, world) for city in pipeline.cities.first_cities()]
    pipeline.database.prepare()
    pipeline.database.save(pipeline.messages.MappedChunk(0, cities))
    return pipeline.check.check().checksum


def run(folder, target=PIPELINE, savers=1, **environment):
    return running(
        *(target, "--workers", "mapper=3", "--workers", f"saver={savers}"),
        PIPELINE_OBJECTS=str(OBJECTS),
        PIPELINE_DATA=str(folder),
        **environment,
    )


def is_all_there(pipeline, monkeypatch, folder, url=""):
    monkeypatch.setattr(pipeline.database, "FOLDER", folder)
    monkeypatch.setattr(pipeline.database, "URL", url)
    report = pipeline.check.check()
    return report.ok and report.checksum == pipeline.expected


async def test_fetcher_that_is_killed_goes_on_from_its_record(pipeline, monkeypatch, tmp_path):
    async with run(tmp_path) as runs:
        await runs.until(f"{CHUNKS} of {CHUNKS} chunks are to be saved")
        await runs.until(rf"Sent data #\d+, (?!{CHUNKS})\d+ remaining")
        runs.kill("fetcher#")
        await runs.until(rf"pipeline: (?!{CHUNKS}|0)\d+ of {CHUNKS} chunks are to be saved")
        await runs.until(END)
    assert is_all_there(pipeline, monkeypatch, tmp_path)
    with pipeline.record.record() as record:
        assert not record


async def test_what_is_lost_with_others_is_sent_again(pipeline, monkeypatch, tmp_path):
    async with run(tmp_path) as runs:
        await runs.until("Sent data #4")
        for victim in ("mapper#", "saver#", "nats-server"):
            runs.kill(victim)
        await runs.until(END)
    assert is_all_there(pipeline, monkeypatch, tmp_path)


async def test_durable_endpoints_lose_nothing_whoever_is_killed(pipeline, monkeypatch, tmp_path):
    async with run(tmp_path, PIPELINE / "durable.py") as runs:
        await runs.until("Saved data #")
        for victim in ("mapper#", "saver#", "nats-server", "fetcher#"):
            runs.kill(victim)
        await runs.until(END)
    assert is_all_there(pipeline, monkeypatch, tmp_path)
    assert "dead letter" not in runs.printed


async def test_postgresql(pipeline, monkeypatch, tmp_path):
    with pipelines.postgresql() as url:
        async with run(tmp_path, savers=2, DATABASE_URL=url) as runs:
            await runs.until(END)
        assert not (tmp_path / "cities.sqlite").exists()
        assert is_all_there(pipeline, monkeypatch, tmp_path, url)
        with pipeline.database.database() as db:
            db.execute("DROP TABLE cities")
        with pytest.raises(Unavailable, match=r"the database: .*cities.* does not exist"):
            pipeline.check.check()
