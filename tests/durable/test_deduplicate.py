"""Ids that were handled are passed over."""

import asyncio

from support import until

from meshkit import Context, Service, connect
from meshkit.durable.jetstream import JetStream
from meshkit.message import CURRENT
from meshkit.transport.server import EmbeddedServer

ODD = ["a.b", "a b", "*", ">", "ä/ö", "=2E", "x" * 500, "\U0001f600", "$JS.API", "a=b"]


def counting(subject, stream, handled, **options):
    service = Service("shop")

    @service.consume(f"{subject}.>", stream=stream, retry_delay="10ms", **options)
    async def work(number: int, ctx: Context) -> None:
        handled.append((number, ctx.delivery.id))
        if number < 0 and len(handled) == 1:
            raise ValueError("not yet")

    return service


async def publish(mesh, subject, number, name):
    """With an id that the stream does not look at: as if its own window had passed."""
    return await mesh.publish(subject, number, durable=True, headers={"Mesh-Id": name})


async def test_the_same_id_is_handled_once_also_by_another_instance(nats_server, mesh, stream, subject, said):
    handled = []
    service = counting(subject, stream, handled, deduplicate="1d", concurrency=1)
    async with connect(nats_server.url) as other:
        for serving in (mesh, other):
            async with serving.serve(service):
                for number, name in enumerate(ODD):
                    await publish(mesh, f"{subject}.a", number, name)
                every = len(ODD) if serving is mesh else 2 * len(ODD)
                await until(lambda every=every: len(said) == every)
    assert handled == list(enumerate(ODD))
    assert {told for _, told in said} == {b"+ACK"}


async def test_other_consumers_have_their_own(mesh, stream, subject):
    one, other = [], []
    async with (
        mesh.serve(counting(subject, stream, one, deduplicate="1d", name="one")),
        mesh.serve(counting(subject, stream, other, name="other")),
    ):
        await publish(mesh, f"{subject}.a", 1, "x")
        await until(lambda: one)  # what is handled at the same time is not seen
        await publish(mesh, f"{subject}.a", 2, "x")
        await until(lambda: len(other) == 2)
        await asyncio.sleep(0.05)
    assert one == [(1, "x")]


async def test_what_failed_is_not_remembered(mesh, stream, subject, said):
    handled = []
    async with mesh.serve(counting(subject, stream, handled, deduplicate="1d")):
        await publish(mesh, f"{subject}.a", -1, "x")
        await until(lambda: said and said[-1] == ("2", b"+ACK"))
    assert handled == [(-1, "x")] * 2


async def test_ids_are_forgotten_in_time_and_the_time_may_be_changed(mesh, stream, subject, said):
    js, handled, every = JetStream(mesh.transport), [], 0
    for time in ("1d", "1s", "1h"):
        async with mesh.serve(counting(subject, stream, handled, deduplicate=time)):
            await publish(mesh, f"{subject}.a", 1, "x")
            if time == "1s":
                await until(lambda: len(said) == 2)
                while (await js.stream(f"MESH_DONE-{stream.name}-shop-work")).state.messages:
                    await asyncio.sleep(0.05)
                await publish(mesh, f"{subject}.a", 2, "x")
            every += 2 if time == "1s" else 1
            await until(lambda every=every: len(said) == every)
    assert [number for number, _ in handled] == [1, 2]


async def test_what_was_handled_counts_though_it_cannot_be_remembered(mesh, stream, subject, said, caplog):
    handled, service, js = [], Service("shop"), JetStream(mesh.transport)

    @service.consume(f"{subject}.>", stream=stream, deduplicate="1d", timeout="5s")
    async def work(ctx: Context) -> None:
        handled.append(ctx.delivery.id)
        await js.ask(f"STREAM.DELETE.MESH_DONE-{stream.name}-shop-work", dict)

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", durable=True, id="x")
        await until(lambda: said == [("1", b"+ACK")])
    assert handled == ["x"]
    assert "that a message was handled is not remembered" in caplog.text


async def test_an_id_is_remembered_though_the_handler_has_used_up_its_time(mesh, stream, subject, said):
    handled, service = [], Service("shop")

    @service.consume(f"{subject}.>", stream=stream, deduplicate="1d", concurrency=1)
    async def work(number: int) -> None:
        handled.append(number)
        CURRENT.get().deadline = asyncio.get_running_loop().time()

    async with mesh.serve(service):
        for number in range(2):
            await publish(mesh, f"{subject}.a", number, "x")
        await until(lambda: len(said) == 2)
    assert handled == [0]


async def test_what_cannot_be_looked_up_waits(mesh, stream, subject, said, caplog):
    handled, js = [], JetStream(mesh.transport)
    service = counting(subject, stream, handled, deduplicate="1d", max_deliver=1, concurrency=3)
    async with mesh.serve(service):
        config = (await js.stream(f"MESH_DONE-{stream.name}-shop-work")).config
        await js.ask(f"STREAM.DELETE.{config['name']}", dict)
        for number in range(3):
            await mesh.publish(f"{subject}.a", number, durable=True)
        await until(lambda: "waits, as it is not known what was handled: 503 NoResponders" in caplog.text)
        assert not handled
        assert not said
        await js.create_stream(config)
        await until(lambda: len(said) == 3)
    assert sorted(number for number, _ in handled) == [0, 1, 2]
    assert {told for _, told in said} == {b"+ACK"}
    assert caplog.text.count("waits, as it is not known") == 1


async def test_ids_survive_the_server(tmp_path, stream, subject):
    handled = []
    with EmbeddedServer(store=tmp_path / "store") as server:
        async with (
            connect(server.url) as mesh,
            mesh.serve(counting(subject, stream, handled, deduplicate="1d")) as instance,
        ):
            await publish(mesh, f"{subject}.a", 1, "x")
            await until(lambda: instance.report().served[0].outcomes["ok"].count == 1)
        server.kill()
        server.restart()
        async with (
            connect(server.url) as mesh,
            mesh.serve(counting(subject, stream, handled, deduplicate="1d")) as instance,
        ):
            await publish(mesh, f"{subject}.a", 2, "x")
            await publish(mesh, f"{subject}.a", 3, "y")
            await until(lambda: instance.report().served[0].outcomes["ok"].count == 2)
    assert handled == [(1, "x"), (3, "y")]
