"""A feed to replay, and what must come of it: acknowledgements, WAL and Postgres agree."""

import csv
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, NamedTuple
from uuid import UUID

from app.feed import COLUMNS, NO_PRICE
from app.model.entry import Entry
from app.replay import FeedFile
from tests.support.foreign_wal import plain, read_wal
from tests.support.table_audit import assert_tables_hold

ROWS: Final = 68_792
_REAL_FEED: Final = Path(__file__).parents[2].parent / "shared" / "data" / "es_mbo_20231225.csv.gz"
_START_NS: Final = 1_703_462_400_000_000_000


class Ack(NamedTuple):
    """One line of an acknowledgements file."""

    request_uuid: UUID
    command_id: int


@dataclass(frozen=True)
class Feed:
    """A feed on disk, and its entries in order."""

    path: Path
    entries: list[Entry]

    def prefix(self, count: int) -> "Feed":
        """Its first `count` entries, as `journal replay --limit` takes them."""
        return Feed(self.path, self.entries[:count])


def find_feed(directory: Path) -> Feed:
    """The file that `FEED` names, else the real feed beside the project, else a synthetic one."""
    named = os.environ.get("FEED")
    path = Path(named) if named else _REAL_FEED
    if not named and not path.exists():
        path = directory / "synthetic.csv.gz"
        write_synthetic_feed(path, ROWS)
    with FeedFile(path) as file:
        return Feed(path, list(file.entries()))


def write_synthetic_feed(path: Path, rows: int) -> None:
    """Write a feed of the same shape as the real one; always the same."""
    with gzip.open(path, "wt", compresslevel=1, newline="", encoding="ascii") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_synthetic_rows(Random(20231225), rows))


def _synthetic_rows(rng: Random, rows: int) -> Iterator[tuple[object, ...]]:
    now_ns = _START_NS
    yield (now_ns, now_ns, 1, "R", "N", NO_PRICE, 0, 0, 8)
    for number in range(1, rows):
        now_ns += rng.randrange(1, 2_000_000)
        action = rng.choices("AMCTF", (44, 8, 44, 2, 2))[0]
        side = rng.choice("BAN" if action == "T" else "BA")
        price = 4_799_000_000_000 + 250_000_000 * rng.randrange(-200, 200)
        order_id = 0 if action == "T" else 6_412_777_000_000 + rng.randrange(rows)
        sequence = 680 + number // 2
        yield (
            now_ns - 9_000,
            now_ns,
            sequence,
            action,
            side,
            price,
            rng.randrange(1, 40),
            order_id,
            8,
        )


def read_acks(path: Path) -> list[Ack]:
    """The whole lines of an acknowledgements file, in order of acknowledgement."""
    lines = path.read_text("ascii").splitlines()
    return [
        Ack(UUID(uuid), int(command_id)) for uuid, command_id in (line.split() for line in lines)
    ]


def read_kept_from(data_dir: Path) -> int:
    """The offset before which the log may have been given back."""
    checkpoint = json.loads((data_dir / "checkpoint.json").read_bytes())
    return int(checkpoint["retained_offset"])


def journaled(wal_dir: Path, kept_from: int = 0) -> dict[int, dict[str, object]]:
    """Every command of a WAL by its `command_id`, as a foreign reader sees it; ids only rise."""
    commands: dict[int, dict[str, object]] = {}
    newest = 0
    for record in read_wal(wal_dir, kept_from):
        if record.content["kind"] != "batch":
            continue
        for command_id, command in enumerate(
            record.content["commands"], record.content["first_command_id"]
        ):
            assert command_id > newest, f"command_id {command_id} behind {newest}"
            newest = command_id
            commands[command_id] = command
    return commands


def assert_exactly_once(
    feed: Feed, acks: list[Ack], wal_dir: Path, database_url: str, kept_from: int = 0
) -> None:
    """Every entry was acknowledged, and is in the WAL and in Postgres once, under one id.

    The WAL is read from the offset `kept_from` on; it need not hold what was given back before.
    """
    wanted = {entry.request_uuid: entry for entry in feed.entries}
    given = dict(acks)
    assert len(given) == len(acks), "an entry was acknowledged twice"
    assert given.keys() == wanted.keys(), "what was acknowledged is not the feed"
    commands = journaled(wal_dir, kept_from)
    numbers = {
        UUID(bytes=command["request_uuid"]): command_id  # type: ignore[arg-type]
        for command_id, command in commands.items()
    }
    assert len(numbers) == len(commands), "an entry was journaled twice"
    oldest = min(commands)
    kept = {uuid: number for uuid, number in given.items() if number >= oldest}
    assert numbers == kept, "the WAL has other command_ids than were acknowledged"
    assert kept_from or kept == given, "the WAL has lost its beginning"
    for uuid, command_id in kept.items():
        assert commands[command_id] == plain(wanted[uuid]), f"command {command_id} was altered"
    numbered = {command_id: wanted[uuid] for uuid, command_id in given.items()}
    assert_tables_hold(database_url, numbered)


def assert_in_order(feed: Feed, acks: list[Ack], batch: int, in_flight: int) -> None:
    """`command_id`s follow the order of acknowledgement, as far as one request waited for another.

    When request `n` was sent, all but `in_flight - 1` of the `n` before it had been acknowledged:
    its entries have higher ids than theirs. Within a request they follow its order.
    """
    by_request: list[list[Ack]] = []
    at = 0
    number_of = {entry.request_uuid: i // batch for i, entry in enumerate(feed.entries)}
    while at < len(acks):
        number = number_of[acks[at].request_uuid]
        wanted = feed.entries[number * batch : (number + 1) * batch]
        answered = acks[at : at + len(wanted)]
        assert [ack.request_uuid for ack in answered] == [entry.request_uuid for entry in wanted]
        ids = [ack.command_id for ack in answered]
        assert ids == list(range(ids[0], ids[0] + len(ids))), f"request {number} is not consecutive"
        by_request.append(answered)
        at += len(wanted)
    highest = [0]
    for answered in by_request:
        highest.append(max(highest[-1], answered[-1].command_id))
    for answered in by_request:
        number = number_of[answered[0].request_uuid]
        settled = max(0, number - in_flight + 1)
        assert answered[0].command_id > highest[settled], (
            f"request {number} was sent behind {settled} acknowledgements, but numbered before one"
        )
