"""The replay driver: journals a feed over HTTP/2, with several requests in flight and safe retries.

A request that was not acknowledged is sent again with the same `request_uuid`s, so neither a
service that is killed and restarted nor a second run journals anything twice. With more than one
request in flight their order in the journal is the service's.
"""

import asyncio
import gzip
import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import ceil, log
from pathlib import Path
from typing import Final, Self, TextIO

from app.client import AppendResult, ClientError, JournalClient
from app.feed import feed_entries
from app.model.entry import Entry

_GZIP_MAGIC: Final = b"\x1f\x8b"
# Longer than any row; a line is never held beyond it, whatever the file is.
_LINE_CHARS: Final = 4096


class FeedFile:
    """A feed on disk, plain or gzip. A context manager; `entries` reads it once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw = path.open("rb")
        self._text: io.TextIOWrapper | None = None
        self.size_bytes = path.stat().st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._text is not None:
            self._text.close()
        self._raw.close()

    @property
    def read_bytes(self) -> int:
        """How much of the file has been read (compressed bytes of a gzip file)."""
        return self._raw.tell()

    def entries(self) -> Iterator[Entry]:
        """The entries of the feed. Raises `FeedError`."""
        zipped = self._raw.peek(2)[:2] == _GZIP_MAGIC
        source = gzip.GzipFile(fileobj=self._raw) if zipped else self._raw
        # Held, because a wrapper that is collected closes what it wraps.
        self._text = text = io.TextIOWrapper(source, encoding="utf-8", newline="")
        return feed_entries(iter(lambda: text.readline(_LINE_CHARS), ""), str(self._path))


class LatencyHistogram:
    """Durations in buckets one percent apart: bounded memory, quantiles to half a percent."""

    _STEP: Final = log(1.01)
    _SHORTEST_S: Final = 1e-6

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._buckets[round(log(max(seconds, self._SHORTEST_S)) / self._STEP)] += 1
        self._count += 1

    def quantile_s(self, share: float) -> float | None:
        """The duration that `share` of all are at or below; None without any."""
        rank = max(1, ceil(share * self._count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return float(1.01**bucket)
        return None


@dataclass(slots=True)
class Tally:
    """What a replay has achieved so far. `now_s` is a monotonic clock.

    `entries` were acknowledged; `duplicates` of them had been journaled before, by another run or
    by an attempt whose acknowledgement was lost. Latencies run from the first attempt of a request
    on.
    """

    now_s: Callable[[], float] = time.monotonic
    entries: int = 0
    duplicates: int = 0
    requests: int = 0
    retries: int = 0
    last_failure: str | None = None
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_s = self.now_s()

    def count_retry(self, error: ClientError, delay_s: float) -> None:
        """Note a failure that is about to be retried (an `on_retry` of the client)."""
        del delay_s
        self.retries += 1
        self.last_failure = str(error)

    def count_ack(self, result: AppendResult, seconds: float) -> None:
        """Note an acknowledgement that took `seconds`."""
        self.requests += 1
        self.entries += result.count
        self.duplicates += len(result.duplicates)
        self.latencies.add(seconds)
        self.last_failure = None

    def lines(self) -> list[str]:
        """The summary, ready to print."""
        seconds = max(self.now_s() - self.started_s, 1e-9)
        return [
            f"entries     {self.entries:>12,}",
            f"duplicates  {self.duplicates:>12,}",
            f"requests    {self.requests:>12,}",
            f"retries     {self.retries:>12,}",
            f"seconds     {seconds:>12,.2f}",
            f"entries/s   {self.entries / seconds:>12,.0f}",
            f"ack p50 ms  {_milliseconds(self.latencies.quantile_s(0.50)):>12}",
            f"ack p99 ms  {_milliseconds(self.latencies.quantile_s(0.99)):>12}",
        ]


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """How to replay: entries of a request, requests in flight, and how many entries at most."""

    batch: int = 100
    in_flight: int = 8
    limit: int | None = None


async def replay(
    entries: Iterable[Entry],
    client: JournalClient,
    plan: ReplayPlan,
    tally: Tally,
    *,
    acks: TextIO | None = None,
    on_ack: Callable[[], None] | None = None,
) -> None:
    """Journal `entries`, keeping `tally` current, so that it holds what was done on any end.

    `acks` gets one line per acknowledged entry, `request_uuid command_id`, in order of
    acknowledgement, and is flushed with each request. Raises what the client and the feed raise,
    with no request left in flight.
    """
    batches = _batches(islice(entries, plan.limit), plan.batch)

    async def work() -> None:
        for batch in batches:
            started_s = tally.now_s()
            result = await client.append(batch)
            seconds = tally.now_s() - started_s
            uuids = [entry.request_uuid for entry in batch]
            command_ids = result.command_ids(uuids)
            if acks is not None:
                acks.writelines(
                    f"{uuid} {id_}\n" for uuid, id_ in zip(uuids, command_ids, strict=True)
                )
                acks.flush()
            tally.count_ack(result, seconds)
            if on_ack is not None:
                on_ack()

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(plan.in_flight):
                group.create_task(work(), name=f"replay-{number}")
    except ExceptionGroup as failures:
        # The others failed for the same reason, or because the first one did.
        raise failures.exceptions[0] from None


def _batches(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, size)):
        yield batch


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.2f}"
