import json
import re
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.discovery.protocol import (
    NAME,
    VERSION,
    EndpointInfo,
    EndpointStats,
    InfoResponse,
    PingResponse,
    StatsResponse,
    UnreadableReplyError,
    control_subject,
    control_subjects,
    decode,
    new_instance_id,
    timestamp,
    version_key,
)

WHO = {"name": "rooms", "id": "VBv0Jr8nkXkDlFLxTXQ1bq", "version": "1.2.0"}


@pytest.mark.parametrize("name", ["rooms", "Rooms-2_b", "7", "-"])
def test_good_names(name):
    assert NAME.match(name)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a*", ">", "$SRV", "rooms\n", "zimmer-ä", "٣"])
def test_bad_names(name):
    assert not NAME.match(name)


@pytest.mark.parametrize(
    "version", ["0.0.0", "1.2.3", "1.0.0-alpha.1", "1.0.0-0A.is.legal", "1.0.0+build.5", "1.0.0-rc.1+exp.sha"]
)
def test_good_versions(version):
    assert VERSION.match(version)


@pytest.mark.parametrize(
    "version", ["", "1", "1.2", "v1.2.3", "01.2.3", "1.2.3-01", "1.2.3-", "1.2.3\n", "1.2.3 ", "1.2.٣"]
)
def test_bad_versions(version):
    assert not VERSION.match(version)


def test_versions_sort_by_precedence():
    ascending = [
        "garbage",
        "0.9.9",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.0.0+build",
        "1.9.0",
        "1.10.0",
    ]
    assert sorted(ascending[6:] + ascending[:6], key=version_key) == ascending


def test_ids_are_like_nuids():
    ids = {new_instance_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9A-Za-z]{22}", each) for each in ids)


def test_control_subjects():
    assert control_subjects("Rooms", "iD") == (
        "$SRV.PING",
        "$SRV.PING.Rooms",
        "$SRV.PING.Rooms.iD",
        "$SRV.INFO",
        "$SRV.INFO.Rooms",
        "$SRV.INFO.Rooms.iD",
        "$SRV.STATS",
        "$SRV.STATS.Rooms",
        "$SRV.STATS.Rooms.iD",
    )
    assert control_subject("PING", "Rooms", "iD") == "$SRV.PING.Rooms.iD"


