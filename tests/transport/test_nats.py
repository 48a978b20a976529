"""The transport against a real server, seen from outside; `test_client.py` has nats-py's own defects."""

import asyncio
import re
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import pytest
from support import gated, until

from meshkit import (
    BadRequest,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    Disconnected,
    Forbidden,
    NoResponders,
    Service,
    connect,
)
from meshkit.transport.server import EmbeddedServer

USERS = """
accounts {{ A {{ users = [{users}] }} }}
"""


async def answer(mesh, subject, reply=b"ok"):
    """A plain responder: what any NATS client could be."""
    tasks = set()

    def respond(message):
        task = asyncio.create_task(mesh.transport.publish(message.reply, reply))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    interest = await mesh.transport.subscribe(subject, respond)
    await mesh.transport.flush()
    return interest


@asynccontextmanager
async def greeter(greeting):
    """Something that listens and is no nats-server."""
    writers = []

    def greet(_reader, writer):
        writers.append(writer)
        writer.write(greeting)

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


# Connecting


async def test_no_server_is_one_sentence_that_says_what_to_do(unused_port):
    with pytest.raises(
        Disconnected, match=r"cannot connect to NATS at nats://127.0.0.1:\d+: nothing listens"
    ) as e:
        async with connect(f"nats://127.0.0.1:{unused_port}", timeout=0.3):
            pass
    assert "meshkit server" in e.value.message


async def test_a_server_that_says_nothing_is_given_up_in_time():
    async with greeter(b"") as url:
        with pytest.raises(Disconnected, match=r"no answer in 0.2 s"):
            async with connect(url, timeout=0.2):
                pass


