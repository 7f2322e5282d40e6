"""Unfinished bodies are bounded together: the greedy are refused, never the small and quick."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.api.bodies import Bodies, IncomingBody
from app.api.problems import HttpProblem
from app.errors import Unavailable

LIMITS = {"max_body_bytes": 100, "max_total_bytes": 150, "timeout_s": 30}


class Sender:
    """A client's side of a body: parts go out one by one."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming = IncomingBody(self.messages.get, self._arrived)
        self.arrived: list[tuple[int, bool]] = []
        # What the next part waits for, and whether it comes.
        self.waits_for: asyncio.Future[bool] | None = None

    def _arrived(self, size_bytes: int, *, last: bool) -> Awaitable[bool] | None:
        self.arrived.append((size_bytes, last))
        return self.waits_for

    def send(self, part: bytes, *, more: bool = True) -> None:
        self.messages.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


async def settle(condition: Callable[[], bool]) -> None:
    """Let tasks run until nothing of what was sent is left to be read."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the bodies were not taken in")


class Room:
    """Bodies that are being read, each in a task of its own."""

    def __init__(self, **limits: int) -> None:
        self.bodies = Bodies(**{**LIMITS, **limits})
        self.senders: list[Sender] = []

    async def begin(self, part: bytes = b"") -> "asyncio.Task[bytes | bytearray]":
        sender = Sender()
        self.senders.append(sender)
        reading = asyncio.create_task(self.bodies.read(sender.incoming))
        await asyncio.sleep(0)
        if part:
            await self.send(sender, part)
        return reading

    async def send(self, sender: Sender, part: bytes, *, more: bool = True) -> None:
        sender.send(part, more=more)
        await settle(sender.messages.empty)
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_body_is_read_in_parts() -> None:
    room = Room()
    reading = await room.begin(b"ab")
    await room.send(room.senders[0], b"cd")
    await room.send(room.senders[0], b"", more=False)
    assert await reading == b"abcd"


async def test_each_part_is_told_of_and_may_be_waited_with() -> None:
    sender = Sender()
    sender.send(b"ab")
    sender.waits_for = asyncio.get_running_loop().create_future()
    first = asyncio.create_task(sender.incoming.part())
    await settle(lambda: bool(sender.arrived))
    assert not first.done()
    sender.send(b"c", more=False)
    sender.waits_for.set_result(True)
    assert [await first, await sender.incoming.part()] == [b"ab", b"c"]
    assert sender.arrived == [(2, False), (1, True)]


async def test_a_body_whose_connection_is_gone_is_broken_whatever_is_left_of_it() -> None:
    sender = Sender()
    sender.waits_for = asyncio.get_running_loop().create_future()
    sender.waits_for.set_result(False)
    for _ in range(2):
        sender.send(b"s")
    with pytest.raises(HttpProblem) as caught:
        await sender.incoming.part()
    assert caught.value.status == 400
    assert sender.incoming.broken
    assert not sender.incoming.complete


async def test_beyond_the_total_the_largest_is_refused_and_the_others_go_on() -> None:
    room = Room()
    small, large = await room.begin(b"s" * 10), await room.begin(b"l" * 90)
    middle = await room.begin(b"m" * 50)
    assert (middle.done(), small.done()) == (False, False)
    await room.send(room.senders[2], b"m")
    with pytest.raises(Unavailable, match="more than 150 bytes"):
        await large
    for sender, size in ((room.senders[0], 10), (room.senders[2], 51)):
        sender.send(b"", more=False)
        reading = small if sender is room.senders[0] else middle
        assert len(await reading) == size


async def test_the_room_that_a_refused_or_complete_body_took_is_free_again() -> None:
    room = Room()
    for _ in range(10):
        readings = [await room.begin(b"x" * 80), await room.begin(b"y" * 80)]
        with pytest.raises(Unavailable):
            await readings[0]
        await room.send(room.senders[-1], b"", more=False)
        assert len(await readings[1]) == 80
    last = await room.begin(b"z" * 100)
    await room.send(room.senders[-1], b"", more=False)
    assert len(await last) == 100


async def test_beyond_so_many_the_oldest_is_refused() -> None:
    room = Room(max_unfinished=2)
    first, second, third = [await room.begin() for _ in range(3)]
    with pytest.raises(Unavailable, match="more than 2 bodies"):
        await first
    for sender, reading in zip(room.senders[1:], (second, third), strict=True):
        sender.send(b"fine", more=False)
        assert await reading == b"fine"


async def test_a_body_over_its_own_limit_is_a_413_and_takes_no_room() -> None:
    room = Room()
    for _ in range(3):
        reading = await room.begin(b"x" * 101)
        with pytest.raises(HttpProblem) as caught:
            await reading
        assert caught.value.status == 413
    assert not (await room.begin(b"y" * 90)).done()


async def test_a_client_that_leaves_takes_no_room() -> None:
    room = Room()
    for _ in range(3):
        reading = await room.begin(b"x" * 90)
        room.senders[-1].leave()
        with pytest.raises(HttpProblem) as caught:
            await reading
        assert caught.value.status == 400
    assert not (await room.begin(b"y" * 90)).done()
