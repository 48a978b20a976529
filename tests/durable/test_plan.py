"""Streams and consumers are made and changed as they are declared, and nothing is destroyed."""

import asyncio
import logging
import os
import subprocess
import sys
import textwrap

import msgspec
import pytest
from support import until

from meshkit import ConfigError, MeshError, Service, StreamConfig, connect
from meshkit.durable.jetstream import JetStream
from meshkit.durable.plan import settle
from meshkit.transport.server import EmbeddedServer


def replaced(stream, **fields):
    return msgspec.structs.replace(stream, **fields)


def consuming(stream, subject, name="shop", **options):
    service = Service(name)

    @service.consume(subject, stream=stream, **options)
    async def work() -> None: ...

    return service


async def started(mesh, *services):
    """Start services at the same time, and stop them."""

    async def run(service):
        async with mesh.serve(service):
            pass

    await asyncio.gather(*map(run, services))


async def config_of(mesh, stream):
    return (await JetStream(mesh.transport).stream(getattr(stream, "name", stream))).config


async def test_what_is_declared_is_made_then_changed_then_left(mesh, stream, subject, caplog):
    caplog.set_level(logging.INFO, "meshkit.durable")
    stream = replaced(stream, max_age="7d", max_bytes=10_000, discard="new", description="what is ordered")
    service = consuming(stream, f"{subject}.a", ack_wait="10s", deduplicate="1h")
    await started(mesh, service)
    said = [record.getMessage() for record in caplog.records if "MESH_DEAD" not in record.getMessage()]
    assert said == [
        f"+ stream {stream.name}: {subject}.>, max_age 7d, max_bytes 10000, memory",
        f"+ stream MESH_DONE-{stream.name}-shop-work: _MESH.done.{stream.name}.shop-work.>, max_age 1h, file",
        f"+ consumer shop-work of {stream.name}: {subject}.a",
    ]
    caplog.clear()
    await started(mesh, service)
    assert not caplog.records
    wider = replaced(stream, max_age="14d", subjects=[f"{subject}.>", f"more.{subject}"], max_messages=10**6)
    changes = (
        f"subjects {subject}.> → {subject}.>, more.{subject}, max_age 7d → 14d, max_msgs unlimited → 1000000"
    )
    assert await mesh.declare(wider) == [f"~ stream {stream.name}: {changes}"]
    assert await mesh.declare(wider) == []
    config = await config_of(mesh, stream)
    assert (config["max_age"], config["max_msgs"], config["discard"]) == (14 * 86400 * 10**9, 10**6, "new")
    caplog.clear()
    await started(mesh, consuming(wider, f"{subject}.a", ack_wait="20s", deduplicate="1h"))
    assert [record.getMessage() for record in caplog.records] == [
        f"~ consumer shop-work of {stream.name}: ack_wait 10s → 20s"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"retention": "workqueue"}, "retention cannot be changed from 'limits'"),
        ({"max_age": "1h"}, "max_age from unlimited to 1h would drop messages"),
        ({"max_messages": 1}, "max_msgs from 100 to 1 would drop messages"),
        ({"max_bytes": 10}, "max_bytes from unlimited to 10 would drop messages"),
    ],
)
async def test_what_would_destroy_something_is_refused_and_nothing_is_changed(
    mesh, stream, subject, change, said
):
    stream = replaced(stream, max_messages=100, discard="new")
    await mesh.declare(stream)
    await mesh.publish(f"{subject}.a", durable=True)
    before = await config_of(mesh, stream)
    wrong = replaced(stream, description="new", **change)
    with pytest.raises(
        ConfigError, match=rf"^stream {stream.name}: {said}; declare it as it is, or change it by hand"
    ):
        await mesh.declare(StreamConfig(f"{stream.name}-2", [f"two.{subject}"]), wrong)
    assert await config_of(mesh, stream) == before
    assert await JetStream(mesh.transport).stream(f"{stream.name}-2") is None


async def test_limits_of_an_empty_stream_may_be_tightened(mesh, stream):
    await mesh.declare(stream)
    assert len(await mesh.declare(replaced(stream, max_age="1h", max_messages=5))) == 1
    assert (await config_of(mesh, stream))["max_msgs"] == 5


async def test_a_stream_that_is_only_named_grows_with_who_consumes_it(mesh, subject):
    name = subject.upper()
    await started(mesh, consuming(name, f"{subject}.a.*", "one"))
    await started(mesh, consuming(name, f"{subject}.a.b", "two"))
    assert (await config_of(mesh, name))["subjects"] == [f"{subject}.a.*"]
    await started(mesh, consuming(name, f"{subject}.*.>", "three"))
    assert (await config_of(mesh, name))["subjects"] == [f"{subject}.*.>"]
    # Who declares it with other subjects takes none from them.
    await mesh.declare(StreamConfig(name, [f"else.{subject}"]))
    assert (await config_of(mesh, name))["subjects"] == [f"else.{subject}", f"{subject}.*.>"]


