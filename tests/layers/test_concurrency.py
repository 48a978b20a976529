import asyncio
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from meshkit import Overloaded
from meshkit.layers.concurrency import Concurrency
from meshkit.message import Request, Response

STEPS = st.lists(st.tuples(st.sampled_from(["arrive", "finish", "cancel"]), st.integers(0, 9)), max_size=60)


@given(st.integers(1, 3), st.integers(0, 3), STEPS)
def test_the_bound_holds_whatever_comes_goes_and_is_cancelled(limit, backlog, steps):
    asyncio.run(run(limit, backlog, steps))


async def run(limit, backlog, steps):
    bound = Concurrency(limit, backlog, "test")
    gates, begun, numbers = {}, [], count()

    async def handle(request):
        begun.append(int(request.subject))
        await gates[request.subject].wait()
        return Response(b"")

    call = bound.layer(handle)
    tasks = {}
    for what, choice in steps:
        waiting = [task for task in tasks.values() if not task.done()]
        if what == "arrive":
            number = str(next(numbers))
            gates[number] = asyncio.Event()
            was_full = bound.running == limit and bound.waiting == backlog
            task = tasks[number] = asyncio.create_task(call(Request(number, b"", b"", 0.0, 0.0)))
            await settle()
            refused = task.done() and isinstance(task.exception(), Overloaded)
            assert refused == was_full
        elif waiting and what == "finish":
            running = [number for number in tasks if int(number) in begun and not tasks[number].done()]
            gates[running[choice % len(running)]].set()
        elif waiting:
            waiting[choice % len(waiting)].cancel()
        await settle()
        assert bound.running <= limit
        assert bound.waiting <= backlog
        assert bound.running == limit or bound.waiting == 0  # nobody waits while a slot is free
    assert begun == sorted(begun)  # first come, first served
    for gate in gates.values():
        gate.set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert (bound.running, bound.waiting) == (0, 0)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)
