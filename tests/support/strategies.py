"""Hypothesis strategies for entries: any that the protocol's section 3 allows."""

from typing import Final
from uuid import UUID

from hypothesis import strategies as st

from app.model.entry import (
    ZERO_DIGEST,
    Address,
    BalanceUpdate,
    CashWithdrawal,
    Digest,
    Entry,
    Event,
    FillSideEffect,
    Hash32,
    OutboxAppend,
)

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)
# As long as the limit of 1024 bytes, or one character short of it, in characters of each width.
_EDGE_TEXTS: Final = ["x" * 1024, "é" * 512, "€" * 341, "𝄞" * 256, "x" + "€" * 341]
_IDENTIFIER: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"

counts = st.one_of(st.sampled_from([0, 1, INT64_MAX]), st.integers(0, INT64_MAX))
integers = st.one_of(st.sampled_from([INT64_MIN, 0, INT64_MAX]), st.integers(INT64_MIN, INT64_MAX))
addresses = st.binary(min_size=20, max_size=20).map(Address)
hashes = st.binary(min_size=32, max_size=32).map(Hash32)
_characters = st.characters(codec="utf-8", exclude_characters="\0")


short_texts = st.text(_characters, max_size=8)
texts = st.one_of(st.text(_characters, max_size=40), st.sampled_from(_EDGE_TEXTS))
topics = st.one_of(
    st.text(_characters, min_size=1, max_size=40),
    st.sampled_from(["t" * 255, "𝄞" * 255, "x"]),
)
type_names = st.one_of(
    st.sampled_from(["A", "z" * 64, "TickSnapshot"]),
    st.builds(str.__add__, st.sampled_from(_IDENTIFIER[:52]), st.text(_IDENTIFIER, max_size=63)),
)


@st.composite
def decimals(draw: st.DrawFn) -> str:
    """A decimal in plain notation: at most 28 significant digits, and 28 behind the point."""
    digits = draw(
        st.integers(0, 28).flatmap(lambda size: st.text("0123456789", min_size=size, max_size=size))
    )
    behind = draw(st.integers(0, 28))
    whole = digits[: max(len(digits) - behind, 0)] or "0"
    fraction = digits[len(digits) - behind :] if behind <= len(digits) else digits.zfill(behind)
    sign = draw(st.sampled_from(["", "-"]))
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


_EDGE_DECIMALS: Final = [
    "0",
    "-0",
    "9" * 28,
    "-" + "9" * 28,
    "0." + "0" * 27 + "1",
    "0." + "9" * 28,
]
amounts = st.one_of(st.sampled_from(_EDGE_DECIMALS), decimals())


def field_bytes(min_size: int = 0, large: int = 2000) -> st.SearchStrategy[bytes]:
    """Bytes of a field: none, few, or many (up to `large`)."""
    return st.one_of(
        st.binary(min_size=min_size, max_size=30),
        st.sampled_from([b"\0" * max(min_size, 1), bytes(range(256)) * (large // 256)]),
    )


symbol_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        integers,
        st.floats(allow_nan=False, allow_infinity=False),
        short_texts,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(short_texts, inner, max_size=3)
    ),
    max_leaves=8,
)
digests = st.builds(
    Digest,
    next_order_id=counts,
    next_trade_id=counts,
    l2_seq=counts,
    symbols=st.dictionaries(short_texts, symbol_values, max_size=3),
).map(lambda digest: ZERO_DIGEST if digest == ZERO_DIGEST else digest)
events = st.builds(
    Event,
    event_topic=topics,
    event_key=st.none() | texts,
    event_data=field_bytes(),
    l2_sequence=st.none() | integers,
    event_type=type_names,
)
outbox_appends = st.builds(
    OutboxAppend,
    directive_id=texts,
    action_key=texts,
    wallet=addresses,
    account=addresses,
    signer=addresses,
    nonce=counts,
    idempotency_key=texts,
    payload=field_bytes(),
    created_at_ms=integers,
    expires_at_ms=st.none() | integers,
)
withdrawals = st.builds(
    CashWithdrawal,
    wallet=addresses,
    request_id=texts,
    amount=amounts,
    balance_after=amounts,
    timestamp_ms=integers,
)
balance_updates = st.builds(
    BalanceUpdate,
    balance_update_seq=counts,
    wallet=addresses,
    delta=amounts,
    balance_after=amounts,
    reason=type_names,
    reference_id=st.none() | texts,
    source_command_id=st.none() | integers,
    timestamp_ms=integers,
)


def fills(event_count: int) -> st.SearchStrategy[FillSideEffect]:
    """A fill side effect of an entry with that many events."""
    return st.builds(
        FillSideEffect,
        event_idx=st.integers(0, event_count - 1),
        trade_id=counts,
        taker_ledger_delta=amounts,
        maker_ledger_delta=amounts,
        taker_premium_delta=amounts,
        maker_premium_delta=amounts,
        underlying_notional=st.none() | amounts,
    )


@st.composite
def entries(draw: st.DrawFn, uuids: st.SearchStrategy[UUID] | None = None) -> Entry:
    """Any valid entry, with any part present or absent."""
    caused = draw(st.lists(events, max_size=3))
    effects = st.lists(fills(len(caused)), max_size=2) if caused else st.just([])
    return Entry(
        request_uuid=draw(st.uuids() if uuids is None else uuids),
        received_ts_ms=draw(counts),
        command_type=draw(st.none() | type_names),
        command_data=draw(field_bytes(1)),
        response_data=draw(st.none() | field_bytes()),
        order_id=draw(st.none() | integers),
        pre_digest=draw(st.just(ZERO_DIGEST) | digests),
        post_digest=draw(st.just(ZERO_DIGEST) | digests),
        duration_ms=draw(counts),
        events=caused,
        outbox_appends=draw(st.lists(outbox_appends, max_size=2)),
        fill_side_effects=draw(effects),
        cash_withdrawal_side_effect=draw(st.none() | withdrawals),
        balance_updates=draw(st.lists(balance_updates, max_size=2)),
        command_identity_hash=draw(st.none() | hashes),
        rsm_state_digest=draw(st.none() | field_bytes()),
    )
