import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import BadRequest
from meshkit.codec import JSON, MSGPACK, Decoder, content_type, encode
from meshkit.headers import line


class Thing(msgspec.Struct):
    name: str
    number: int
    share: float
    tags: list[str]
    more: dict[str, int] | None = None


THINGS = st.builds(
    Thing,
    name=st.text(),
    number=st.integers(-(2**63), 2**63 - 1),
    share=st.floats(allow_nan=False, allow_infinity=False),
    tags=st.lists(st.text(), max_size=3),
    more=st.none() | st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1), max_size=3),
)


@given(THINGS, st.sampled_from([JSON, MSGPACK]))
def test_what_is_encoded_is_decoded_again(thing, kind):
    assert Decoder(Thing)(encode(thing, kind), kind) == thing


@given(st.binary(), st.sampled_from([JSON, MSGPACK]), st.sampled_from([Thing, int, str, Any, list[Thing]]))
def test_any_bytes_decode_or_raise_one_kind_of_error(payload, kind, type_):
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        Decoder(type_)(payload, kind)


@given(st.binary())
def test_bytes_pass_as_they_are(payload):
    assert encode(payload, JSON) == encode(payload, MSGPACK) == payload
    assert Decoder(bytes)(payload, JSON) == Decoder(bytes)(payload, MSGPACK) == payload


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_an_empty_payload_is_null(kind):
    assert Decoder(Thing | None)(b"", kind) is None
    assert Decoder(bytes)(b"", kind) == b""
    with pytest.raises(msgspec.ValidationError):
        Decoder(Thing)(b"", kind)


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        (None, JSON),
        ("application/json", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        ("application/msgpack", MSGPACK),
    ],
)
def test_the_content_type_is_read(named, kind):
    assert content_type(line("Content-Type", named) if named else b"") == kind


def test_an_unknown_content_type_is_refused_with_those_that_are_known():
    with pytest.raises(
        BadRequest, match=r"'text/xml' is not understood; send application/json .* application/msgpack"
    ):
        content_type(line("Content-Type", "text/xml"))
