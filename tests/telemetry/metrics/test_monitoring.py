import asyncio
import socket
from contextlib import AsyncExitStack

import nats
import pytest
from support import until

from meshkit import ConfigError, connect
from meshkit.telemetry.metrics import monitoring
from meshkit.telemetry.metrics.monitoring import Monitoring
from meshkit.telemetry.metrics.page import page
from meshkit.transport.server import EmbeddedServer


@pytest.fixture(scope="module")
def monitored():
    with EmbeddedServer(monitor=0) as server:
        yield server


async def shown(*urls):
    """What is shown of servers: `{(name, the labels but server_id): value}`."""
    servers = Monitoring(urls)
    try:
        return flat(await servers.families())
    finally:
        servers.close()


def flat(families):
    found = {}
    for family in families:
        for labels, value in family.samples:
            rest = frozenset(labels.items() - {("server_id", labels["server_id"])})
            assert (family.metric.prometheus, rest) not in found
            found[family.metric.prometheus, rest] = value
    return found


async def test_numbers_of_the_server_have_the_names_of_the_exporter(monitored):
    async with connect(monitored.url, name="guest"):
        found = await shown(monitored.monitor_url)
    plain = {name: value for (name, labels), value in found.items() if not labels}
    assert plain["nats_server_up"] == 1
    assert plain["gnatsd_varz_connections"] == 1
    assert plain["gnatsd_varz_max_payload"] == 1048576
    assert plain["gnatsd_varz_jetstream_config_max_memory"] > 0
    assert plain["gnatsd_connz_num_connections"] == 1
    assert {"gnatsd_varz_mem", "gnatsd_varz_in_msgs", "gnatsd_varz_slow_consumers"} <= plain.keys()
    assert not any("http_req" in name for name in plain)


async def test_connections_are_shown_by_name(monitored):
    async with connect(monitored.url, name="twin") as one, connect(monitored.url, name="twin") as other:
        for mesh in (one, other):
            await mesh.transport.subscribe("somewhere", print)
            await mesh.transport.flush()
        found = await shown(monitored.monitor_url)
    name = frozenset({("name", "twin")})
    # Each has one of its own beside it, for answers.
    assert found["nats_connection_subscriptions", name] == found["gnatsd_connz_subscriptions", frozenset()]
    assert found["nats_connection_subscriptions", name] >= 2
    assert found["nats_connection_pending_bytes", name] == 0


async def test_names_of_connections_are_bounded(monitored, monkeypatch):
    monkeypatch.setattr(monitoring, "_MOST_NAMES", 2)
    async with AsyncExitStack() as connections:
        for name in "abcd":
            await connections.enter_async_context(connect(monitored.url, name=name))
        found = await shown(monitored.monitor_url)
    names = {
        value for name, labels in found for _, value in labels if name == "nats_connection_pending_bytes"
    }
    assert len(names) == 3
    assert "_OTHER" in names


async def test_streams_and_how_far_their_consumers_lag(monitored):
    client = await nats.connect(monitored.url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="ORDERS", subjects=["orders.>"])
    for number in range(3):
        await jetstream.publish("orders.new", b"%d" % number)
    consumer = await jetstream.pull_subscribe("orders.>", "billing")
    [first] = await consumer.fetch(1)
    found = await shown(monitored.monitor_url)
    await first.ack()
    await jetstream.delete_stream("ORDERS")
    await client.close()
    whose = {name: dict(labels) for name, labels in found}["jetstream_consumer_num_pending"]
    assert whose["stream_name"] == "ORDERS"
    assert whose["consumer_name"] == "billing"
    assert (whose["account"], whose["is_consumer_leader"], whose["is_meta_leader"]) == ("$G", "true", "true")
    values = {name: value for (name, _), value in found.items() if name.startswith("jetstream")}
    assert values["jetstream_server_total_streams"] == 1
    assert values["jetstream_stream_total_messages"] == 3
    assert values["jetstream_stream_last_seq"] == 3
    assert values["jetstream_consumer_num_pending"] == 2
    assert values["jetstream_consumer_num_ack_pending"] == 1
    assert values["jetstream_consumer_delivered_stream_seq"] == 1


async def test_who_was_cut_off_for_reading_too_slowly_is_named(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text("max_pending: 1MB")
    with (
        EmbeddedServer(config=config, monitor=0) as server,
        socket.create_connection(("127.0.0.1", server.port)) as sleepy,
    ):
        sleepy.sendall(b'CONNECT {"verbose":false,"name":"sleepy"}\r\nSUB flood 1\r\nPING\r\n')
        await asyncio.sleep(0.1)
        async with connect(server.url) as mesh:
            for _ in range(200):
                await mesh.transport.publish("flood", bytes(100_000))

            async def is_cut_off():
                return (await shown(server.monitor_url))["gnatsd_varz_slow_consumers", frozenset()]

            while not await is_cut_off():
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
            found = await shown(server.monitor_url)
    assert found["nats_connection_slow", frozenset({("name", "sleepy")})] == 1


async def test_a_server_that_is_away_is_down_and_the_log_says_so_once(monitored, unused_port, caplog):
    servers = Monitoring([monitored.monitor_url, f"http://127.0.0.1:{unused_port}"])
    for _ in range(2):
        families = await servers.families()
    up = {labels["server_id"]: value for labels, value in families[0].samples}
    assert up == {monitored.monitor_url: 1, f"http://127.0.0.1:{unused_port}": 0}
    assert len(caplog.records) == 1
    assert "its monitoring does not answer as it should: <urlopen error" in caplog.text
    servers.close()


async def test_a_server_that_is_back_is_up_again():
    with EmbeddedServer(monitor=0) as server:
        servers = Monitoring([server.monitor_url])
        up = ("nats_server_up", frozenset())
        assert flat(await servers.families())[up] == 1
        server.kill()
        assert flat(await servers.families()) == {up: 0}
        server.restart()
        assert flat(await servers.families())[up] == 1
        servers.close()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n{", b"HTTP/1.1 404 Not Found\r\n\r\n", b"?\r\n"]
)
async def test_what_is_no_nats_server_is_down(answer, monkeypatch):
    monkeypatch.setattr(monitoring, "PATIENCE", 0.3)
    hung_up = 0

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if not answer:
            await reader.read()  # until the other side has had enough
        writer.close()
        nonlocal hung_up
        hung_up += 1

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    found = await shown(f"http://127.0.0.1:{port}")
    assert found == {("nats_server_up", frozenset()): 0}
    await until(lambda: hung_up == 4)
    listener.close()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8222", "nats://127.0.0.1:4222", "http://", "file:///etc/passwd", "http://me:pw@x:8222"]
)
async def test_what_is_no_url_of_a_server_is_a_mistake(url):
    with pytest.raises(ConfigError, match="is not where a nats-server's monitoring is; write http://127"):
        Monitoring([url])


async def test_help_is_ours_and_names_are_names(monitored):
    servers = Monitoring([monitored.monitor_url + "/"])
    text = page(await servers.families())
    servers.close()
    assert "# HELP gnatsd_varz_connections Connections of clients\n" in text
    assert f'gnatsd_varz_cores{{server_id="{monitored.monitor_url}"}} ' in text
