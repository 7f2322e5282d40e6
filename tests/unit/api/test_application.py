"""What the application does with a request before an endpoint has it."""

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.types import Message

from app.api.connections import MAX_SMALL_PARTS
from app.main import JournalApp, create_app
from app.settings import Settings

GET: Final[dict[str, Any]] = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "path": "/healthz",
    "raw_path": b"/healthz",
    "query_string": b"",
    "headers": [],
    "server": ("127.0.0.1", 80),
    "scheme": "http",
}


@pytest.fixture
def app(tmp_path: Path) -> JournalApp:
    """Not started: there is no log."""
    return create_app(Settings(data_dir=tmp_path, database_url="postgresql://127.0.0.1:9/none"))


async def test_calls_that_come_at_once_are_answered_one_in_each_round(app: JournalApp) -> None:
    answered = 0

    async def call(number: int) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal answered
            answered += message["type"] == "http.response.start"

        await app({**GET, "client": ("127.0.0.1", number)}, receive, send)

    tasks = [asyncio.create_task(call(number)) for number in range(1, 31)]
    most = 0
    while answered < len(tasks):
        before = answered
        await asyncio.sleep(0)
        most = max(most, answered - before)
    await asyncio.gather(*tasks)
    assert most == 1


@pytest.mark.parametrize("path", ["/entries", "/flush"])
async def test_of_a_body_in_single_bytes_whose_connection_is_gone_no_more_is_read(
    app: JournalApp, path: str
) -> None:
    """However much of it the server still has, whatever it is for."""
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Message) -> None:
        assert message.get("status", 400) == 400

    headers = [(b"content-type", b"application/json")]
    call = {**GET, "method": "POST", "path": path, "headers": headers, "client": ("127.0.0.1", 1)}
    await app(call, receive, send)
    assert read == MAX_SMALL_PARTS + 1
