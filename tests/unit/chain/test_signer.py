"""The keys that sign blocks, under a clock that the test owns."""

import copy
import pickle
import traceback
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="coincurve has no wheel for this Python")

from app.chain.authority import CURVE_ORDER, check_authentic, check_delegation
from app.chain.header import Delegation, Header
from app.chain.signer import (
    RETRY_MS,
    BlockSigner,
    ColdKey,
    HotKey,
    InvalidKey,
    new_secret,
)
from app.errors import InvariantError, OutsideWindow
from app.model.entry import MAX_INT64

HOUR_MS = 3_600_000
LIFE_MS = 24 * HOUR_MS
START_MS = 1_700_000_000_000
SECRET = bytes(range(0xA0, 0xC0))
COLD = ColdKey(SECRET)


class Clock:
    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


class Source:
    """Randomness whose every draw is another valid key."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, length: int) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(length, "big")


class BrokenColdKey:
    """A cold key that can be away, or answer with something else than what it was asked for."""

    address = COLD.address

    def __init__(self) -> None:
        self.away = False
        self.asked = 0
        self.answer: Callable[[Delegation], Delegation] = lambda delegation: delegation

    def delegate(self, hot_address: bytes, valid_from: int, valid_until: int) -> Delegation:
        self.asked += 1
        if self.away:
            raise OSError("the device said " + SECRET.hex())
        return self.answer(COLD.delegate(hot_address, valid_from, valid_until))


def signer_at(clock: Clock, hours: float = 24) -> BlockSigner:
    return BlockSigner(COLD, hours, clock, Source())


def current(signer: BlockSigner) -> HotKey:
    hot = signer.current()
    assert hot is not None
    return hot


def header_for(hot: HotKey, timestamp: int) -> Header:
    return Header(
        batch_seq=3,
        prev_block_hash=bytes(32),
        commands_hash=bytes(32),
        batch_root=bytes(32),
        command_count=1,
        first_seq=3,
        timestamp=timestamp,
        signer=hot.address,
    )


def signed_is_authentic(hot: HotKey, now_ms: int) -> bool:
    """Whether what the key signs now passes the strict check, of a block made now."""
    header = hot.sign_header(header_for(hot, now_ms))
    return check_authentic(header, [hot.delegation], COLD.address, strict=True) == hot.delegation


def shown(error: BaseException) -> str:
    """All that a traceback can show, the locals of the code's own frames included."""
    trace = error.__traceback__
    rendered = traceback.TracebackException(
        type(error), error, trace and trace.tb_next, capture_locals=True
    )
    return "".join(rendered.format())


def test_at_start_a_hot_key_signs_for_as_long_as_it_was_asked() -> None:
    hot = current(signer_at(Clock()))
    window = (hot.delegation.valid_from, hot.delegation.valid_until)
    assert window == (START_MS, START_MS + LIFE_MS)
    assert hot.delegation.delegate == hot.address
    assert hot.address != COLD.address
    check_delegation(hot.delegation, COLD.address)
    assert signed_is_authentic(hot, START_MS)


def test_the_life_of_a_key_is_delegation_hours() -> None:
    delegation = current(signer_at(Clock(), 0.5)).delegation
    assert delegation.valid_until - delegation.valid_from == HOUR_MS // 2
    with pytest.raises(InvariantError):
        signer_at(Clock(), 0)


def test_keys_come_from_the_randomness_that_was_passed_in() -> None:
    assert current(signer_at(Clock())).address == ColdKey((1).to_bytes(32, "big")).address


def test_a_key_is_replaced_at_half_of_its_life_and_not_before() -> None:
    clock = Clock()
    signer = signer_at(clock)
    first = current(signer)
    clock.now_ms = START_MS + LIFE_MS // 2 - 1
    assert current(signer) is first
    clock.now_ms += 1
    second = current(signer)
    assert second.address != first.address
    assert second.delegation.valid_from == clock.now_ms
    assert second.delegation.valid_until == clock.now_ms + LIFE_MS
    assert current(signer) is second


@pytest.mark.parametrize("jump_ms", [LIFE_MS, -LIFE_MS, -1, LIFE_MS + 1, 400 * LIFE_MS])
def test_a_clock_that_jumps_gets_a_key_for_its_new_time(jump_ms: int) -> None:
    clock = Clock()
    signer = signer_at(clock)
    first = current(signer)
    clock.now_ms += jump_ms
    second = current(signer)
    assert second.address != first.address
    assert second.delegation.valid_from == clock.now_ms
    assert signed_is_authentic(second, clock.now_ms)


def test_a_clock_that_jumps_back_within_the_window_keeps_the_key() -> None:
    clock = Clock()
    signer = signer_at(clock)
    clock.now_ms += HOUR_MS
    first = current(signer)
    clock.now_ms -= HOUR_MS
    assert current(signer) is first


