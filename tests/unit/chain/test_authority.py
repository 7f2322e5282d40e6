import msgspec
import pytest
from eth_keys.backends.native.main import NativeECCBackend
from eth_keys.datatypes import Signature as EthSignature
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="coincurve has no wheel for this Python")

from coincurve import PrivateKey

from app.chain.authority import (
    CURVE_ORDER,
    InvalidSignature,
    address_of,
    check_authentic,
    check_delegation,
    check_signer,
    delegate,
    delegation_hash,
    recover_address,
    sign,
    sign_header,
)
from app.chain.header import NO_SIGNER, Delegation, Header, block_hash
from app.errors import InvariantError
from tests.unit.chain import reference
from tests.unit.chain.vectors import from_hex, header_of, vectors

COLD = PrivateKey(from_hex(vectors()["cold_private_key"]))
HOT = PrivateKey(from_hex(vectors()["hot_private_key"]))
COLD_ADDRESS, HOT_ADDRESS = address_of(COLD.public_key), address_of(HOT.public_key)
HEADERS = [header_of(example["block"]) for example in vectors()["blocks"]]
DELEGATION = msgspec.convert(
    {
        name: from_hex(value) if isinstance(value, str) else value
        for name, value in vectors()["delegation"].items()
        if name != "delegation_hash"
    },
    Delegation,
)
DIGEST = reference.keccak(b"signed")


def parts(signature: bytes) -> tuple[bytes, int, int]:
    return signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]


def joined(r: bytes, s: int, v: int) -> bytes:
    return r + s.to_bytes(32, "big") + bytes([v])


def test_vector_delegation_has_its_hash_signature_and_addresses() -> None:
    window = DELEGATION.valid_from, DELEGATION.valid_until
    assert (DELEGATION.delegator, DELEGATION.delegate) == (COLD_ADDRESS, HOT_ADDRESS)
    digest = delegation_hash(COLD_ADDRESS, HOT_ADDRESS, *window)
    assert digest == from_hex(vectors()["delegation"]["delegation_hash"])
    assert delegate(COLD, HOT_ADDRESS, *window) == DELEGATION
    check_delegation(DELEGATION, COLD_ADDRESS)


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: str(header.batch_seq))
def test_vector_blocks_have_their_signatures_and_are_authentic(header: Header) -> None:
    assert sign_header(replace(header, signature=b""), HOT) == header
    check_signer(header)
    assert check_authentic(header, [DELEGATION], COLD_ADDRESS, strict=True) == DELEGATION


# The independent implementation is plain Python, and slow.
@settings(max_examples=15, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, CURVE_ORDER - 1))
def test_signatures_agree_with_an_independent_implementation(digest: bytes, secret: int) -> None:
    key = PrivateKey.from_int(secret)
    signature = sign(key, digest)
    _, s, v = parts(signature)
    assert len(signature) == 65
    assert v in (0, 1)
    assert 0 < s <= CURVE_ORDER // 2
    recovered = NativeECCBackend().ecdsa_recover(digest, EthSignature(signature))
    assert recovered.to_canonical_address() == address_of(key.public_key)
    assert recover_address(digest, signature) == address_of(key.public_key)


@pytest.mark.parametrize("offset", [0, 27])
def test_verifiers_accept_both_ways_to_write_v(offset: int) -> None:
    r, s, v = parts(sign(HOT, DIGEST))
    assert recover_address(DIGEST, joined(r, s, v + offset)) == HOT_ADDRESS


@pytest.mark.parametrize("v", [2, 3, 4, 26, 29, 30, 31, 35, 255])
def test_any_other_v_is_refused(v: int) -> None:
    r, s, _ = parts(sign(HOT, DIGEST))
    with pytest.raises(InvalidSignature, match=f"v is {v}"):
        recover_address(DIGEST, joined(r, s, v))


def test_the_other_parity_is_another_signer() -> None:
    r, s, v = parts(sign(HOT, DIGEST))
    assert recover_address(DIGEST, joined(r, s, 1 - v)) != HOT_ADDRESS


def test_a_malleated_signature_is_refused_though_the_curve_accepts_it() -> None:
    r, s, v = parts(sign(HOT, DIGEST))
    malleated = joined(r, CURVE_ORDER - s, 1 - v)
    recovered = NativeECCBackend().ecdsa_recover(DIGEST, EthSignature(malleated))
    assert recovered.to_canonical_address() == HOT_ADDRESS
    with pytest.raises(InvalidSignature, match="upper half"):
        recover_address(DIGEST, malleated)


def test_the_boundary_of_s_is_half_the_order_of_the_curve() -> None:
    r, _, v = parts(sign(HOT, DIGEST))
    half = CURVE_ORDER // 2
    assert len(recover_address(DIGEST, joined(r, half, v))) == 20
    with pytest.raises(InvalidSignature, match="upper half"):
        recover_address(DIGEST, joined(r, half + 1, v))


@pytest.mark.parametrize("length", [0, 1, 64, 66, 130])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    signature = (sign(HOT, DIGEST) * 2)[:length]
    with pytest.raises(InvalidSignature, match=f"has {length} bytes"):
        recover_address(DIGEST, signature)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_digest_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidSignature, match=f"a hash of {length} bytes"):
        recover_address(bytes(length), sign(HOT, DIGEST))


