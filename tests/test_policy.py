"""Policies: what their fields may be, what files say, and what holds when several apply."""

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import (
    CallPolicy,
    ConfigError,
    DeclarationError,
    Policies,
    RateLimit,
    ServePolicy,
    Service,
    connect,
)
from meshkit.knobs import seconds
from meshkit.policies import Source, load, put_together
from meshkit.policy import CALL_DEFAULTS, ENDPOINT_DEFAULTS, SERVICE_DEFAULTS, SHARED, in_words, read
from meshkit.subject import Pattern

# Fields


@pytest.mark.parametrize(
    ("text", "value"),
    [("250ms", 0.25), ("1.5s", 1.5), ("2m", 120), ("7d", 604800), (" 3 s ", 3), (0.5, 0.5), (7, 7)],
)
def test_durations(text, value):
    assert seconds(text) == value
    assert CallPolicy(timeout=text) == CallPolicy(timeout=value)
    assert CallPolicy(timeout=text).timeout == value


@pytest.mark.parametrize(
    "value",
    ["5", "", "s", "-1s", "1 day", "1e3s", "0ms", "1,5s", 0, -1, True, [], float("inf"), float("nan"), 1e9],
)
def test_what_is_no_duration(value):
    with pytest.raises(ValueError, match=r"timeout is seconds above 0, or text such as '250ms', not"):
        CallPolicy(timeout=value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"idempotent": 1}, "idempotent is true or false, not 1"),
        (
            {"attempt_timeout": "x"},
            "attempt_timeout is seconds above 0, or text such as '250ms', or None (in",
        ),
        ({"retries": -1}, "retries is a whole number from 0, not -1"),
        ({"retries": True}, "retries is a whole number from 0, not True"),
        ({"retries": 1.5}, "retries is a whole number from 0, not 1.5"),
        ({"retry_codes": [200]}, "retry_codes is a list of error codes, numbers from 400, not [200]"),
        ({"retry_codes": 500}, "retry_codes is a list of error codes, numbers from 400, not 500"),
        ({"retry_budget": 1.1}, "retry_budget is a number from 0 to 1, or text such as '10%', not 1.1"),
        ({"retry_reserve": -0.1}, "retry_reserve is a number from 0, not -0.1"),
        ({"hedge": "p99"}, "hedge is seconds above 0, or text such as '250ms', or 'p95', or None (in"),
        ({"breaker": "off"}, "breaker is true or false, not 'off'"),
        ({"breaker_failures": 0}, "breaker_failures is a whole number from 1, not 0"),
        ({"breaker_success": 80}, "breaker_success is a number from 0 to 1, or text such as '10%', not 80"),
        (
            {"rate_limit": "many"},
            "rate_limit is text such as '100/second', several of them, or limits with by,",
        ),
        ({"concurrency": 0}, "concurrency is a whole number from 1, or None (in a file: false), not 0"),
        ({"priority": "high"}, "priority is 'sheddable' or 'default' or 'critical', or None (in"),
        ({"priority": ["critical"]}, "priority is 'sheddable' or 'default' or 'critical', or None (in"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(fields, sentence):
    with pytest.raises(ValueError, match="is") as error:
        CallPolicy(**fields)
    assert str(error.value).startswith(sentence)
    with pytest.raises(ConfigError) as error:
        read(CallPolicy, fields, "here")
    assert str(error.value).startswith(f"here, {sentence}")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"timeout": 5e-10}, ", or text such as '250ms', not 5e-10; the least is a microsecond"),
        ({"retry_codes": 500}, "retry_codes is a list of error codes, numbers from 400, not 500"),
        ({"retry_codes": range(400, 501)}, ", not range(400, 501); there may be 100 at most"),
        ({"rate_limit": True}, "or None (in a file: false), not True"),
        ({"rate_limit": {"by": "caller"}}, "or None (in a file: false), not {'by': 'caller'}"),
        ({"rate_limit": {1: 2, "per": 3}}, "or None (in a file: false), not {1: 2, 'per': 3}"),
    ],
)
def test_the_words_are_meshkits_own(fields, sentence):
    with pytest.raises(ValueError, match="is") as error:
        CallPolicy(**fields)
    assert str(error.value).endswith(sentence)


