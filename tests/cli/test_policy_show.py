"""`meshkit policy show`, and what a meshkit.toml means for `meshkit call`."""

import json
import re

import pytest

from meshkit import CallPolicy, Context, ServePolicy, Service

NOBODY = "nats://127.0.0.1:1"
FILE = """
[services.rooms]

[call."hotel.>"]
timeout = "250ms"
breaker_open_most = 90

[call."hotel.rooms.*.price"]
rate_limit = ["100/second", "1000/minute"]

[serve."hotel.rooms.*.price"]
concurrency = 5
"""


@pytest.fixture
def file(tmp_path):
    """The folder's meshkit.toml."""
    file = tmp_path / "meshkit.toml"
    file.write_text(FILE)
    return file


@pytest.fixture
async def rooms(mesh):
    service = Service("rooms", version="1.2.0", timeout="2s", serve=ServePolicy(backlog=1))

    @service.endpoint("hotel.rooms.{room}.price", idempotent=True, call=CallPolicy(hedge="p95"))
    async def price(room: int, ctx: Context) -> float:
        return ctx.remaining

    @service.endpoint("hotel.rooms.{room}.clean", timeout="8s")
    async def clean(room: int, ctx: Context) -> float:
        return ctx.remaining

    async with mesh.serve(service):
        yield service


def tables(out):
    """The printed tables: heading to rows."""
    found = {}
    for block in out.split("\n\n"):
        heading, *rows = [tuple(line.split("\t")) for line in block.splitlines()]
        assert heading[1:] == ("value", "from")
        found[heading[0]] = rows
    return found


async def test_each_field_has_its_value_and_where_that_stands(meshkit, rooms, file):
    code, out, err = await meshkit("policy", "show", "hotel.rooms.12.price")
    assert (code, err) == (0, "")
    shown = tables(out)
    said = [row for row in shown["call"] if row[2] != "default"]
    assert sorted(said) == [
        ("breaker_open_most", "90s", 'meshkit.toml [call."hotel.>"]'),
        ("hedge", "p95", "service rooms 1.2.0 (announced)"),
        ("idempotent", "true", "service rooms 1.2.0 (announced)"),
        ("rate_limit", "100/second, 1000/minute", 'meshkit.toml [call."hotel.rooms.*.price"]'),
        ("timeout", "250ms", 'meshkit.toml [call."hotel.>"]'),
    ]
    # What nobody has said comes last.
    assert shown["call"][: len(said)] == said
    assert {row[0] for row in shown["call"]} == set(CallPolicy.__struct_fields__)
    assert ("retry_delay", "25ms", "default") in shown["call"]
    assert ("attempt_timeout", "none", "default") in shown["call"]
    assert shown["serve"] == [("concurrency", "5", 'meshkit.toml [serve."hotel.rooms.*.price"]')]


async def test_json(meshkit, rooms, file):
    code, out, _ = await meshkit("policy", "show", "hotel.rooms.12.price", "--json")
    shown = json.loads(out)
    assert code == 0
    assert (shown["subject"], shown["target"]) == ("hotel.rooms.12.price", "hotel.rooms.*.price")
    assert shown["call"]["timeout"] == {"value": 0.25, "from": 'meshkit.toml [call."hotel.>"]'}
    assert shown["call"]["retries"] == {"value": 2, "from": "default"}
    assert shown["serve"] == {
        "concurrency": {"value": 5, "from": 'meshkit.toml [serve."hotel.rooms.*.price"]'}
    }


async def test_what_all_subjects_share_is_not_said_of_one(meshkit, rooms, file):
    with file.open("a") as more:
        more.write('[call."hotel.rooms.12.price"]\nrate_limit = "1/second"\nretries = 1')
    shown = tables((await meshkit("policy", "show", "hotel.rooms.12.price"))[1])["call"]
    assert ("retries", "1", 'meshkit.toml [call."hotel.rooms.12.price"]') in shown
    assert (
        "rate_limit",
        "100/second, 1000/minute",
        'meshkit.toml [call."hotel.rooms.*.price"]',
    ) in shown


async def test_without_a_file(meshkit, rooms):
    code, out, err = await meshkit("policy", "show", "hotel.rooms.12.price")
    assert (code, err) == (0, "")
    assert ("timeout", "2s", "service rooms 1.2.0 (announced)") in tables(out)["call"]
    assert "serve" not in tables(out)


async def test_another_file(meshkit, rooms, file, tmp_path):
    (tmp_path / "other.toml").write_text('[call.">"]\nretries = 7')
    code, out, _ = await meshkit("policy", "show", "hotel.rooms.1.price", "--file", "other.toml")
    assert code == 0
    assert ("retries", "7", 'other.toml [call.">"]') in tables(out)["call"]
    assert "meshkit.toml" not in out


async def test_without_a_server_the_rest_is_shown(meshkit, file):
    code, out, err = await meshkit("policy", "show", "hotel.rooms.1.price", NATS_URL=NOBODY)
    assert code == 0
    assert ("timeout", "250ms", 'meshkit.toml [call."hotel.>"]') in tables(out)["call"]
    assert "announced" not in out
    assert re.fullmatch(r"meshkit: what services announce is left out: cannot connect to NATS at .*\n", err)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["show", "hotel rooms"], 2, "Error: subject 'hotel rooms' contains white space"),
        (["show", "hotel.>"], 2, "Error: subject 'hotel.>' contains a wildcard"),
        (["show"], 2, "Error: Missing argument 'SUBJECT'."),
        (["show", "hotel", "--file", "no.toml"], 78, "meshkit: no.toml: cannot be read: No such file"),
        (
            ["show", "hotel"],
            78,
            "meshkit: meshkit.toml, [call.\"a\"]: unknown field 'retry'; the fields here are",
        ),
    ],
)
async def test_mistakes(meshkit, file, arguments, code, sentence):
    file.write_text('[call."a"]\nretry = 1')
    ran = await meshkit("policy", *arguments)
    assert ran[:2] == (code, "")
    assert ran[2].splitlines()[-1].startswith(sentence)


async def test_on_a_narrow_terminal(on_terminal, rooms, file):
    shown = (await on_terminal("policy", "show", "hotel.rooms.12.price")).splitlines()
    assert any(line.startswith("hedge") for line in shown)
    assert all(len(line) <= 60 for line in shown), shown


# meshkit call


async def test_a_call_goes_by_the_folders_file(meshkit, rooms, file):
    code, out, _ = await meshkit("call", "hotel.rooms.1.price")
    assert (code, float(out) < 0.25) == (0, True)
    code, out, _ = await meshkit("call", "hotel.rooms.1.price", "--timeout", "1500ms")
    assert (code, 1 < float(out) < 1.5) == (0, True)
    code, out, _ = await meshkit("call", "hotel.rooms.1.price", "--timeout", "1.5")
    assert (code, 1 < float(out) < 1.5) == (0, True)


async def test_a_call_goes_by_what_is_announced(meshkit, rooms):
    code, out, _ = await meshkit("call", "hotel.rooms.1.clean")
    assert (code, 5 < float(out) <= 8) == (0, True)


async def test_a_call_with_a_wrong_file(meshkit, file):
    file.write_text('[call."a"]\ntimeout = "5"')
    code, out, err = await meshkit("call", "hotel")
    assert (code, out) == (78, "")
    assert err.startswith(
        "meshkit: meshkit.toml, [call.\"a\"], timeout is seconds above 0, or text such as '250ms'"
    )
