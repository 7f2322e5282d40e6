"""The client against a real HTTP/2 connection; the clock and the sleep are the test's own."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import msgpack
import msgspec
import pytest

from app.client import (
    JSON,
    AppendResult,
    BadAnswer,
    Checkpoint,
    ClientError,
    Duplicate,
    GaveUp,
    JournalClient,
    Refused,
    Retry,
    Timing,
    Unreachable,
)
from app.errors import EntryFault
from app.model.entry import Entry
from tests.support.h2_service import (
    INITIAL_WINDOW_BYTES,
    Answer,
    Cut,
    H2Service,
    h2_service,
    problem,
)

U1, U2, U3 = (UUID(int=number) for number in (1, 2, 3))


class Clock:
    """Time that passes only in sleeps, which are noted."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds

    def timing(self, jitter: float = 1.0) -> Timing:
        return Timing(lambda: self.now_s, self.sleep, lambda: jitter)


def entry(uuid: UUID | None = None) -> Entry:
    return Entry(request_uuid=uuid or uuid4(), received_ts_ms=1, command_data=b"\x01\x80")


@pytest.fixture
async def service() -> AsyncIterator[H2Service]:
    async with h2_service() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def client_of(service: H2Service, clock: Clock, deadline_s: float = 60.0) -> JournalClient:
    return JournalClient(service.url, retry=Retry(deadline_s=deadline_s), timing=clock.timing())


async def test_append_speaks_messagepack_over_http2_and_returns_the_acknowledgement(
    service: H2Service, clock: Clock
) -> None:
    async with client_of(service, clock) as client:
        result = await client.append([entry(U1), entry(U2)])
    assert (result.count, result.first_command_id, result.last_command_id) == (2, 1, 2)
    assert result.duplicates == []
    sent = msgpack.unpackb(service.bodies[0])
    assert [item["request_uuid"] for item in sent["entries"]] == [U1.bytes, U2.bytes]
    assert sent["entries"][0]["command_data"] == b"\x01\x80"


async def test_a_lost_acknowledgement_is_asked_for_again_with_the_same_bytes(
    service: H2Service, clock: Clock
) -> None:
    service.faults = [Cut.BEHIND]
    async with client_of(service, clock) as client:
        result = await client.append([entry(U1), entry(U2)])
    assert service.bodies[0] == service.bodies[1]
    assert result.duplicates == [Duplicate(U1, 1), Duplicate(U2, 2)]
    assert result.command_ids([U1, U2]) == [1, 2]


async def test_a_request_that_never_arrived_is_sent_again(service: H2Service, clock: Clock) -> None:
    service.faults = [Cut.BEFORE, problem(503, retriable=True), Cut.BEFORE]
    told: list[ClientError] = []
    async with JournalClient(
        service.url, timing=clock.timing(), on_retry=lambda error, _: told.append(error)
    ) as client:
        result = await client.append([entry(U1)])
    assert result.first_command_id == 1
    assert [type(error) for error in told] == [Unreachable, Refused, Unreachable]
    assert len(service.bodies) == 4


async def test_a_service_that_is_away_and_comes_back_gets_the_request(clock: Clock) -> None:
    async with h2_service() as service:
        pass
    failures = 0

    async def come_back(seconds: float) -> None:
        nonlocal failures
        failures += 1
        if failures == 3:
            await running.__aenter__()

    running = h2_service(service)
    timing = Timing(lambda: 0.0, come_back, lambda: 0.5)
    async with JournalClient(service.url, timing=timing) as client:
        assert (await client.append([entry(U1)])).last_command_id == 1
    await running.__aexit__(None, None, None)
    assert failures == 3


@pytest.mark.parametrize("status", [400, 401, 403, 409, 413, 415, 422])
async def test_what_is_not_retriable_is_sent_once(
    service: H2Service, clock: Clock, status: int
) -> None:
    fault = {"entry": 3, "path": "events[0].event_topic", "message": "too long"}
    service.faults = [problem(status, retriable=False, errors=[fault])]
    async with client_of(service, clock) as client:
        with pytest.raises(Refused, match="as asked for") as refused:
            await client.append([entry()])
    assert (refused.value.status, refused.value.error_code) == (status, status * 100 + 1)
    assert not refused.value.retriable
    assert refused.value.faults == (EntryFault(3, "events[0].event_topic", "too long"),)
    assert len(service.bodies) == 1
    assert clock.slept_s == []


