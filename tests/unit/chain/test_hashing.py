import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.chain.hashing import ZERO32, hash_in_domain, keccak, u64
from tests.unit.chain import reference


def test_keccak_is_the_ethereum_one_and_not_sha3() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak(b"").hex() == empty


# 135, 136 and 137 bytes are around the rate of the sponge, where the padding changes its form.
@example(bytes(135))
@example(bytes(136))
@example(bytes(137))
@given(st.binary(max_size=1000))
def test_keccak_agrees_with_another_library(data: bytes) -> None:
    assert keccak(data) == reference.keccak(data)


@given(st.text("abc:/019", max_size=40), st.binary(max_size=300))
def test_a_domain_hash_covers_domain_length_and_payload(domain: str, payload: bytes) -> None:
    assert hash_in_domain(domain.encode(), payload) == reference.in_domain(domain, payload)


def test_the_length_keeps_domain_and_payload_apart() -> None:
    assert hash_in_domain(b"ab", b"c") != hash_in_domain(b"a", b"bc")


def test_u64_is_big_endian_and_refuses_what_does_not_fit() -> None:
    assert u64(258) == bytes([0, 0, 0, 0, 0, 0, 1, 2])
    assert u64(2**64 - 1) == b"\xff" * 8
    for number in (-1, 2**64):
        with pytest.raises(struct.error):
            u64(number)


def test_zero32_is_thirty_two_zero_bytes() -> None:
    assert ZERO32.hex() == "00" * 32
