"""Commands, what they caused, balances, progress and dead letters.

Revision: 0001, the first
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

_ADDRESS = "octet_length({0}) = 20"


def _address_check(table: str, column: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(_ADDRESS.format(column), name=op.f(f"{table}_{column}_check"))


def upgrade() -> None:
    _create_commands()
    _create_children()
    _create_balances()
    _create_bookkeeping()


def downgrade() -> None:
    op.drop_index(op.f("dead_letters_environment_request_uuid_idx"), table_name="dead_letters")
    op.drop_table("dead_letters")
    op.drop_table("replication_progress")
    op.drop_table("account_balances")
    op.drop_table("balance_updates")
    op.drop_table("cash_withdrawals")
    op.drop_table("fill_side_effects")
    op.drop_table("directive_outbox")
    op.drop_table("engine_command_digests")
    op.drop_index(
        op.f("engine_events_environment_event_topic_command_id_event_idx_idx"),
        table_name="engine_events",
    )
    op.drop_table("engine_events")
    op.drop_table("engine_commands")


def _create_commands() -> None:
    op.create_table(
        "engine_commands",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_uuid", sa.Uuid(), nullable=False),
        sa.Column("received_ts_ms", sa.BigInteger(), nullable=False),
        sa.Column("command_type", sa.Text(), nullable=True),
        sa.Column("command_data", sa.LargeBinary(), nullable=False),
        sa.Column("response_data", sa.LargeBinary(), nullable=True),
        sa.Column("order_id", sa.BigInteger(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("command_identity_hash", sa.LargeBinary(), nullable=True),
        sa.Column("rsm_state_digest", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "octet_length(command_identity_hash) = 32",
            name=op.f("engine_commands_command_identity_hash_check"),
        ),
        sa.PrimaryKeyConstraint("environment", "command_id", name=op.f("engine_commands_pkey")),
        sa.UniqueConstraint(
            "environment",
            "request_uuid",
            name=op.f("engine_commands_environment_request_uuid_key"),
        ),
    )
    op.create_table(
        "engine_events",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_topic", sa.Text(), nullable=False),
        sa.Column("event_key", sa.Text(), nullable=True),
        sa.Column("event_data", sa.LargeBinary(), nullable=False),
        sa.Column("l2_sequence", sa.BigInteger(), nullable=True),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint(
            "environment", "command_id", "event_idx", name=op.f("engine_events_pkey")
        ),
    )
    op.create_index(
        op.f("engine_events_environment_event_topic_command_id_event_idx_idx"),
        "engine_events",
        ["environment", "event_topic", "command_id", "event_idx"],
    )
    op.create_table(
        "engine_command_digests",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("pre_digest", sa.LargeBinary(), nullable=False),
        sa.Column("post_digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint(
            "environment", "command_id", name=op.f("engine_command_digests_pkey")
        ),
    )


def _create_children() -> None:
    op.create_table(
        "directive_outbox",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("append_idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("directive_id", sa.Text(), nullable=False),
        sa.Column("action_key", sa.Text(), nullable=False),
        sa.Column("wallet", sa.LargeBinary(), nullable=False),
        sa.Column("account", sa.LargeBinary(), nullable=False),
        sa.Column("signer", sa.LargeBinary(), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=True),
        sa.Column(
            "status",
            sa.Text(),
            server_default=sa.text("'needs_rsm_signature'"),
            nullable=False,
        ),
        _address_check("directive_outbox", "wallet"),
        _address_check("directive_outbox", "account"),
        _address_check("directive_outbox", "signer"),
        sa.PrimaryKeyConstraint(
            "environment", "command_id", "append_idx", name=op.f("directive_outbox_pkey")
        ),
    )
    op.create_table(
        "fill_side_effects",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("effect_idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_idx", sa.BigInteger(), nullable=False),
        sa.Column("trade_id", sa.BigInteger(), nullable=False),
        sa.Column("taker_ledger_delta", sa.Numeric(), nullable=False),
        sa.Column("maker_ledger_delta", sa.Numeric(), nullable=False),
        sa.Column("taker_premium_delta", sa.Numeric(), nullable=False),
        sa.Column("maker_premium_delta", sa.Numeric(), nullable=False),
        sa.Column("underlying_notional", sa.Numeric(), nullable=True),
        sa.PrimaryKeyConstraint(
            "environment", "command_id", "effect_idx", name=op.f("fill_side_effects_pkey")
        ),
    )


def _create_balances() -> None:
    op.create_table(
        "cash_withdrawals",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("wallet", sa.LargeBinary(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("amount", sa.Numeric(), nullable=False),
        sa.Column("balance_after", sa.Numeric(), nullable=False),
        sa.Column("timestamp_ms", sa.BigInteger(), nullable=False),
        _address_check("cash_withdrawals", "wallet"),
        sa.PrimaryKeyConstraint("environment", "command_id", name=op.f("cash_withdrawals_pkey")),
    )
    op.create_table(
        "balance_updates",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("update_idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("balance_update_seq", sa.BigInteger(), nullable=False),
        sa.Column("wallet", sa.LargeBinary(), nullable=False),
        sa.Column("delta", sa.Numeric(), nullable=False),
        sa.Column("balance_after", sa.Numeric(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("reference_id", sa.Text(), nullable=True),
        sa.Column("source_command_id", sa.BigInteger(), nullable=False),
        sa.Column("timestamp_ms", sa.BigInteger(), nullable=False),
        _address_check("balance_updates", "wallet"),
        sa.PrimaryKeyConstraint(
            "environment", "command_id", "update_idx", name=op.f("balance_updates_pkey")
        ),
    )
    op.create_table(
        "account_balances",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("wallet", sa.LargeBinary(), nullable=False),
        sa.Column("balance_after", sa.Numeric(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), nullable=False),
        sa.Column("timestamp_ms", sa.BigInteger(), nullable=False),
        _address_check("account_balances", "wallet"),
        sa.PrimaryKeyConstraint("environment", "wallet", name=op.f("account_balances_pkey")),
    )


def _create_bookkeeping() -> None:
    op.create_table(
        "replication_progress",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("wal_id", sa.Text(), nullable=False),
        sa.Column("wal_offset", sa.BigInteger(), nullable=False),
        sa.Column("last_command_id", sa.BigInteger(), nullable=False),
        sa.Column("last_l2_seq", sa.BigInteger(), nullable=True),
        sa.Column("dead_letters", sa.BigInteger(), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("environment", name=op.f("replication_progress_pkey")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_uuid", sa.Uuid(), nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
        sa.Column("sqlstate", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("environment", "command_id", name=op.f("dead_letters_pkey")),
    )
    op.create_index(
        op.f("dead_letters_environment_request_uuid_idx"),
        "dead_letters",
        ["environment", "request_uuid"],
    )
