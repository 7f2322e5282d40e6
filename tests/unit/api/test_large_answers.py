"""Large answers are made in turns, few at once, and no longer than somebody waits for them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from fastapi import Request, Response
from starlette.types import Message, Scope

from app.api.connections import MAX_IN_PROGRESS, Connections
from app.api.large_answers import MAX_MADE_AT_ONCE, MAX_WAITING, LargeAnswers
from app.api.turns import Turns
from app.errors import Unavailable

PEER: Final = ("127.0.0.1", 4000)
PART: Final = b"part"
MANY: Final = 100


class Client:
    """Asks for an answer of so many parts; nothing of them is begun before it is `let`."""

    def __init__(self, answers: LargeAnswers, parts: int = MANY) -> None:
        self.begun = False
        self.made = 0
        self.let = asyncio.Event()
        self.received: list[bytes] = []
        self.headers: dict[bytes, bytes] = {}
        self.takes: Callable[[], Any] = lambda: asyncio.sleep(0)
        self._parts = parts
        self._gone = asyncio.Event()
        self._scope: Scope = {"type": "http", "method": "GET", "headers": [], "client": PEER}
        self._messages: list[Message] = [{"type": "http.request", "body": b""}]
        request = Request(self._scope, self._receive)
        self.task = asyncio.create_task(
            answers.answer(request, self._begin, immutable=True, tag="a")
        )

    def leave(self) -> None:
        self._gone.set()

    async def response(self) -> Response:
        return await asyncio.wait_for(self.task, 10)

    async def read(self, *, head: bool = False) -> None:
        """Have the answer sent."""
        response = await self.response()
        await response({**self._scope, "head": head}, self._receive, self._send)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(100_000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError((self.begun, self.made))

    async def _begin(self) -> Iterator[bytes]:
        self.begun = True
        await self.let.wait()
        return self._each()

    def _each(self) -> Iterator[bytes]:
        for _ in range(self._parts):
            self.made += 1
            yield PART

    async def _receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.headers = dict(message["headers"])
            return
        await self.takes()
        self.received.append(message["body"])
        assert message.get("more_body", False) == (len(self.received) < self._parts)


@pytest.fixture
def turns() -> Turns:
    return Turns(1000)


@pytest.fixture
def connections() -> Connections:
    return Connections(100, 10, 10, max_untaken_bytes=1000)


@pytest.fixture
def answers(turns: Turns, connections: Connections) -> LargeAnswers:
    return LargeAnswers(turns, connections)


@asynccontextmanager
async def turns_of_others(turns: Turns) -> AsyncIterator[list[int]]:
    """What other calls' turns are counted in meanwhile, one call after another."""
    taken: list[int] = [0]

    async def take() -> None:
        while True:
            await turns.take()
            taken[0] += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take())
    yield taken
    others.cancel()


async def test_others_have_a_turn_between_any_two_parts(
    turns: Turns, answers: LargeAnswers
) -> None:
    client = Client(answers)
    client.let.set()
    async with turns_of_others(turns) as taken:
        await client.response()
        while_made = taken[0]
        await client.read()
    assert client.made == MANY
    assert while_made >= MANY - 1
    assert taken[0] - while_made >= MANY - 1


async def test_all_of_it_is_sent_with_its_length(answers: LargeAnswers) -> None:
    client = Client(answers)
    client.let.set()
    await client.read()
    assert client.received == [PART] * MANY
    assert client.headers[b"content-length"] == b"400"


async def test_of_its_head_the_length_is_told_alone(answers: LargeAnswers) -> None:
    client = Client(answers, 1)
    client.let.set()
    await client.read(head=True)
    assert client.received == [b""]
    assert client.headers[b"content-length"] == b"4"


async def test_few_are_made_at_once_and_the_others_one_after_another(answers: LargeAnswers) -> None:
    clients = [Client(answers) for _ in range(MAX_MADE_AT_ONCE + 2)]
    for index, client in enumerate(clients):
        await client.until(lambda: client.begun)  # noqa: B023 - it is called in this round
        assert [each.begun for each in clients].count(True) <= index + MAX_MADE_AT_ONCE
        client.let.set()
        await client.response()
    assert all(client.made == MANY for client in clients)


async def test_beyond_those_that_may_wait_they_are_refused(answers: LargeAnswers) -> None:
    clients = [Client(answers, 1) for _ in range(MAX_MADE_AT_ONCE + MAX_WAITING)]
    await clients[-1].until(lambda: clients[MAX_MADE_AT_ONCE - 1].begun)
    with pytest.raises(Unavailable, match=f"{MAX_WAITING} large answers wait"):
        await Client(answers, 1).response()
    for client in clients:
        client.let.set()
        await client.response()


@pytest.mark.parametrize("let", [False, True], ids=["before it is begun", "while it is made"])
async def test_what_its_client_has_left_is_made_no_further_and_frees_its_place(
    turns: Turns, answers: LargeAnswers, let: bool
) -> None:
    clients = [Client(answers, 1 << 62) for _ in range(MAX_MADE_AT_ONCE + 1)]
    leaving, waiting = clients[:-1], clients[-1]
    for client in leaving:
        if let:
            client.let.set()
            await client.until(lambda: client.made > 2)  # noqa: B023 - called in this round
        else:
            await client.until(lambda: client.begun)  # noqa: B023 - called in this round
    assert not waiting.begun
    for client in leaving:
        client.leave()
        assert (await client.response()).status_code == 499
    made = [client.made for client in leaving]
    await waiting.until(lambda: waiting.begun)
    for _ in range(10):
        await turns.take()
        await asyncio.sleep(0)
    assert [client.made for client in leaving] == made
    waiting.leave()
    await waiting.response()


async def test_who_leaves_while_it_waits_leaves_room_in_the_line(answers: LargeAnswers) -> None:
    clients = [Client(answers, 1) for _ in range(MAX_MADE_AT_ONCE + MAX_WAITING)]
    await clients[-1].until(lambda: clients[MAX_MADE_AT_ONCE - 1].begun)
    clients[-1].leave()
    await clients[-1].response()
    assert not clients[-1].begun
    clients[-1] = Client(answers, 1)
    for client in clients:
        client.let.set()
        await client.response()
    assert clients[-1].made == 1


async def test_what_is_asked_for_over_a_connection_that_was_cut_is_made_no_further(
    answers: LargeAnswers, connections: Connections
) -> None:
    client = Client(answers, 1 << 62)
    client.let.set()
    await client.until(lambda: client.made > 2)
    for _ in range(MAX_IN_PROGRESS + 1):
        connections.began(PEER)
    assert connections.is_cut(PEER)
    assert (await client.response()).status_code == 499


async def test_what_goes_wrong_in_any_part_is_raised_before_a_byte_is_sent(
    answers: LargeAnswers,
) -> None:
    def parts() -> Iterator[bytes]:
        yield PART
        raise ValueError("the second part")

    async def begin() -> Iterator[bytes]:
        return parts()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    request = Request({"type": "http", "headers": [], "client": PEER}, receive)
    for _ in range(MAX_MADE_AT_ONCE + 1):  # it frees its place
        with pytest.raises(ValueError, match="the second part"):
            await asyncio.wait_for(answers.answer(request, begin, immutable=True), 10)
