import socket

import network
import pytest


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio", {"debug": False}


@pytest.fixture
def unused_port():
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def recorder(monkeypatch):
    """Connections made after it trace every call; what it has as `spans` is what they sent."""
    from spans import Recorder  # which loads OpenTelemetry

    return Recorder(monkeypatch)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """What `network.py` describes."""
    with network.running(tmp_path_factory.mktemp("network")) as servers:
        yield servers
