import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import connect
from meshkit.headers import check, find, line, parse, render, size

NAMES = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
VALUES = st.text(st.characters(blacklist_characters="\r\n\x00", blacklist_categories=["Cs"]))


@given(st.binary())
def test_any_bytes_parse(raw):
    headers = parse(raw)
    assert all(isinstance(part, str) for item in headers.items() for part in item)


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5))
def test_what_is_written_is_read(headers):
    check(headers)
    head = render(headers)
    # What stands on the wire behind the head is part of what arrives.
    read = parse(head + b"\r\n\r\n")
    assert list(read) == list(headers)
    # Bytes, not text, are stripped on the way: of ASCII white space only.
    assert [value.encode() for value in read.values()] == [
        value.encode().strip() for value in headers.values()
    ]
    for name, value in headers.items():
        assert find(head, f"\r\n{name}:".encode()) == read[name] == parse(line(name, value))[name]
    assert size(head) == len(b"NATS/1.0" + head + b"\r\n\r\n")


def test_an_inline_status():
    assert parse(b" 503\r\n\r\n") == {"Status": "503"}
    assert parse(b" 408 Request Timeout\r\nA: b\r\n\r\n") == {
        "Status": "408",
        "Description": "Request Timeout",
        "A": "b",
    }


@given(st.text(), st.text())
def test_no_header_smuggles_in_another(name, value):
    try:
        check({name: value})
    except ValueError:
        return
    assert not set(name + value) & set("\r\n\x00")
    assert ":" not in name
    assert name


@pytest.mark.parametrize("wrong", [{"a b": "c"}, {"a:b": "c"}, {"": "c"}, {"ä": "c"}])
def test_names_are_tokens(wrong):
    with pytest.raises(ValueError, match="may hold letters"):
        check(wrong)


def test_types_are_strings():
    with pytest.raises(TypeError, match="names and values are strings"):
        check({"a": 1})


async def test_injection_is_refused_before_sending(mesh):
    for injected in ("x\r\nNats-Trace-Dest: spy", "x\r\n\r\nPUB spy 0\r\n\r\n", "x\nY: z"):
        with pytest.raises(ValueError, match="has a line break"):
            await mesh.call("echo", headers={"Note": injected})
        with pytest.raises(ValueError, match="has a line break"):
            await mesh.publish("echo", headers={"Note": injected})
    for injected in ("echo\r\nPUB spy 0", "echo spy", "echo\tx"):
        with pytest.raises(ValueError, match="white space or control"):
            await mesh.call(injected)
        with pytest.raises(ValueError, match="white space or control"):
            await mesh.publish(injected)


async def test_headers_arrive_as_they_were_sent(nats_server):
    async with connect(nats_server.url) as sender, connect(nats_server.url) as taker:
        heard = asyncio.Queue()
        await taker.transport.subscribe("headers", heard.put_nowait)
        await taker.transport.flush()
        await sender.publish("headers", headers={"X-Größe".replace("öß", "oss"): "1,5 m ü. M.", "b": ""})
        assert (await heard.get()).headers == {"X-Grosse": "1,5 m ü. M.", "b": ""}
