"""The access log: a line for each call, or for a share of them, and for every call that failed."""

import asyncio
import json
import logging
import random
import re
from time import perf_counter
from typing import Any

from meshkit.durable.delivery import attempt
from meshkit.errors import MeshError, Unavailable, kind, shortened
from meshkit.headers import find, whole
from meshkit.layers.statistics import OK
from meshkit.message import ATTEMPT, CALLER, Handler, Layer, Request, Response
from meshkit.telemetry.logs import ACCESS, trace_of

log = logging.getLogger(ACCESS)

_ATTEMPT = f"\r\n{ATTEMPT}:".encode()
_CALLER = f"\r\n{CALLER}:".encode()
_LONGEST = 300  # characters of what a caller writes
_WORD = re.compile(r"[!#-<>-~]+")
_LOW_BITS = 2**64


def access(endpoint: str, share: float, *, is_durable: bool = False) -> Layer:
    """The callee's side: write a line for a call or a message that is over.

    Where spans are made, the id of its trace decides whether a call is in the share: of one trace all calls
    are, or none.

    Args:
        endpoint: The endpoint's name.
        share: Which share of the calls gets a line, above 0 to 1; those that fail with a code from 500 on
            all do.
        is_durable: Whether they are messages of a consumer.
    """
    bound = round(share * _LOW_BITS)

    def is_chosen(request: Request) -> bool:
        if request.span is None:
            return random.random() < share  # noqa: S311 - nothing secret
        return request.span.trace_id % _LOW_BITS < bound

    def write(request: Request, result: Response | MeshError, started: float) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        number = attempt(request.reply) if is_durable else whole(find(request.head, _ATTEMPT) or "1") or 1
        _write(endpoint, request, result, perf_counter() - started, number)

    def layer(following: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            started = perf_counter()
            try:
                response = await following(request)
            except MeshError as error:
                if error.code >= 500 or is_chosen(request):
                    write(request, error, started)
                raise
            except asyncio.CancelledError:
                # The drain's time is over.
                write(request, Unavailable(), started)
                raise
            if is_chosen(request):
                write(request, response, started)
            return response

        return handle

    return layer


def _write(
    endpoint: str, request: Request, result: Response | MeshError, seconds: float, number: int
) -> None:
    subject = shortened(request.subject, _LONGEST)
    outcome = OK
    fields: dict[str, Any] = {}
    if isinstance(result, MeshError):
        outcome = kind(result)
        fields["code"] = result.code
    fields["endpoint"] = endpoint
    if caller := find(request.head, _CALLER):
        fields["caller"] = shortened(caller, _LONGEST)
    fields |= {
        "duration_ms": round(seconds * 1000, 3),
        "queued_ms": round(request.queued * 1000, 3),
        "bytes_in": len(request.payload),
        "bytes_out": len(result.payload) if isinstance(result, Response) else 0,
        "attempt": number,
    }
    if request.sent:
        fields["items"] = request.sent
    if trace := trace_of(request):
        fields["trace_id"] = trace["trace_id"]
    facts = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
    given = {"subject": subject, "outcome": outcome, **fields}
    log.info("%s %s %s", _word(subject), outcome, facts, extra=given)


def _word(value: object) -> str:
    """A value in one word: what a caller writes of itself must not look like another field."""
    text = str(value)
    return text if _WORD.fullmatch(text) else json.dumps(text)