async def test_something_that_is_no_nats_server_is_named():
    async with greeter(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        with pytest.raises(Disconnected, match="not a NATS server"):
            async with connect(url):
                pass


async def test_passwords_stay_out_of_errors(unused_port):
    with pytest.raises(Disconnected) as e:
        async with connect(f"nats://ann:secret@127.0.0.1:{unused_port}", timeout=0.1):
            pass
    assert "secret" not in str(e.value)


async def test_the_first_server_that_answers_is_taken(nats_server, unused_port):
    async with connect([f"nats://127.0.0.1:{unused_port}", nats_server.url]) as mesh:
        assert mesh.transport.server_url == nats_server.url
    async with connect(f"nats://127.0.0.1:{unused_port}, {nats_server.url}") as mesh:
        assert mesh.transport.is_connected


async def test_the_environment_names_the_server(nats_server, monkeypatch):
    monkeypatch.setenv("NATS_URL", nats_server.url)
    async with connect() as mesh:
        assert mesh.transport.server_url == nats_server.url
        assert re.fullmatch(r"\d+\.\d+\.\d+", mesh.transport.server_version)


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A server with a user for every way to log in."""
    import nkeys

    folder = tmp_path_factory.mktemp("secured")
    seed = nkeys.encode_seed(b"0123456789abcdef0123456789abcdef", nkeys.PREFIX_BYTE_USER)
    (folder / "ann.nk").write_bytes(seed)
    public = nkeys.from_seed(seed).public_key.decode()
    config = folder / "nats.conf"
    config.write_text(
        USERS.format(
            users=f"""
            {{ user: ann, password: secret }}
            {{ nkey: {public} }}
            {{ user: narrow, password: secret, permissions: {{
                publish: {{ deny: ["Closed.>"] }}, subscribe: {{ deny: ["Closed.>"] }} }} }}
            """
        )
    )
    with EmbeddedServer(config=config) as server:
        yield server, folder


async def test_user_and_password(secured):
    async with connect(secured[0].url, user="ann", password="secret") as mesh:
        assert mesh.transport.is_connected


async def test_nkey(secured):
    async with connect(secured[0].url, nkey=secured[1] / "ann.nk") as mesh:
        assert mesh.transport.is_connected


async def test_a_refused_login_is_final_and_said_at_once(secured):
    started = asyncio.get_running_loop().time()
    with pytest.raises(Disconnected, match="refused the login"):
        async with connect(secured[0].url, user="ann", password="wrong", timeout=30):
            pass
    assert asyncio.get_running_loop().time() - started < 10


async def test_token(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text("authorization { token: opensesame }")
    with EmbeddedServer(config=config) as server:
        async with connect(server.url, token="opensesame") as mesh:
            assert mesh.transport.is_connected


async def test_credentials_file(tmp_path):
    """JWT mode, with the operator, account and user made here."""
    import base64
    import hashlib
    import json

    import nkeys

    def pair(prefix, fill):
        return nkeys.from_seed(nkeys.encode_seed(fill * 32, prefix))

    def jwt(issuer, subject, kind, name, **claims):
        body = {
            "iss": issuer.public_key.decode(),
            "sub": subject.public_key.decode(),
            "name": name,
            "iat": 1,
            "nats": {"type": kind, "version": 2, **claims},
        }
        digest = hashlib.sha512(json.dumps(body).encode()).digest()[:32]
        body["jti"] = base64.b32encode(digest).decode().rstrip("=")

        def part(value):
            raw = value if isinstance(value, bytes) else json.dumps(value).encode()
            return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

        signed = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}"
        return f"{signed}.{part(issuer.sign(signed.encode()))}"

    operator = pair(nkeys.PREFIX_BYTE_OPERATOR, b"o")
    account = pair(nkeys.PREFIX_BYTE_ACCOUNT, b"a")
    user = pair(nkeys.PREFIX_BYTE_USER, b"u")
    limits = {
        "subs": -1,
        "conn": -1,
        "data": -1,
        "payload": -1,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
    }
    config = tmp_path / "nats.conf"
    config.write_text(
        f"operator: {jwt(operator, operator, 'operator', 'O')}\n"
        "resolver: MEMORY\n"
        f"resolver_preload: {{ {account.public_key.decode()}: "
        f"{jwt(operator, account, 'account', 'A', limits=limits)} }}\n"
    )
    creds = tmp_path / "ann.creds"
    token = jwt(account, user, "user", "ann", subs=-1, data=-1, payload=-1)
    seed = nkeys.encode_seed(b"u" * 32, nkeys.PREFIX_BYTE_USER).decode()
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    with EmbeddedServer(config=config) as server:
        async with connect(server.url, credentials=creds) as mesh:
            assert mesh.transport.is_connected
        with pytest.raises(Disconnected, match="refused the login"):
            async with connect(server.url):
                pass


async def test_tls_with_authority_and_client_certificate(tls):
    server, folder = tls
    url = f"tls://127.0.0.1:{server.port}"
    async with connect(
        url, tls_ca=folder / "ca.pem", tls_cert=folder / "client.pem", tls_key=folder / "client.key"
    ) as mesh:
        await answer(mesh, "tls.echo")
        assert await mesh.call("tls.echo", returns=bytes) == b"ok"


async def test_a_server_of_another_authority_is_refused_at_once(tls):
    server, folder = tls
    with pytest.raises(Disconnected, match=r"(?i)certificate verify failed"):
        async with connect(f"tls://127.0.0.1:{server.port}", tls_ca=folder / "other.pem", timeout=30):
            pass


async def test_no_client_certificate(tls):
    server, folder = tls
    with pytest.raises(Disconnected):
        async with connect(f"tls://127.0.0.1:{server.port}", tls_ca=folder / "ca.pem"):
            pass


@pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")  # nats-py's way to call aiohttp
async def test_websocket(tmp_path, unused_port):
    """On nats-py's own way, through which the same calls, events and reconnects work."""
    config = tmp_path / "nats.conf"
    config.write_text(f"websocket {{ host: 127.0.0.1, port: {unused_port}, no_tls: true }}")
    service = gated("rooms")

    @service.endpoint()
    async def echo(payload: bytes) -> bytes:
        return payload

    with EmbeddedServer(config=config) as server:
        async with connect(f"ws://127.0.0.1:{unused_port}") as mesh:
            async with mesh.serve(service):
                for size in (0, 1, 500_000):
                    assert await mesh.call(echo, b"x" * size) == b"x" * size
                waiting = asyncio.create_task(mesh.call("rooms.wait", returns=str))
                await until(lambda: service.running)
                server.restart()
                with pytest.raises(ConnectionLost):
                    await waiting
                await until(lambda: mesh.transport.is_connected)
                service.gate.set()
                calls = [mesh.call("rooms.wait", returns=str, headers={"A": "b"}) for _ in range(100)]
                assert await asyncio.gather(*calls) == ["done"] * 100
            with pytest.raises(NoResponders):
                await mesh.call(echo)


# Requests and publishing


async def test_nobody_listens(mesh):
    with pytest.raises(NoResponders, match=r"no service listens on 'nobody.here'"):
        await mesh.call("nobody.here")


async def test_no_answer_in_time(mesh, clock):
    await mesh.transport.subscribe("silent", lambda _message: None)
    await mesh.transport.flush()
    call = asyncio.create_task(mesh.call("silent", timeout=2.0))
    await clock.advance(1.9)
    assert not call.done()
    await clock.advance(0.2)
    with pytest.raises(DeadlineExceeded, match=r"silent: 504 .* 2.000 s"):
        await call


async def test_a_message_over_the_limit_is_refused_before_sending(mesh):
    await answer(mesh, "large")
    assert await mesh.call("large", b"x" * (mesh.transport.max_payload - 500), returns=bytes) == b"ok"
    for payload, headers in (
        (b"x" * (mesh.transport.max_payload + 1), None),
        (b"x" * (mesh.transport.max_payload - 100), {"Note": "y" * 200}),
    ):
        with pytest.raises(BadRequest, match=r"bytes, the server takes 1,048,576"):
            await mesh.call("large", payload, headers=headers)
    assert await mesh.call("large", returns=bytes) == b"ok"


async def test_a_subject_that_may_not_be_published_to_fails_at_once(secured):
    async with connect(secured[0].url, user="narrow", password="secret") as mesh:
        with pytest.raises(Forbidden, match=r"may not publish to 'Closed.door'"):
            await mesh.call("Closed.door", timeout=30)


async def test_a_subject_that_is_quoted_in_a_denied_one_is_not_denied(secured):
    gate, arrived = asyncio.Event(), asyncio.Event()
    service = Service("doors")

    @service.endpoint("open.door")
    async def door() -> str:
        arrived.set()
        await gate.wait()
        return "open"

    async with connect(secured[0].url, user="narrow", password="secret") as mesh, mesh.serve(service):
        call = asyncio.create_task(mesh.call("open.door", returns=str))
        await arrived.wait()
        for subject in ('Closed.x"open.door', 'Closed."open.door"', 'Closed."open.door"x'):
            await mesh.transport.publish(subject, b"")
        with pytest.raises(Forbidden):
            await mesh.call('Closed."a\\"', timeout=30)
        gate.set()
        assert await call == "open"


async def test_a_subject_that_may_not_be_subscribed_to_stops_the_start(secured):
    service = Service("doors")

    @service.endpoint("Closed.door")
    async def door() -> None: ...

    async with connect(secured[0].url, user="narrow", password="secret") as mesh:
        with pytest.raises(Forbidden, match=r'subscription to "closed.door"'):
            async with mesh.serve(service):
                pass
        await answer(mesh, "open.door")
        assert await mesh.call("open.door", returns=bytes) == b"ok"


async def test_gather_takes_everybody(mesh):
    for number in range(3):
        await answer(mesh, "roll.call", str(number).encode())
    answers = await mesh.transport.gather("roll.call")
    assert sorted(message.payload for message in answers) == [b"0", b"1", b"2"]
    assert await mesh.transport.gather("nobody.here") == []


async def test_gather_says_what_keeps_it_from_asking(secured, server):
    async with connect(secured[0].url, user="narrow", password="secret") as mesh:
        with pytest.raises(Forbidden, match=r"may not publish to 'Closed.door'"):
            await mesh.transport.gather("Closed.door")
    async with connect(server.url) as mesh:
        await mesh.transport.subscribe("silent", lambda _message: None)
        asking = asyncio.create_task(mesh.transport.gather("silent", timeout=60))
        await until(lambda: len(mesh.transport._waiting) == 1)
        await asyncio.to_thread(server.kill)
        with pytest.raises(ConnectionLost):
            await asking


# Losing the server


@pytest.fixture
def server():
    with EmbeddedServer() as server:
        yield server


async def test_calls_in_flight_fail_at_once_when_the_connection_breaks(server):
    async with connect(server.url) as mesh:
        await mesh.transport.subscribe("silent", lambda _message: None)
        await mesh.transport.flush()
        call = asyncio.create_task(mesh.call("silent", timeout=60))
        await until(lambda: mesh.transport._waiting)
        await asyncio.to_thread(server.kill)
        async with asyncio.timeout(2):
            with pytest.raises(ConnectionLost):
                await call


async def test_subscriptions_come_back_and_a_waiting_call_is_answered(server):
    async with connect(server.url) as mesh:
        await answer(mesh, "echo")
        await asyncio.to_thread(server.kill)
        await until(lambda: not mesh.transport.is_connected)
        call = asyncio.create_task(mesh.call("echo", returns=bytes, timeout=20))
        await asyncio.to_thread(server.restart)
        assert await call == b"ok"


async def test_a_call_that_gave_up_while_disconnected_is_never_sent(server):
    heard = []
    async with connect(server.url) as mesh:
        await mesh.transport.subscribe("ghost", heard.append)
        await mesh.transport.flush()
        await asyncio.to_thread(server.kill)
        await until(lambda: not mesh.transport.is_connected)
        with pytest.raises(Disconnected, match="cannot be reached; there was no more time"):
            await mesh.call("ghost", timeout=0.05)
        given_up = asyncio.create_task(mesh.call("ghost", timeout=60))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.to_thread(server.restart)
        await until(lambda: mesh.transport.is_connected)
        await mesh.transport.flush()
    assert heard == []


async def test_a_call_that_waits_for_the_connection_ends_with_the_block(server):
    async with connect(server.url) as mesh:
        await asyncio.to_thread(server.kill)
        await until(lambda: not mesh.transport.is_connected)
        call = asyncio.create_task(mesh.call("late", timeout=60))
        await asyncio.sleep(0)
        assert not call.done()
    async with asyncio.timeout(1):
        with pytest.raises(Disconnected, match="is closed"):
            await call


async def test_a_call_that_waited_is_refused_if_the_server_that_comes_takes_less(tmp_path):
    """That server would end the connection for it."""
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 1MB")
    with EmbeddedServer(config=config) as server:
        async with connect(server.url) as mesh:
            await asyncio.to_thread(server.kill)
            await until(lambda: not mesh.transport.is_connected)
            call = asyncio.create_task(mesh.call("large", b"x" * 5000, timeout=20))
            await asyncio.sleep(0)
            config.write_text("max_payload: 1000")
            await asyncio.to_thread(server.restart)
            with pytest.raises(BadRequest, match=r"5,0\d\d bytes, the server takes 1,000"):
                await call


async def test_a_request_not_yet_written_when_the_connection_breaks_is_not_sent_later(proxy, nats_server):
    """The caller was told that the connection is lost; an event that waited beside it is still sent."""
    heard = []
    async with connect(nats_server.url) as listener, connect(proxy.url) as mesh:
        await listener.transport.subscribe("late.*", lambda message: heard.append(message.subject))
        await listener.transport.flush()
        await proxy.stall(mesh)
        call = asyncio.create_task(mesh.call("late.request", timeout=60))
        await mesh.publish("late.event")
        await until(lambda: mesh.transport._waiting)
        proxy.cut()
        with pytest.raises(ConnectionLost):
            await call
        proxy.release()
        await until(lambda: mesh.transport.is_connected)
        await mesh.transport.flush()
        await until(lambda: heard)
        await listener.transport.flush()
    assert heard == ["late.event"]


async def test_a_publisher_that_must_wait_can_be_cancelled(proxy):
    async with connect(proxy.url) as mesh:
        proxy.hold_requests()

        async def flood():
            for _ in range(1000):
                await mesh.publish("bulk", b"x" * 100_000)

        flooding = asyncio.create_task(flood())
        await until(lambda: mesh.transport._client.pending_data_size > 2 * 1024 * 1024)
        await asyncio.sleep(0.05)
        assert not flooding.done()
        flooding.cancel()
        async with asyncio.timeout(1):
            with pytest.raises(asyncio.CancelledError):
                await flooding
        proxy.release()
        await mesh.transport.flush()


async def test_a_peer_that_no_longer_reads_is_left(proxy, clock):
    """With unsent data a polite close would wait for it for ever."""
    async with connect(proxy.url) as mesh:
        await proxy.stall(mesh)
        proxy.hold_replies()
        await clock.advance(31)  # three pings of ten seconds without an answer
        # The first connection is still held.
        for _ in range(300):
            if proxy.connections == 2 and mesh.transport.is_connected:
                break
            await clock.advance(0.1)
            await asyncio.to_thread(time.sleep, 0.01)
        assert proxy.connections == 2
        await mesh.transport.flush()


async def test_close_ends_whatever_the_server_does(proxy, clock):
    async with connect(proxy.url) as mesh:
        await mesh.publish("one")
        await proxy.stall(mesh)
        proxy.hold_replies()
        closing = asyncio.create_task(mesh.transport.close())
        await clock.advance(6)
        async with asyncio.timeout(60):
            await closing


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_while_the_block_closes_leaves_no_connection_and_no_task(proxy, turns):
    before = asyncio.all_tasks()
    ending = asyncio.Event()
    meshes = []

    async def use():
        async with connect(proxy.url) as mesh:
            meshes.append(mesh)
            await mesh.transport.flush()
            proxy.hold_replies()
            ending.set()

    using = asyncio.create_task(use())
    await ending.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert meshes[0].transport._client.is_closed
    proxy.release()
    await until(lambda: asyncio.all_tasks() <= before)


async def test_a_subscription_whose_drain_was_cancelled_does_not_come_back(proxy, nats_server):
    heard = []
    async with connect(proxy.url) as mesh, connect(nats_server.url) as other:
        interest = await mesh.transport.subscribe("drained", heard.append)
        await mesh.transport.flush()
        proxy.hold_replies()
        drain = asyncio.create_task(interest.drain())
        await asyncio.sleep(0)
        drain.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drain
        proxy.cut()
        await until(lambda: proxy.connections == 2 and mesh.transport.is_connected)
        await mesh.transport.flush()
        await other.publish("drained")
        await other.transport.flush()
        await mesh.transport.flush()
    assert heard == []


async def test_close_while_disconnected(server):
    """With an event still unsent, which nats-py tried to write to the dead socket."""
    async with connect(server.url) as mesh:
        await asyncio.to_thread(server.kill)
        mesh.transport._client._pending.append(b"PUB late 0\r\n\r\n")
        mesh.transport._client._pending_data_size += 14
        await until(lambda: not mesh.transport.is_connected)


async def test_a_long_outage_is_one_warning(server, caplog):
    async with connect(server.url) as mesh:
        await asyncio.to_thread(server.kill)
        await until(lambda: mesh.transport._attempts > 3)
        await asyncio.to_thread(server.restart)
        await until(lambda: mesh.transport.is_connected)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) <= 3  # broken; what nats-py says of that; the first attempt that failed


