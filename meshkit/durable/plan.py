"""What is declared beside what there is: what has to be made or changed, and what must not be."""

import asyncio
import functools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, cast

import msgspec

from meshkit.durable.dead import DEAD
from meshkit.durable.declaration import NEXT, OWNER, Consumption, StreamConfig
from meshkit.durable.jetstream import Config, JetStream, JetStreamError, NoJetStream
from meshkit.durable.once import remembered
from meshkit.errors import ConfigError
from meshkit.knobs import in_units
from meshkit.subject import covers

log = logging.getLogger("meshkit.durable")

# Instances that start at the same time change the same things: so often it is looked at again.
_ROUNDS = 20
# Seconds in which whoever has looked at a stream has changed it.
_OTHERS = 0.25
# Somebody was faster: a stream, a consumer of that name exists now, with another configuration.
_TAKEN = (10058, 10013, 10148, 10149)

# Another stream keeps some of the subjects.
_OVERLAP = 10065
# More replicas than servers, durations that cannot be: with another code, and no better the next time.
_IMPOSSIBLE = (10052, 10074)

_DURATIONS = ("max_age", "duplicate_window", "ack_wait")
_LIMITS = ("max_age", "max_bytes", "max_msgs")
# What a declaration decides of a consumer that exists.
_CONSUMER_KEYS = ("ack_wait", "max_ack_pending", "max_deliver")


class Wanted(msgspec.Struct, frozen=True):
    """What a declared consumer needs of JetStream.

    Attributes:
        stream: The stream whose messages it handles, or the name of one.
        subject: Which of them.
        consumed: The name of the stream that the consumers are on.
        consumers: The consumers, as JetStream has them.
        beside: Streams that are made for it alone, likewise.
    """

    stream: StreamConfig | str
    subject: str
    consumed: str
    consumers: list[Config]
    beside: list[Config]


def wanted_by(consumption: Consumption) -> Wanted:
    """What a consumer needs of JetStream."""
    beside = [consumption.partitioned] if consumption.partitions else []
    if consumption.deduplicate is not None:
        beside.append(remembered(consumption))
    return Wanted(
        consumption.stream, consumption.pattern.wire, consumption.consumed, consumption.consumers, beside
    )


class Change(msgspec.Struct, frozen=True):
    """One thing to do.

    Attributes:
        text: What it is, for a person; it begins with `+` for what is made, `~` for what is changed.
        apply: Does it.
        subjects: What the stream is to keep, if it is one.
    """

    text: str
    apply: Callable[[], Awaitable[None]]
    subjects: list[str] = []


class Plan(msgspec.Struct, frozen=True):
    """What has to be done for what is declared.

    Attributes:
        changes: In order.
        refusals: What would have to be done, and would destroy something.
    """

    changes: list[Change] = []
    refusals: list[str] = []


async def settle(
    js: JetStream, streams: Iterable[StreamConfig], consumptions: Iterable[Consumption]
) -> list[str]:
    """Make and change what has to be, and log each change.

    Args:
        js: Where.
        streams: What is declared, apart from the streams of consumers.
        consumptions: The consumers.

    Returns:
        The changes.

    Raises:
        ConfigError: A change would destroy something, or JetStream does not take it; nothing that is refused
            is done.
        MeshError: JetStream cannot be reached.
    """
    streams, consumers, done = list(streams), [wanted_by(each) for each in consumptions], list[str]()
    for _ in range(_ROUNDS):
        try:
            todo = await plan(js, streams, consumers)
        except NoJetStream as error:
            raise ConfigError(error.message) from None
        if todo.refusals:
            raise ConfigError("\n".join(todo.refusals))
        if not todo.changes:
            return done
        for change in todo.changes:
            try:
                await change.apply()
            except JetStreamError as error:
                if error.number in _TAKEN:
                    break
                error.message = f"{change.text[2:]}: {error.message}{await _who(js, error, change)}"
                if error.code >= 500 and error.number not in _IMPOSSIBLE:
                    raise
                raise ConfigError(error.message) from None
            log.info("%s", change.text)
            done.append(change.text)
    raise ConfigError(
        "streams change faster than they can be looked at: do two services declare them differently?"
    )


async def _who(js: JetStream, error: JetStreamError, change: Change) -> str:
    """Which streams keep already what another one is to keep."""
    if error.number != _OVERLAP:
        return ""
    names = [name for subject in change.subjects for name in await js.keeping(subject)]
    return f": {', '.join(dict.fromkeys(names))}; declare that one, or other subjects"


async def plan(js: JetStream, streams: Iterable[StreamConfig], consumers: Iterable[Wanted]) -> Plan:
    """What would have to be done.

    Args:
        js: Where.
        streams: What is declared, apart from the streams of consumers.
        consumers: The consumers.

    Raises:
        ConfigError: Streams are declared that cannot be together.
        MeshError: JetStream cannot be reached.
    """
    consumers, result = list(consumers), Plan()
    declared, subjects = _declared(streams, consumers)
    for config in declared.values():
        await _plan_stream(js, config.config, result, left_out=config.left_out)
    for name, consumed in subjects.items():
        await _plan_subjects(js, name, consumed, result)
    for each in consumers:
        if other := await _elsewhere(js, each):
            result.refusals.append(other)
            continue
        for config in each.beside:
            await _plan_stream(js, config, result, is_ours=True)
        for config in each.consumers:
            await _plan_consumer(js, each.consumed, config, result)
    if consumers:
        await _plan_dead(js, [config.replicas for config in declared.values()], result)
    return result


