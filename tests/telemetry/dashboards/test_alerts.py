"""Each alert fires on what it is for and on nothing else: `promtool` plays hours of a mesh to the rules."""

import json
import re
import subprocess

import pytest
from prometheus import tool

from meshkit import errors
from meshkit.errors import ConfigError
from meshkit.telemetry.dashboards.alerts import alerts, objectives, rules
from meshkit.telemetry.metrics import catalogue as of
from meshkit.telemetry.metrics import monitoring as nats

KEPT = objectives(99.9, 0.5, 99)
UP = f'{of.STARTED.prometheus}{{service_name="rooms", service_instance_id="1"}}', "1x600"


def fires(folder, series, minutes):
    """What fires after some minutes of series with a value a minute: name and severity, and the labels."""
    test = {
        "rule_files": ["alerts.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "promql_expr_test": [
                    {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{minutes}m", "exp_samples": []}
                ],
            }
        ],
    }
    (folder / "alerts.yaml").write_text(rules(KEPT, "runbook.md"))
    (folder / "test.yaml").write_text(json.dumps(test))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", "test.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return {}
    # What was expected is nothing: what it got is all that fires.
    found = re.findall(r'\{__name__="ALERTS", (.*?)\} 1E\+00', done.stderr + done.stdout)
    assert found, done.stdout + done.stderr
    labels = [dict(re.findall(r'(\w+)="(.*?)"', each)) for each in found]
    return {
        (each.pop("alertname"), each.pop("severity")): {
            key: value for key, value in each.items() if key != "alertstate"
        }
        for each in labels
    }


def calls(metric, subject, **a_minute):
    """The counts of calls by outcome: `ok=600, NotFound=3`."""
    for outcome, count in a_minute.items():
        error = "" if outcome == "ok" else outcome.removeprefix("code")
        yield f'{metric.prometheus}_count{{{subject}, error_type="{error}"}}', f"0+{count}x600"


ROOMS = 'service_name="rooms", rpc_method="rooms.book"'
WORST = ("page", "ticket")


def served(**a_minute):
    return [UP, *calls(of.SERVER_DURATION, ROOMS, **a_minute)]


def made(**a_minute):
    return [UP, *calls(of.CLIENT_DURATION, ROOMS, **a_minute)]


def slow(share):
    name, subject = of.SERVER_DURATION.prometheus, f'{ROOMS}, error_type=""'
    return [
        UP,
        (f"{name}_count{{{subject}}}", "0+1000x600"),
        (f'{name}_bucket{{{subject}, le="0.5"}}', f"0+{1000 - 10 * share}x600"),
    ]


def lag(share):
    name, subject = of.LOOP_LAG.prometheus, 'service_name="rooms", service_instance_id="1"'
    return [
        UP,
        (f'{name}_bucket{{{subject}, le="0.1"}}', f"0+{240 - 2.4 * share}x600"),
        (f'{name}_bucket{{{subject}, le="1.0"}}', "0+240x600"),
        (f'{name}_bucket{{{subject}, le="+Inf"}}', "0+240x600"),
    ]


def one(metric, values, subject=ROOMS):
    return [UP, (f"{metric.prometheus}{{{subject}}}", values)]


BILL = 'service_name="rooms", messaging_consumer_group_name="rooms-bill"'


def stuck(lag, well):
    """Messages that wait for a consumer of two instances, and how many are handled well in a minute."""
    handled = f"{of.EVENT_DURATION.prometheus}_count"
    pending = of.CONSUMER_PENDING.prometheus
    return [
        UP,
        (f'{pending}{{{BILL}, service_instance_id="1"}}', lag),
        (f'{pending}{{{BILL}, service_instance_id="2"}}', lag),
        (f'{handled}{{{BILL}, service_instance_id="1"}}', f"0+{well}x600"),
        (f'{handled}{{{BILL}, service_instance_id="2"}}', "0x600"),
        (f'{handled}{{{BILL}, service_instance_id="1", error_type="InternalError"}}', "0+60x600"),
    ]


def consumer(pending, waiting, unacknowledged):
    """What a NATS server says of a consumer; of its replica elsewhere it knows what is long over."""
    which = 'stream_name="ORDERS", consumer_name="rooms-bill", is_consumer_leader'
    return [
        UP,
        (f'{nats.CONSUMER_PENDING.prometheus}{{{which}="true"}}', pending),
        (f'{nats.CONSUMER_WAITING.prometheus}{{{which}="true"}}', waiting),
        (f'{nats.CONSUMER_UNACKED.prometheus}{{{which}="true"}}', unacknowledged),
        (f'{nats.CONSUMER_PENDING.prometheus}{{{which}="false"}}', "9x600"),
        (f'{nats.CONSUMER_WAITING.prometheus}{{{which}="false"}}', "1x600"),
        (f'{nats.CONSUMER_UNACKED.prometheus}{{{which}="false"}}', "1x600"),
    ]


