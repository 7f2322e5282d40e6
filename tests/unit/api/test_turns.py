"""Calls begin one after another, a round of the event loop each: what is between gets its turn."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.types import Message

from app.api.turns import Turns
from app.errors import Unavailable
from app.main import create_app
from app.service.interpreter import INTERVAL_S
from app.settings import Settings

HEALTH: Final[dict[str, Any]] = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "path": "/healthz",
    "raw_path": b"/healthz",
    "query_string": b"",
    "headers": [],
    "server": ("127.0.0.1", 80),
    "scheme": "http",
}


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


async def test_calls_that_come_at_once_are_answered_one_in_each_round(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, database_url="postgresql://127.0.0.1:9/none"))
    answered = 0

    async def call(number: int) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal answered
            answered += message["type"] == "http.response.start"

        await app({**HEALTH, "client": ("127.0.0.1", number)}, receive, send)

    tasks = [asyncio.create_task(call(number)) for number in range(1, 31)]
    most = 0
    while answered < len(tasks):
        before = answered
        await asyncio.sleep(0)
        most = max(most, answered - before)
    await asyncio.gather(*tasks)
    assert most == 1
