"""An answer in parts is the answer."""

from typing import Any

import pytest

from app.api.formats import PART_BYTES, PART_ITEMS, encode, encode_in_parts


@pytest.mark.parametrize("msgpack", [False, True])
@pytest.mark.parametrize("behind", [{}, {"next": None}, {"next": 7, "more": []}])
@pytest.mark.parametrize(
    "count", [0, 1, PART_ITEMS - 1, PART_ITEMS, PART_ITEMS + 1, 3 * PART_ITEMS, 70_000]
)
def test_parts_make_up_the_answer_encoded_at_once(
    count: int, behind: dict[str, Any], msgpack: bool
) -> None:
    before: dict[str, Any] = {"height": 3, "hash": "0x00"}
    items = [{"at": at} for at in range(count)]
    parts = list(
        encode_in_parts({**before, "items": []}, iter(items), count, behind, msgpack=msgpack)
    )
    whole, _ = encode({**before, "items": items, **behind}, msgpack=msgpack)
    assert b"".join(parts) == whole
    assert b"" not in parts
    assert len(parts) <= count // PART_ITEMS + 1


@pytest.mark.parametrize("msgpack", [False, True])
def test_large_items_are_fewer_in_a_part(msgpack: bool) -> None:
    items = ["a" * (PART_BYTES // 2)] * 8
    parts = list(encode_in_parts({"items": []}, iter(items), len(items), msgpack=msgpack))
    assert b"".join(parts) == encode({"items": items}, msgpack=msgpack)[0]
    assert max(map(len, parts)) < 2 * PART_BYTES


def test_an_item_is_asked_for_when_its_part_is() -> None:
    asked: list[int] = []

    def items() -> Any:
        for at in range(4 * PART_ITEMS):
            asked.append(at)
            yield at

    parts = encode_in_parts({"items": []}, items(), 4 * PART_ITEMS, msgpack=False)
    assert asked == []
    next(parts)
    assert len(asked) == PART_ITEMS