@pytest.mark.parametrize("jump_ms", [LIFE_MS + 1, -1])
def test_a_key_that_was_given_out_does_not_sign_after_a_jump(jump_ms: int) -> None:
    clock = Clock()
    hot = current(signer_at(clock))
    header = header_for(hot, START_MS)
    clock.now_ms += jump_ms
    with pytest.raises(OutsideWindow, match=str(clock.now_ms)):
        hot.sign_header(header)


@pytest.mark.parametrize("age_ms", [0, LIFE_MS])
def test_a_key_signs_up_to_both_ends_of_its_window(age_ms: int) -> None:
    clock = Clock()
    hot = current(signer_at(clock))
    clock.now_ms += age_ms
    assert signed_is_authentic(hot, clock.now_ms)


def test_a_key_does_not_sign_for_another_signer() -> None:
    hot = current(signer_at(Clock()))
    header = replace(header_for(hot, START_MS), signer=COLD.address)
    with pytest.raises(InvariantError, match="can't sign"):
        hot.sign_header(header)


def clock_values() -> st.SearchStrategy[list[int]]:
    steps = st.one_of(
        st.integers(-3, 3),
        st.integers(-3 * LIFE_MS, 3 * LIFE_MS),
        st.sampled_from([LIFE_MS // 2, LIFE_MS // 2 - 1, LIFE_MS, -LIFE_MS, RETRY_MS]),
    )
    return st.lists(steps, max_size=25).map(lambda moves: list(positions(START_MS, moves)))


def positions(start: int, moves: list[int]) -> Iterator[int]:
    for move in moves:
        start += move
        yield start


@settings(deadline=None)
@given(clock_values())
def test_whatever_the_clock_does_a_block_is_signed_within_the_window(values: list[int]) -> None:
    clock = Clock()
    signer = signer_at(clock)
    for clock.now_ms in values:
        hot = current(signer)
        assert hot.delegation.covers(clock.now_ms)
        # Ahead of its end by half of the life: what takes long to write is still covered.
        assert hot.delegation.valid_until - clock.now_ms > LIFE_MS // 2 - 1
        assert signed_is_authentic(hot, clock.now_ms)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**63), 2**64), st.booleans()), max_size=15))
def test_a_clock_or_a_cold_key_out_of_order_never_makes_a_signature_outside(
    states: list[tuple[int, bool]],
) -> None:
    clock, cold = Clock(), BrokenColdKey()
    signer = BlockSigner(cold, 24, clock, Source())
    in_vain: list[int] = []
    for clock.now_ms, cold.away in states:
        hot = signer.current()
        if hot is None:
            assert signer.fault is not None
            waits = any(0 <= clock.now_ms - tried < RETRY_MS for tried in in_vain)
            assert waits or cold.away or not 0 <= clock.now_ms <= MAX_INT64 - LIFE_MS
            in_vain.append(clock.now_ms)
        else:
            assert signed_is_authentic(hot, clock.now_ms)


