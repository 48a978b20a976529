"""Whatever a handler raises becomes an error that may be shown to a caller."""

import asyncio
import logging
import secrets

from meshkit.errors import InternalError, MeshError
from meshkit.message import Handler, Request, Response

log = logging.getLogger("meshkit.service")


def rescue(following: Handler) -> Handler:
    """Log what the handler did not mean to raise, and answer with an id to find it by.

    An error of the mesh passes as it is, but never as "not executed": the handler ran, whatever a call of its
    own met.
    """

    async def handle(request: Request) -> Response:
        try:
            return await following(request)
        except MeshError as error:
            error.executed = True
            raise
        except BaseException as error:
            # SystemExit too: one call must not end the process, and all others with it.
            if isinstance(error, KeyboardInterrupt) or _is_cancellation(error):
                raise
            number = secrets.token_hex(4)
            log.exception("%s failed, error %s", request.subject, number)
            raise InternalError(f"internal error {number}; the service's log has the details") from error

    return handle


def _is_cancellation(error: BaseException) -> bool:
    """Whether somebody stops the handler; if it awaited a task of its own that was cancelled, it failed."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
