"""The crash drill: processes of examples/pipeline are killed, and nothing may be lost or doubled."""

import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmarks.pipeline_run import CHUNK, SAVERS, Result, Run, Size, Stuck, kill
from benchmarks.report import Table

KINDS = ("fetcher", "mapper", "saver", "nats-server")
EVERYTHING = "everything"
_COLUMNS = ["variant", *KINDS, EVERYTHING, "saved", "lost", "checksum", "chunks again", "s", "s, no kills"]
_NOTES = [
    "In the middle are kills, by what was killed; everything: all processes there are at the same time.",
    "Lost: objects that are not in the database at the end. Checksum: beside that of the run without kills.",
    f"Chunks again: how often {CHUNK} objects were given to a mapper that had been given to one before.",
    "s: seconds until everything was saved; no kills: in the run in which nobody was killed.",
]
# Shares of the objects that are saved before the first kill, and at most before the last.
_FIRST, _LAST = 0.02, 0.85
# Of so many kills of nats-server, one is followed by the next kill while it is away.
_TOGETHER = 2
# With so many kills and more, all processes die at once, once.
_MANY = 20
# Seconds that nats-server is away.
_AWAY = (0.1, 2.0)


class Kill(NamedTuple):
    """What is killed, and when: as soon as so many objects are saved; 0 for as soon as one is sent."""

    at: int
    what: str


class Outcome(NamedTuple):
    """What came of a run.

    Attributes:
        result: What is saved.
        seconds: From the start until all was.
        again: How often a chunk was given to a mapper that had been given to one before.
        killed: How many of each kind were killed.
        wrong: What is wrong, in sentences.
    """

    result: Result
    seconds: float
    again: int
    killed: Counter[str]
    wrong: list[str]