def test_what_strangers_announce_does_not_fill_the_log():
    with pytest.raises(ConfigError) as error:
        read(CallPolicy, {"retry_codes": [500] * 100_000}, "here")
    assert len(str(error.value)) < 500


def test_an_unknown_field_is_told_with_those_there_are():
    with pytest.raises(TypeError):
        CallPolicy(retrys=1)
    with pytest.raises(
        ConfigError, match=r"^here: unknown field 'retries'; the fields here are timeout, rate_"
    ):
        read(ServePolicy, {"retries": 1}, "here")


@pytest.mark.parametrize("name", ["attempt_timeout", "hedge", "rate_limit", "concurrency", "priority"])
def test_false_is_a_files_none(name):
    assert read(CallPolicy, {name: False}, "") == CallPolicy(**{name: None})


def test_false_is_nothing_where_there_is_no_none():
    with pytest.raises(ValueError, match="timeout is seconds"):
        CallPolicy(timeout=False)
    assert ServePolicy(timeout=False).timeout is None


def test_a_policy_says_what_it_was_given_and_nothing_else():
    policy = CallPolicy(timeout="1s", hedge=None)
    assert policy.said() == {"timeout": 1.0, "hedge": None}
    assert msgspec.json.encode(policy) == b'{"timeout":1.0,"hedge":null}'
    assert msgspec.json.decode(b'{"timeout":1.0,"hedge":null}', type=CallPolicy) == policy
    assert not CallPolicy().said()


def test_the_defaults_say_everything():
    assert list(CALL_DEFAULTS.said()) == list(CallPolicy.__struct_fields__)
    for defaults in (SERVICE_DEFAULTS, ENDPOINT_DEFAULTS):
        assert list(defaults.said()) == list(ServePolicy.__struct_fields__)
    assert set(SHARED) < set(CallPolicy.__struct_fields__)


def test_the_page_has_every_knob_with_its_default():
    page = (Path(__file__).parent.parent / "docs" / "resilience.md").read_text()
    for kind, defaults in ((CallPolicy, CALL_DEFAULTS), (ServePolicy, SERVICE_DEFAULTS)):
        section = page.partition(f"### {kind.__name__}\n")[2].partition("\n#")[0]
        listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
        assert listed == {name: in_words(kind, name, value) for name, value in defaults.said().items()}


# Rate limits


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ("100/second", RateLimit(("100/second",))),
        (["5 per 2 minutes", "100/hour"], RateLimit(("5 per 2 minutes", "100/hour"))),
        (RateLimit("1/second", by="caller"), RateLimit(("1/second",), by="caller", window="moving")),
        ({"limits": "1/second", "by": "field:guest.id"}, RateLimit("1/second", by="field:guest.id")),
        ({"limits": ["1/second"], "scope": "mesh"}, RateLimit("1/second", scope="mesh", window="fixed")),
        ({"limits": "1/second", "window": "sliding"}, RateLimit("1/second", window="sliding")),
        ({"limits": "1/second", "by": "header:X-Tenant"}, RateLimit("1/second", by="header:X-Tenant")),
    ],
)
def test_rate_limits(given, limit):
    assert read(ServePolicy, {"rate_limit": given}, "").rate_limit == limit


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("100", "a rate limit is text such as '100/second' or '5 per 2 minutes', not '100'"),
        ("0/second", "not '0/second'"),
        ([], "a rate limit is text such as '100/second', or several"),
        (5, "rate_limit is text such as"),
        ({"by": "caller"}, "rate_limit is text such as"),
        ("5 per 0 minutes", "a rate limit is text such as '100/second' or '5 per 2 minutes', not '5 per 0 m"),
        ("5/00second", "not '5/00second'"),
        ([5], "a rate limit is text such as '100/second' or '5 per 2 minutes', not 5"),
        ([["5/second"]], "not ['5/second']"),
        (["5/second"] * 11, "a rate limit is text such as '100/second', or several, 10 at most"),
        (";".join(["5/second"] * 20), "not '5/second;5/second;"),
        ({"limits": "1/second", "by": 5}, "by is empty, 'caller', 'header:NAME' or 'field:NAME', not 5"),
        ({"limits": "1/second", "per": "caller"}, "per is none of limits, by, window, scope"),
        (
            {"limits": "1/second", "by": "guest"},
            "by is empty, 'caller', 'header:NAME' or 'field:NAME', not 'guest'",
        ),
        ({"limits": "1/second", "by": "field:"}, "by is empty, 'caller'"),
        ({"limits": "1/second", "by": "header:a b"}, "by is empty, 'caller'"),
        ({"limits": "1/second", "window": "round"}, "window is moving, fixed, sliding, not 'round'"),
        ({"limits": "1/second", "scope": "all"}, "scope is instance or mesh, not 'all'"),
        (
            {"limits": "1/second", "scope": "mesh", "window": "moving"},
            "a limit of scope 'mesh' has a fixed window",
        ),
    ],
)
def test_what_is_no_rate_limit(given, why):
    with pytest.raises(ConfigError) as error:
        read(ServePolicy, {"rate_limit": given}, "here")
    assert str(error.value).startswith("here, rate_limit is ")
    assert why in str(error.value)