async def _plan_dead(js: JetStream, replicas: list[int], result: Plan) -> None:
    """Dead letters are kept as safely as the messages were; what else is changed by hand stays."""
    wanted, info = max(replicas, default=1), await js.stream(DEAD["name"])
    if info is None:
        await _plan_stream(js, DEAD | {"num_replicas": wanted}, result)
    elif info.config.get("num_replicas", 1) < wanted:
        await _plan_stream(js, {"name": DEAD["name"], "num_replicas": wanted}, result)


async def _elsewhere(js: JetStream, wanted: Wanted) -> str | None:
    """Why a consumer cannot be there: it was in order, or was not, and would get all messages again."""
    source = wanted.stream if isinstance(wanted.stream, str) else wanted.stream.name
    if source == wanted.consumed:
        name = wanted.consumers[0]["name"]
        info = await js.stream(f"{source}-{name}")
        if info is None or not info.config.get("sources"):
            return None
        return (
            f"consumer {name} of {source} was ordered_by, and without would get all messages again; "
            f"give it another name=, or delete its stream by hand: nats stream rm {info.name}"
        )
    name = wanted.consumed.removeprefix(f"{source}-")
    if await js.consumer(source, name) is not None:
        return (
            f"consumer {name} of {source} was not ordered_by, and would get all messages again; "
            f"give it another name=, or delete it by hand: nats consumer rm {source} {name}"
        )
    info = await js.stream(source)
    if info is None or info.config.get("retention", "limits") == "limits":
        return None
    return (
        f"consumer {name}: ordered_by copies messages from a stream of retention 'limits', and {source} is "
        f"of {info.config['retention']!r}, of which copies could be lost or made twice"
    )


def _declared(
    streams: Iterable[StreamConfig], consumers: list[Wanted]
) -> tuple[dict[str, StreamConfig], dict[str, list[str]]]:
    """Streams by name; and of those of which only the name is known, the subjects that are consumed."""
    declared: dict[str, StreamConfig] = {}
    for stream in [*streams, *(each.stream for each in consumers)]:
        if not isinstance(stream, str) and declared.setdefault(stream.name, stream) != stream:
            raise ConfigError(f"stream {stream.name!r} is declared twice, and differently; declare it once")
    subjects: dict[str, list[str]] = {}
    for each in consumers:
        if isinstance(each.stream, str) and each.stream not in declared:
            subjects.setdefault(each.stream, []).append(each.subject)
    return declared, subjects


async def _plan_stream(
    js: JetStream, wanted: Config, result: Plan, *, is_ours: bool = False, left_out: Collection[str] = ()
) -> None:
    name = wanted["name"]
    info = await js.stream(name)
    if info is None:
        text = f"+ stream {name}: {_keeps(wanted)}"
        create = functools.partial(_create, js, wanted)
        result.changes.append(Change(text, create, wanted.get("subjects", [])))
        return
    if info.config.get("no_ack"):
        result.refusals.append(
            f"stream {name} acknowledges nothing (no_ack), so nobody knows what it has stored"
        )
        return
    if "subjects" in wanted:
        kept: list[str] = info.config.get("subjects") or []
        others = [subject for subject in kept if not _covered(subject, wanted["subjects"])]
        wanted = wanted | {"subjects": [*wanted["subjects"], *others]}
    differing = {
        key: value
        for key, value in wanted.items()
        if key not in left_out and not _same(key, info.config.get(key), value)
    }
    # What is ours may be limited at any time: there are no messages in it that nobody else has.
    is_free = is_ours or not info.state.messages
    if destroyed := _destroyed(info.config, differing, is_free=is_free):
        result.refusals.extend(
            f"stream {name}: {what}; declare it as it is, or change it by hand: nats stream edit {name}"
            for what in destroyed
        )
    elif differing:
        update = functools.partial(js.update_stream, info.config | differing)
        result.changes.append(Change(f"~ stream {name}: {_changed(info.config, differing)}", update))


async def _create(js: JetStream, config: Config) -> None:
    sources: list[Config] = []
    for source in config.get("sources", ()):
        if source.get("opt_start_seq") == NEXT and (info := await js.stream(source["name"])) is not None:
            sources.append(source | {"opt_start_seq": info.state.last_seq + 1})
        else:
            sources.append(source)
    await js.create_stream(config | {"sources": sources} if sources else config)