@settings(deadline=None)
@given(st.lists(st.integers(0, LIFE_MS), max_size=30))
def test_a_steady_clock_rotates_once_in_half_a_life(moves: list[int]) -> None:
    clock, source = Clock(), Source()
    signer = BlockSigner(COLD, 24, clock, source)
    begun = [START_MS]
    for clock.now_ms in positions(START_MS, moves):
        valid_from = current(signer).delegation.valid_from
        if valid_from != begun[-1]:
            begun.append(valid_from)
    assert source.drawn == len(begun)
    assert all(later - earlier >= LIFE_MS // 2 for earlier, later in pairwise(begun))


@pytest.mark.parametrize(
    ("now_ms", "signs"),
    [(-1, False), (0, True), (MAX_INT64 - LIFE_MS, True), (MAX_INT64 - LIFE_MS + 1, False)],
)
def test_no_window_is_made_that_no_record_can_hold(now_ms: int, signs: bool) -> None:
    signer = signer_at(Clock(now_ms))
    assert (signer.current() is not None) is signs
    assert (signer.fault is None) is signs


def test_a_key_outlives_a_cold_key_that_is_away_but_not_its_window() -> None:
    clock, cold = Clock(), BrokenColdKey()
    signer = BlockSigner(cold, 24, clock, Source())
    first = current(signer)
    assert signer.fault is None
    cold.away = True
    clock.now_ms = START_MS + LIFE_MS // 2
    assert current(signer) is first
    assert signer.fault is not None
    clock.now_ms = START_MS + LIFE_MS - 1
    assert current(signer) is first
    clock.now_ms = START_MS + LIFE_MS
    assert current(signer) is first
    clock.now_ms += 1
    assert signer.current() is None
    clock.now_ms = START_MS
    assert signer.current() is None
    cold.away = False
    clock.now_ms += RETRY_MS
    assert current(signer).address != first.address
    assert signer.fault is None


def test_a_cold_key_that_comes_back_is_asked_again_while_the_old_key_lasts() -> None:
    clock, cold = Clock(), BrokenColdKey()
    signer = BlockSigner(cold, 24, clock, Source())
    first = current(signer)
    cold.away = True
    clock.now_ms = START_MS + LIFE_MS // 2
    assert current(signer) is first
    cold.away = False
    clock.now_ms += RETRY_MS - 1
    assert current(signer) is first
    clock.now_ms += 1
    assert current(signer).address != first.address


def test_a_cold_key_that_is_away_is_not_asked_for_every_block() -> None:
    clock, cold = Clock(), BrokenColdKey()
    cold.away = True
    signer = BlockSigner(cold, 24, clock, Source())
    for _ in range(10 * RETRY_MS):
        assert signer.current() is None
        clock.now_ms += 1
    assert cold.asked == 10


def test_why_there_is_no_key_holds_nothing_of_what_the_cold_key_said() -> None:
    cold = BrokenColdKey()
    cold.away = True
    assert BlockSigner(cold, 24, Clock(), Source()).fault == "OSError"


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: ColdKey(b"\x01" * 32).delegate(bytes(20), START_MS, START_MS + LIFE_MS),
        lambda asked: COLD.delegate(asked.delegate, START_MS, START_MS + 2 * LIFE_MS),
        lambda asked: COLD.delegate(asked.delegate, START_MS - 1, START_MS + LIFE_MS),
        lambda asked: COLD.delegate(bytes(20), START_MS, START_MS + LIFE_MS),
        lambda asked: replace(asked, signature=bytes(65)),
        lambda asked: replace(asked, delegator=bytes(20)),
        lambda asked: replace(
            ColdKey(b"\x01" * 32).delegate(asked.delegate, START_MS, START_MS + LIFE_MS),
            delegator=COLD.address,
        ),
    ],
)
def test_a_delegation_that_no_verifier_would_believe_is_not_used(
    answer: Callable[[Delegation], Delegation],
) -> None:
    cold = BrokenColdKey()
    cold.answer = answer
    signer = BlockSigner(cold, 24, Clock(), Source())
    assert signer.current() is None
    assert signer.fault is not None


def test_randomness_that_is_no_key_is_drawn_again_and_not_for_ever() -> None:
    draws = iter([bytes(32), CURVE_ORDER.to_bytes(32, "big"), b"\xff" * 32, b"\x01" * 32])
    assert new_secret(lambda _: next(draws)) == b"\x01" * 32
    with pytest.raises(InvalidKey, match="randomness is broken"):
        new_secret(bytes)
    signer = BlockSigner(COLD, 24, Clock(), bytes)
    assert signer.current() is None
    assert "randomness" in str(signer.fault)


@pytest.mark.parametrize(
    "secret",
    [
        b"",
        bytes(32),
        SECRET[:31],
        SECRET + b"\x00",
        b"\x00" + SECRET,
        CURVE_ORDER.to_bytes(32, "big"),
        (CURVE_ORDER + 1).to_bytes(32, "big"),
        b"\xff" * 32,
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(secret: bytes) -> None:
    with pytest.raises(InvalidKey) as caught:
        ColdKey(secret)
    text = shown(caught.value)
    assert not secret or (secret.hex() not in text and repr(secret) not in text)


@pytest.mark.parametrize("secret", [1, CURVE_ORDER - 1])
def test_the_least_and_the_greatest_key_are_keys(secret: int) -> None:
    assert len(ColdKey(secret.to_bytes(32, "big")).address) == 20


def test_keys_show_their_address_alone_and_are_not_copied() -> None:
    for key in (COLD, HotKey(SECRET, lambda _: DELEGATION, Clock())):
        assert repr(key) == str(key) == f"{type(key).__name__}(0x{COLD.address.hex()})"
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="not copied"):
                duplicate(key)
        with pytest.raises(TypeError):
            vars(key)


def test_a_fault_of_the_cold_key_shows_no_key() -> None:
    hot = current(signer_at(Clock()))
    with pytest.raises(InvariantError) as caught:
        hot.sign_header(replace(header_for(hot, START_MS), signer=bytes(20)))
    assert (1).to_bytes(32, "big").hex() not in shown(caught.value)
    with pytest.raises(Exception) as failed:  # noqa: PT011 - whatever it is
        COLD.delegate(bytes(20), -1, -1)
    assert SECRET.hex() not in shown(failed.value)
    assert repr(SECRET) not in shown(failed.value)


DELEGATION = COLD.delegate(bytes(20), START_MS, START_MS + LIFE_MS)