@pytest.mark.parametrize(
    ("r", "s"),
    [
        (bytes(32), 1),
        (b"\x00" * 31 + b"\x01", 0),
        (CURVE_ORDER.to_bytes(32, "big"), 1),
        (b"\xff" * 32, 1),
        # Of this r no point of the curve exists.
        (b"\x00" * 31 + b"\x05", 1),
    ],
)
def test_values_that_no_signature_has_are_refused(r: bytes, s: int) -> None:
    for v in (0, 1):
        with pytest.raises(InvalidSignature, match="no key can be recovered"):
            recover_address(DIGEST, joined(r, s, v))


@given(st.integers(0, 64 * 8 - 1))
def test_a_flipped_bit_of_a_signature_is_never_the_signers(bit: int) -> None:
    changed = bytearray(HEADERS[0].signature)
    changed[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(InvalidSignature):
        check_signer(replace(HEADERS[0], signature=bytes(changed)))


@pytest.mark.parametrize("field", [f for f in Header.__struct_fields__ if f != "signature"])
def test_a_header_that_was_changed_is_not_signed_any_more(field: str) -> None:
    header = HEADERS[1]
    value = getattr(header, field)
    other = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    with pytest.raises(InvalidSignature):
        check_signer(replace(header, **{field: other}))


@pytest.mark.parametrize("field", ["delegator", "delegate", "valid_from", "valid_until"])
def test_a_delegation_that_was_changed_is_refused(field: str) -> None:
    value = getattr(DELEGATION, field)
    other = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    changed = replace(DELEGATION, **{field: other})
    for cold_address in {COLD_ADDRESS, changed.delegator}:
        with pytest.raises(InvalidSignature):
            check_delegation(changed, cold_address)


def test_a_delegation_by_another_key_than_the_expected_is_refused() -> None:
    stranger = PrivateKey.from_int(99)
    forged = delegate(stranger, HOT_ADDRESS, 0, 2**62)
    with pytest.raises(InvalidSignature, match="the delegator is"):
        check_delegation(forged, COLD_ADDRESS)
    with pytest.raises(InvalidSignature, match="signed the delegation"):
        check_delegation(replace(forged, delegator=COLD_ADDRESS), COLD_ADDRESS)
    with pytest.raises(InvalidSignature, match="the delegator is"):
        check_authentic(HEADERS[0], [forged], COLD_ADDRESS)


def test_an_unsigned_block_is_valid_as_a_block_but_not_authentic() -> None:
    unsigned = replace(HEADERS[0], signer=NO_SIGNER, signature=b"")
    with pytest.raises(InvalidSignature, match="not signed"):
        check_authentic(unsigned, [DELEGATION], COLD_ADDRESS)
    with pytest.raises(InvalidSignature, match="0 bytes"):
        check_signer(replace(HEADERS[0], signature=b""))
    with pytest.raises(InvalidSignature, match="signed the block"):
        check_signer(replace(HEADERS[0], signer=NO_SIGNER))


def test_a_block_of_a_key_without_delegation_is_not_authentic() -> None:
    with pytest.raises(InvalidSignature, match="no delegation to"):
        check_authentic(HEADERS[0], [], COLD_ADDRESS)
    elsewhere = delegate(COLD, COLD_ADDRESS, 0, 2**62)
    with pytest.raises(InvalidSignature, match="no delegation to"):
        check_authentic(HEADERS[0], [elsewhere], COLD_ADDRESS)


def test_one_good_delegation_among_bad_ones_is_found() -> None:
    forged = delegate(PrivateKey.from_int(99), HOT_ADDRESS, 0, 2**62)
    found = check_authentic(HEADERS[0], [forged, DELEGATION], COLD_ADDRESS, strict=True)
    assert found == DELEGATION


@pytest.mark.parametrize(
    ("time_ms", "covered"), [(9, False), (10, True), (15, True), (20, True), (21, False)]
)
def test_both_ends_of_the_window_belong_to_it(time_ms: int, covered: bool) -> None:
    delegation = delegate(COLD, HOT_ADDRESS, 10, 20)
    header = sign_header(replace(HEADERS[0], timestamp=time_ms), HOT)
    assert delegation.covers(time_ms) is covered
    check_authentic(header, [delegation], COLD_ADDRESS)
    if covered:
        check_authentic(header, [delegation], COLD_ADDRESS, strict=True)
    else:
        with pytest.raises(InvalidSignature, match=f"covers the time {time_ms}"):
            check_authentic(header, [delegation], COLD_ADDRESS, strict=True)


def test_a_key_does_not_sign_a_block_that_names_another() -> None:
    with pytest.raises(InvariantError, match="can't sign"):
        sign_header(HEADERS[0], COLD)


def test_signing_leaves_the_block_hash_as_it_was() -> None:
    unsigned = replace(HEADERS[2], signature=b"")
    assert block_hash(sign_header(unsigned, HOT)) == block_hash(unsigned)


def test_a_delegation_survives_messagepack_and_refuses_wrong_lengths() -> None:
    data = msgspec.msgpack.encode(DELEGATION)
    assert msgspec.msgpack.decode(data, type=Delegation) == DELEGATION
    short = msgspec.msgpack.encode(replace(DELEGATION, signature=b""))
    with pytest.raises(msgspec.ValidationError, match="signature"):
        msgspec.msgpack.decode(short, type=Delegation)
