import subprocess

import pytest
from prometheus import tool
from support import values

from meshkit import CallPolicy, MeshError, NotFound, Service
from meshkit.telemetry.distribution import BOUNDS, Distribution
from meshkit.telemetry.metrics.catalogue import Family, Metric
from meshkit.telemetry.metrics.families import families
from meshkit.telemetry.metrics.page import page

CALLS = Metric("calls", "counter", "{call}", "Calls", ("rpc.method",))
TOOK = Metric("took", "histogram", "s", "How long they took", ("rpc.method",))


def checked(text):
    """What promtool has to say of it."""
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, check=False, text=True
    )
    return done.stdout + done.stderr


def test_a_family_is_introduced_once():
    shown = page([Family(CALLS, [({"rpc.method": "a"}, 1), ({"rpc.method": "b"}, 2)])])
    assert shown == (
        "# HELP calls_total Calls\n"
        "# TYPE calls_total counter\n"
        'calls_total{rpc_method="a"} 1\n'
        'calls_total{rpc_method="b"} 2\n'
    )


def test_bins_add_up():
    taken = Distribution()
    for seconds in (0.0001, 0.0002, 0.3, 100.0):
        taken.add(seconds)
    lines = page([Family(TOOK, [({"rpc.method": "a"}, taken)])]).splitlines()
    assert lines[2:5] == [
        'took_seconds_bucket{rpc_method="a",le="0.0001"} 1',
        'took_seconds_bucket{rpc_method="a",le="0.00025"} 2',
        'took_seconds_bucket{rpc_method="a",le="0.0005"} 2',
    ]
    assert lines[-4:] == [
        'took_seconds_bucket{rpc_method="a",le="60.0"} 3',
        'took_seconds_bucket{rpc_method="a",le="+Inf"} 4',
        f'took_seconds_sum{{rpc_method="a"}} {0.0001 + 0.0002 + 0.3 + 100.0!r}',
        'took_seconds_count{rpc_method="a"} 4',
    ]
    assert len(lines) == 2 + len(BOUNDS) + 1 + 2


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-9, 2**53 - 1, 12345678901234567, 1.7e300])
def test_numbers_lose_nothing(value):
    shown = page([Family(CALLS, [({}, value)])]).splitlines()[-1]
    assert shown.startswith("calls_total ")
    assert type(value)(shown.split()[1]) == value


def test_labels_of_strangers_stay_labels():
    shown = page([Family(CALLS, [({"rpc.method": 'a"b\\c\nd'}, 1)])])
    assert shown.splitlines()[-1] == r'calls_total{rpc_method="a\"b\\c\nd"} 1'
    assert checked(shown) == ""


async def test_prometheus_finds_nothing_wrong_with_the_page_of_a_service(mesh):
    service = Service("page", concurrency=5)

    @service.endpoint("page.{number}", call=CallPolicy(breaker=True))
    async def call(number: int) -> int:
        if number == 2:
            raise NotFound("two")
        return number

    @service.subscribe("page.events")
    async def listen() -> None: ...

    @service.subscribe("page.events")
    async def listen_too() -> None: ...

    async with mesh.serve(service):
        await mesh.call(call.at(number=1))
        with pytest.raises(MeshError):
            await mesh.call(call.at(number=2))
        await mesh.publish("page.events")
        await mesh.call(call.at(number=3))
        shown = page(families(mesh.reports()))
    assert checked(shown) == ""
    # Two subscriptions to one subject are one series: what Prometheus sees twice it takes once.
    names = [line.rpartition(" ")[0] for line in shown.splitlines() if not line.startswith("#")]
    assert len(names) == len(set(names))
    events = 'messaging_process_duration_seconds_count{service_name="page"'
    assert [value for name, value in values(shown).items() if name.startswith(events)] == [2]
