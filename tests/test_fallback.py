"""What a call gives if it fails."""

import asyncio

import pytest

from meshkit import (
    BadReply,
    BadRequest,
    CallPolicy,
    InternalError,
    MeshError,
    NoResponders,
    NotFound,
    Overloaded,
    RateLimited,
    Service,
    ServiceError,
    Unavailable,
)

ONCE = CallPolicy(retries=0)

service = Service("shaky")


@service.endpoint()
async def fail(code: int) -> int:
    match code:
        case 0:
            return code
        case 400:
            raise BadRequest("not like that")
        case 429:
            raise RateLimited("not that many")
        case 503:
            raise Overloaded("not now")
        case 504:
            await asyncio.sleep(60)
    raise ServiceError(code)


async def test_a_call_that_succeeds_has_no_use_for_it(mesh):
    async with mesh.serve(service):
        assert await mesh.call(fail, 0, fallback="sorry") == 0
    assert mesh.callees["shaky.fail"].statistics.fallbacks == 0


@pytest.mark.parametrize("code", [429, 500, 503, 504])
async def test_a_value(mesh, code):
    async with mesh.serve(service):
        assert await mesh.call(fail, code, timeout=0.1, policy=ONCE, fallback="sorry") == "sorry"
    assert mesh.callees["shaky.fail"].statistics.fallbacks == 1


async def test_nobody_there(mesh):
    assert await mesh.call("shaky.nobody", policy=ONCE, fallback=None) is None


async def test_a_function_gets_the_error(mesh):
    def instead(error):
        assert isinstance(error, NoResponders)
        return f"no {error.target} in {error.elapsed:.0f} s"

    assert await mesh.call("shaky.nobody", policy=ONCE, fallback=instead) == "no shaky.nobody in 0 s"


async def test_an_async_function(mesh):
    async def instead(error):
        return await mesh.call(fail, 0)

    async with mesh.serve(service):
        assert await mesh.call("shaky.nobody", policy=ONCE, fallback=instead) == 0


async def test_a_function_may_raise_it_again(mesh):
    def instead(error):
        raise error

    with pytest.raises(NoResponders):
        await mesh.call("shaky.nobody", policy=ONCE, fallback=instead)


@pytest.mark.parametrize(("code", "error"), [(400, BadRequest), (404, NotFound), (409, ServiceError)])
async def test_what_the_service_answers_on_purpose_is_no_failure(mesh, code, error):
    async with mesh.serve(service):
        with pytest.raises(error):
            await mesh.call(fail, code, fallback="sorry")


async def test_a_reply_of_another_type_is_no_failure(mesh):
    async with mesh.serve(service):
        with pytest.raises(BadReply):
            await mesh.call(fail, 0, returns=str, fallback="sorry")


async def test_errors_that_it_is_for(mesh):
    async with mesh.serve(service):
        assert await mesh.call(fail, 404, fallback="sorry", fallback_for=NotFound) == "sorry"
        assert await mesh.call(fail, 400, fallback="sorry", fallback_for=(NotFound, BadRequest)) == "sorry"
        with pytest.raises(InternalError):
            await mesh.call(fail, 500, fallback="sorry", fallback_for=NotFound)
        assert await mesh.call(fail, 409, fallback="sorry", fallback_for=MeshError) == "sorry"


async def test_it_comes_after_everything_that_keeps_a_call_alive(mesh):
    seen = []
    await mesh.call("shaky.nobody", fallback=seen.append)
    assert [error.attempt for error in seen] == [3]
    assert isinstance(seen[0], Unavailable)


async def test_it_is_for_nothing_but_the_call(mesh):
    with pytest.raises(ValueError, match="contains a wildcard"):
        await mesh.call("shaky.*", fallback="sorry")
    with pytest.raises(TypeError):
        await mesh.call("shaky.fail", object(), fallback="sorry")


async def test_who_stops_waiting_gets_none(mesh):
    async with mesh.serve(service):
        call = asyncio.create_task(mesh.call(fail, 504, fallback="sorry"))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
