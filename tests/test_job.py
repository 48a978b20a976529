"""Bounded work, and how far it is."""

import pytest


async def test_a_job_is_reported_with_how_long_it_still_takes(mesh, clock):
    job = mesh.job("cities", total=100, done=20)
    assert mesh.jobs()[0].seconds_left is None
    await clock.advance(10)
    job.sent, job.done, job.failed = 70, 55, 5
    [report] = mesh.reports()
    [told] = report.jobs
    assert (told.name, told.total, told.sent, told.done, told.failed) == ("cities", 100, 70, 55, 5)
    # 40 in 10 s, and 40 are left.
    assert (job.left, told.seconds_left) == (40, pytest.approx(10))
    job.done = 95
    assert (job.left, job.seconds_left) == (0, 0)


async def test_another_job_of_that_name_takes_its_place_and_old_ones_are_forgotten(mesh):
    for total in (1, 2):
        mesh.job("same", total)
    assert [job.total for job in mesh.jobs()] == [2]
    for number in range(150):
        mesh.job(f"job {number}", 1)
    assert [job.name for job in mesh.jobs()] == [f"job {number}" for number in range(50, 150)]


async def test_whatever_is_counted_can_be_reported(mesh):
    job = mesh.job("odd", 10)
    job.done, job.failed = 2.5, -1
    [told] = mesh.jobs()
    assert (told.done, told.failed) == (2, 0)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"name": "", "total": 1}, "a job's name is printable text of up to 100 characters, not ''"),
        ({"name": "a\nb", "total": 1}, "a job's name is printable text"),
        ({"name": "cities", "total": -1}, "job 'cities': total is a whole number from 0, not -1"),
        ({"name": "cities", "total": 1, "done": 0.5}, "job 'cities': done is a whole number from 0, not 0.5"),
    ],
)
async def test_what_is_no_job_is_refused(mesh, given, wrong):
    with pytest.raises(ValueError, match=wrong):
        mesh.job(**given)