@pytest.mark.parametrize("limits", [5, None, {"5/second": 1}, [5], [["5/second"]], (), "5 per 0 minutes"])
def test_what_is_no_rate_limit_in_code(limits):
    with pytest.raises(ValueError, match=r"^a rate limit is text such as '100/second'"):
        RateLimit(limits)


def test_a_time_may_begin_with_a_zero():
    assert RateLimit("5 per 05 minutes").limits == ("5 per 05 minutes",)


# In words


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        (CallPolicy, "timeout", 0.25, "250ms"),
        (CallPolicy, "timeout", 1.5, "1.5s"),
        (CallPolicy, "timeout", 90.0, "90s"),
        (CallPolicy, "breaker_open_most", 60.0, "1m"),
        (CallPolicy, "timeout", 7200.0, "2h"),
        (CallPolicy, "hedge", 0.1, "100ms"),
        (CallPolicy, "hedge", "p95", "p95"),
        (CallPolicy, "hedge", None, "none"),
        (CallPolicy, "retry_budget", 0.2, "0.2"),
        (CallPolicy, "retry_reserve", 10.0, "10"),
        (CallPolicy, "retry_codes", (500, 502), "500, 502"),
        (CallPolicy, "idempotent", False, "false"),
        (CallPolicy, "retries", 2, "2"),
        (ServePolicy, "rate_limit", RateLimit(["5/second", "9/minute"]), "5/second, 9/minute"),
        (CallPolicy, "rate_limit", RateLimit("5/second", window="sliding"), "5/second, sliding window"),
        (
            ServePolicy,
            "rate_limit",
            RateLimit("5/second", by="caller", scope="mesh"),
            "5/second, by caller, scope mesh",
        ),
    ],
)
def test_in_words(kind, name, value, words):
    assert in_words(kind, name, value) == words


@given(st.floats(0, 1e8) | st.floats(0, 1e-5))
def test_durations_in_words_are_durations(value):
    try:
        timeout = CallPolicy(timeout=value).timeout
    except ValueError:
        assert value < 1e-6
    else:
        assert seconds(in_words(CallPolicy, "timeout", timeout)) == pytest.approx(value, rel=1e-9)


# In code


def test_an_argument_and_a_policy_are_one():
    service = Service("rooms", timeout="2s", call=CallPolicy(hedge="p95"), serve=ServePolicy(adaptive=True))
    assert service.call == CallPolicy(timeout=2, hedge="p95")
    assert service.serve == ServePolicy(timeout=2, adaptive=True)

    @service.endpoint(rate_limit="5/second", idempotent=True, call=CallPolicy(retries=1))
    async def book() -> None: ...

    assert book.call == CallPolicy(idempotent=True, retries=1)
    assert book.serve == ServePolicy(rate_limit="5/second")
    policy, stands = put_together(book.call_policies)
    assert vars(policy) == {"timeout": 2, "hedge": "p95", "idempotent": True, "retries": 1}
    assert (stands["timeout"], stands["retries"]) == ("service rooms", "endpoint rooms.book")