async def _plan_subjects(js: JetStream, name: str, wanted: list[str], result: Plan) -> None:
    """A stream that only its name is known of: it keeps at least what is consumed."""
    info = await js.stream(name)
    if info is None:
        await _plan_stream(js, StreamConfig(name, _least(wanted)).config, result)
        return
    if info.config.get("sources") or info.config.get("mirror"):
        return  # it has its messages from other streams
    kept: list[str] = info.config.get("subjects") or []
    if missing := [subject for subject in _least(wanted) if not _covered(subject, kept)]:
        update = functools.partial(_grow, js, info.config | {"subjects": _least([*kept, *missing])})
        result.changes.append(Change(f"~ stream {name}: subjects + {', '.join(missing)}", update))


async def _grow(js: JetStream, config: Config) -> None:
    """Update a stream that others may update at this moment, with what they know of it."""
    await js.update_stream(config)
    # Until they have: then it is looked at again.
    await asyncio.sleep(_OTHERS * random.uniform(1, 2))  # noqa: S311 # spreads load


async def _plan_consumer(js: JetStream, stream: str, wanted: Config, result: Plan) -> None:
    name = wanted["name"]
    info = await js.consumer(stream, name)
    if info is None:
        text = f"+ consumer {name} of {stream}: {wanted['filter_subject']}"
        result.changes.append(Change(text, functools.partial(js.put_consumer, stream, wanted)))
        return
    metadata: dict[str, str] = info.config.get("metadata") or {}
    owner = metadata.get(OWNER)
    if owner is not None and owner != wanted["metadata"][OWNER]:
        result.refusals.append(
            f"consumer {name} of {stream} is that of service {owner!r}, and each message would go to one of "
            "the two; give it another name="
        )
        return
    for key in ("deliver_subject", "headers_only", "max_batch"):
        if there := info.config.get(key):
            result.refusals.append(
                f"consumer {name} of {stream} has {key} {there!r}, with which messages do not come as they "
                f"are; give it another name=, or delete it by hand: nats consumer rm {stream} {name}"
            )
            return
    for key in ("filter_subject", "ack_policy"):
        if (there := info.config.get(key, "")) != wanted[key]:
            result.refusals.append(
                f"consumer {name} of {stream}: {key} is {there!r}, and {wanted[key]!r} would leave messages "
                f"out; give it another name=, or delete it by hand: nats consumer rm {stream} {name}"
            )
            return
    if differing := {key: wanted[key] for key in _CONSUMER_KEYS if info.config.get(key) != wanted[key]}:
        update = functools.partial(js.put_consumer, stream, info.config | differing)
        text = f"~ consumer {name} of {stream}: {_changed(info.config, differing)}"
        result.changes.append(Change(text, update))


def _destroyed(there: Config, differing: Config, *, is_free: bool) -> list[str]:
    """What the change of a stream would destroy, in words."""
    found = [
        f"{key} cannot be changed from {there.get(key)!r}"
        for key in ("retention", "storage")
        if key in differing
    ]
    if "sources" in differing:
        found.append("another subject or number of partitions would change the order of what waits")
    if is_free:
        return found
    found.extend(
        f"{key} from {_words(key, there.get(key))} to {_words(key, differing[key])} would drop messages"
        for key in _LIMITS
        if key in differing and _bounded(differing[key]) < _bounded(there.get(key))
    )
    if differing.get("discard") == "old":
        found.append("discard 'old' would drop messages that are kept now")
    return found


def _same(key: str, there: Any, wanted: Any) -> bool:
    if key == "sources":
        # JetStream adds what is not said.
        return [*map(_essence, there or ())] == [*map(_essence, wanted)]
    return (there or None) == (wanted or None) or (key in _LIMITS and _bounded(there) == _bounded(wanted))


def _essence(source: dict[str, Any]) -> tuple[Any, ...]:
    transforms: list[dict[str, str]] = source.get("subject_transforms") or []
    return source["name"], *((one.get("src"), one.get("dest")) for one in transforms)


def _bounded(limit: int | None) -> float:
    return limit if limit and limit > 0 else math.inf


def _covered(subject: str, patterns: Iterable[str]) -> bool:
    return any(covers(pattern, subject) for pattern in patterns)


def _least(subjects: list[str]) -> list[str]:
    """The same without those that others cover."""
    once = list(dict.fromkeys(subjects))
    return [one for one in once if not any(one != other and covers(other, one) for other in once)]


def _keeps(config: Config) -> str:
    said = [", ".join(config.get("subjects", [])) or f"of {config['sources'][0]['name']}"]
    said += [f"{key} {_words(key, config[key])}" for key in _LIMITS if _bounded(config.get(key)) < math.inf]
    if config["retention"] != "limits":
        said.append(config["retention"])
    return ", ".join([*said, config["storage"]])


def _changed(there: Config, differing: Config) -> str:
    return ", ".join(
        f"{key} {_words(key, there.get(key))} → {_words(key, value)}" for key, value in differing.items()
    )


def _words(key: str, value: Any) -> str:
    if key in _DURATIONS and value:
        return in_units(value / 1e9)
    if key in _LIMITS and not (value and value > 0):
        return "unlimited"
    return ", ".join(cast("list[str]", value)) if isinstance(value, list) else str(value)