async def test_reconnects_are_jittered_and_bounded(mesh):
    from nats.aio.client import Server

    server = Server(uri=mesh.transport._client.connected_url, reconnects=0)
    delays = [mesh.transport._next_server([server], {})[1] for _ in range(100)]
    assert all(0 <= delay <= 2 for delay in delays)
    assert max(delays[:2]) <= 0.2
    assert max(delays[10:]) > 0.5
    assert len(set(delays)) == 100


async def test_a_dead_server_of_a_cluster_is_tried_last(mesh):
    from urllib.parse import urlparse

    from nats.aio.client import Server

    alive = Server(uri=urlparse("nats://a:4222"), reconnects=0)
    dead = Server(uri=urlparse("nats://b:4222"), reconnects=3)
    for _ in range(20):
        assert mesh.transport._next_server([dead, alive], {})[0] is alive


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "http://localhost:4222"}, "is no address of a NATS server"),
        ({"url": "nats://localhost:port"}, "is no address of a NATS server"),
        ({"credentials": "/nowhere.creds"}, "credentials file '/nowhere.creds' does not exist"),
        ({"nkey": "/nowhere.nk"}, "nkey file '/nowhere.nk' does not exist"),
        ({"tls_ca": "/nowhere.pem"}, "TLS CA file '/nowhere.pem' does not exist"),
        ({"tls_key": __file__}, "without its certificate"),
        ({"tls_ca": __file__}, "are of no use"),
        ({"nkey": __file__}, "it does not begin with SU"),
        ({"credentials": __file__}, "it does not begin with -----BEGIN NATS USER JWT-----"),
        ({"url": "nats://[::1"}, "is no address of a NATS server"),
        ({"url": "ho st"}, "is no address of a NATS server"),
        ({"url": "nats://a:1,ws://b:2"}, "WebSocket addresses and others do not mix"),
        ({"user": "ann"}, "a NATS user and a password go together"),
        ({"user": "ann", "password": "x", "token": "y"}, "user and token are given"),
        ({"codec": "xml"}, "codec 'xml' is not known; write json or msgpack"),
    ],
)
async def test_options_of_no_use_are_refused(options, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        async with connect(**options):
            pass


async def test_who_says_how_to_log_in_means_that(nats_server, monkeypatch):
    monkeypatch.setenv("NATS_USER", "somebody")
    monkeypatch.setenv("NATS_CREDS", "/nowhere.creds")
    async with connect(nats_server.url, token="x"):
        pass
    with pytest.raises(ConfigError, match=r"credentials file '/nowhere.creds'"):
        async with connect(nats_server.url):
            pass


async def test_one_server_that_refuses_does_not_keep_from_another(secured, nats_server):
    for _ in range(5):
        async with connect([secured[0].url, nats_server.url]) as mesh:
            assert mesh.transport.server_url == nats_server.url


async def test_a_connection_that_breaks_at_once_is_not_taken_for_one():
    """After the handshake, before anything else."""

    async def shake_hands(reader, writer):
        writer.write(b'INFO {"server_id":"x","version":"2.11.0","max_payload":1000000,"headers":true}\r\n')
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(shake_hands, "127.0.0.1", 0)
    async with connect(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}") as mesh:
        for _ in range(5):
            with pytest.raises((Disconnected, ConnectionLost)):
                await mesh.call("x", timeout=0.02)
    server.close()
    await server.wait_closed()


async def test_after_the_end_everything_says_so(nats_server):
    async with connect(nats_server.url) as mesh:
        pass
    for use in (mesh.call("x"), mesh.publish("x"), mesh.services()):
        with pytest.raises(Disconnected, match="is closed"):
            await use


def test_tls_context_asks_for_verification(tls, monkeypatch):
    from meshkit.transport.options import options

    monkeypatch.setenv("NATS_CA", str(tls[1] / "ca.pem"))
    context = options("nats://localhost").tls
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert options("tls://localhost").tls.verify_mode is ssl.CERT_REQUIRED


def test_importing_the_package_does_not_import_nats_py():
    code = "import meshkit, sys; sys.exit(any(name in sys.modules for name in ('nats', 'click', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