def test_an_endpoint_has_its_services_timeout_and_backlog_but_bounds_of_its_own():
    service = Service("rooms", timeout=2, backlog=5, concurrency=3, rate_limit="9/second")

    @service.endpoint(concurrency=1)
    async def book() -> None: ...

    assert vars(put_together(book.serve_policies)[0]) == {"timeout": 2, "backlog": 5, "concurrency": 1}


def test_what_is_said_twice_is_refused():
    with pytest.raises(
        DeclarationError, match=r"'rooms': timeout is given twice, by itself and in its CallP"
    ):
        Service("rooms", timeout=1, call=CallPolicy(timeout=2))
    service = Service("rooms")
    with pytest.raises(
        DeclarationError, match=r"book\(\): concurrency is given twice, by itself and in its Serv"
    ):

        @service.endpoint(concurrency=1, serve=ServePolicy(concurrency=2))
        async def book() -> None: ...


@pytest.mark.parametrize("wrong", [{"retries": 3}, "x", 0, ServePolicy(concurrency=1)])
async def test_what_is_no_policy_of_a_call(mesh, wrong):
    sentence = f"policy is a CallPolicy, such as CallPolicy(timeout='1s'), not {wrong!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        await mesh.call("rooms.price", policy=wrong)
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        mesh.stream("rooms.price", policy=wrong)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"call": ServePolicy(timeout=3)}, "call is a CallPolicy, such as CallPolicy(timeout='1s'), not Ser"),
        (
            {"call": {"retries": 3}},
            "call is a CallPolicy, such as CallPolicy(timeout='1s'), not {'retries': 3",
        ),
        (
            {"serve": CallPolicy()},
            "serve is a ServePolicy, such as ServePolicy(timeout='1s'), not CallPolicy()",
        ),
        ({"serve": 5}, "serve is a ServePolicy, such as ServePolicy(timeout='1s'), not 5"),
    ],
)
def test_what_is_no_policy_of_a_declaration(options, sentence):
    with pytest.raises(DeclarationError, match=re.escape(f"service 'rooms': {sentence}")):
        Service("rooms", **options)
    service = Service("rooms")
    with pytest.raises(DeclarationError, match=re.escape(f"endpoint book(): {sentence}")):

        @service.endpoint(**options)
        async def book() -> None: ...

    assert service.endpoints == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"call": {"a.>": {"retries": 1}}},
            "Policies: call['a.>'] is a CallPolicy, such as CallPolicy(timeout='1s'), not {'retries': 1}",
        ),
        (
            {"call": {"a.>": ServePolicy()}},
            "call['a.>'] is a CallPolicy, such as CallPolicy(timeout='1s'), no",
        ),
        (
            {"serve": {"a.>": CallPolicy()}},
            "serve['a.>'] is a ServePolicy, such as ServePolicy(timeout='1s'),",
        ),
        (
            {"call": CallPolicy()},
            "Policies: call maps subject patterns to policies, such as {'rooms.>': Call",
        ),
        (
            {"serve": "x"},
            "Policies: serve maps subject patterns to policies, such as {'rooms.>': ServePolicy(",
        ),
        ({"call": {5: CallPolicy()}}, "subject 5 is no text"),
    ],
)
def test_what_are_no_policies(options, sentence):
    with pytest.raises(DeclarationError, match=re.escape(sentence)):
        Policies(**options)


@pytest.mark.parametrize("wrong", [{"call": {"a.>": {"retries": 1}}}, CallPolicy(), 5])
async def test_what_are_no_policies_of_a_connection(wrong):
    sentence = (
        "policies is a file such as 'meshkit.toml', or Policies(call={'rooms.>': CallPolicy(...)}), not "
    )
    with pytest.raises(ConfigError, match=re.escape(sentence + repr(wrong))):
        async with connect(policies=wrong):
            pass


