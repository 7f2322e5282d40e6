"""`GET /blocks/stream`: every block once and in order, at the reader's pace, until the end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from app.api.block_stream import Streams, block_events
from app.model.entry import Entry
from tests.support.block_service import BlockService, SlowReader
from tests.support.http_entries import refused
from tests.support.journal_entries import make_entry


def tick() -> Entry:
    return make_entry(command_type="TickSnapshot")


async def make_blocks(service: BlockService, count: int) -> None:
    await service.commit_all([(tick(),) for _ in range(count)])


async def rest(events: AsyncIterator[bytes]) -> list[bytes]:
    return [event async for event in events]


async def ended(reader: SlowReader) -> None:
    reader.take(1000)
    await asyncio.wait_for(reader.task, 10)


@pytest.fixture
async def readers(service: BlockService) -> AsyncIterator[Any]:
    """Makes readers, and lets go of all that are still there."""
    made: list[SlowReader] = []

    def make(query: str = "", **headers: str) -> SlowReader:
        made.append(SlowReader(service, query, **headers))
        return made[-1]

    yield make
    for reader in made:
        reader.leave()
        await ended(reader)


async def test_blocks_come_as_events_with_their_heights_as_ids(
    service: BlockService, client: httpx.AsyncClient, readers: Any
) -> None:
    await make_blocks(service, 2)
    reader = readers()
    await reader.until(b"id: 1\n")
    await make_blocks(service, 1)
    await reader.until(b"id: 2\n")
    assert reader.status == 200
    assert reader.headers["content-type"].startswith("text/event-stream")
    assert reader.headers["cache-control"] == "no-store"
    assert reader.received.startswith(b"retry: ")
    assert [event["event"] for event in reader.events] == ["block"] * 3
    assert reader.heights == [0, 1, 2]
    for event in reader.events:
        assert json.loads(event["data"]) == (await client.get(f"/blocks/{event['id']}")).json()


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("", {}, [0, 1, 2, 3, 4]),
        ("after=0", {}, [1, 2, 3, 4]),
        ("after=3", {}, [4]),
        ("", {"last_event_id": "2"}, [3, 4]),
        ("after=0", {"last_event_id": "2"}, [3, 4]),
        ("after=3", {"last_event_id": "0"}, [1, 2, 3, 4]),
    ],
)
async def test_a_stream_goes_on_behind_the_last_event_or_else_after(
    service: BlockService, readers: Any, query: str, headers: dict[str, str], expected: list[int]
) -> None:
    await make_blocks(service, 5)
    reader = readers(query, **headers)
    await reader.until(b"id: 4\n")
    assert reader.heights == expected


async def test_a_stream_behind_the_newest_block_waits_for_the_next(
    service: BlockService, readers: Any
) -> None:
    await make_blocks(service, 1)
    reader = readers("after=1")
    reader.take(1)
    await reader.wait_for(lambda: reader.received)
    await make_blocks(service, 2)
    await reader.until(b"id: 2\n")
    assert reader.heights == [2]


async def test_no_block_is_lost_or_doubled_while_a_reader_comes_and_goes(
    service: BlockService, readers: Any
) -> None:
    writing = asyncio.create_task(make_blocks(service, 300))
    seen: list[int] = []
    while not seen or seen[-1] < 299:
        headers = {"last_event_id": str(seen[-1])} if seen else {}
        reader = readers(**headers)
        await reader.wait_for(lambda r=reader: r.heights, take=True)
        seen += reader.heights
        reader.leave()
        await ended(reader)
    await writing
    assert seen == list(range(300))


async def test_a_reader_that_takes_nothing_holds_up_nobody_and_nothing_is_kept_for_it(
    service: BlockService, readers: Any
) -> None:
    await make_blocks(service, 1)
    slow, quick = readers(), readers()
    await slow.wait_for(lambda: slow.sends == 1)
    # The beginning of the stream is all that it was offered, and one part is all it will be.
    await make_blocks(service, 500)
    await quick.until(b"id: 500\n")
    assert slow.sends == 1
    slow.take(1)
    await slow.wait_for(lambda: slow.sends == 2)
    await make_blocks(service, 100)
    await quick.until(b"id: 600\n")
    assert (slow.sends, slow.heights) == (2, [])
    slow.take(1)
    await slow.wait_for(lambda: slow.sends == 3)
    assert slow.heights == list(range(32))
    await slow.until(b"id: 600\n")
    assert slow.heights == quick.heights == list(range(601))


async def test_a_stream_without_news_shows_that_it_lives(service: BlockService) -> None:
    async with aclosing(block_events(service.view, None, lambda: True, 0.01)) as events:
        assert (await anext(events)).startswith(b"retry: ")
        for _ in range(3):
            assert (await asyncio.wait_for(anext(events), 10)).startswith(b":")
        await make_blocks(service, 1)
        while (event := await asyncio.wait_for(anext(events), 10)).startswith(b":"):
            pass
        assert event.startswith(b"event: block\nid: 0\ndata: {")


@pytest.mark.parametrize("silent", [False, True])
async def test_a_stream_ends_with_the_right_to_read(service: BlockService, silent: bool) -> None:
    await make_blocks(service, 1)
    rights = [True]
    async with aclosing(block_events(service.view, None, lambda: rights[-1], 0.01)) as events:
        assert (await anext(events)).startswith(b"retry: ")
        assert b"\nid: 0\n" in await anext(events)
        rights.append(False)
        if not silent:
            await make_blocks(service, 1)
        left = await asyncio.wait_for(rest(events), 10)
    assert b"id: 1" not in b"".join(left)


async def test_streams_end_when_the_service_shuts_down(
    service: BlockService, client: httpx.AsyncClient, readers: Any
) -> None:
    await make_blocks(service, 1)
    waiting, slow = readers(), readers()
    await waiting.until(b"id: 0\n")
    await slow.wait_for(lambda: slow.sends == 1)
    service.view.close()
    await ended(waiting)
    await ended(slow)
    assert waiting.heights == [0]
    refused(await client.get("/blocks/stream"), 50301, retriable=True)
    assert (await client.get("/blocks/0")).status_code == 200


async def test_a_stream_ends_when_the_store_is_opened_anew(
    service: BlockService, readers: Any
) -> None:
    await make_blocks(service, 1)
    reader = readers()
    await reader.wait_for(lambda: reader.sends == 1)
    service.store.close()
    await ended(reader)
    assert reader.heights == []


async def test_no_more_streams_than_the_limit_are_open_at_once(
    service: BlockService, client: httpx.AsyncClient, readers: Any
) -> None:
    streams = service.app.state.streams = Streams(limit=2)
    first, second = readers(), readers()
    for reader in (first, second):
        await reader.wait_for(lambda r=reader: r.sends)
    assert streams.open == 2
    problem = refused(await client.get("/blocks/stream"), 50301, retriable=True)
    assert "2 block streams" in problem["detail"]
    first.leave()
    await ended(first)
    assert streams.open == 1
    third = readers()
    await third.wait_for(lambda: third.sends)
    assert third.status == 200


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ({"after": "-1"}, {}),
        ({"after": "x"}, {}),
        ({"after": str(2**63)}, {}),
        ({}, {"last-event-id": "x"}),
        ({}, {"last-event-id": "-1"}),
    ],
)
async def test_bad_parameters_are_refused(
    client: httpx.AsyncClient, query: dict[str, str], headers: dict[str, str]
) -> None:
    refused(await client.get("/blocks/stream", params=query, headers=headers), 42202)