def plan(objects: int, kills: int, seed: int) -> list[Kill]:
    """Kills in the order in which they come: each kind as often as the others, spread over the run.

    Args:
        objects: How many are to be saved.
        kills: How many processes are to be killed.
        seed: What chance begins with.
    """
    chance = random.Random(seed)  # noqa: S311 # to be the same again
    kinds = [KINDS[n % len(KINDS)] for n in range(kills)]
    chance.shuffle(kinds)
    # First the fetcher, as soon as it has sent anything: with durable endpoints it has soon sent everything.
    kinds.remove(KINDS[0])
    kinds.insert(0, KINDS[0])
    if kills >= _MANY:
        kinds.insert(kills // 2, EVERYTHING)
    step = (_LAST - _FIRST) / max(1, len(kinds))
    planned = [
        Kill(int(objects * (_FIRST + step * (n + chance.random()))), what) for n, what in enumerate(kinds)
    ]
    planned[0] = planned[0]._replace(at=0)
    followed = [n for n, (one, _) in enumerate(pairwise(planned)) if one.what == "nats-server"]
    for n in followed[::_TOGETHER]:
        planned[n + 1] = planned[n + 1]._replace(at=planned[n].at)
    return planned


def carry_out(run: Run, planned: Sequence[Kill], seed: int) -> Counter[str]:
    """Kill what is planned, and tell of it, until everything is saved; gives how many were killed.

    Args:
        run: What runs.
        planned: What is killed, in this order.
        seed: What chance begins with: which of several processes it is, and how long nats-server is away.

    Raises:
        Stuck: Nothing more is saved.
    """
    chance = random.Random(seed)  # noqa: S311 # to be the same again
    killed: Counter[str] = Counter()
    left = deque(planned)
    back = 0.0  # when nats-server is started again
    has_begun = False
    tenths = 0
    for saved in run.wait():
        if not run.server.is_running and time.monotonic() >= back:
            run.server.restart()
        has_begun = has_begun or run.has_begun()
        # What is killed when all is done proves nothing.
        while has_begun and left and left[0].at <= saved < run.size.objects:
            what = left[0].what
            victims = _victims(run, what)
            if not victims:  # it was killed before, and is not back
                break
            pid = chance.choice(sorted(victims))
            if what == "nats-server":
                run.server.kill()
                back = time.monotonic() + chance.uniform(*_AWAY)
            elif what == EVERYTHING:
                run.crash()
            else:
                kill(pid)
            left.popleft()
            killed[what] += 1
            _tell(run, saved, f"{victims[pid]:<12} pid {pid}")
        if not planned and tenths < saved * 10 // run.size.objects < 10:
            tenths = saved * 10 // run.size.objects
            _tell(run, saved)
    if not run.server.is_running:
        run.server.restart()
    return killed


def _tell(run: Run, saved: int, what: str = "") -> None:
    print(f"{time.monotonic() - run.began:7.1f} s  at {saved:>7,} saved  {what}".rstrip(), flush=True)


def _victims(run: Run, what: str) -> dict[int, str]:
    """The processes of a kind that there are now, with their names."""
    if what == "nats-server":
        return {run.server.pid: what} if run.server.is_running else {}
    if what == EVERYTHING:
        return {run.launcher: what}
    return {pid: name for pid, name in run.workers().items() if name.partition("#")[0] == what}


def hold(variant: str, size: Size, planned: Sequence[Kill] = (), *, seed: int = 0) -> Outcome:
    """A run from its start to its end. If something is wrong its folder is kept.

    Args:
        variant: `core` or `durable`.
        size: How much is to be done.
        planned: What is killed meanwhile.
        seed: What chance begins with.

    Raises:
        Stuck: Nothing more is saved.
    """
    with Run(variant, size) as run:
        killed = carry_out(run, planned, seed)
        seconds = time.monotonic() - run.began
        wrong = run.settle()
        again = run.again()
        wrong += run.stop()
        result = run.result()
        if result.missing:
            wrong.append(f"{result.missing:,} of {size.objects:,} objects are lost")
        if (more := result.rows - (size.objects - result.missing)) > 0:
            wrong.append(f"{more:,} rows too many are saved")
        if killed.total() < len(planned):
            wrong.append(f"only {killed.total()} of {len(planned)} kills came before everything was saved")
        if wrong:
            run.is_kept = True
            wrong.append(f"what it left is in {run.folder}")
    return Outcome(result, seconds, again, killed, wrong)


def drill(variants: Sequence[str], size: Size, kills: int, seed: int) -> tuple[Table, list[str]]:
    """Of each variant a run without crashes, and one with them: what came of it, and what is wrong.

    Args:
        variants: Of the example.
        size: How much is to be done.
        kills: How many processes are killed.
        seed: What chance begins with.
    """
    rows: list[list[object]] = []
    wrong: list[str] = []
    calm: Outcome | None = None
    waits = f" that wait {size.service_time:g} s in place of most of the work" if size.service_time else ""
    for variant in variants:
        what = f"{variant}: {size.objects:,} objects, {size.mappers} mappers{waits}, {SAVERS} savers"
        try:
            if calm is None or not waits:  # else one is enough for all: only the times differ
                calm = _shown(variant, size, f"{what}, nobody is killed")
            planned = plan(size.objects, kills, seed)
            rough = _shown(variant, size, f"{what}, {kills} kills, seed {seed}", planned, seed)
        except Stuck as stuck:
            wrong.append(f"{variant} is stuck: {stuck}")
            continue
        is_equal = calm.result.checksum == rough.result.checksum
        said = [*calm.wrong, *rough.wrong]
        said += [] if is_equal else ["the results are not those of the run without crashes"]
        wrong += [f"{variant}: {one}" for one in said]
        shown = "equal" if is_equal else "DIFFERENT"
        rows.append(
            [
                variant,
                *(rough.killed[kind] for kind in (*KINDS, EVERYTHING)),
                *(rough.result.rows, rough.result.missing, shown, rough.again, rough.seconds, calm.seconds),
            ]
        )
    return {"title": "What came of it", "columns": _COLUMNS, "rows": rows, "notes": _NOTES}, wrong


def _shown(variant: str, size: Size, what: str, planned: Sequence[Kill] = (), seed: int = 0) -> Outcome:
    """A run, with a line before it and one after it."""
    print(f"\n{what}", flush=True)
    outcome = hold(variant, size, planned, seed=seed)
    rows, checksum = outcome.result.rows, outcome.result.checksum
    print(f"{outcome.seconds:7.1f} s  at {rows:>7,} saved  the end, checksum {checksum}", flush=True)
    return outcome
