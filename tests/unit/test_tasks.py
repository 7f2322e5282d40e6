import asyncio

import pytest

from app.tasks import start_lasting


async def fail() -> None:
    raise ValueError("unexpected")


async def end() -> None:
    pass


async def go_on() -> None:
    await asyncio.Event().wait()


async def test_the_error_that_ends_a_task_is_told() -> None:
    told: list[BaseException] = []
    task = start_lasting(fail(), "lasting", told.append)
    with pytest.raises(ValueError, match="unexpected"):
        await task
    assert [str(error) for error in told] == ["unexpected"]


async def test_a_task_that_ends_or_is_ended_is_no_failure() -> None:
    told: list[BaseException] = []
    await start_lasting(end(), "ends", told.append)
    cancelled = start_lasting(go_on(), "is ended", told.append)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert told == []
