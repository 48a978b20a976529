"""`def` handlers."""

import asyncio
import functools
import threading

import pytest
from support import until

from meshkit import (
    Context,
    DeadlineExceeded,
    InternalError,
    Service,
)


async def test_def_handlers_run_side_by_side_in_threads(mesh):
    service = Service("sync")
    meet = threading.Barrier(5, timeout=5)

    @service.endpoint()
    def together() -> str:
        meet.wait()
        return threading.current_thread().name

    async with mesh.serve(service):
        names = await asyncio.gather(*(mesh.call(together) for _ in range(5)))
    assert len(set(names)) == 5


async def test_a_thread_that_does_not_stop_is_answered_for(mesh):
    service = Service("sync")
    release = threading.Event()

    @service.endpoint(timeout=0.1)
    def stuck() -> None:
        release.wait(10)

    @service.endpoint()
    def fine() -> str:
        return "ok"

    async with mesh.serve(service):
        with pytest.raises(DeadlineExceeded):
            await mesh.call(stuck)
        assert await mesh.call(fine) == "ok"
        release.set()


async def test_stop_iteration_is_a_failure_like_any_other(mesh):
    service = Service("sync")
    heard = []

    @service.endpoint()
    def empty() -> int:
        return next(iter(()))

    @service.subscribe("numbers")
    def on_number(number: int) -> None:
        heard.append(number)
        next(iter(()))

    async with mesh.serve(service):
        with pytest.raises(InternalError):
            await mesh.call(empty)
        for number in range(3):
            await mesh.publish("numbers", number)
        await until(lambda: heard == [0, 1, 2])


async def test_a_def_around_an_async_def_is_awaited(mesh):
    service = Service("wrapped")

    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @service.endpoint()
    @logged
    async def hello(name: str) -> str:
        return f"hello {name}"

    async with mesh.serve(service):
        assert await mesh.call(hello, "Ann") == "hello Ann"


async def test_ctx_run_is_for_threads_only(mesh):
    service = Service("mixed")

    @service.endpoint()
    async def wrong(ctx: Context) -> str:
        with pytest.raises(RuntimeError, match="an `async def` handler awaits"):
            ctx.run(ctx.mesh.call("mixed.wrong"))
        return "ok"

    async with mesh.serve(service):
        assert await mesh.call(wrong) == "ok"
