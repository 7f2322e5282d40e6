"""Blocks given to a sink, and the rows of all tables that this touches."""

from typing import Any

from app.model.entry import Entry
from app.replication.postgres import Sink
from app.replication.rows import Progress
from app.wal.record import Batch
from tests.support.block_chain import SIGNER
from tests.support.journal_entries import make_full_entry
from tests.support.replication_sink import BEGINNING, ENVIRONMENT, rows

TABLES = (
    "engine_commands",
    "engine_events",
    "rsm_blocks",
    "rsm_roots",
    "rsm_block_commands",
    "rsm_current_state",
    "signing_authorities",
    "dead_letters",
    "replication_progress",
)


def tick(**fields: Any) -> Entry:
    """A block command that has everything but a hash of the engine's."""
    return make_full_entry(**{"command_identity_hash": None, **fields})


async def contents(observer: Any) -> dict[str, Any]:
    """Every row of every table, as it is."""
    return {name: await rows(observer, name) for name in TABLES}


async def apply(sink: Sink, *batches: Batch, after: Progress = BEGINNING) -> Progress:
    """Replicate the batches in one transaction behind `after`, ten bytes long."""
    return await sink.apply(batches, after.wal_offset + 10, after)


async def insert_block(observer: Any, height: int, prev: bytes, **fields: Any) -> None:
    """Put a block there by hand-written SQL, whatever the chain has."""
    values = {
        "environment": ENVIRONMENT,
        "batch_seq": height,
        "block_hash": b"\xb0" * 31 + bytes([height % 256]),
        "prev_block_hash": prev,
        "commands_hash": b"\1" * 32,
        "batch_root": b"\2" * 32,
        "command_count": 1,
        "first_seq": height,
        "timestamp": 7,
        "signer": SIGNER,
        "signature": b"\3" * 65,
        "first_command_id": 100 + height,
        "last_command_id": 100 + height,
        **fields,
    }
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    await observer.execute(
        f"INSERT INTO rsm_blocks ({', '.join(values)}) VALUES ({places})", *values.values()
    )
