"""Whether a chain of blocks is what its cold key vouches for (chain page), told block by block.

    JournalError
    ├── Fault             the chain is not what it claims to be; names the height and what differs
    └── OperatingError
        └── Unverifiable  it could not be checked: unreachable, unreadable, no journal

It shares hashes, header layout, signatures and proofs with the service, and nothing that produces
blocks: the roots are derived again, from the commands and events themselves, by a log of its own
that keeps peaks alone. So memory does not grow with the chain.

What is told apart: an identity hash that the service derived commits to `request_uuid` and
`command_data`. One that the engine sent commits to whatever the engine hashed: then a change of
`command_data` can't be seen here, and `Tally.engine_hashed` counts it. Nothing in a chain commits
to its own newest block either: one that lacks its newest blocks verifies, up to where it ends.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

from app.chain.authority import InvalidSignature, check_delegation, check_signer
from app.chain.hashing import ZERO32, keccak
from app.chain.header import (
    GLOBAL_LEAF_KEY,
    NO_SIGNER,
    Bytes32,
    Delegation,
    Header,
    Roots,
    batch_root,
    block_hash,
    commands_hash,
    derived_identity,
    event_hash,
    global_leaf_value,
)
from app.chain.position import Position
from app.errors import JournalError, OperatingError
from app.model.entry import Count, Event

_STATE_LEAF: Final = b"\x00"


class Fault(JournalError):
    """The chain is not what it claims to be. `height` is None where no block is to be named."""

    def __init__(self, height: int | None, field: str, expected: object, found: object) -> None:
        self.height = height
        self.field = field
        self.expected = _text(expected)
        self.found = _text(found)
        place = "" if height is None else f"block {height}: "
        super().__init__(f"{place}{field}: expected {self.expected}, found {self.found}")


class Unverifiable(OperatingError):
    """The source could not be checked. That says nothing about the chain, good or bad."""


class Command(Struct, frozen=True, kw_only=True, gc=False):
    """A block command as a source holds it.

    `sent_identity` is the identity hash that the engine sent; None or zeros: the service derived
    it. `stated_identity` and `leaf_index` are what the source says of the command log, if it does.
    """

    command_id: Count
    request_uuid: Annotated[bytes, Meta(min_length=16, max_length=16)]
    command_data: bytes
    sent_identity: Bytes32 | None = None
    events: list[Event] = []
    stated_identity: Bytes32 | None = None
    leaf_index: Count | None = None


class Block(Struct, frozen=True, kw_only=True):
    """A block as a source holds it. What is None the source does not hold.

    `entries_timestamp` is `received_ts_ms` of the batch's last entry, block command or not;
    `authority` is the delegation that was journaled with the block.
    """

    header: Header
    roots: Roots
    commands: list[Command]
    stated_hash: Bytes32 | None = None
    first_command_id: Count | None = None
    last_command_id: Count | None = None
    entries_timestamp: Count | None = None
    authority: Delegation | None = None


class Terms(NamedTuple):
    """What is asked of a chain.

    `cold_addresses` may delegate; without any, every address may. `strict` also asks that a
    delegation covers a block's timestamp, which fits live engines only. `service_hashed` asks that
    every identity hash is the one that `command_data` gives, so that all of it is covered.
    """

    cold_addresses: frozenset[bytes]
    strict: bool = False
    allow_unsigned: bool = False
    service_hashed: bool = False


class Tally(Struct):
    """What has been checked. `newest_signed` vouches for all blocks before it, unsigned or not."""

    blocks: int = 0
    commands: int = 0
    engine_hashed: int = 0
    events: int = 0
    unsigned: int = 0
    newest_signed: int | None = None
    delegations: int = 0


def identity_of(command: Command) -> bytes:
    """Return the identity hash of a command: derived anew, unless the engine sent one."""
    sent = command.sent_identity
    if sent is None or sent == ZERO32:
        return derived_identity(command.request_uuid, command.command_data)
    return sent


class ChainCheck:
    """Checks blocks one after the other. After a `Fault` it is of no further use."""

    def __init__(self, terms: Terms, start: Position) -> None:
        self.position = start
        self.tally = Tally()
        self._terms = terms
        self._delegations: dict[bytes, list[Delegation]] = {}
        known, start.delegations = start.delegations, []
        for delegation in known:
            self.add_delegation(delegation)

    def may_sign(self, signer: bytes) -> bool:
        """Whether a delegation to `signer` is known, or none is needed."""
        return signer == NO_SIGNER or bool(self._delegations.get(signer))

    def add_delegation(self, delegation: Delegation, height: int | None = None) -> None:
        """Check a delegation and let it count from here on. Raises `Fault`."""
        known = self._delegations.setdefault(delegation.delegate, [])
        if delegation in known:
            return
        field = f"delegation to 0x{delegation.delegate.hex()}"
        cold = self._terms.cold_addresses or {delegation.delegator}
        if delegation.delegator not in cold:
            raise Fault(height, f"{field}: delegator", _any_of(cold), delegation.delegator)
        try:
            check_delegation(delegation, delegation.delegator)
        except InvalidSignature as error:
            raise Fault(height, f"{field}: signature", "the delegator's", error) from None
        if delegation.delegate == NO_SIGNER:
            raise Fault(height, f"{field}: delegate", "an address", "zeros")
        if delegation.valid_from >= delegation.valid_until:
            later = f"later than {delegation.valid_from}"
            raise Fault(height, f"{field}: valid_until", later, delegation.valid_until)
        known.append(delegation)
        self.position.delegations.append(delegation)
        self.tally.delegations += 1

    def confirm(self, block: Block) -> None:
        """Check that the block before the start is the one that is trusted. Raises `Fault`."""
        header = block.header
        _check(header.batch_seq, "block_hash", self.position.block_hash, block_hash(header))
        self.position.commands = header.first_seq + header.command_count

    def add(self, block: Block) -> None:
        """Check the next block and go on behind it. Raises `Fault` at the first difference."""
        header, height = block.header, self.position.height
        digest = self._check_link(block)
        if block.authority is not None:
            if block.authority.delegate != header.signer:
                raise Fault(height, "authority", header.signer, block.authority.delegate)
            self.add_delegation(block.authority, height)
        self._check_signature(header)
        self._check_ids(block)
        identities = [self._identity(command) for command in block.commands]
        _check(height, "commands_hash", commands_hash(identities), header.commands_hash)
        self._check_roots(block, identities)
        if block.entries_timestamp is not None:
            _check(height, "timestamp", block.entries_timestamp, header.timestamp)
        self.tally.blocks += 1
        self.tally.commands += len(identities)
        self.position.height = height + 1
        self.position.block_hash = digest
        self.position.commands = header.first_seq + header.command_count
        self.position.last_command_id = block.commands[-1].command_id

    def _check_link(self, block: Block) -> bytes:
        """Check the header against the block before, and against itself; return its hash."""
        header, before = block.header, self.position
        height = before.height
        _check(height, "batch_seq", height, header.batch_seq)
        _check(height, "prev_block_hash", before.block_hash, header.prev_block_hash)
        if before.commands is not None:
            _check(height, "first_seq", before.commands, header.first_seq)
        if not block.commands:
            raise Fault(height, "commands", "at least one", 0)
        _check(height, "command_count", len(block.commands), header.command_count)
        digest = block_hash(header)
        if block.stated_hash is not None:
            _check(height, "block_hash", digest, block.stated_hash)
        return digest

    def _check_signature(self, header: Header) -> None:
        height = self.position.height
        if header.signer == NO_SIGNER and not header.signature:
            if not self._terms.allow_unsigned:
                raise Fault(height, "signature", "one of the hot key", "none: it is not signed")
            self.tally.unsigned += 1
            return
        try:
            check_signer(header)
        except InvalidSignature as error:
            raise Fault(height, "signature", f"one of 0x{header.signer.hex()}", error) from None
        known = self._delegations.get(header.signer)
        if not known:
            raise Fault(height, "signer", "an address with a delegation", header.signer)
        if self._terms.strict and not any(each.covers(header.timestamp) for each in known):
            windows = ", ".join(f"{each.valid_from} to {each.valid_until}" for each in known)
            raise Fault(height, "timestamp", f"within the delegation ({windows})", header.timestamp)
        self.tally.newest_signed = height

    def _check_ids(self, block: Block) -> None:
        """Check what no hash covers, yet no journal gets wrong: the numbers of the commands."""
        height, last = self.position.height, self.position.last_command_id
        for number, command in enumerate(block.commands):
            if command.command_id <= last:
                found = command.command_id
                raise Fault(height, f"command {number}: command_id", f"more than {last}", found)
            last = command.command_id
            if command.leaf_index is not None:
                leaf_index = block.header.first_seq + number
                _check(height, f"command {number}: leaf_index", leaf_index, command.leaf_index)
        if block.first_command_id is not None:
            first = block.commands[0].command_id
            _check(height, "first_command_id", first, block.first_command_id)
        if block.last_command_id is not None:
            _check(height, "last_command_id", last, block.last_command_id)

    def _identity(self, command: Command) -> bytes:
        field = f"command_id {command.command_id}: command_identity_hash"
        height, identity = self.position.height, identity_of(command)
        if command.sent_identity == identity:
            derived = derived_identity(command.request_uuid, command.command_data)
            if self._terms.service_hashed:
                _check(height, field, derived, identity)
            self.tally.engine_hashed += identity != derived
        if command.stated_identity is not None:
            _check(height, field, identity, command.stated_identity)
        return identity

    def _check_roots(self, block: Block, identities: Sequence[bytes]) -> None:
        header, found, height = block.header, block.roots, self.position.height
        command_root, obligation_root = self._append(block, identities)
        leaf = global_leaf_value(header.commands_hash, header.first_seq + header.command_count)
        expected = Roots(
            state_root=keccak(_STATE_LEAF + GLOBAL_LEAF_KEY + keccak(leaf)),
            risk_root=ZERO32,
            command_root=command_root,
            obligation_root=obligation_root,
            intent_root=command_root,
        )
        for name in Roots.__struct_fields__:
            _check(height, name, getattr(expected, name), getattr(found, name))
        _check(height, "batch_root", batch_root(height, expected), header.batch_root)

    def _append(self, block: Block, identities: Sequence[bytes]) -> tuple[bytes, bytes]:
        """Add a block's leaves to the logs; return their roots: as found where they can't be."""
        logs = self.position.logs
        if logs is None:
            return block.roots.command_root, block.roots.obligation_root
        for identity in identities:
            logs.commands.append(identity)
        for command in block.commands:
            for event in command.events:
                logs.obligations.append(event_hash(event))
            self.tally.events += len(command.events)
        return logs.commands.root, logs.obligations.root


def _check(height: int, field: str, expected: bytes | int, found: bytes | int) -> None:
    if expected != found:
        raise Fault(height, field, expected, found)


def _any_of(addresses: Iterable[bytes]) -> str:
    return " or ".join(sorted(_text(address) for address in addresses))


def _text(value: object) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