def test_a_service_as_a_whole_has_a_bound():
    for options in ({"concurrency": None}, {"serve": ServePolicy(concurrency=None)}):
        with pytest.raises(
            DeclarationError,
            match=r"^service 'rooms': concurrency is a whole number from 1 .* leave it out for 256$",
        ):
            Service("rooms", **options)


@pytest.mark.parametrize("options", [{}, {"concurrency": None}])
def test_an_endpoint_that_adapts_has_a_bound(options):
    service = Service("rooms", serve=ServePolicy(adaptive=True))
    with pytest.raises(
        DeclarationError, match=r"book\(\) \(.*\): adaptive needs concurrency, the most that it may be; give"
    ):

        @service.endpoint(**options, serve=ServePolicy(adaptive=True))
        async def book() -> None: ...


@pytest.mark.parametrize(
    ("declared", "file", "who"),
    [
        ({}, {"adaptive": True}, 'connect(policies=...) [serve."rooms.*"]'),
        (
            {"concurrency": 5, "serve": ServePolicy(adaptive=True)},
            {"concurrency": None},
            "endpoint rooms.book",
        ),
    ],
)
async def test_an_endpoint_that_a_file_makes_adapt_has_a_bound(nats_server, declared, file, who):
    service = Service("rooms")

    @service.endpoint(**declared)
    async def book() -> None: ...

    policies = Policies(serve={"rooms.*": ServePolicy(**file)})
    async with connect(nats_server.url, policies=policies) as mesh:
        sentence = f"{who}, for 'rooms.book': adaptive needs concurrency, the most that it may be; give both"
        with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
            async with mesh.serve(service):
                pass


# Put together


@st.composite
def patterns(draw, subject):
    """A pattern that matches a subject."""
    tokens = [draw(st.sampled_from([token, "*"])) for token in subject.split(".")]
    end = draw(st.integers(0, len(tokens)))
    return ".".join([*tokens[:end], ">"] if end < len(tokens) else tokens)


@given(patterns("a.b.c.d"), patterns("a.b.c.d"))
def test_precision_is_an_order_in_which_what_covers_comes_first(one, other):
    mine, theirs = Pattern(one), Pattern(other)
    assert (mine.precision == theirs.precision) == (one == other)
    if mine.covers(other):
        assert mine.precision <= theirs.precision


fields = st.fixed_dictionaries(
    {},
    optional={
        "timeout": st.floats(0.001, 60),
        "retries": st.integers(0, 9),
        "hedge": st.sampled_from([None, "p95"]),
        "idempotent": st.booleans(),
    },
)


@given(st.lists(fields, max_size=5))
def test_the_strongest_that_says_something_of_a_field_has_it(said):
    policy, stands = put_together([Source(CallPolicy(**one), str(number)) for number, one in enumerate(said)])
    for name in CallPolicy.__struct_fields__:
        who = [number for number, one in enumerate(said) if name in one]
        assert hasattr(policy, name) == (name in stands) == bool(who)
        if who:
            assert getattr(policy, name) == said[who[-1]][name]
            assert stands[name] == str(who[-1])


def test_the_more_specific_pattern_wins_field_by_field():
    mine = Policies(
        {
            "hotel.rooms.*.price": CallPolicy(timeout=3),
            "hotel.rooms.12.price": CallPolicy(hedge="p95"),
            ">": CallPolicy(timeout=1, retries=1, hedge="1s", backlog=1),
            "hotel.>": CallPolicy(timeout=2, retries=2),
            "hotel.bills.>": CallPolicy(timeout=9),
        },
        where="meshkit.toml",
    )
    policy, stands = put_together(mine.for_call("hotel.rooms.12.price"))
    assert vars(policy) == {"timeout": 3, "retries": 2, "hedge": "p95", "backlog": 1}
    assert stands == {
        "timeout": 'meshkit.toml [call."hotel.rooms.*.price"]',
        "retries": 'meshkit.toml [call."hotel.>"]',
        "hedge": 'meshkit.toml [call."hotel.rooms.12.price"]',
        "backlog": 'meshkit.toml [call.">"]',
    }


