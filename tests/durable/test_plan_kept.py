"""What stays as it is, and what would have messages handled again or by nobody."""

import pytest

from meshkit import ConfigError, DeclarationError, Service, StreamConfig
from meshkit.durable.jetstream import JetStream


def service(stream, subject, *, of="shop", **how):
    made = Service(of)

    @made.consume(subject, stream=stream, name="work", **how)
    async def work(key: str) -> None: ...

    return made


async def start(mesh, *services):
    for each in services:
        async with mesh.serve(each):
            pass


async def config(mesh, name):
    return (await JetStream(mesh.transport).stream(name)).config


async def test_what_is_not_said_of_a_stream_stays(mesh, subject):
    name = subject.upper()
    await mesh.declare(
        StreamConfig(name, [subject], max_age="7d", duplicate_window="1h", storage="memory", discard="new")
    )
    before = await config(mesh, name)
    assert await mesh.declare(StreamConfig(name, [subject])) == []
    assert await config(mesh, name) == before
    assert await mesh.declare(StreamConfig(name, [subject], duplicate_window="3m")) == [
        f"~ stream {name}: duplicate_window 1h → 3m"
    ]


async def test_a_consumer_is_in_order_or_is_not(mesh, subject):
    for first, then, wrong in (
        ({"ordered_by": "key"}, {}, "was ordered_by, and without would get all messages again"),
        ({}, {"ordered_by": "key"}, "was not ordered_by, and would get all messages again"),
    ):
        stream = StreamConfig(
            f"{subject}-{len(first)}".upper(), [f"{subject}.{len(first)}.*"], storage="memory"
        )
        keyed = f"{subject}.{len(first)}.{{key}}"
        await start(mesh, service(stream, keyed, **first))
        with pytest.raises(
            ConfigError, match=f"^consumer work of {stream.name} {wrong}; give it another name="
        ):
            await start(mesh, service(stream, keyed, **then))


@pytest.mark.parametrize("retention", ["interest", "workqueue"])
async def test_order_wants_a_stream_that_keeps_messages(mesh, subject, retention):
    stream = StreamConfig(subject.upper(), [f"{subject}.*"], retention=retention, storage="memory")
    with pytest.raises(DeclarationError, match="of which copies could be lost or made twice"):
        service(stream, f"{subject}.{{key}}", ordered_by="key")
    await mesh.declare(stream)
    with pytest.raises(ConfigError, match="of which copies could be lost or made twice"):
        await start(mesh, service(stream.name, f"{subject}.{{key}}", ordered_by="key"))


def test_partitions_are_for_order():
    with pytest.raises(DeclarationError, match="partitions are for messages in order; say ordered_by= what"):
        service("SHOP", "shop.{key}", partitions=4)


async def test_a_consumer_belongs_to_one_service(mesh, subject):
    stream = StreamConfig(subject.upper(), [f"{subject}.*"], storage="memory")
    mine, others = (service(stream, f"{subject}.{{key}}", of=of) for of in ("shop", "mail"))
    await start(mesh, mine)
    with pytest.raises(
        ConfigError, match="is that of service 'shop', and each message would go to one of the two"
    ):
        await start(mesh, others)


@pytest.mark.parametrize("odd", [{"headers_only": True}, {"deliver_subject": "here"}, {"max_batch": 2}])
async def test_a_consumer_that_gives_messages_otherwise_is_refused(mesh, subject, odd):
    stream, js = StreamConfig(subject.upper(), [f"{subject}.*"], storage="memory"), JetStream(mesh.transport)
    await mesh.declare(stream)
    usual = {
        "name": "work",
        "durable_name": "work",
        "filter_subject": f"{subject}.*",
        "ack_policy": "explicit",
    }
    await js.put_consumer(stream.name, usual | odd)
    with pytest.raises(
        ConfigError, match=f"has {next(iter(odd))} .*, with which messages do not come as they are"
    ):
        await start(mesh, service(stream, f"{subject}.{{key}}"))


async def test_a_stream_that_acknowledges_nothing_is_refused(mesh, subject):
    js = JetStream(mesh.transport)
    await js.create_stream(
        {"name": subject.upper(), "subjects": [subject], "no_ack": True, "storage": "memory"}
    )
    with pytest.raises(ConfigError, match="acknowledges nothing"):
        await mesh.declare(StreamConfig(subject.upper(), [subject]))


async def test_more_replicas_than_servers_is_a_sentence(mesh, subject):
    with pytest.raises(ConfigError, match=f"^stream {subject.upper()}: .*replicas > 1 not supported"):
        await mesh.declare(StreamConfig(subject.upper(), [subject], replicas=3))


async def test_streams_that_overlap_are_named(mesh, stream, subject):
    await mesh.declare(stream)
    with pytest.raises(
        ConfigError, match=f"overlap with an existing stream: {stream.name}; declare that one"
    ):
        await start(mesh, service(f"{stream.name}X", f"{subject}.{{key}}"))
