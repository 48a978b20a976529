"""`meshkit trace`, against real servers of a cluster."""

import asyncio
import json
import re

import network
import pytest

from meshkit import connect


@pytest.fixture
def as_user(meshkit, servers):
    """Runs `meshkit ARGUMENTS` on the first server."""

    async def run(*arguments, user="ann", server=None, **options):
        url = (server or servers.routers[0]).url
        return await meshkit(
            *arguments, NATS_URL=url, NATS_USER=user, NATS_PASSWORD=network.PASSWORD, **options
        )

    return run


def without_numbers(out):
    """The output, with the times and the numbers of connections left out."""
    return re.sub(r"(?m)^ *\d+\.\d{3} ms", "      TIME", re.sub(r"\b([crgl]id):\d+", r"\1:N", out))


async def test_the_route_through_a_cluster(as_user, servers):
    listening = connect(servers.routers[1].url, name="rooms/1.0.0/a1", user="ann", password=network.PASSWORD)
    async with listening as mesh:
        got = []
        await mesh.transport.subscribe("hello", got.append, "rooms")
        await mesh.transport.flush()
        async with asyncio.timeout(15):
            while (told := await as_user("trace", "hello", '{"room": 12}'))[0]:
                pass
    code, out, err = told
    version = servers.routers[0].version
    assert (code, err) == (0, "")
    assert (
        without_numbers(out)
        == f"""\
Path of a message to hello, which is not delivered

           Client "meshkit" cid:N cluster:"near" server:"s0" version:"{version}"
      TIME --> Router "s1" rid:N
      TIME     Router "s0" rid:N server:"s1" version:"{version}"
      TIME     --C Client "rooms/1.0.0/a1" cid:N subject:"hello" queue:"rooms"

Legend: --C Client --> Router ==> Gateway ~~> Leafnode --J JetStream --X Error

Egress count:
    Router: 1
    Client: 1
"""
    )
    assert got == []


async def test_a_denied_subject(as_user):
    code, out, err = await as_user("trace", "secret.room", user="bob")
    assert code == 1
    assert '--X Permissions Violation for Publish to "secret.room"' in out
    assert err.endswith('meshkit: s0: Permissions Violation for Publish to "secret.room"\n')


async def test_nobody_listens(as_user):
    code, out, err = await as_user("trace", "nobody.is.here")
    assert (code, err) == (1, "meshkit: nobody listens on 'nobody.is.here'\n")
    assert "           --X nobody listens\n" in out


async def test_an_account_that_lets_no_trace_in(as_user):
    code, out, err = await as_user("trace", "sum.hidden")
    assert (code, err) == (0, "")
    assert 'Service Import from:"sum.hidden" to:"sum.hidden" account:"B"' in out
    assert 'account "B" does not let the trace in (allow_trace), or nobody listens there' in out


async def test_json(as_user):
    code, out, _ = await as_user("trace", "secret.room", "--json", user="bob")
    assert code == 1
    path = json.loads(out)
    assert path["errors"] == ['s0: Permissions Violation for Publish to "secret.room"']
    assert path["origin"]["server"] == "s0"


async def test_delivered_with_headers(as_user, servers):
    async with connect(servers.leaf.url) as mesh:
        got = []
        await mesh.transport.subscribe("leaf.>", got.append)
        await mesh.transport.flush()
        code, out, _ = await as_user(
            *("trace", "leaf.x", "-", "--deliver", "-H", "X-Room: 12", "--timeout", "500ms"),
            server=servers.leaf,
            stdin=b'"hi"',
        )
    assert code == 0
    assert out.startswith("Path of a message to leaf.x, which is delivered\n")
    (message,) = got
    assert (message.payload, message.headers["X-Room"]) == (b'"hi"', "12")


async def test_names_do_not_drive_the_terminal(on_terminal, nats_server):
    async with connect(nats_server.url, name="evil\x1b[2J\nname") as mesh:
        await mesh.transport.subscribe("evil", lambda message: None)
        await mesh.transport.flush()
        shown = await on_terminal("trace", "evil")
    assert "\x1b" not in shown
    assert 'Client "evil [2J name"' in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["hello.*"], "contains a wildcard"),
        (["hello", "{"], "the message is not JSON"),
        (["hello", "--header", "room"], "write NAME:VALUE"),
        (["hello", "--timeout", "soon"], "seconds above 0"),
    ],
)
async def test_usage(meshkit, arguments, error):
    code, _, err = await meshkit("trace", *arguments)
    assert code == 2
    assert error in err


async def test_no_server(meshkit):
    code, out, err = await meshkit("trace", "hello", "--nats", "nats://127.0.0.1:1")
    assert (code, out) == (69, "")
    assert "cannot connect to NATS" in err


async def test_a_header_that_asks_for_a_trace_itself(meshkit):
    code, _, err = await meshkit("trace", "hello", "--header", "Nats-Trace-Dest: mine")
    assert code == 2
    assert "Nats-Trace-Dest is set by the trace itself" in err