async def test_services_that_start_at_the_same_time_all_have_their_subjects_kept(nats_server, mesh, subject):
    name = subject.upper()
    async with connect(nats_server.url) as other:
        await asyncio.gather(
            *(
                started(serving, *(consuming(name, f"{subject}.{letter}", letter) for letter in letters))
                for serving, letters in ((mesh, "abc"), (other, "def"))
            )
        )
    assert sorted((await config_of(mesh, name))["subjects"]) == [f"{subject}.{letter}" for letter in "abcdef"]


@pytest.mark.parametrize("how", ["mirror", "sources"])
async def test_a_stream_of_other_streams_is_taken_as_it_is(mesh, stream, subject, how):
    handled, service, source = [], Service("shop"), {"name": stream.name}
    await mesh.declare(stream)
    copy = {"name": f"{stream.name}-all", "storage": "memory", how: source if how == "mirror" else [source]}
    await JetStream(mesh.transport).create_stream(copy)

    @service.consume(f"{subject}.a", stream=f"{stream.name}-all")
    async def work(number: int) -> None:
        handled.append(number)

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", 1, durable=True)
        await until(lambda: handled == [1])


class Slow(JetStream):
    """Somebody who has looked, and takes a moment to act."""

    async def update_stream(self, config):
        await asyncio.sleep(0.1)
        await super().update_stream(config)


async def test_a_subject_that_somebody_else_overwrites_is_added_again(mesh, subject):
    name = subject.upper()
    await mesh.declare(StreamConfig(name, [f"{subject}.first"]))
    await asyncio.gather(
        settle(Slow(mesh.transport), (), consuming(name, f"{subject}.slow").consumptions),
        settle(JetStream(mesh.transport), (), consuming(name, f"{subject}.fast", "fast").consumptions),
    )
    assert sorted((await config_of(mesh, name))["subjects"]) == [
        f"{subject}.fast",
        f"{subject}.first",
        f"{subject}.slow",
    ]


async def test_a_stream_that_is_declared_twice_differently(mesh, stream, subject):
    service = Service("shop", streams=[stream])

    @service.consume(f"{subject}.a", stream=replaced(stream, max_age="1h"))
    async def work() -> None: ...

    with pytest.raises(ConfigError, match=f"^stream '{stream.name}' is declared twice, and differently"):
        await started(mesh, service)


async def test_a_consumer_of_that_name_with_another_subject(mesh, stream, subject):
    await started(mesh, consuming(stream, f"{subject}.a"))
    with pytest.raises(
        ConfigError, match=f"^consumer shop-work of {stream.name}: filter_subject is '{subject}.a', and"
    ):
        await started(mesh, consuming(stream, f"{subject}.b"))


async def test_what_jetstream_refuses_is_told_with_what_it_is_about(mesh, stream, subject):
    await mesh.declare(stream)
    with pytest.raises((MeshError, ConfigError), match=f"stream OVER-{subject}: .*subjects overlap"):
        await mesh.declare(StreamConfig(f"OVER-{subject}", [f"{subject}.a"]))
    queue = StreamConfig(f"Q-{subject}", [f"q.{subject}.>"], retention="workqueue")
    await started(mesh, consuming(queue, f"q.{subject}.*", "one"))
    with pytest.raises((MeshError, ConfigError), match=rf"consumer two-work of Q-{subject}: .*unique"):
        await started(mesh, consuming(queue, f"q.{subject}.a", "two"))


SCRIPT = """
    from meshkit import Service
    service = Service("shop")

    @service.consume("orders.created", stream="ORDERS")
    async def work() -> None: ...
"""


def test_a_server_without_jetstream_is_one_sentence(tmp_path):
    (tmp_path / "shop.py").write_text(textwrap.dedent(SCRIPT))
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 1MB\n")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "MESHKIT_"))
    }
    with EmbeddedServer(config=config) as server:
        ran = subprocess.run(
            [sys.executable, "-m", "meshkit", "run", "shop.py", "--nats", server.url],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    output = ran.stdout + ran.stderr
    assert ran.returncode == 78
    assert f"NATS at {server.url} has no JetStream; start it with --jetstream" in output
    assert "Traceback" not in output, output


async def test_an_account_without_jetstream_is_one_sentence(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(
        "jetstream: enabled\n"
        "accounts { A { jetstream: enabled }, B { users = [{ user: bob, password: x }] } }\n"
    )
    with EmbeddedServer(config=config) as server:
        async with connect(server.url, user="bob", password="x") as mesh:
            with pytest.raises(
                ConfigError, match=r"^NATS at nats://\S+: JetStream: JetStream not enabled for account$"
            ):
                await started(mesh, consuming("ORDERS", "orders.created"))