INSTANCE = 'service_name="rooms", service_instance_id="1"'
SERVER = 'server_id="http://127.0.0.1:8222"'
BY_SERVICE, BY_TARGET = {"service_name": "rooms"}, {"rpc_method": "rooms.book"}
BY_CALL = BY_SERVICE | BY_TARGET
BY_INSTANCE = {"service_name": "rooms", "service_instance_id": "1"}
BY_SERVER = {"server_id": "http://127.0.0.1:8222"}
BY_CONSUMER = BY_SERVICE | {"messaging_consumer_group_name": "rooms-bill"}
BY_STREAM = {"stream_name": "ORDERS", "consumer_name": "rooms-bill"}
SICK = [
    # 2 % of a budget of 0.1 % is spent twenty times as fast as it may: within the hour, and still now.
    ("MeshServiceErrors", WORST, BY_SERVICE, 90, served(ok=980, InternalError=20)),
    ("MeshServiceErrors", WORST, BY_SERVICE, 90, served(ok=980, code507=20)),
    ("MeshServiceErrors", WORST, BY_SERVICE, 90, served(ok=980, _OTHER=20)),
    # Eight times as fast, over six hours.
    ("MeshServiceErrors", WORST, BY_SERVICE, 400, served(ok=9920, Overloaded=80)),
    # Three times: that can wait until tomorrow.
    ("MeshServiceErrors", ("ticket",), BY_SERVICE, 400, served(ok=9970, Unavailable=30)),
    ("MeshCallErrors", WORST, BY_TARGET, 90, made(ok=980, NoResponders=20)),
    ("MeshCallErrors", WORST, BY_TARGET, 90, made(ok=0, CircuitOpen=20)),
    ("MeshServiceSlow", WORST, BY_SERVICE, 90, slow(20)),
    ("MeshServiceSlow", ("ticket",), BY_SERVICE, 400, slow(3)),
    ("MeshNothingReports", ("page",), {}, 5, []),
    # All services at once: what is gone is the view of them.
    ("MeshNothingReports", ("page",), {}, 35, [(UP[0], "1x30 stale")]),
    (
        "MeshNoInstances",
        ("page",),
        {"service_name": "billing"},
        35,
        [UP, (f'{of.STARTED.prometheus}{{service_name="billing", service_instance_id="2"}}', "1x30 stale")],
    ),
    # Every other time somebody looks, the breaker lets a call through to try.
    ("MeshCircuitOpen", ("ticket",), BY_CALL, 10, one(of.CLIENT_CIRCUIT, "0 2 1 2 1 2 1 2 1 2 1 2")),
    ("MeshRetryBudgetSpent", ("ticket",), BY_CALL, 10, one(of.CLIENT_BUDGET, "0x5 3x10")),
    ("MeshDeadLetters", ("ticket",), BY_CONSUMER, 10, one(of.CONSUMER_DEAD, "0x8 1x10", BILL)),
    ("MeshConsumerStuck", ("ticket",), BY_CONSUMER, 30, stuck("7x600", 0)),
    ("NatsConsumerAbandoned", ("ticket",), BY_STREAM, 30, consumer("0x5 3x600", "1x5 0x600", "0x600")),
    ("MeshSlowConsumer", ("ticket",), BY_INSTANCE, 10, one(of.DROPPED, "0x8 100x10", INSTANCE)),
    ("MeshDisconnected", ("ticket",), BY_INSTANCE, 10, one(of.CONNECTED, "1x5 0x10", INSTANCE)),
    ("MeshLoopLag", ("ticket",), BY_INSTANCE, 20, lag(5)),
    ("NatsServerDown", ("page",), BY_SERVER, 10, one(nats.UP, "1x5 0x10", SERVER)),
    ("NatsSlowConsumers", ("ticket",), BY_SERVER, 10, one(nats.SLOW_CONSUMERS, "0x8 1x10", SERVER)),
]


@pytest.mark.parametrize(
    ("name", "severities", "labels", "minutes", "series"),
    SICK,
    ids=[f"{number}-{sick[0]}" for number, sick in enumerate(SICK)],
)
def test_an_alert_fires_on_what_it_is_for_and_no_other_does(
    tmp_path, name, severities, labels, minutes, series
):
    assert fires(tmp_path, series, minutes) == {(name, severity): labels for severity in severities}


def test_deadlines_that_are_missed_are_failures_too(tmp_path):
    found = fires(tmp_path, made(ok=980, DeadlineExceeded=20), 90)
    assert found.pop(("MeshDeadlinesMissed", "ticket")) == BY_TARGET
    assert {name for name, _ in found} == {"MeshCallErrors"}


