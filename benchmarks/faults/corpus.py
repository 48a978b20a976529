"""What nobody should send, and mutations of it: subjects, headers, payloads and reply subjects."""

import json
import random
from collections.abc import Iterator

SUBJECTS = (
    *("drill.read", "drill.write", "drill.chain", "drill.many", "drill.nothing"),
    *("_MESH.cancel.drill.read", "_MESH.cancel.drill.write", "_MESH.cancel.drill"),
    *("_MESH.announce", "_MESH.announce.drill.x", "_MESH.health", "_MESH.health.drill"),
    *("$SRV.PING", "$SRV.INFO.drill", "$SRV.STATS.drill"),
)
_VERSION = b"NATS/1.0\r\n"
_LINES = (
    *(b"Mesh-Timeout: " + value for value in (b"", b"-5", b"nan", b"1e9", b"9" * 40, b"\xff", b"0", b"1")),
    b"Mesh-Timeout: 5\r\nMesh-Timeout: 50000",
    *(b"traceparent: " + value for value in (b"", b"00-zz-1-01", b"00-" + b"0" * 32, b"a" * 8000)),
    *(b"Content-Type: " + value for value in (b"application/msgpack", b"text/evil", b"\x00", b";;;")),
    *(b"Mesh-Attempt: " + value for value in (b"x", b"-1", b"9" * 5000)),
    *(b"Mesh-Priority: " + value for value in (b"critical", b"\xfe", b"99")),
    *(b"Mesh-Credit: " + value for value in (b"", b"-1", b"0", b"x", b"9" * 4000)),
    *(b"Mesh-Seq: " + value for value in (b"", b"-1", b"7", b"9" * 4000)),
    *(b"Mesh-End: " + value for value in (b"", b"x", b"9" * 4000)),
    *(b"Mesh-Retry: " + value for value in (b"off", b"")),
    b"Mesh-Caller: " + b"a/" * 3000,
    b"Nats-Service-Error: no\r\nNats-Service-Error-Code: 200",
    b"Nats-Service-Error-Code: abc\r\nMesh-Nack: maybe\r\nMesh-Retry-After: -1",
    b"Mesh-Nack: overloaded\r\nNats-Service-Error-Code: 503\r\nMesh-Retry-After: 999999999",
    b"no colon at all",
    b": no name",
    b"Name : spaces\r\n continued",
    b"\x00\x01\x02: \x80\x81",
    b"baggage: " + b"k=v," * 10_000,
    b"\r\n".join(b"X-%d: %d" % (n, n) for n in range(2_000)),
)
HEADS = (
    *(_VERSION + line + b"\r\n\r\n" for line in _LINES),
    *(b"", _VERSION + b"\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/9.9 boo\r\n\r\n", b"\r\n\r\n"),
)
_INFO = {
    "type": "io.nats.micro.v1.info_response",
    "name": "drill",
    "id": "evil",
    "version": "1.0.0",
    "description": "",
    "metadata": {},
}
_ENDPOINT = {"name": "x", "subject": "drill.x", "queue_group": "q"}
PAYLOADS = (
    *(b"", b"null", b"{", b"[]", b"0", b'"', b"\xff\xfe", b"NaN", b"{}", b"true", b"\x00" * 1000),
    *(b'{"name":"x","n":"1"}', b'{"name":1,"n":-1}', b'{"n":-1}', b'{"name":"\\ud800","n":-1}'),
    b'{"name":"x","n":1e400}',
    b'{"name":"x","n":-%s}' % (b"9" * 4000),
    b'{"name":"x","n":-2,"n":-3,"more":[1,2,3]}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"name":"' + b"x" * 900_000 + b'","n":-4}',
    b"\xdd\xff\xff\xff\xff",  # MessagePack: a list of four thousand million
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x82\xa4name\xa1x\xa1n\xff",
    b"\x91" * 100_000,
    *(
        json.dumps({**_INFO, "endpoints": [{**_ENDPOINT, "metadata": metadata}]}).encode()
        for metadata in (
            *({"policy": text} for text in ("[]", "null", "{", '{"timeout": -1}', '{"retries": 1e999}')),
            {"policy": '{"hedge": {"a": 1}, "nothing": 1}'},
            {"policy": 1},
            None,
        )
    ),
    json.dumps({**_INFO, "endpoints": [{**_ENDPOINT, "subject": "a..b"}, 7]}).encode(),
)
INBOX = b"hostile.inbox"
REPLIES = (b"", INBOX, b"drill.write", b"drill.nothing", b"a" * 2000, b"$SYS.x", b"\xff\xfe")
# How many there are before the mutations.
LEAST = len(SUBJECTS) * (len(HEADS) + len(PAYLOADS) + len(REPLIES))
# What mutations begin with.
_VALID = b'{"name":"x","n":-5}'
# Subject whose only responder is this one.
FORGED = "drill.forged"


def corpus(seed: int) -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """Subjects, reply subjects, heads and payloads: each of every kind once, then mutations, without end."""
    chance = random.Random(seed)  # noqa: S311 # to be the same again
    for subject in SUBJECTS:
        yield from ((subject, chance.choice(REPLIES), head, _VALID) for head in HEADS)
        yield from ((subject, chance.choice(REPLIES), b"", payload) for payload in PAYLOADS)
        yield from ((subject, reply, b"", _VALID) for reply in REPLIES)
    while True:
        head, payload = chance.choice(HEADS), chance.choice((*PAYLOADS, _VALID, _VALID))
        parts = _mutated(head, chance) if len(head) > len(_VERSION) else head, _mutated(payload, chance)
        yield chance.choice(SUBJECTS), chance.choice(REPLIES), *parts


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """With a few of its bytes replaced, left out or doubled."""
    changed = bytearray(data[:10_000])
    for _ in range(chance.randint(0, 4)):
        at = chance.randrange(len(changed) + 1)
        changed[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
    return bytes(changed)