def test_policies_in_code():
    mine = Policies({"rooms.>": CallPolicy(retries=1)})
    assert mine.for_call("rooms.price")[0].where == 'connect(policies=...) [call."rooms.>"]'
    with pytest.raises(DeclarationError, match=r"subject 'rooms\.\.price' has an empty token"):
        Policies(serve={"rooms..price": ServePolicy()})


def test_an_endpoints_policies_are_those_for_all_of_its_subjects():
    mine = Policies(serve={"rooms.>": ServePolicy(backlog=1), "rooms.12.price": ServePolicy(backlog=2)})
    assert [source.policy.backlog for source in mine.for_endpoint("rooms.*.price")] == [1]


@pytest.mark.parametrize(
    ("pattern", "differs"),
    [
        ("rooms.12.*", True),
        ("rooms.*.price", False),
        ("rooms.>", False),
        ("bills.>", False),
        ("*.1.price", True),
    ],
)
def test_whether_subjects_of_an_endpoint_differ(pattern, differs):
    mine = Policies({pattern: CallPolicy(timeout=1)})
    assert mine.distinguish(Pattern("rooms.{room}.price")) is differs


# Files


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path.joinpath("meshkit.toml").relative_to(tmp_path)


def test_a_file(file):
    file.write_text("""
        nats = "nats://nobody"
        [services.rooms]
        [call."hotel.>"]
        timeout = "250ms"
        hedge = false
        [call."hotel.{room}.price"]
        retry_codes = [500, 502]
        [serve."hotel.>"]
        rate_limit = { limits = ["5/second", "50/minute"], by = "caller" }
    """)
    assert load(file) == Policies(
        {
            "hotel.>": CallPolicy(timeout=0.25, hedge=None),
            "hotel.{room}.price": CallPolicy(retry_codes=(500, 502)),
        },
        {"hotel.>": ServePolicy(rate_limit=RateLimit(["5/second", "50/minute"], by="caller"))},
        "meshkit.toml",
    )


def test_a_file_without_policies(file):
    file.write_text('nats = "nats://nobody"')
    assert load(file) == Policies(where="meshkit.toml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[call", "meshkit.toml: not valid TOML: "),
        (
            '[calls."a.>"]\nretries = 0\n[services.rooms]',
            "meshkit.toml: unknown field 'calls'; the fields here are services, nats, call, serve",
        ),
        ("call = 1", 'meshkit.toml: write [call."subject.pattern"] with the fields below it'),
        ("[call]\ntimeout = 1", 'meshkit.toml: write [call."subject.pattern"] with the fields below it'),
        ("[serve]\nbacklog = 1", 'meshkit.toml: write [serve."subject.pattern"] with the fields below it'),
        ("[call.a.b.c]\nretries = 1", 'meshkit.toml, [call."a"]: a subject stands in quotes: [call."a.b"]'),
        ('[call."a..b"]', "meshkit.toml, [call.\"a..b\"]: subject 'a..b' has an empty token"),
        (
            '[call."a"]\nretry = 1',
            "meshkit.toml, [call.\"a\"]: unknown field 'retry'; the fields here are timeout,",
        ),
        (
            '[serve."a"]\nhedge = 1',
            "meshkit.toml, [serve.\"a\"]: unknown field 'hedge'; the fields here are timeout,",
        ),
        (
            '[call."a"]\ntimeout = "5"',
            'meshkit.toml, [call."a"], timeout is seconds above 0, or text such as',
        ),
        (
            '[serve."a"]\nbacklog = 1.5',
            'meshkit.toml, [serve."a"], backlog is a whole number from 0, not 1.5',
        ),
    ],
)
def test_a_wrong_file_is_told_with_its_table_and_field(file, content, sentence):
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        load(file)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(file):
    with pytest.raises(ConfigError, match=r"^meshkit\.toml: cannot be read: No such file"):
        load(file)
