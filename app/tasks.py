"""Tasks that go on for as long as their process does."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


def start_lasting(
    work: Coroutine[Any, Any, None], name: str, on_failure: Callable[[BaseException], None]
) -> "asyncio.Task[None]":
    """Start a task; `on_failure` is called with the error that ends it, which nobody awaits."""

    def notice(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            on_failure(error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(notice)
    return task
