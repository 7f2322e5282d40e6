"""Calls begin one after another: what is between gets its turn, and as much time."""

import asyncio
import sys
import time
from contextlib import suppress
from itertools import pairwise

import pytest

from app.api.turns import Turns
from app.errors import Unavailable
from app.service.interpreter import INTERVAL_S


async def begun_in_each_round(turns: Turns, calls: int) -> list[int]:
    """How many of so many calls, all there at once, began in each round until all had."""
    begun: list[int] = []

    async def call(number: int) -> None:
        await turns.take()
        begun.append(number)

    tasks = [asyncio.create_task(call(number)) for number in range(calls)]
    rounds = []
    while len(begun) < calls:
        before = len(begun)
        await asyncio.sleep(0)
        rounds.append(len(begun) - before)
    await asyncio.gather(*tasks)
    assert begun == sorted(begun)
    return rounds


async def test_of_many_calls_one_begins_in_each_round_in_their_order() -> None:
    assert max(await begun_in_each_round(Turns(50), 50)) == 1


async def test_behind_a_call_that_takes_long_others_than_calls_have_rounds_of_the_loop() -> None:
    turns = Turns(50)
    rounds = 0
    begun_at: list[int] = []

    async def call() -> None:
        await turns.take()
        begun_at.append(rounds)
        time.sleep(0.05)  # noqa: ASYNC251 - it keeps the loop from everything else

    calls = [asyncio.create_task(call()) for _ in range(3)]
    while len(begun_at) < len(calls):
        await asyncio.sleep(0)
        rounds += 1
    await asyncio.gather(*calls)
    assert all(later - earlier > 5 for earlier, later in pairwise(begun_at))


async def test_a_call_alone_does_not_wait() -> None:
    turns = Turns(50)
    for _ in range(3):
        assert await begun_in_each_round(turns, 1) == [1]
        await asyncio.sleep(0)


async def test_a_call_that_is_given_up_in_line_keeps_nobody_waiting() -> None:
    turns = Turns(50)
    await turns.take()
    waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
    await asyncio.sleep(0)
    for task in waiting[1:]:
        task.cancel()
    for task in waiting:
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
    assert max(await begun_in_each_round(turns, 5)) == 1


async def test_threads_switch_sooner_as_long_as_calls_wait_in_line() -> None:
    turns = Turns(50)
    await begun_in_each_round(turns, 1)
    let_in = [asyncio.create_task(turns.take()) for _ in range(3)]
    await asyncio.sleep(0)
    assert sys.getswitchinterval() < INTERVAL_S / 5
    await asyncio.gather(*let_in)
    assert max(await begun_in_each_round(turns, 1)) == 1
    await asyncio.sleep(0)
    assert sys.getswitchinterval() == pytest.approx(INTERVAL_S)


async def test_a_line_that_is_full_is_said_to_be() -> None:
    turns = Turns(2)
    let_in = [asyncio.create_task(turns.take()) for _ in range(3)]
    refused = asyncio.create_task(turns.take())
    with pytest.raises(Unavailable, match="2 calls wait"):
        await refused
    await asyncio.gather(*let_in)
