"""Who may sign blocks, and whether they did (chain page, "Signatures").

The cold key delegates to a hot key for a window of time; the hot key signs block hashes.
Signatures are `r ‖ s ‖ v` over a 32-byte hash as it is. Only the lower of the two values of `s` is
accepted, so nobody but the signer can make another signature of the same hash (EIP-2).
"""

from collections.abc import Iterable
from typing import Final

from coincurve import PrivateKey, PublicKey
from msgspec.structs import replace

from app.chain.hashing import HASH_BYTES, hash_in_domain, keccak, u64
from app.chain.header import NO_SIGNER, SIGNATURE_BYTES, Delegation, Header, block_hash
from app.errors import InvariantError, JournalError
from app.model.entry import ADDRESS_BYTES

CURVE_ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
MAX_S: Final = CURVE_ORDER // 2
_DELEGATION: Final = b"hypercall:rsm:signing-authority:v1"
_PARITIES: Final = {0: b"\x00", 1: b"\x01", 27: b"\x00", 28: b"\x01"}
_UNCOMPRESSED_PREFIX_BYTES: Final = 1


class InvalidSignature(JournalError):
    """A signature does not show what it should. The message says what is wrong with it."""


def address_of(public_key: PublicKey) -> bytes:
    """Return the 20-byte address of a public key: the end of the hash over its coordinates."""
    coordinates = public_key.format(compressed=False)[_UNCOMPRESSED_PREFIX_BYTES:]
    return keccak(coordinates)[-ADDRESS_BYTES:]


def sign(key: PrivateKey, digest: bytes) -> bytes:
    """Sign a 32-byte hash: 65 bytes `r ‖ s ‖ v`, `v` 0 or 1, low `s`, the nonce from RFC 6979."""
    signature = key.sign_recoverable(digest, hasher=None)
    # 2 and 3 say that r overflowed the curve order: one in 2**127, and no verifier takes it.
    if signature[-1] > 1:
        raise InvariantError(f"a signature with recovery id {signature[-1]}")
    return signature


def recover_address(digest: bytes, signature: bytes) -> bytes:
    """Return the address whose key signed the 32-byte `digest`. Raises `InvalidSignature`.

    `v` may be 0, 1, 27 or 28. Refuses another length, `r` or `s` out of range, and the higher `s`.
    """
    if len(digest) != HASH_BYTES:
        raise InvalidSignature(f"a hash of {len(digest)} bytes can't have been signed")
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidSignature(f"the signature has {len(signature)} bytes, not {SIGNATURE_BYTES}")
    parity = _PARITIES.get(signature[-1])
    if parity is None:
        raise InvalidSignature(f"v is {signature[-1]}; 0, 1, 27 or 28 are allowed")
    if int.from_bytes(signature[HASH_BYTES:-1], "big") > MAX_S:
        raise InvalidSignature("s is in the upper half of its range")
    try:
        key = PublicKey.from_signature_and_message(signature[:-1] + parity, digest, hasher=None)
    except ValueError as error:
        raise InvalidSignature(f"no key can be recovered: {error}") from None
    return address_of(key)


def delegation_hash(delegator: bytes, delegate: bytes, valid_from: int, valid_until: int) -> bytes:
    """Return what the cold key signs to delegate."""
    return hash_in_domain(_DELEGATION, delegator + delegate + u64(valid_from) + u64(valid_until))


def delegate(cold: PrivateKey, hot_address: bytes, valid_from: int, valid_until: int) -> Delegation:
    """Let `hot_address` sign for the cold key from `valid_from` until `valid_until`, in ms."""
    delegator = address_of(cold.public_key)
    digest = delegation_hash(delegator, hot_address, valid_from, valid_until)
    return Delegation(
        delegator=delegator,
        delegate=hot_address,
        valid_from=valid_from,
        valid_until=valid_until,
        signature=sign(cold, digest),
    )


def check_delegation(delegation: Delegation, cold_address: bytes) -> None:
    """Check that the expected cold key signed the delegation. Raises `InvalidSignature`."""
    if delegation.delegator != cold_address:
        raise InvalidSignature(
            f"the delegator is 0x{delegation.delegator.hex()}, not 0x{cold_address.hex()}"
        )
    digest = delegation_hash(
        delegation.delegator, delegation.delegate, delegation.valid_from, delegation.valid_until
    )
    signer = recover_address(digest, delegation.signature)
    if signer != cold_address:
        raise InvalidSignature(
            f"0x{signer.hex()} signed the delegation, not 0x{cold_address.hex()}"
        )


def sign_header(header: Header, key: PrivateKey) -> Header:
    """Return the header with its signature. It must name the key's address as `signer` already.

    The caller has checked the delegation's window against its own clock. Raises `InvariantError`.
    """
    address = address_of(key.public_key)
    if header.signer != address:
        raise InvariantError(
            f"0x{address.hex()} can't sign a block that names 0x{header.signer.hex()}"
        )
    return replace(header, signature=sign(key, block_hash(header)))


def check_signer(header: Header) -> None:
    """Check that the header is signed by the key it names. Raises `InvalidSignature`."""
    if not header.signature and header.signer == NO_SIGNER:
        raise InvalidSignature("the block is not signed")
    signer = recover_address(block_hash(header), header.signature)
    if signer != header.signer:
        raise InvalidSignature(f"0x{signer.hex()} signed the block, not 0x{header.signer.hex()}")


def check_authentic(
    header: Header, delegations: Iterable[Delegation], cold_address: bytes, *, strict: bool = False
) -> Delegation:
    """Check a block's signature and its signer's delegation; return the delegation that was found.

    `strict` also asks that its window covers the block's timestamp, which fits live engines only:
    replayed history has old timestamps. Raises `InvalidSignature`.
    """
    check_signer(header)
    fault = InvalidSignature(f"no delegation to 0x{header.signer.hex()}")
    for delegation in delegations:
        if delegation.delegate != header.signer:
            continue
        if strict and not delegation.covers(header.timestamp):
            fault = InvalidSignature(
                f"no delegation to 0x{header.signer.hex()} covers the time {header.timestamp}"
            )
            continue
        try:
            check_delegation(delegation, cold_address)
        except InvalidSignature as error:
            fault = error
            continue
        return delegation
    raise fault
