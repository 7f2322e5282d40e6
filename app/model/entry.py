"""The journal entry and its parts, as msgspec structs (protocol, section 3).

One definition serves every format: requests in MessagePack and JSON, and the commands of a WAL
record. Fields that equal their default are left out when encoded, so that an entry has exactly one
canonical encoding, whatever its sender spelled out.
"""

from typing import Annotated, Any, Final
from uuid import UUID

from msgspec import Meta, Struct

MAX_INT64: Final = 2**63 - 1
MAX_TEXT_BYTES: Final = 1024
ADDRESS_BYTES: Final = 20
HASH_BYTES: Final = 32

Int64 = Annotated[int, Meta(ge=-(2**63), le=MAX_INT64)]
Count = Annotated[int, Meta(ge=0, le=MAX_INT64)]
Text = Annotated[str, Meta(max_length=MAX_TEXT_BYTES)]
Topic = Annotated[str, Meta(min_length=1, max_length=255)]
TYPE_NAME_PATTERN: Final = r"^[A-Za-z][A-Za-z0-9_]{0,63}\Z"
# Matched by app.model.rules, which remembers the names it has seen; here it would cost as much as
# half of an entry's decoding.
TypeName = Annotated[
    str,
    Meta(max_length=64, extra_json_schema={"pattern": TYPE_NAME_PATTERN}),
]
CommandData = Annotated[bytes, Meta(min_length=1)]
# Digits are counted by app.model.rules; the pattern alone keeps exponents, NaN and infinities out.
DecimalText = Annotated[str, Meta(pattern=r"^-?[0-9]{1,28}(\.[0-9]{1,28})?\Z")]


class Address(bytes):
    """A 20-byte account address: `0x` hex text, or `bin` in MessagePack."""


class Hash32(bytes):
    """A 32-byte hash: `0x` hex text, or `bin` in MessagePack."""


class _Part(Struct, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """What all parts share. `gc=False`: parts are trees, so the collector need not track them."""


class Digest(
    Struct, kw_only=True, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True
):
    """The engine's own summary of its state before or after a command."""

    next_order_id: Count = 0
    next_trade_id: Count = 0
    l2_seq: Count = 0
    symbols: dict[str, Any] = {}


ZERO_DIGEST: Final = Digest()


class Event(_Part, kw_only=True):
    """An event that the command caused, ready to be published on `event_topic`."""

    event_topic: Topic
    event_key: Text | None = None
    event_data: bytes
    l2_sequence: Int64 | None = None
    event_type: TypeName


class OutboxAppend(_Part, kw_only=True):
    """A directive that waits for its signature in `directive_outbox`."""

    directive_id: Text
    action_key: Text
    wallet: Address
    account: Address
    signer: Address
    nonce: Count
    idempotency_key: Text
    payload: bytes
    created_at_ms: Int64
    expires_at_ms: Int64 | None = None


class FillSideEffect(_Part, kw_only=True):
    """Ledger effects of one fill; `event_idx` points into the entry's events."""

    event_idx: Count
    trade_id: Count
    taker_ledger_delta: DecimalText
    maker_ledger_delta: DecimalText
    taker_premium_delta: DecimalText
    maker_premium_delta: DecimalText
    underlying_notional: DecimalText | None = None


class CashWithdrawal(_Part, kw_only=True):
    """A withdrawal that the command carried out, with the balance it left."""

    wallet: Address
    request_id: Text
    amount: DecimalText
    balance_after: DecimalText
    timestamp_ms: Int64


class BalanceUpdate(_Part, kw_only=True):
    """A change of a wallet's balance. `source_command_id` becomes the entry's own when null."""

    balance_update_seq: Count
    wallet: Address
    delta: DecimalText
    balance_after: DecimalText
    reason: TypeName
    reference_id: Text | None = None
    source_command_id: Int64 | None = None
    timestamp_ms: Int64


class Entry(_Part, kw_only=True):
    """One command with everything it caused. Kept as sent; the journal adds only a `command_id`."""

    request_uuid: UUID
    received_ts_ms: Count
    command_type: TypeName | None = None
    command_data: CommandData
    response_data: bytes | None = None
    order_id: Int64 | None = None
    pre_digest: Digest = ZERO_DIGEST
    post_digest: Digest = ZERO_DIGEST
    duration_ms: Count = 0
    events: list[Event] = []
    outbox_appends: list[OutboxAppend] = []
    fill_side_effects: list[FillSideEffect] = []
    cash_withdrawal_side_effect: CashWithdrawal | None = None
    balance_updates: list[BalanceUpdate] = []
    command_identity_hash: Hash32 | None = None
    rsm_state_digest: bytes | None = None
