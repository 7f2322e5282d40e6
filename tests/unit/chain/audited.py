"""A chain to verify, and ways to spoil it."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from coincurve import PrivateKey

from app.chain.hashing import ZERO32
from app.chain.position import Position, beginning
from app.chain.verify import Block, ChainCheck, Fault, Tally, Terms
from app.model.entry import Entry, Event, Hash32
from tests.support.journal_entries import make_entry, make_event
from tests.support.signed_chain import COLD_ADDRESS, SignedChain, blocks_of

TERMS = Terms(frozenset({COLD_ADDRESS}))
OTHER_KEY = PrivateKey(b"\x02" * 32)
ROTATED_AT, UNSIGNED_AT, ENGINE_HASHED_AT, BLOCKS = 3, 5, 2, 8


def tick(time_ms: int = 2_000, **fields: Any) -> Entry:
    return make_entry(command_type="TickSnapshot", received_ts_ms=time_ms, **fields)


def other(time_ms: int = 2_000) -> Entry:
    """An entry that no block covers."""
    return make_entry(command_type="NewOrder", received_ts_ms=time_ms)


@cache
def chain() -> tuple[Block, ...]:
    """Signed blocks, one unsigned, of two hot keys; batches of blocks alone and of others too."""
    making = SignedChain()
    batches = []
    for height in range(BLOCKS):
        if height == ROTATED_AT:
            making.rotate(valid_from=1_500)
        entries = [other(), *(tick(events=events(n)) for n in range(height % 3 + 1)), other(2_100)]
        if height == ENGINE_HASHED_AT:
            entries.append(tick(command_identity_hash=Hash32(b"\x07" * 32), events=events(2)))
            entries.append(tick(command_identity_hash=Hash32(ZERO32)))
        make = making.unsigned if height == UNSIGNED_AT else making.signed
        batches += [make(*entries), making.signed(other(), other())]
    return tuple(blocks_of(batches))


def events(count: int) -> list[Event]:
    return [make_event(event_key="k", l2_sequence=number) for number in range(count)]


def verify(blocks: Iterable[Block], terms: Terms = TERMS, start: Position | None = None) -> Tally:
    check = ChainCheck(terms, start or beginning())
    for block in blocks:
        check.add(block)
    return check.tally


def fault_of(blocks: Iterable[Block], terms: Terms | None = None) -> Fault:
    with pytest.raises(Fault) as caught:
        verify(blocks, terms or TERMS._replace(allow_unsigned=True))
    return caught.value


def put(height: int, block: Block) -> list[Block]:
    return [*chain()[:height], block, *chain()[height + 1 :]]


def flipped(value: bytes, bit: int) -> bytes:
    bit %= 8 * len(value)
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def change_command(block: Block, number: int, **fields: Any) -> Block:
    commands = list(block.commands)
    commands[number] = replace(commands[number], **fields)
    return replace(block, commands=commands)


def with_events(block: Block, number: int, change: Callable[[list[Event]], list[Event]]) -> Block:
    return change_command(block, number, events=change(list(block.commands[number].events)))
