"""How far the consumers of all streams are."""

import asyncio

import msgspec

from meshkit.durable.declaration import PARTITIONED
from meshkit.durable.jetstream import ConsumerInfo, JetStream, JetStreamError, StreamInfo
from meshkit.subject import covers

_NOT_FOUND = 404
# What meshkit keeps in streams of its own, and what NATS itself puts on top of streams.
_HELPERS = ("MESH_DEAD", "MESH_DONE-", "MESH_QUOTA_", "KV_", "OBJ_")


class Progress(msgspec.Struct, frozen=True):
    """How far a consumer is.

    Attributes:
        name: What it is called.
        subjects: The messages that it is for.
        pending: Messages that have not been delivered yet.
        unacknowledged: Messages that have been, and nobody has said what became of them.
        redelivered: Those of them that have been more than once.
        waiting: Requests for messages that wait for some.
        deliveries: Deliveries that have ended since there is a consumer.
        matching: Messages in the stream that are for it; None where that says nothing, as handled ones leave
            the stream, or cannot be told.
        partitions: Into how many consumers it is divided that each handle theirs in order; 0 if it is not.
    """

    name: str
    subjects: list[str]
    pending: int
    unacknowledged: int
    redelivered: int
    waiting: int
    deliveries: int
    matching: int | None
    partitions: int = 0

    @property
    def done(self) -> int | None:
        """How many of the messages for it it is done with; also those that it was never to get count."""
        return None if self.matching is None else max(0, self.matching - self.left)

    @property
    def left(self) -> int:
        """How many messages it is not done with."""
        return self.pending + self.unacknowledged


class Overview(msgspec.Struct, frozen=True):
    """A stream and its consumers.

    Attributes:
        stream: The stream.
        consumers: By name; those with partitions stand here and not at the stream with the copies.
        is_helper: Whether it is of use for another stream only, or below something else.
    """

    stream: StreamInfo
    consumers: list[Progress]
    is_helper: bool


async def overview(js: JetStream) -> list[Overview]:
    """All streams, by name.

    Raises:
        MeshError: JetStream cannot be reached.
    """
    streams = {stream.name: stream async for stream in js.streams()}
    consumers = {name: await _consumers(js, name) for name in streams}
    found = {
        name: Overview(stream, [], name.startswith(_HELPERS) or (_copied(stream) or ("",))[0] in streams)
        for name, stream in streams.items()
    }
    for name, stream in streams.items():
        found[name].consumers.extend(
            await asyncio.gather(*(_progress(js, stream, each) for each in consumers[name]))
        )
        if (copied := _copied(stream)) is not None and copied[0] in streams:
            source, consumer, subject = copied
            matching = await _matching(js, streams[source], [subject])
            parts = consumers[name]
            summed = _summed(consumer, [subject], parts, matching, partitions=len(parts))
            found[source].consumers.append(summed)
    for each in found.values():
        each.consumers.sort(key=lambda consumer: consumer.name)
    return [found[name] for name in sorted(found)]


async def _consumers(js: JetStream, stream: str) -> list[ConsumerInfo]:
    try:
        return [consumer async for consumer in js.consumers(stream)]
    except JetStreamError as error:
        if error.code == _NOT_FOUND:  # it was there a moment ago
            return []
        raise


def _copied(stream: StreamInfo) -> tuple[str, str, str] | None:
    """Of a stream with the partitions of a consumer: whose messages it has, the consumer, their subjects."""
    for source in stream.config.get("sources") or ():
        for transform in source.get("subject_transforms") or ():
            if transform.get("dest", "").startswith(PARTITIONED):
                return source["name"], transform["dest"].split(".")[3], transform["src"]
    return None


async def _progress(js: JetStream, stream: StreamInfo, consumer: ConsumerInfo) -> Progress:
    config = consumer.config
    subjects = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
    return _summed(consumer.name, subjects, [consumer], await _matching(js, stream, subjects))


def _summed(
    name: str, subjects: list[str], parts: list[ConsumerInfo], matching: int | None, partitions: int = 0
) -> Progress:
    unacknowledged = sum(part.num_ack_pending for part in parts)
    return Progress(
        name=name,
        subjects=subjects,
        pending=sum(part.num_pending for part in parts),
        unacknowledged=unacknowledged,
        redelivered=sum(part.num_redelivered for part in parts),
        waiting=sum(part.num_waiting for part in parts),
        deliveries=sum(part.delivered.consumer_seq for part in parts) - unacknowledged,
        matching=matching,
        partitions=partitions,
    )


async def _matching(js: JetStream, stream: StreamInfo, subjects: list[str]) -> int | None:
    if stream.config.get("retention") != "limits":
        return None
    kept: list[str] = stream.config.get("subjects") or [">"]
    if all(any(covers(subject, one) for subject in subjects) for one in kept):
        return stream.state.messages
    counts = await asyncio.gather(*(js.count(stream.name, subject) for subject in subjects))
    return None if None in counts else sum(count or 0 for count in counts)
