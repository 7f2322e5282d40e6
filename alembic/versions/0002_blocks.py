"""Blocks, what they cover, their roots, the newest of them, and who may sign them.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_HASH_BYTES = 32
_ADDRESS_BYTES = 20
_SIGNATURE_BYTES = 65


def upgrade() -> None:
    _create_blocks()
    _create_roots()
    _create_block_commands()
    _create_current_state()
    _create_authorities()


def downgrade() -> None:
    op.drop_table("signing_authorities")
    op.drop_table("rsm_current_state")
    op.drop_table("rsm_block_commands")
    op.drop_table("rsm_roots")
    op.drop_table("rsm_blocks")


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"{table}_{name}_check"))


def _length(table: str, column: str, size: int) -> sa.CheckConstraint:
    return _check(table, column, f"octet_length({column}) = {size}")


def _bigint(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False)


def _bytes(name: str, *, nullable: bool = False) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary(), nullable=nullable)


def _create_blocks() -> None:
    hashes = ("block_hash", "prev_block_hash", "commands_hash", "batch_root")
    op.create_table(
        "rsm_blocks",
        sa.Column("environment", sa.Text(), nullable=False),
        _bigint("batch_seq"),
        *map(_bytes, hashes),
        _bigint("command_count"),
        _bigint("first_seq"),
        _bigint("timestamp"),
        _bytes("signer"),
        _bytes("signature"),
        _bigint("first_command_id"),
        _bigint("last_command_id"),
        sa.Column(
            "prev_batch_seq",
            sa.BigInteger(),
            sa.Computed("NULLIF(batch_seq, 0) - 1", persisted=True),
        ),
        sa.PrimaryKeyConstraint("environment", "batch_seq", name=op.f("rsm_blocks_pkey")),
        sa.UniqueConstraint(
            "environment",
            "batch_seq",
            "block_hash",
            name=op.f("rsm_blocks_environment_batch_seq_block_hash_key"),
        ),
        sa.ForeignKeyConstraint(
            ["environment", "prev_batch_seq", "prev_block_hash"],
            ["rsm_blocks.environment", "rsm_blocks.batch_seq", "rsm_blocks.block_hash"],
            name=op.f("rsm_blocks_environment_prev_batch_seq_prev_block_hash_fkey"),
        ),
        _check(
            "rsm_blocks",
            "beginning",
            "batch_seq > 0 OR batch_seq = 0 AND first_seq = 0"
            f" AND prev_block_hash = decode(repeat('00', {_HASH_BYTES}), 'hex')",
        ),
        _check("rsm_blocks", "command_count", "command_count > 0"),
        *(_length("rsm_blocks", name, _HASH_BYTES) for name in hashes),
        _length("rsm_blocks", "signer", _ADDRESS_BYTES),
        _check("rsm_blocks", "signature", f"octet_length(signature) IN (0, {_SIGNATURE_BYTES})"),
    )


def _create_roots() -> None:
    roots = ("state_root", "risk_root", "command_root", "obligation_root", "intent_root")
    op.create_table(
        "rsm_roots",
        sa.Column("environment", sa.Text(), nullable=False),
        _bigint("batch_seq"),
        *map(_bytes, roots),
        sa.PrimaryKeyConstraint("environment", "batch_seq", name=op.f("rsm_roots_pkey")),
        *(_length("rsm_roots", name, _HASH_BYTES) for name in roots),
    )


def _create_block_commands() -> None:
    op.create_table(
        "rsm_block_commands",
        sa.Column("environment", sa.Text(), nullable=False),
        _bigint("batch_seq"),
        _bigint("leaf_index"),
        _bigint("command_id"),
        sa.Column("request_uuid", sa.Uuid(), nullable=False),
        sa.Column("command_type", sa.Text(), nullable=False),
        _bytes("command_identity_hash"),
        _bytes("entry", nullable=True),
        sa.PrimaryKeyConstraint(
            "environment", "batch_seq", "leaf_index", name=op.f("rsm_block_commands_pkey")
        ),
        _length("rsm_block_commands", "command_identity_hash", _HASH_BYTES),
    )


def _create_current_state() -> None:
    op.create_table(
        "rsm_current_state",
        sa.Column("environment", sa.Text(), nullable=False),
        _bigint("batch_seq"),
        _bytes("block_hash"),
        _bytes("batch_root"),
        _bytes("state_root"),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("environment", name=op.f("rsm_current_state_pkey")),
        sa.ForeignKeyConstraint(
            ["environment", "batch_seq", "block_hash"],
            ["rsm_blocks.environment", "rsm_blocks.batch_seq", "rsm_blocks.block_hash"],
            name=op.f("rsm_current_state_environment_batch_seq_block_hash_fkey"),
        ),
        _length("rsm_current_state", "batch_root", _HASH_BYTES),
        _length("rsm_current_state", "state_root", _HASH_BYTES),
    )


def _create_authorities() -> None:
    op.create_table(
        "signing_authorities",
        sa.Column("environment", sa.Text(), nullable=False),
        _bytes("delegator"),
        _bytes("delegate"),
        _bigint("valid_from"),
        _bigint("valid_until"),
        _bytes("signature"),
        _bigint("batch_seq"),
        sa.PrimaryKeyConstraint(
            "environment",
            "delegate",
            "valid_from",
            "valid_until",
            "delegator",
            name=op.f("signing_authorities_pkey"),
        ),
        _length("signing_authorities", "delegator", _ADDRESS_BYTES),
        _length("signing_authorities", "delegate", _ADDRESS_BYTES),
        _length("signing_authorities", "signature", _SIGNATURE_BYTES),
    )
