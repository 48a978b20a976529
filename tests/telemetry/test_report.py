import pytest
from support import values

from meshkit import CallPolicy, MeshError, Service, ServiceError
from meshkit.telemetry import lag
from meshkit.telemetry.metrics.families import families
from meshkit.telemetry.metrics.page import page

COUNT = "rpc_client_call_duration_seconds_count"


def series(mesh, **marks):
    """What the page has of series with these labels: `{name: value}`."""
    wanted = [f'{label}="{value}"' for label, value in marks.items()]
    found = values(page(families(mesh.reports())))
    return {name: value for name, value in found.items() if all(each in name for each in wanted)}


def counts(mesh, **marks):
    """How many calls there were, in the same way."""
    found = series(mesh, **marks)
    return {name: value for name, value in found.items() if "call_duration_seconds_count" in name}


@pytest.fixture(autouse=True)
def _seldom(monkeypatch):
    """The event loop's lag is looked at so seldom that ten minutes go by fast."""
    monkeypatch.setattr(lag, "_EVERY", 100)


service = Service("picky", call=CallPolicy(breaker=False))


@service.endpoint("picky.{number}")
async def answer(number: int) -> int:
    if number >= 400:
        raise ServiceError(number, "that one not")
    return number


async def fail(mesh, code):
    with pytest.raises(MeshError):
        await mesh.call(answer.at(number=code))


async def test_a_target_that_is_idle_leaves_the_page_and_comes_back_with_its_count(mesh, clock):
    calls = f'{COUNT}{{service_name="client",rpc_system_name="nats",rpc_method="picky.*"}}'
    async with mesh.serve(service):
        for _ in range(2):
            await mesh.call(answer.at(number=1))
        assert series(mesh)[calls] == 2
        await clock.advance(599)
        assert series(mesh)[calls] == 2
        await clock.advance(1)
        assert not series(mesh, service_name="client", rpc_method="picky.*")
        await mesh.call(answer.at(number=1))
        assert series(mesh)[calls] == 3


async def test_an_endpoint_stays_but_not_its_errors(mesh, clock):
    async with mesh.serve(service):
        await fail(mesh, 418)
        assert len(series(mesh, service_name="picky", error_type="418")) == 24
        await clock.advance(600)
        assert not series(mesh, service_name="picky", error_type="418")
        assert series(mesh, service_name="picky", rpc_method="picky.*")
        await fail(mesh, 418)
        assert list(counts(mesh, service_name="picky", error_type="418").values()) == [2]


async def test_targets_beyond_256_are_counted_together(mesh):
    many = Service("many")

    async def one() -> None: ...

    endpoints = [many.endpoint(f"many.e{number}")(one) for number in range(300)]
    async with mesh.serve(many):
        for endpoint in endpoints:
            await mesh.call(endpoint)
        counted = counts(mesh, service_name="client")
    assert len(counted) == 257
    assert sum(counted.values()) == 300
    assert [value for name, value in counted.items() if '"_OTHER"' in name] == [44]


async def test_kinds_of_errors_beyond_32_are_counted_together(mesh):
    async with mesh.serve(service):
        for code in range(1000, 1050):
            await fail(mesh, code)
        for whose in ("picky", "client"):
            counted = counts(mesh, service_name=whose)
            # Success is one of them, and is there from the beginning.
            assert len(counted) == 33
            others = [value for name, value in counted.items() if 'error_type="_OTHER"' in name]
            assert others == [50 - 31]
