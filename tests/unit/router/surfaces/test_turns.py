"""Turns: streams in excess wait for later turns of the loop, in order, and a new call gets in between."""

import asyncio

from router.surfaces.turns import Turns


async def test_work_beyond_a_turn_waits_in_order_and_others_get_in_between() -> None:
    turns = Turns(per_turn=2)
    done: list[int | str] = []

    async def part(number: int) -> None:
        await turns.enter()
        done.append(number)

    async def caller() -> None:
        await asyncio.sleep(0)
        done.append("caller")

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(part(number))
        tasks.create_task(caller())
    assert [each for each in done if isinstance(each, int)] == list(range(8))
    assert done.index("caller") <= 4


async def test_there_is_room_in_each_turn_again() -> None:
    turns = Turns(per_turn=2)
    for _ in range(3):
        before = asyncio.all_tasks()
        await turns.enter()
        await turns.enter()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


async def test_a_place_that_is_given_up_holds_nobody_up() -> None:
    turns = Turns(per_turn=1)
    places = [asyncio.create_task(turns.enter()) for _ in range(4)]
    await asyncio.sleep(0)  # the first is in
    places[1].cancel()
    async with asyncio.timeout(60):
        await asyncio.gather(*places, return_exceptions=True)
    assert [place.cancelled() for place in places] == [False, True, False, False]