def test_every_alert_has_been_seen_to_fire():
    assert {alert.name for alert in alerts(KEPT)} == {name for name, *_ in SICK} | {"MeshDeadlinesMissed"}


@pytest.mark.parametrize(
    "series",
    [
        served(ok=100_000, InternalError=50),
        # Answers, calls that are wrong, too many, or given up: no fault of the service.
        served(
            ok=100, code409=100, NotFound=100, BadRequest=100, Forbidden=100, RateLimited=100, Cancelled=100
        ),
        made(
            ok=100,
            code409=100,
            NotFound=100,
            BadRequest=100,
            Unauthorized=100,
            RateLimited=100,
            Cancelled=100,
        ),
        made(ok=100_000, DeadlineExceeded=50),
        # Nobody calls.
        served(ok=0, InternalError=0),
        made(ok=0, DeadlineExceeded=0),
        slow(0.5),
        slow(0),
        lag(0.5),
        # What it was when it was seen first is nothing that happened since.
        one(of.CLIENT_BUDGET, "7x600"),
        one(of.DROPPED, "7x600", INSTANCE),
        one(nats.SLOW_CONSUMERS, "7x600", SERVER),
        # Behind, but it gets on, whether with many messages or for hours with two; once it gave one up.
        [*stuck("0+100x600", 1), *consumer("9x600", "0x600", "2x600")[1:]],
        [*one(of.CONSUMER_DEAD, "7x600", BILL), *consumer("9x600", "0 0 0 1" + " 0 0 1" * 200, "0x600")[1:]],
        # Nothing is there to handle.
        [*stuck("0x600", 0), *consumer("0x600", "0x600", "0x600")[1:]],
        # For a moment.
        one(of.CLIENT_CIRCUIT, "0x399 2 0x600"),
        one(of.CONNECTED, "1x399 0 1x600", INSTANCE),
        # Half-open: the calls that try it are few.
        one(of.CLIENT_CIRCUIT, "1x600"),
        # One of two instances went, as in a rolling restart.
        [UP, (f'{of.STARTED.prometheus}{{service_name="rooms", service_instance_id="2"}}', "1x390 stale")],
        # A service that was taken away an hour ago.
        [UP, (f'{of.STARTED.prometheus}{{service_name="billing", service_instance_id="2"}}', "1x330 stale")],
        one(nats.UP, "1x600", SERVER),
    ],
    ids=range(21),
)
def test_nothing_fires_on_what_is_well(tmp_path, series):
    assert fires(tmp_path, series, 400) == {}


def test_a_page_ends_within_half_an_hour_of_what_it_is_for(tmp_path):
    name = f"{of.SERVER_DURATION.prometheus}_count"
    series = [
        UP,
        (f'{name}{{{ROOMS}, error_type=""}}', "0+100x600"),
        (f'{name}{{{ROOMS}, error_type="InternalError"}}', "0x60 1+50x20 1001x600"),
    ]
    assert ("MeshServiceErrors", "page") in fires(tmp_path, series, 80)
    # The windows that are short, five minutes and half an hour, see no more of it.
    assert ("MeshServiceErrors", "page") not in fires(tmp_path, series, 115)


def test_all_known_kinds_of_errors_are_judged():
    fault = re.compile("|".join(errors.FAULTS))
    judged = {name: bool(fault.fullmatch(name)) for name in errors._KINDS.values()}
    assert judged == {cls.__name__: cls.code >= 500 for cls in errors._KINDS}
    assert [bool(fault.fullmatch(code)) for code in ("402", "499", "500", "599", "1000", "9999")] == [
        *(False, False),
        *(True, True, True, True),
    ]


def test_the_texts_name_only_what_the_alert_has_as_labels():
    for alert in alerts(KEPT):
        # The labels of what is recorded are the first word of its name.
        level = {"service": "service_name", "target": "rpc_method"}
        kept = {level[each] for each in re.findall(r"(\w+):meshkit", alert.expression)}
        kept |= set(re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", alert.expression))))
        named = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
        assert named <= kept, alert.name


@pytest.mark.parametrize(
    ("objective", "problem"),
    [
        ((93, 0.5, 99), "--slo is a percentage above 93.06 and below 100, not 93"),
        ((100, 0.5, 99), "--slo is a percentage above 93.06 and below 100, not 100"),
        ((99.9, 0.5, 50), "--latency-slo is a percentage above 93.06 and below 100, not 50"),
        (
            (99.9, 0.3, 99),
            "--latency 0.3s is none of the histograms' bounds, 0.0001, 0.00025, 0.0005, 0.001,",
        ),
    ],
)
def test_what_cannot_be_alerted_on_is_said(objective, problem):
    with pytest.raises(ConfigError) as raised:
        objectives(*objective)
    assert str(raised.value).startswith(problem)
