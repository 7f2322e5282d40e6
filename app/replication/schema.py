"""The tables of the journal in Postgres (protocol, section 6), as migrations must make them.

Migrations alone create them; a test compares what they make with what is declared here. Columns
bear the names of the entry's fields (section 3).

Children have no foreign keys. The one writer inserts them in the transaction of their parent, so a
key could only confirm what it just did, at an index look-up for each copied row, and would forbid
detaching or moving a shard table by table. Blocks have them, for there a key says more: that each
goes on behind the one before it. History is complete here, so a chain begins at height 0 alone.
"""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)

from app.chain.header import SIGNATURE_BYTES
from app.model.entry import ADDRESS_BYTES, HASH_BYTES

metadata: Final = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


def _bigint(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable, autoincrement=False)


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def _bytes(name: str, *, nullable: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=nullable)


def _numeric(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, Numeric, nullable=nullable)


def _now(name: str) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


def _length(name: str, size: int) -> CheckConstraint:
    return CheckConstraint(f"octet_length({name}) = {size}", name=name)


engine_commands: Final = Table(
    "engine_commands",
    metadata,
    _text("environment"),
    _bigint("command_id"),
    Column("request_uuid", Uuid, nullable=False),
    _bigint("received_ts_ms"),
    _text("command_type", nullable=True),
    _bytes("command_data"),
    _bytes("response_data", nullable=True),
    _bigint("order_id", nullable=True),
    _bigint("duration_ms"),
    _bytes("command_identity_hash", nullable=True),
    _bytes("rsm_state_digest", nullable=True),
    PrimaryKeyConstraint("environment", "command_id"),
    UniqueConstraint("environment", "request_uuid"),
    _length("command_identity_hash", HASH_BYTES),
)

engine_events: Final = Table(
    "engine_events",
    metadata,
    _text("environment"),
    _bigint("command_id"),
    _bigint("event_idx"),
    _text("event_topic"),
    _text("event_key", nullable=True),
    _bytes("event_data"),
    _bigint("l2_sequence", nullable=True),
    _text("event_type"),
    PrimaryKeyConstraint("environment", "command_id", "event_idx"),
    # A topic in order, from a position.
    Index(None, "environment", "event_topic", "command_id", "event_idx"),
)

engine_command_digests: Final = Table(
    "engine_command_digests",
    metadata,
    _text("environment"),
    _bigint("command_id"),
    _bytes("pre_digest"),
    _bytes("post_digest"),
    PrimaryKeyConstraint("environment", "command_id"),
)

directive_outbox: Final = Table(
    "directive_outbox",
    metadata,
    _text("environment"),
    _bigint("command_id"),
    _bigint("append_idx"),
    _text("directive_id"),
    _text("action_key"),
    _bytes("wallet"),
    _bytes("account"),
    _bytes("signer"),
    _bigint("nonce"),
    _text("idempotency_key"),
    _bytes("payload"),
    _bigint("created_at_ms"),
    _bigint("expires_at_ms", nullable=True),
    Column("status", Text, nullable=False, server_default=text("'needs_rsm_signature'")),
    PrimaryKeyConstraint("environment", "command_id", "append_idx"),
    _length("wallet", ADDRESS_BYTES),
    _length("account", ADDRESS_BYTES),
    _length("signer", ADDRESS_BYTES),
)

fill_side_effects: Final = Table(
    "fill_side_effects",
    metadata,
    _text("environment"),
    _bigint("command_id"),
    _bigint("effect_idx"),
    _bigint("event_idx"),
    _bigint("trade_id"),
    _numeric("taker_ledger_delta"),
    _numeric("maker_ledger_delta"),
    _numeric("taker_premium_delta"),
    _numeric("maker_premium_delta"),
    _numeric("underlying_notional", nullable=True),
    PrimaryKeyConstraint("environment", "command_id", "effect_idx"),
)

cash_withdrawals: Final = Table(
    "cash_withdrawals",
    metadata,
    _text("environment"),
    _bigint("command_id"),
    _bytes("wallet"),
    _text("request_id"),
    _numeric("amount"),
    _numeric("balance_after"),
    _bigint("timestamp_ms"),
    # An entry has at most one.
    PrimaryKeyConstraint("environment", "command_id"),
    _length("wallet", ADDRESS_BYTES),
)

balance_updates: Final = Table(
    "balance_updates",
    metadata,
    _text("environment"),
    _bigint("command_id"),
    _bigint("update_idx"),
    _bigint("balance_update_seq"),
    _bytes("wallet"),
    _numeric("delta"),
    _numeric("balance_after"),
    _text("reason"),
    _text("reference_id", nullable=True),
    _bigint("source_command_id"),
    _bigint("timestamp_ms"),
    PrimaryKeyConstraint("environment", "command_id", "update_idx"),
    _length("wallet", ADDRESS_BYTES),
)

account_balances: Final = Table(
    "account_balances",
    metadata,
    _text("environment"),
    _bytes("wallet"),
    _numeric("balance_after"),
    _bigint("command_id"),
    _bigint("timestamp_ms"),
    PrimaryKeyConstraint("environment", "wallet"),
    _length("wallet", ADDRESS_BYTES),
)

