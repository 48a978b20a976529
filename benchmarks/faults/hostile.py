"""Whoever may publish, and means ill; by a plain socket, since no client sends such things."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from benchmarks.faults.corpus import FORGED, HEADS, INBOX, LEAST, PAYLOADS, corpus


@asynccontextmanager
async def hostile(url: str, *, seed: int) -> AsyncGenerator[dict[str, Callable[..., Any]]]:
    """Publish the corpus, and answer with it whoever calls `drill.forged` or asks for announcements.

    Args:
        url: The server.
        seed: What the mutations begin with.
    """
    where = urlsplit(url)
    counts: Counter[str] = Counter()
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=2**24)
    await reader.readline()  # INFO
    writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true,"protocol":1}\r\n')
    writer.write(b"SUB %s 1\r\nSUB %s q 2\r\nSUB _MESH.announce 2\r\n" % (INBOX, FORGED.encode()))
    answering = asyncio.create_task(_answer(reader, writer, random.Random(seed), counts))  # noqa: S311 # as above

    async def attack(seconds: float) -> dict[str, int]:
        """Publish for so long, and at least everything in the corpus once; gives what came of it."""
        end = asyncio.get_running_loop().time() + seconds
        for sent, (subject, reply, head, payload) in enumerate(corpus(seed)):
            if sent >= LEAST and asyncio.get_running_loop().time() >= end:
                break
            if answering.done():
                raise ConnectionError(f"the server has ended the connection: {dict(counts)}")
            writer.write(_command(subject.encode(), reply, head, payload))
            counts["sent"] += 1
            await writer.drain()
            if sent % 10 == 0:
                await asyncio.sleep(0.005)  # it is not its number that is to hurt
        return counts

    yield {"attack": attack}
    answering.cancel()
    writer.transport.abort()


async def _answer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    chance: random.Random,
    counts: Counter[str],
) -> None:
    """Count the answers, and answer calls."""
    while line := await reader.readline():
        words = line.split()
        if words[0] == b"PING":
            writer.write(b"PONG\r\n")
        elif words[0] in {b"MSG", b"HMSG"}:
            await reader.readexactly(int(words[-1]) + 2)
            number, optional = words[2], len(words) - (4 if words[0] == b"MSG" else 5)
            if number == b"2" and optional:
                writer.write(_command(words[3], b"", chance.choice(HEADS), chance.choice(PAYLOADS)))
                counts["calls answered with it"] += 1
            else:
                counts["answers"] += 1
        elif words[0] == b"-ERR":
            counts[line.decode(errors="replace").strip()] += 1


def _command(subject: bytes, reply: bytes, head: bytes, payload: bytes) -> bytes:
    where = subject + (b" " + reply if reply else b"")
    if not head:
        return b"PUB %s %d\r\n%s\r\n" % (where, len(payload), payload)
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (where, len(head), len(head) + len(payload), head, payload)