async def test_delays_double_up_to_their_bound_and_retry_after_is_the_least(
    service: H2Service, clock: Clock
) -> None:
    away = problem(503, retriable=True)
    service.faults = [away, away, problem(429, retriable=True, retry_after="7"), *[away] * 5]
    async with client_of(service, clock) as client:
        await client.append([entry()])
    assert clock.slept_s == [0.05, 0.1, 7.0, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_chance_takes_at_most_half_of_a_delay() -> None:
    retry = Retry(first_delay_s=1.0, longest_delay_s=8.0)
    assert [retry.delay_s(attempt, None, 0.0) for attempt in (1, 2, 9)] == [0.5, 1.0, 4.0]
    assert retry.delay_s(10**6, None, 0.5) == 6.0


async def test_it_gives_up_at_the_deadline_and_says_why(service: H2Service, clock: Clock) -> None:
    service.faults = [problem(503, retriable=True)] * 100
    async with client_of(service, clock, deadline_s=5.0) as client:
        with pytest.raises(GaveUp, match=r"after \d attempts: 50301: as asked for") as given_up:
            await client.append([entry()])
    assert isinstance(given_up.value.last, Refused)
    assert given_up.value.attempts == len(service.bodies)
    assert 3.0 < clock.now_s < 5.0


async def test_it_does_not_wait_for_a_retry_after_beyond_the_deadline(
    service: H2Service, clock: Clock
) -> None:
    service.faults = [problem(503, retriable=True, retry_after="3600")]
    async with client_of(service, clock, deadline_s=5.0) as client:
        with pytest.raises(GaveUp):
            await client.append([entry()])
    assert clock.slept_s == []


async def test_a_problem_in_json_is_understood(service: H2Service, clock: Clock) -> None:
    body = {"title": "Conflict", "detail": "other content", "error_code": 40901}
    service.faults = [Answer(409, body, content_type="application/problem+json")]
    async with client_of(service, clock) as client:
        with pytest.raises(Refused, match="40901: other content"):
            await client.append([entry()])


async def test_an_answer_without_a_problem_is_retried_by_its_status(clock: Clock) -> None:
    answers = iter([502, 503, 500])
    transport = httpx.MockTransport(lambda _: httpx.Response(next(answers), text="<html>"))
    async with JournalClient(transport=transport, timing=clock.timing()) as client:
        with pytest.raises(Refused) as refused:
            await client.append([entry()])
    assert refused.value.status == 500
    assert len(clock.slept_s) == 2


async def test_an_answer_that_is_none_is_neither_retried_nor_believed(clock: Clock) -> None:
    calls = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(200, json={"unexpected": True})

    async with JournalClient(
        transport=httpx.MockTransport(answer), timing=clock.timing()
    ) as client:
        with pytest.raises(BadAnswer, match="count"):
            await client.append([entry()])
    assert len(calls) == 1


async def test_a_request_that_is_encoded_already_is_sent_as_it_is(
    service: H2Service, clock: Clock
) -> None:
    body = msgspec.json.encode({"entries": [{"request_uuid": str(U3)}]})
    async with client_of(service, clock) as client:
        result = await client.append_encoded(body, JSON)
    assert service.bodies == [body]
    assert result.command_ids([U3]) == [1]


async def test_requests_at_once_do_not_stall_each_other(service: H2Service, clock: Clock) -> None:
    """One has its answer just when the window of the other is used up, and opened again.

    On one connection the reader of the answer takes the window's update along, and the other waits
    for an update that will not come.
    """
    small, large = (
        Entry(request_uuid=uuid4(), received_ts_ms=1, command_data=bytes(size))
        for size in (15_000, 60_000)
    )
    async with client_of(service, clock) as client:
        await client.checkpoint()
        service.silent_until_bytes = INITIAL_WINDOW_BYTES
        both = asyncio.gather(client.append([small]), client.append([large]))
        await asyncio.wait_for(both, 10)
    assert len(service.bodies) == 2


async def test_an_unknown_entry_is_none(service: H2Service, clock: Clock) -> None:
    async with client_of(service, clock) as client:
        assert await client.entry(U1) is None
    assert service.paths == [f"/entries/{U1}"]


async def test_flush_and_checkpoint_return_the_checkpoint(service: H2Service, clock: Clock) -> None:
    async with client_of(service, clock) as client:
        checkpoint = await client.checkpoint()
        assert isinstance(checkpoint, Checkpoint)
        assert await client.flush(2.5) == checkpoint
    assert (checkpoint.wal_offset, checkpoint.replication) == (10, "catching_up")
    assert service.paths == ["/checkpoint", "/flush?timeout_s=2.5"]


def acknowledged(first: int | None, last: int | None, *duplicates: Duplicate) -> AppendResult:
    return AppendResult(3, first, last, duplicates=list(duplicates))


def test_command_ids_are_consecutive_with_duplicates_left_out() -> None:
    assert acknowledged(7, 9).command_ids([U1, U2, U3]) == [7, 8, 9]
    assert acknowledged(7, 8, Duplicate(U2, 4)).command_ids([U1, U2, U3]) == [7, 4, 8]
    assert acknowledged(7, 7, Duplicate(U1, 6), Duplicate(U2, 5)).command_ids([U1, U2, U3]) == [
        6,
        5,
        7,
    ]


def test_an_entry_given_twice_in_a_request_has_one_command_id() -> None:
    assert acknowledged(7, 8, Duplicate(U1, 7)).command_ids([U1, U1, U2]) == [7, 7, 8]
    assert acknowledged(7, 8, Duplicate(U2, 8)).command_ids([U1, U2, U2]) == [7, 8, 8]


@pytest.mark.parametrize(
    "result",
    [
        acknowledged(7, 8),
        acknowledged(None, None, Duplicate(U1, 1), Duplicate(U2, 2)),
        acknowledged(7, 9, Duplicate(U1, 1)),
        AppendResult(2, 7, 9),
    ],
)
def test_an_acknowledgement_that_does_not_fit_the_request_is_not_believed(
    result: AppendResult,
) -> None:
    with pytest.raises(BadAnswer):
        result.command_ids([U1, U2, U3])
