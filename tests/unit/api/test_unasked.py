"""What belongs to no request: told from what does, with traffic as a connection has it."""

import pytest

from app.api.unasked import MAX_UNASKED_BYTES, UNASKED_BYTES_PER_S, Unasked

MUCH = 10 * MAX_UNASKED_BYTES


def test_what_came_counts_from_the_next_time_on() -> None:
    unasked = Unasked()
    assert unasked.overdue_bytes(MUCH, 0) <= 0
    assert unasked.overdue_bytes(MUCH + 1, 0) == MUCH
    assert unasked.overdue_bytes(MUCH + 1, 0) == MUCH + 1


@pytest.mark.parametrize("part_bytes", [60, 1000, 1 << 20])
def test_bodies_belong_to_requests_with_what_is_around_them(part_bytes: int) -> None:
    """Frames, records of TLS, headers: whether they were read before that is asked or after."""
    unasked, received_bytes = Unasked(), 0
    for _ in range(10):
        for first in (True, False):
            unasked.request()
            received_bytes += 1000
            for _ in range(MUCH // part_bytes):
                received_bytes += part_bytes + 9 + 27 * (1 + part_bytes // 1300)
                if first:
                    unasked.part(part_bytes)
            unasked.overdue_bytes(received_bytes, 0)
            if not first:
                for _ in range(MUCH // part_bytes):
                    unasked.part(part_bytes)
            assert unasked.overdue_bytes(received_bytes, 0) <= 0


def test_a_little_is_borne_each_second_and_nothing_is_saved_up() -> None:
    unasked, received_bytes = Unasked(), 0
    for _ in range(1000):
        received_bytes += UNASKED_BYTES_PER_S
        assert unasked.overdue_bytes(received_bytes, 1) <= 0
    unasked.overdue_bytes(received_bytes, 3600)
    unasked.request()
    unasked.overdue_bytes(received_bytes, 0)
    received_bytes += MUCH
    unasked.overdue_bytes(received_bytes, 0)
    assert unasked.overdue_bytes(received_bytes, 0) == MUCH


@pytest.mark.parametrize("came_bytes", [0, MUCH // 3, MUCH])
def test_the_rest_of_a_body_that_nobody_reads_may_come_before_that_is_said_and_long_after(
    came_bytes: int,
) -> None:
    unasked = Unasked()
    unasked.overdue_bytes(came_bytes, 0)
    unasked.unread(MUCH)
    for received_bytes in range(came_bytes, MUCH + 1, MUCH // 30):
        assert unasked.overdue_bytes(received_bytes, 0) <= 0
    unasked.overdue_bytes(2 * MUCH, 0)
    assert unasked.overdue_bytes(2 * MUCH, 0) >= MUCH - MUCH // 30


def test_bodies_that_nobody_reads_have_one_window_together() -> None:
    unasked = Unasked()
    for _ in range(100):
        unasked.unread(MUCH)
    unasked.overdue_bytes(3 * MUCH, 0)
    assert unasked.overdue_bytes(3 * MUCH, 0) == 2 * MUCH
