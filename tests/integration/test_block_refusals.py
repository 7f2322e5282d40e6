"""A block that does not fit refuses the start: block, expected and found are named.

Nothing is changed then: neither the log nor the commitment store.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from app.chain.header import Header, Roots, block_hash
from app.chain.store import CommitmentStore
from app.errors import CorruptionError, JournalError, StartRefused
from app.replication.postgres import Sink
from app.replication.reader import EnvironmentSummary
from app.service.block_recovery import check_newest_block
from app.service.opening import open_log, open_store
from app.settings import Settings
from app.wal.files import FileSystem
from app.wal.record import Batch
from app.wal.sync import FdatasyncSyncer
from tests.support.block_chain import BlockChain
from tests.support.journal_entries import make_entry
from tests.support.replicated_blocks import apply, contents, tick
from tests.support.replication_sink import ENVIRONMENT
from tests.support.signed_chain import write_wal
from tests.support.wal_files import make_genesis, make_settings, snapshot

# The height of the block that does not fit, behind those that the store has.
HEIGHT: Final = 2
FOREIGN: Final = b"\xee" * 32


class Start:
    """A start of the service on a log, as far as blocks are concerned."""

    def __init__(self, data_dir: Path) -> None:
        self.settings = make_settings(data_dir, environment=ENVIRONMENT)
        self.store = open_store(self.settings)
        self.chain = BlockChain()
        self.applied = [self.chain.batch(tick()) for _ in range(HEIGHT)]
        self.next = self.chain.batch(tick(), make_entry(), tick())
        self.write(*self.applied)
        self.open()
        assert self.store.state.height == HEIGHT

    def write(self, *batches: Batch, wal_id: str = "a-log") -> list[int]:
        """Replace the log; returns the offset of each batch, and the end."""
        genesis = make_genesis(0, 1, wal_id=wal_id, environment=self.settings.environment)
        return write_wal(self.settings.wal_dir, batches, genesis=genesis)

    def open(self) -> None:
        files = FileSystem()
        held = EnvironmentSummary(progress=None)
        open_log(files, self.settings, FdatasyncSyncer(files), held, lambda: 1, self.store)

    def refusal(self) -> JournalError:
        """Why the log is not opened; nothing may have been changed."""
        log, known = snapshot(self.settings.wal_dir), content(self.store)
        with pytest.raises((StartRefused, CorruptionError)) as caught:
            self.open()
        assert snapshot(self.settings.wal_dir) == log
        assert content(self.store) == known
        self.store.close()
        self.store = open_store(self.settings)
        assert content(self.store) == known
        return caught.value

    def refusal_of(self, batch: Batch) -> str:
        """Why the log is not opened once it has this record behind the others."""
        *_, offset, _ = self.write(*self.applied, batch)
        error = self.refusal()
        assert isinstance(error, CorruptionError)
        assert error.offset == offset
        return error.reason


def content(store: CommitmentStore) -> list[object]:
    blocks = store.blocks(None, 10, descending=False)
    commands = [store.commands(block.header.batch_seq) for block in blocks]
    return [store.state, store.wal_id, store.wal_offset, blocks, commands, store.authorities()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """The store has what the log holds."""
    begun = Start(tmp_path / "data")
    yield begun
    begun.store.close()


def header_of(batch: Batch) -> Header:
    assert batch.header is not None
    return batch.header


def roots_of(batch: Batch) -> Roots:
    assert batch.roots is not None
    return batch.roots


def with_header(batch: Batch, **fields: Any) -> Batch:
    return replace(batch, header=replace(header_of(batch), **fields))


def with_indices(*indices: int) -> Callable[[Batch], Batch]:
    return lambda batch: replace(
        with_header(batch, command_count=len(indices)), block_indices=[*indices]
    )


def test_the_block_that_fits_is_applied(start: Start) -> None:
    """What the refusals below change is all that is wrong with it."""
    start.write(*start.applied, start.next)
    start.open()
    assert start.store.state.height == HEIGHT + 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prev_block_hash", FOREIGN),
        ("commands_hash", FOREIGN),
        ("batch_root", FOREIGN),
        ("first_seq", 77),
        ("timestamp", 77),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_field_that_differs(start: Start, field: str, value: bytes | int) -> None:
    expected = shown(getattr(header_of(start.next), field))
    reason = start.refusal_of(with_header(start.next, **{field: value}))
    assert reason == f"block 2: {field}: expected {expected}, found {shown(value)}"


@pytest.mark.parametrize("field", Roots.__struct_fields__)
def test_a_root_that_differs(start: Start, field: str) -> None:
    roots = roots_of(start.next)
    reason = start.refusal_of(replace(start.next, roots=replace(roots, **{field: FOREIGN})))
    expected = shown(getattr(roots, field))
    assert reason == f"block 2: {field}: expected {expected}, found {shown(FOREIGN)}"


def shown(value: bytes | int) -> str:
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda batch: with_header(batch, batch_seq=5), "block 5: a gap: expected block 2, "),
        (
            lambda batch: with_header(batch, command_count=3),
            "block 2: expected 3 block commands, found 2",
        ),
        (lambda batch: replace(batch, roots=None), "block 2: a header without roots or indices"),
        (
            lambda batch: replace(batch, block_indices=None),
            "block 2: a header without roots or indices",
        ),
        (with_indices(), "block 2: expected block commands, found none"),
        (
            with_indices(2, 0),
            "block 2: block_indices: expected an index above 2 and below 3, found 0",
        ),
        (
            with_indices(0, 0),
            "block 2: block_indices: expected an index above 0 and below 3, found 0",
        ),
        (
            with_indices(0, 3),
            "block 2: block_indices: expected an index above 0 and below 3, found 3",
        ),
        (
            with_indices(-1, 2),
            "block 2: block_indices: expected an index above -1 and below 3, found -1",
        ),
    ],
    ids=[
        "a gap",
        "another command count",
        "no roots",
        "no indices",
        "empty",
        "out of order",
        "repeated",
        "beyond the record",
        "negative",
    ],
)
def test_a_record_that_contradicts_itself_or_the_chain(
    start: Start, change: Callable[[Batch], Batch], reason: str
) -> None:
    assert start.refusal_of(change(start.next)).startswith(reason)


def test_commands_of_the_record_that_the_block_does_not_cover(start: Start) -> None:
    reason = start.refusal_of(replace(start.next, block_indices=[0, 1]))
    assert reason.startswith("block 2: commands_hash: expected 0x")
    assert reason.endswith(f"found {shown(header_of(start.next).commands_hash)}")


def test_a_second_block_at_a_height(start: Start) -> None:
    second = with_header(start.next, batch_seq=1)
    expected = shown(block_hash(header_of(start.applied[1])))
    found = shown(block_hash(header_of(second)))
    reason = f"block 1: a second block at this height: expected {expected}, found {found}"
    assert start.refusal_of(second) == reason


def test_a_second_signature_at_a_height(start: Start) -> None:
    header = header_of(start.applied[1])
    signature = b"\x09" * 65
    second = replace(start.next, header=replace(header, signature=signature))
    assert start.refusal_of(second) == (
        f"block 1: a second block at this height: signature: expected {shown(header.signature)}, "
        f"found {shown(signature)}"
    )


def test_a_store_of_another_log(start: Start) -> None:
    start.write(*start.applied, wal_id="b-log")
    reason = "the commitment store belongs to the log a-log, this is the log b-log"
    assert str(start.refusal()) == reason


def test_a_store_of_another_environment(start: Start) -> None:
    start.store.close()
    other = Settings(data_dir=start.settings.data_dir, environment="other")
    with pytest.raises(StartRefused, match="belongs to environment 'testing', not 'other'"):
        open_store(other)
    start.store = open_store(start.settings)
    assert start.store.state.height == HEIGHT


def test_a_store_ahead_of_the_log(start: Start) -> None:
    end = start.store.wal_offset
    *_, shorter = start.write(*start.applied[:-1])
    reason = str(start.refusal())
    assert "the commitment store" in reason
    assert str(end) in reason
    assert str(shorter) in reason


async def test_postgres_has_another_block(
    start: Start, sink: Sink, database_url: str, observer: Any
) -> None:
    other = BlockChain()
    replicated = [other.batch(tick()) for _ in range(HEIGHT)]
    await apply(sink, *replicated)
    found, own = (block_hash(header_of(each[-1])) for each in (replicated, start.applied))
    reason = await refusal_over_postgres(start, database_url, observer)
    assert reason == (f"block 1: Postgres holds {shown(found)}, the commitment store {shown(own)}")


async def test_postgres_has_a_block_and_the_store_none(
    start: Start, sink: Sink, database_url: str, observer: Any
) -> None:
    await apply(sink, *start.applied, start.next)
    found = shown(block_hash(header_of(start.next)))
    reason = await refusal_over_postgres(start, database_url, observer)
    assert reason.startswith(f"block 2: Postgres holds {found}, the commitment store none; ")


async def test_postgres_has_what_the_store_has(start: Start, sink: Sink, database_url: str) -> None:
    await apply(sink, *start.applied)
    assert await check_newest_block(database_url, start.settings.environment, start.store)


async def refusal_over_postgres(start: Start, database_url: str, observer: Any) -> str:
    """Why Postgres' newest block is refused; nothing may have been changed."""
    known = content(start.store)
    rows = await contents(observer)
    with pytest.raises(StartRefused) as caught:
        await check_newest_block(database_url, start.settings.environment, start.store)
    assert content(start.store) == known
    assert await contents(observer) == rows
    return str(caught.value)
