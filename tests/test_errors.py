import math
import pickle

import pytest

import meshkit
from meshkit import (
    BadRequest,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    Forbidden,
    InternalError,
    MeshError,
    NoResponders,
    NotFound,
    Overloaded,
    RateLimited,
    ServiceError,
    Unauthorized,
    Unavailable,
)
from meshkit.errors import from_headers, to_headers
from meshkit.headers import check, render, size

TABLE = [
    (BadRequest, 400, False),
    (Unauthorized, 401, False),
    (Forbidden, 403, False),
    (NotFound, 404, True),
    (RateLimited, 429, False),
    (InternalError, 500, True),
    (meshkit.BadReply, 502, True),
    (meshkit.Cancelled, 499, None),
    (Unavailable, 503, None),
    (NoResponders, 503, False),
    (Overloaded, 503, False),
    (Draining, 503, False),
    (meshkit.Disconnected, 503, False),
    (meshkit.CircuitOpen, 503, False),
    (DeadlineExceeded, 504, None),
    (ConnectionLost, 503, None),
]


@pytest.mark.parametrize(("cls", "code", "executed"), TABLE)
def test_the_table(cls, code, executed):
    error = cls("why")
    assert (error.code, error.executed, error.message) == (code, executed, "why")
    assert str(error) == f"{code} {cls.__name__}: why"
    assert cls().message  # a text of its own, if none is given


@pytest.mark.parametrize(("cls", "code", "executed"), TABLE)
def test_errors_cross_the_wire(cls, code, executed):
    arrived = from_headers(to_headers(cls("why\r\nnot"), "rooms/1"))
    assert arrived.code == code
    assert arrived.message == "why not"
    assert arrived.instance == "rooms/1"
    if cls in {BadRequest, NotFound, RateLimited, InternalError, Overloaded, Draining, DeadlineExceeded}:
        assert type(arrived) is cls
    # Without a nack nobody can know: a handler may raise the same with half of its work done.
    nacked = cls in {
        RateLimited,
        Overloaded,
        Draining,
        NoResponders,
        meshkit.Disconnected,
        meshkit.CircuitOpen,
    }
    assert arrived.executed == (False if nacked else None if executed is False else executed)


def test_only_what_was_not_executed_is_a_nack():
    assert to_headers(Overloaded(), "x")["Mesh-Nack"] == "overloaded"
    assert to_headers(Draining(), "x")["Mesh-Nack"] == "draining"
    assert "Mesh-Nack" in to_headers(RateLimited(), "x")
    # Trying again does not help these, executed or not.
    for error in (BadRequest(), Unauthorized(), Forbidden(), NotFound(), InternalError(), DeadlineExceeded()):
        assert "Mesh-Nack" not in to_headers(error, "x")
    passed_on = NoResponders()
    passed_on.executed = True
    assert "Mesh-Nack" not in to_headers(passed_on, "x")


def test_retry_after_is_in_milliseconds_on_the_wire():
    error = RateLimited("slowly")
    error.retry_after = 1.5
    headers = to_headers(error, "x")
    assert headers["Mesh-Retry-After"] == "1500"
    assert from_headers(headers).retry_after == 1.5


def test_what_is_no_error():
    assert from_headers({}) is None
    assert from_headers({"traceparent": "00-1-1-01"}) is None


@pytest.mark.parametrize("code", ["", "banana", "12", "9" * 5000, "200", "²", "-1"])
def test_a_strange_code_of_another_client_is_500(code):
    assert from_headers({"Nats-Service-Error-Code": code}).code == 500


def test_codes_of_the_services_own():
    arrived = from_headers(to_headers(ServiceError(409, "room 12 is taken"), "rooms/1"))
    assert (type(arrived), arrived.code, arrived.message) == (ServiceError, 409, "room 12 is taken")
    assert from_headers({"Nats-Service-Error-Code": "1210"}).code == 1210
    for wrong in (200, 10_000, 0):
        with pytest.raises(ValueError, match="from 400 to 9999"):
            ServiceError(wrong, "no")


@pytest.mark.parametrize("strange", [KeyError("12"), 12, "\udc80", "x" * 100_000, "a\nb\x1bc"])
def test_whatever_a_handler_raises_can_be_sent(strange):
    error = NotFound(strange)
    error.retry_after = math.inf
    headers = to_headers(error, "rooms/1")
    check(headers)
    assert size(render(headers)) < 5000
    assert from_headers(headers).code == 404


@pytest.mark.parametrize("text", ["9" * 5000, "-1", "soon", "²"])
def test_a_strange_time_to_wait_is_passed_over(text):
    headers = {"Nats-Service-Error-Code": "429", "Mesh-Retry-After": text}
    assert from_headers(headers).retry_after is None


def test_errors_are_copied_and_pickled():
    for error in (ServiceError(409, "taken"), NotFound("no room 12"), NoResponders("nobody")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.code, str(again)) == (type(error), error.code, str(error))


def test_python_finds_them_where_it_looks():
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert issubclass(ConnectionLost, ConnectionError)
    assert issubclass(NotFound, ServiceError)
    assert not issubclass(NoResponders, ServiceError)


def test_an_error_tells_where_it_happened():
    error = Overloaded("full")
    error.target, error.instance, error.attempt, error.elapsed = "hotel.rooms.book", "rooms/7", 2, 0.5
    assert str(error) == "hotel.rooms.book: 503 Overloaded: full (instance rooms/7, attempt 2, 0.500 s)"


def test_the_public_names():
    assert sorted(meshkit.__all__) == list(meshkit.__all__)
    errors = {name for name in meshkit.__all__ if issubclass(type(getattr(meshkit, name)), type)}
    named = [cls for cls in _tree(MeshError) if cls.__module__ == MeshError.__module__]
    declared = {cls.__name__ for cls in named if not cls.__name__.startswith("_")}
    assert declared <= errors
    assert {"Context", "Endpoint", "Mesh", "Service", "connect"} <= set(meshkit.__all__)


def _tree(cls):
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)