def test_timestamp_is_utc_with_milliseconds():
    moment = datetime(2026, 3, 1, 1, 2, 3, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp(moment) == "2026-02-28T23:02:03.999Z"
    assert timestamp(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00.000Z"


def test_ping_on_the_wire():
    info = InfoResponse(**WHO, description="Rooms of the hotel")
    assert json.loads(msgspec.json.encode(info.ping())) == {
        "type": "io.nats.micro.v1.ping_response",
        **WHO,
        "metadata": {},
    }


def test_info_on_the_wire_leaves_nothing_out():
    info = InfoResponse(**WHO, endpoints=(EndpointInfo(name="book", subject="hotel.book"),))
    assert json.loads(msgspec.json.encode(info)) == {
        "type": "io.nats.micro.v1.info_response",
        **WHO,
        "metadata": {},
        "description": "",
        "endpoints": [{"name": "book", "subject": "hotel.book", "queue_group": "", "metadata": {}}],
    }


def test_stats_on_the_wire_leave_nothing_out_but_data():
    endpoint = EndpointStats(name="book", subject="hotel.book", queue_group="q")
    with_data = EndpointStats(name="book", subject="hotel.book", data={"in_flight": 1})
    stats = StatsResponse(**WHO, started="2026-01-01T00:00:00.000Z", endpoints=(endpoint, with_data))
    zeros = {
        "num_requests": 0,
        "num_errors": 0,
        "last_error": "",
        "processing_time": 0,
        "average_processing_time": 0,
    }
    assert json.loads(msgspec.json.encode(stats)) == {
        "type": "io.nats.micro.v1.stats_response",
        **WHO,
        "metadata": {},
        "started": "2026-01-01T00:00:00.000Z",
        "endpoints": [
            {"name": "book", "subject": "hotel.book", "queue_group": "q", **zeros},
            {"name": "book", "subject": "hotel.book", "queue_group": "", **zeros, "data": {"in_flight": 1}},
        ],
    }


GO_INFO = b"""{"name":"demo","id":"eWN3V1yaqHyRkCSHaOgVaP","version":"1.0.0","metadata":{},\
"type":"io.nats.micro.v1.info_response","description":"","endpoints":[\
{"name":"default","subject":"demo.default","queue_group":"q","metadata":null}]}"""

GO_STATS = b"""{"name":"demo","id":"eWN3V1yaqHyRkCSHaOgVaP","version":"1.0.0","metadata":{},\
"type":"io.nats.micro.v1.stats_response","started":"2026-08-05T09:08:07.123456789Z","endpoints":[\
{"name":"default","subject":"demo.default","queue_group":"q","num_requests":3,"num_errors":1,\
"last_error":"500:handler error","processing_time":12500,"average_processing_time":4166}]}"""


def test_what_go_sends():
    info = decode(GO_INFO, InfoResponse)
    assert info.endpoints[0] == EndpointInfo(name="default", subject="demo.default", queue_group="q")
    stats = decode(GO_STATS, StatsResponse)
    assert stats.started == "2026-08-05T09:08:07.123Z"
    assert stats.endpoints[0].last_error == "500:handler error"
    assert stats.endpoints[0].data is msgspec.UNSET


@pytest.mark.parametrize(
    "started", ["2026-08-05T09:08:07.12Z", "2026-08-05T09:08:07Z", "0001-01-01T00:00:00Z"]
)
def test_go_trims_zeros_off_started(started):
    stats = decode(GO_STATS.replace(b"2026-08-05T09:08:07.123456789Z", started.encode()), StatsResponse)
    assert datetime.fromisoformat(stats.started) == datetime.fromisoformat(started)


def test_what_javascript_leaves_out():
    info = decode(
        b'{"type":"io.nats.micro.v1.info_response","name":"js","id":"A1","version":"0.0.1","description":"",'
        b'"endpoints":[{"name":"add","subject":"add","queue_group":"q"}]}',
        InfoResponse,
    )
    assert info.metadata == {}
    assert info.endpoints[0].metadata == {}
    stats = decode(
        b'{"type":"io.nats.micro.v1.stats_response","name":"js","id":"A1","version":"0.0.1",'
        b'"started":"2026-08-05T09:08:07.123Z","endpoints":[{"name":"add","subject":"add","queue_group":"q",'
        b'"num_requests":3,"num_errors":0,"processing_time":2000000,"average_processing_time":666666.6667}]}',
        StatsResponse,
    )
    assert stats.endpoints[0].last_error == ""
    assert stats.endpoints[0].average_processing_time == 666667


def test_what_python_sends_as_null():
    info = decode(
        b'{"name":"py","id":"B2","version":"0.0.1","metadata":{},"description":null,"endpoints":'
        b'[{"name":"add","subject":"add","queue_group":"q","metadata":null}],'
        b'"type":"io.nats.micro.v1.info_response"}',
        InfoResponse,
    )
    assert info.description == ""
    stats = decode(
        b'{"name":"py","id":"B2","version":"0.0.1","metadata":null,"started":"2026-08-05T09:08:07.123Z",'
        b'"endpoints":[{"name":"add","subject":"add","queue_group":"q","num_requests":0,"num_errors":0,'
        b'"last_error":null,"processing_time":0,"average_processing_time":0,"data":null}],'
        b'"type":"io.nats.micro.v1.stats_response"}',
        StatsResponse,
    )
    assert stats.endpoints[0].last_error == ""
    assert stats.endpoints[0].data is msgspec.UNSET


def test_an_error_may_be_an_object():
    payload = GO_STATS.replace(b'"500:handler error"', b'{"code":500,"status":"handler error"}')
    assert decode(payload, StatsResponse).endpoints[0].last_error == '{"code":500,"status":"handler error"}'


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "no JSON object"),
        (b"[1]", "no JSON object"),
        (b"\xff", "no JSON object"),
        (b'{"name":"\xff"}', "no JSON object"),
        (b'{"a":' * 100_000, "no JSON object"),
        (b'{"name":"rooms","id":"A1"}', r"from rooms/A1: .*`version`"),
        (b'{"name":"rooms","id":"A1","version":7}', r"from rooms/A1: .*version"),
        (
            b'{"name":"rooms","id":"*","version":"1.0.0","started":"2026-01-01T00:00:00Z"}',
            r"from rooms/\*: .*id",
        ),
        (
            b'{"name":"a.b","id":"A","version":"1.0.0","started":"2026-01-01T00:00:00Z"}',
            r"from a.b/A: .*name",
        ),
        (b'{"type":"io.nats.micro.v1.ping_response","name":"rooms"}', r"from rooms/\?: .*type"),
        (b'{"name":"r","id":"A","version":"1","endpoints":[3]}', "from r/A: "),
        (b'{"name":"r","id":"A","version":"1","endpoints":[{"name":"x"}]}', "subject"),
        (b'{"name":"r","id":"A","version":"1","started":"yesterday"}', "from r/A: "),
        (b'{"name":"r","id":"A","version":"1","started":"2026-08-05T09:08:07"}', "from r/A: "),
        (b'{"name":"r","id":"A","version":"1","started":"9999-12-31T23:59:59-23:59"}', "from r/A: "),
    ],
)
def test_a_hopeless_reply_says_who_sent_it(payload, why):
    with pytest.raises(UnreadableReplyError, match=why):
        decode(payload, StatsResponse)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_ENDPOINT = st.fixed_dictionaries(
    {"name": st.just("x") | _JSON, "subject": st.just("x") | _JSON},
    optional=dict.fromkeys(
        ("metadata", "num_requests", "last_error", "average_processing_time", "data"), _JSON
    ),
)
_REPLY = st.fixed_dictionaries(
    {"name": st.just("x") | _JSON, "id": st.just("x") | _JSON, "version": st.just("1.0.0") | _JSON},
    optional={
        "metadata": st.dictionaries(st.text(), st.text()) | _JSON,
        "started": st.just("2026-08-05T09:08:07Z") | _JSON,
        "endpoints": st.lists(_ENDPOINT) | _JSON,
    },
)


@given(reply=_REPLY.map(lambda reply: json.dumps(reply).encode()) | st.binary())
@pytest.mark.parametrize("response", [PingResponse, InfoResponse, StatsResponse])
def test_no_reply_raises_anything_else(response, reply):
    try:
        assert isinstance(decode(reply, response), response)
    except UnreadableReplyError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
