import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import BadRequest, DeclarationError
from meshkit.subject import Pattern, check

TOKEN = st.text(
    st.characters(blacklist_characters=".*>{}", blacklist_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]),
    min_size=1,
).filter(lambda token: not any(character.isspace() for character in token))
NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))


@given(st.lists(TOKEN, min_size=1, max_size=6), st.dictionaries(NAME, TOKEN, max_size=4))
def test_what_is_filled_in_is_read_again(tokens, values):
    pattern = Pattern(".".join(["hotel", *tokens, *(f"{{{name}}}" for name in values)]))
    subject = pattern.fill(values)
    assert check(subject) == subject
    assert pattern.read(subject) == values
    assert subject.count(".") == pattern.wire.count(".")


@given(st.text())
def test_no_value_changes_the_number_of_tokens(value):
    """Whatever the caller puts in, it is one token of the subject or an error."""
    pattern = Pattern("hotel.{room}.price")
    try:
        subject = pattern.fill({"room": value})
    except ValueError as error:
        assert "a value is one token" in str(error)  # noqa: PT017 # both ways are right, and only these
    else:
        assert subject == f"hotel.{value}.price"
        assert len(subject.split(".")) == 3
        assert not set(value) & set(" \t\r\n*>.")


@given(st.text())
def test_any_text_is_a_subject_or_one_sentence(text):
    try:
        check(text)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 # see above
    else:
        assert text
        assert not set(text) & set(" \t\r\n*>")
        assert ".." not in f".{text}."


@pytest.mark.parametrize("token", ["*", ">", "12.>", "a*b", "a b", "", "a\r\nPUB x 0", "a\u2028b"])
def test_wildcards_and_white_space_are_not_smuggled_in(token):
    with pytest.raises(ValueError, match="a value is one token"):
        Pattern("hotel.rooms.{room}.price").fill({"room": token})


@pytest.mark.parametrize("token", ["*", ">"])
def test_a_wildcard_in_a_received_subject_is_no_value(token):
    with pytest.raises(BadRequest, match="is a wildcard, not a value"):
        Pattern("hotel.rooms.{room}.price").read(f"hotel.rooms.{token}.price")


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ("", "is empty"),
        ("hotel rooms", "white space"),
        ("hotel..rooms", "empty token"),
        (".hotel", "empty token"),
        ("hotel.>.rooms", "has `>` before its end"),
        ("hotel.ro*ms", "wildcard inside the token 'ro\\*ms'"),
        ("hotel.room{number}", "a {parameter} is a token of its own"),
        ("x" * 1001, "is longer than 1,000 bytes"),
        ("hotel.\udc80", "control characters"),
        ("hotel.{class}", "is not the name of a parameter"),
        ("hotel.{1}", "is not the name of a parameter"),
        ("hotel.{}", "is not the name of a parameter"),
        ("hotel.{room}.{room}", "stands in it twice"),
        ("$SRV.PING", "belongs to NATS or meshkit"),
        ("_INBOX.x", "belongs to NATS or meshkit"),
        ("_MESH.health", "belongs to NATS or meshkit"),
    ],
)
def test_wrong_patterns_are_refused_with_a_reason(declared, says):
    with pytest.raises(DeclarationError, match=says):
        Pattern(declared)


@pytest.mark.parametrize("declared", ["hotel.*.price", "hotel.>", "hotel", "*", ">", "hotel.{room}.>"])
def test_wildcards_are_fine_where_they_mean_something(declared):
    assert Pattern(declared).wire == declared.replace("{room}", "*")


def test_missing_and_unknown_parameters_are_named():
    pattern = Pattern("hotel.{floor}.{room}")
    with pytest.raises(ValueError, match=r"takes floor, room; check floor, rom"):
        pattern.fill({"room": 1, "rom": 2})
