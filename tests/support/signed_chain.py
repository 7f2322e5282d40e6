"""Batches whose blocks are signed, as a verifier gets to see them: in values, and in a WAL."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from coincurve import PrivateKey
from msgspec.structs import replace

from app.chain.authority import address_of, delegate, sign_header
from app.chain.header import NO_SIGNER, Delegation
from app.chain.verify import Block, Command
from app.model.codec import canonical_bytes
from app.model.entry import Entry
from app.wal.record import Batch, Genesis, RawBatch, encode_record, raw_commands
from app.wal.segments import segment_name
from tests.support.block_chain import BlockChain

COLD_KEY = PrivateKey(b"\x01" * 32)
COLD_ADDRESS = address_of(COLD_KEY.public_key)
GENESIS = Genesis(
    offset=0, wal_id="log-1", environment="development", created_ms=0, first_command_id=1
)


class SignedChain(BlockChain):
    """Makes batches; the first block of each hot key brings its delegation."""

    def __init__(self, cold: PrivateKey = COLD_KEY) -> None:
        super().__init__()
        self._cold = cold
        self._rotations = 0
        self.rotate()

    def rotate(self, valid_from: int = 1_000, valid_until: int = 9_000) -> None:
        """Go on with another hot key."""
        self._rotations += 1
        self._hot = PrivateKey(self._rotations.to_bytes(32, "big"))
        address = address_of(self._hot.public_key)
        self.authority: Delegation | None = delegate(self._cold, address, valid_from, valid_until)

    def signed(self, *entries: Entry) -> Batch:
        """The next batch: a signed block where it holds a `TickSnapshot`."""
        batch = self.batch(*entries, signer=address_of(self._hot.public_key))
        if batch.header is None:
            return batch
        header = sign_header(replace(batch.header, signature=b""), self._hot)
        authority, self.authority = self.authority, None
        return replace(batch, header=header, authority=authority)

    def unsigned(self, *entries: Entry) -> Batch:
        """The next batch, not signed."""
        return self.batch(*entries, signer=NO_SIGNER)


def block_of(batch: Batch) -> Block:
    """The block of a batch, with all that a source can know."""
    header, roots, indices = batch.header, batch.roots, batch.block_indices
    assert header is not None
    assert roots is not None
    assert indices is not None
    commands = []
    for number, index in enumerate(indices):
        entry = batch.commands[index]
        commands.append(
            Command(
                command_id=batch.first_command_id + index,
                request_uuid=entry.request_uuid.bytes,
                command_data=entry.command_data,
                sent_identity=entry.command_identity_hash,
                events=entry.events,
                leaf_index=header.first_seq + number,
            )
        )
    return Block(
        header=header,
        roots=roots,
        commands=commands,
        first_command_id=commands[0].command_id,
        last_command_id=commands[-1].command_id,
        entries_timestamp=batch.commands[-1].received_ts_ms,
        authority=batch.authority,
    )


def blocks_of(batches: Iterable[Batch]) -> list[Block]:
    """The blocks of those batches that have one."""
    return [block_of(batch) for batch in batches if batch.header is not None]


def record_of(batch: Batch, offset: int) -> bytearray:
    """A batch as its record in a log."""
    return encode_record(
        RawBatch(
            offset=offset,
            first_command_id=batch.first_command_id,
            commands=raw_commands([canonical_bytes(entry) for entry in batch.commands]),
            header=batch.header,
            roots=batch.roots,
            block_indices=batch.block_indices,
            authority=batch.authority,
        )
    )


def write_wal(directory: Path, *segments: Sequence[Batch], genesis: Genesis = GENESIS) -> list[int]:
    """Write a log; returns the offset of each batch, and the end behind the last one."""
    directory.mkdir(parents=True, exist_ok=True)
    offsets, offset = [], genesis.offset
    for batches in segments:
        start = offset
        first = batches[0].first_command_id if offset > genesis.offset else genesis.first_command_id
        data = encode_record(replace(genesis, offset=start, first_command_id=first))
        for batch in batches:
            offsets.append(start + len(data))
            data += record_of(batch, start + len(data))
        (directory / segment_name(start)).write_bytes(data)
        offset = start + len(data)
    return [*offsets, offset]
