"""Streams of a test's own on the server that all tests share, and what is said of their messages."""

import secrets

import pytest

from meshkit import StreamConfig
from meshkit.durable import dead
from meshkit.durable.jetstream import JetStream


@pytest.fixture
def subject():
    """The first token of a test's subjects."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def stream(subject):
    """A stream that keeps them."""
    return StreamConfig(subject.upper(), [f"{subject}.>"], storage="memory")


@pytest.fixture
def letters(stream):
    """The dead letters of the stream's messages: `await letters(mesh)`."""

    async def letters(mesh):
        return [letter async for letter in dead.dead_letters(JetStream(mesh.transport), stream.name)]

    return letters


@pytest.fixture
async def said(mesh, stream):
    """What JetStream is told of the stream's messages, in order: `(attempt, verdict)`."""
    told = []
    await mesh.transport.subscribe(
        f"$JS.ACK.{stream.name}.>",
        lambda message: told.append((message.subject.split(".")[4], message.payload)),
    )
    await mesh.transport.flush()
    return told