replication_progress: Final = Table(
    "replication_progress",
    metadata,
    _text("environment"),
    _text("wal_id"),
    _bigint("wal_offset"),
    _bigint("last_command_id"),
    _bigint("last_l2_seq", nullable=True),
    _bigint("dead_letters"),
    _now("updated_at"),
    PrimaryKeyConstraint("environment"),
)

dead_letters: Final = Table(
    "dead_letters",
    metadata,
    _text("environment"),
    _bigint("command_id"),
    Column("request_uuid", Uuid, nullable=False),
    _bytes("entry"),
    # Null where the driver refused the entry, before Postgres saw it.
    _text("sqlstate", nullable=True),
    _text("error"),
    _now("recorded_at"),
    PrimaryKeyConstraint("environment", "command_id"),
    Index(None, "environment", "request_uuid"),
)

rsm_blocks: Final = Table(
    "rsm_blocks",
    metadata,
    _text("environment"),
    _bigint("batch_seq"),
    _bytes("block_hash"),
    _bytes("prev_block_hash"),
    _bytes("commands_hash"),
    _bytes("batch_root"),
    _bigint("command_count"),
    _bigint("first_seq"),
    _bigint("timestamp"),
    _bytes("signer"),
    _bytes("signature"),
    _bigint("first_command_id"),
    _bigint("last_command_id"),
    # The height before; null at height 0, where there is none to refer to.
    Column("prev_batch_seq", BigInteger, Computed("NULLIF(batch_seq, 0) - 1", persisted=True)),
    PrimaryKeyConstraint("environment", "batch_seq"),
    UniqueConstraint("environment", "batch_seq", "block_hash"),
    ForeignKeyConstraint(
        ["environment", "prev_batch_seq", "prev_block_hash"],
        ["rsm_blocks.environment", "rsm_blocks.batch_seq", "rsm_blocks.block_hash"],
    ),
    CheckConstraint(
        "batch_seq > 0 OR batch_seq = 0 AND first_seq = 0"
        f" AND prev_block_hash = decode(repeat('00', {HASH_BYTES}), 'hex')",
        name="beginning",
    ),
    CheckConstraint("command_count > 0", name="command_count"),
    _length("block_hash", HASH_BYTES),
    _length("prev_block_hash", HASH_BYTES),
    _length("commands_hash", HASH_BYTES),
    _length("batch_root", HASH_BYTES),
    _length("signer", ADDRESS_BYTES),
    CheckConstraint(f"octet_length(signature) IN (0, {SIGNATURE_BYTES})", name="signature"),
)

rsm_roots: Final = Table(
    "rsm_roots",
    metadata,
    _text("environment"),
    _bigint("batch_seq"),
    _bytes("state_root"),
    _bytes("risk_root"),
    _bytes("command_root"),
    _bytes("obligation_root"),
    _bytes("intent_root"),
    PrimaryKeyConstraint("environment", "batch_seq"),
    _length("state_root", HASH_BYTES),
    _length("risk_root", HASH_BYTES),
    _length("command_root", HASH_BYTES),
    _length("obligation_root", HASH_BYTES),
    _length("intent_root", HASH_BYTES),
)

rsm_block_commands: Final = Table(
    "rsm_block_commands",
    metadata,
    _text("environment"),
    _bigint("batch_seq"),
    _bigint("leaf_index"),
    _bigint("command_id"),
    Column("request_uuid", Uuid, nullable=False),
    _text("command_type"),
    # What the block commits to: derived where engine_commands has none.
    _bytes("command_identity_hash"),
    # The entry whole, where engine_commands keeps an earlier one of its request_uuid instead: the
    # block commits to it nonetheless, and without it could never be checked again.
    _bytes("entry", nullable=True),
    PrimaryKeyConstraint("environment", "batch_seq", "leaf_index"),
    _length("command_identity_hash", HASH_BYTES),
)

rsm_current_state: Final = Table(
    "rsm_current_state",
    metadata,
    _text("environment"),
    _bigint("batch_seq"),
    _bytes("block_hash"),
    _bytes("batch_root"),
    _bytes("state_root"),
    _now("updated_at"),
    PrimaryKeyConstraint("environment"),
    ForeignKeyConstraint(
        ["environment", "batch_seq", "block_hash"],
        ["rsm_blocks.environment", "rsm_blocks.batch_seq", "rsm_blocks.block_hash"],
    ),
    _length("batch_root", HASH_BYTES),
    _length("state_root", HASH_BYTES),
)

signing_authorities: Final = Table(
    "signing_authorities",
    metadata,
    _text("environment"),
    _bytes("delegator"),
    _bytes("delegate"),
    _bigint("valid_from"),
    _bigint("valid_until"),
    _bytes("signature"),
    # The first block it covers, in whose record it was journaled.
    _bigint("batch_seq"),
    PrimaryKeyConstraint("environment", "delegate", "valid_from", "valid_until", "delegator"),
    _length("delegator", ADDRESS_BYTES),
    _length("delegate", ADDRESS_BYTES),
    _length("signature", SIGNATURE_BYTES),
)
