"""What a gzip body holds: all of its members, up to the limit, and nothing that is not gzip."""

import gzip
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.problems import HttpProblem
from app.api.scales import inflate

MIB = 1 << 20
# Of several pieces, both packed and unpacked; a part of it packs well.
PLAIN = Random(1).randbytes(300_000) + bytes(300_000)


def unpacked(body: bytes, limit_bytes: int) -> bytes | None:
    plain = inflate(body, limit_bytes)
    return None if plain is None else bytes(plain)


@given(cuts=st.lists(st.integers(0, len(PLAIN)), max_size=5), level=st.integers(0, 9))
def test_all_members_are_unpacked_as_one_body(cuts: list[int], level: int) -> None:
    ends = [*sorted(cuts), len(PLAIN)]
    parts = [PLAIN[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    body = b"".join(gzip.compress(part, level) for part in parts)
    assert unpacked(body, len(PLAIN)) == PLAIN
    assert unpacked(body, len(PLAIN) - 1) is None


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 131_072, 5 * MIB])
def test_a_body_may_hold_as_much_as_the_limit_and_not_a_byte_more(size: int) -> None:
    body = gzip.compress(bytes(size))
    assert unpacked(body, size) == bytes(size)
    assert unpacked(body + gzip.compress(b""), size) == bytes(size)
    assert unpacked(body + gzip.compress(b"x"), size) is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{}", id="no-gzip"),
        pytest.param(gzip.compress(PLAIN)[:-1], id="cut"),
        pytest.param(gzip.compress(PLAIN) + bytes(8), id="zeros-behind"),
        pytest.param(gzip.compress(PLAIN) + b"\x1f", id="begun-member"),
        pytest.param(gzip.compress(PLAIN) + gzip.compress(b"{}")[:-1], id="cut-member"),
        pytest.param(gzip.compress(b"{}") * 2 + b"x", id="junk-behind"),
        pytest.param(gzip.compress(b"{}")[:-5] + b"\0" + gzip.compress(b"{}")[-4:], id="wrong-crc"),
    ],
)
def test_what_is_not_gzip_from_its_first_byte_to_its_last_is_a_400(body: bytes) -> None:
    with pytest.raises(HttpProblem) as caught:
        inflate(body, MIB)
    assert (caught.value.status, caught.value.reason) == (400, "undecodable_body")


def test_members_that_hold_nothing_are_limited_by_their_number() -> None:
    """Each takes time, and none of them any of the limit."""
    assert unpacked(gzip.compress(b"") * 1000, 10) == b""
    with pytest.raises(HttpProblem) as caught:
        inflate(gzip.compress(b"") * 1001, 10)
    assert caught.value.status == 400
