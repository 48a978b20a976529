"""What cannot be declared, each told in a sentence."""

import re

import pytest

from meshkit import DeclarationError, Redeliver, Service, StreamConfig


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "a b", "subjects": ["a"]}, "stream name"),
        ({"name": "A.B", "subjects": ["a"]}, "A.B"),
        ({"name": "A", "subjects": []}, "subjects is a list, such as ['orders.>'], not []"),
        ({"name": "A", "subjects": "orders.>"}, "subjects is a list, such as ['orders.>'], not 'orders.>'"),
        ({"name": "A", "subjects": ["a..b"]}, "has an empty token"),
        ({"name": "A", "subjects": ["$JS.API.>"]}, "belongs to NATS or meshkit"),
        (
            {"name": "A", "subjects": ["a"], "retention": "x"},
            "retention is 'limits' or 'interest' or 'workqueue', not 'x'",
        ),
        ({"name": "A", "subjects": ["a"], "storage": "x"}, "storage is 'file' or 'memory', not 'x'"),
        ({"name": "A", "subjects": ["a"], "discard": None}, "discard is 'old' or 'new', not None"),
        ({"name": "A", "subjects": ["a"], "max_age": "7 days"}, "max_age is"),
        ({"name": "A", "subjects": ["a"], "max_bytes": 0}, "max_bytes"),
        ({"name": "A", "subjects": ["a"], "max_messages": True}, "max_messages"),
        ({"name": "A", "subjects": ["a"], "replicas": 0}, "replicas"),
        ({"name": "A", "subjects": ["a"], "duplicate_window": -1}, "duplicate_window is"),
    ],
)
def test_a_stream_that_cannot_be(arguments, said):
    with pytest.raises(DeclarationError, match=re.escape(said)):
        StreamConfig(**arguments)


ORDERS = StreamConfig("ORDERS", ["orders.>"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stream": "a b"}, "a b"),
        ({"stream": None}, "stream is a StreamConfig or the name of a stream, not None"),
        ({"stream": StreamConfig("B", ["b.>"])}, "stream 'B' keeps b.>, and not 'orders.{kind}'; add that"),
        ({"name": "a.b"}, "a.b"),
        ({"start": "first"}, "start is 'all' or 'new', not 'first'"),
        ({"max_deliver": 0}, "max_deliver"),
        ({"max_deliver": "5"}, "max_deliver"),
        ({"ack_wait": 0}, "ack_wait is"),
        ({"ack_wait": "soon"}, "ack_wait is"),
        ({"retry_delay": -1}, "retry_delay is"),
        ({"retry_delay_most": None}, "retry_delay_most is"),
        ({"deduplicate": 0}, "deduplicate is"),
        (
            {"ordered_by": "customer"},
            "ordered_by is a {parameter} of the subject 'orders.{kind}', not 'customer'",
        ),
        ({"ordered_by": "kind", "partitions": 0}, "partitions"),
        ({"timeout": "x"}, "timeout is"),
        ({"concurrency": 0}, "concurrency is"),
        ({"rate_limit": "x"}, "rate limit"),
    ],
)
def test_a_consumer_that_cannot_be(options, said):
    service = Service("shop")
    with pytest.raises(DeclarationError, match=re.escape(said)):

        @service.consume("orders.{kind}", **{"stream": ORDERS} | options)
        async def work(kind: str) -> None: ...

    assert not service.consumptions


def test_functions_that_cannot_consume():
    service = Service("shop")
    with pytest.raises(DeclarationError, match="yields, and nobody reads what comes of a message"):

        @service.consume("orders.a", stream=ORDERS)
        async def work():
            yield 1

    @service.consume("orders.a", stream=ORDERS)
    async def twice() -> None: ...

    with pytest.raises(DeclarationError, match="has a consumer 'shop-twice' already; give it another name="):

        @service.consume("orders.b", stream=ORDERS, name="shop-twice")
        async def again() -> None: ...


def test_streams_of_a_service_are_streams():
    for wrong in (["ORDERS"], "ORDERS", 7):
        with pytest.raises(DeclarationError, match="streams is a list of StreamConfig, not"):
            Service("shop", streams=wrong)


def test_a_delay_that_is_none():
    for wrong in ("soon", -1, "1 week"):
        with pytest.raises(ValueError, match="delay is"):
            Redeliver(delay=wrong)


@pytest.mark.parametrize("first", ["endpoint", "consumer", "streams"])
def test_a_stream_that_would_answer_calls_is_refused(first):
    stream = StreamConfig("SHOP", ["shop.>"])
    service = Service("shop", streams=[stream] if first == "streams" else [])

    def call():
        @service.endpoint("shop.price")
        async def price() -> int: ...

    def consume():
        @service.consume("shop.orders", stream=stream)
        async def order() -> None: ...

    *before, last = {"endpoint": [call, consume], "consumer": [consume, call], "streams": [call]}[first]
    for step in before:
        step()
    with pytest.raises(
        DeclarationError, match=r"on 'shop.price': stream 'SHOP' keeps 'shop.>', and JetStream"
    ):
        last()


def test_what_is_left_out_is_said():
    service = Service("shop")
    with pytest.raises(DeclarationError, match=r"write @service.consume\(...\), with parentheses"):

        @service.consume
        async def bare() -> None: ...

    with pytest.raises(DeclarationError, match=r"consume\('shop.orders'\) wants stream=, a StreamConfig or"):
        service.consume("shop.orders")
