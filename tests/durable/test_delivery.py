"""What is read of the reply subjects of JetStream's messages."""

from datetime import UTC, datetime

import pytest

from meshkit.durable.delivery import attempt, delivery, is_delivery, later, message_id, of_consumer

NINE = "$JS.ACK.ORDERS.shop-bill.3.17.42.1700000000000000000.5"
# With a domain and the hash of an account, as a leaf node's JetStream has them.
ELEVEN = "$JS.ACK.hub.AbC123.ORDERS.shop-bill.3.17.42.1700000000000000000.5"
TWELVE = f"{ELEVEN}.random"
UNNAMED = "$JS.ACK._.AbC123.ORDERS.shop-bill.3.17.42.1700000000000000000.5.random.more"


@pytest.mark.parametrize("reply", [NINE, ELEVEN, TWELVE, UNNAMED])
def test_every_form_is_read(reply):
    found = delivery(reply, b"\r\nNats-Msg-Id: one two")
    assert (found.stream, found.consumer, found.sequence, found.attempt) == ("ORDERS", "shop-bill", 17, 3)
    assert (found.pending, found.id) == (5, "one two")
    assert found.time == datetime.fromtimestamp(1_700_000_000, UTC)
    assert attempt(reply) == 3
    assert is_delivery(reply)
    assert of_consumer("ORDERS", "shop-bill")(reply)
    assert not of_consumer("ORDERS", "shop")(reply)
    assert not of_consumer("O.DERS", "shop-bill")(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "$JS.ACK.",
        "$JS.ACK.x",
        "$JS.ACK.a.b.c.d.e.f.g",
        f"{NINE}.more",
        f"x{NINE}",
        NINE.replace("17", "-1"),
        NINE.replace("17", "1" * 20),
        NINE.replace("17", "²"),
        NINE.replace("17", ""),
        f"{NINE}\n",
        "_INBOX.abc.def",
    ],
)
def test_what_is_no_such_subject(reply):
    assert not is_delivery(reply)
    assert not of_consumer("ORDERS", "shop-bill")(reply)


def test_the_largest_numbers_are_read():
    assert delivery(f"$JS.ACK.a.b.{'.'.join(['9' * 19] * 5)}", b"").sequence == 10**19 - 1


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"", "ORDERS.17.1700000000000000000"),
        (b"\r\nNats-Msg-Id:", "ORDERS.17.1700000000000000000"),
        (b"\r\nnats-msg-id:  a b ", "a b"),
        (b"\r\nNats-Msg-Id: new\r\nMesh-Id: old", "old"),
        (b"\r\nNats-Msg-Id: \xff", "�"),
        (b"\r\nX: y\r\nNats-Msg-Id: first\r\nNats-Msg-Id: second", "first"),
    ],
)
def test_the_id_is_that_of_the_first_publisher(head, name):
    assert delivery(NINE, head).id == name
    assert message_id(head) == ("" if name.startswith("ORDERS") else name)


def test_delays_are_nanoseconds():
    assert later(0) == later(-1) == b"-NAK"
    assert later(0.25) == b'-NAK {"delay":250000000}'
