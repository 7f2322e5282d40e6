"""What one client sent and was told, and whether what is recovered keeps the promise made to it."""

import asyncio
import shutil
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final
from uuid import UUID

import httpx

from app.replication.reader import EnvironmentSummary, Reader
from app.service.opening import open_log, open_store
from app.settings import Settings, load_settings
from app.wal.files import FileSystem
from app.wal.sync import FdatasyncSyncer
from tests.support.foreign_wal import read_wal
from tests.support.http_entries import decoded, json_entry, post
from tests.support.table_audit import table_rows

COMMAND_TYPE: Final = "CreateOrder"


class Conversation:
    """One client's requests, one after the other.

    `statuses` holds the status of each answer, None where there was none: the client does not know.
    """

    def __init__(self, entries: int = 2, size: int = 20_000) -> None:
        self.requests: list[list[dict[str, Any]]] = []
        self.statuses: list[int | None] = []
        self.command_ids: dict[UUID, int] = {}
        self._entries = entries
        self._size = size

    def send(self, client: httpx.Client) -> int | None:
        """Send a request of new entries; the status of its answer."""
        number = len(self.requests)
        request = [
            json_entry(
                command_type=COMMAND_TYPE,
                order_id=number,
                response_data=b64encode(number.to_bytes(4, "big") * (self._size // 4)).decode(),
            )
            for _ in range(self._entries)
        ]
        self.requests.append(request)
        self.statuses.append(None)
        try:
            response = post(client, *request)
        except httpx.TransportError:
            return None
        self.statuses[-1] = response.status_code
        if response.status_code == 200:
            first = decoded(response)["first_command_id"]
            self.command_ids |= {
                UUID(entry["request_uuid"]): first + position
                for position, entry in enumerate(request)
            }
        return response.status_code

    def send_all(self, client: httpx.Client, count: int) -> list[int | None]:
        """Send so many requests, or until one is not answered; their statuses."""
        before = len(self.statuses)
        for _ in range(count):
            if self.send(client) is None:
                break
        return self.statuses[before:]

    @property
    def uuids(self) -> list[UUID]:
        """The `request_uuid`s that were sent, in their order."""
        return [UUID(entry["request_uuid"]) for request in self.requests for entry in request]

    def check(self, found: Mapping[int, Mapping[str, Any]]) -> None:
        """`found`: by `command_id` all that was recovered. Fails where the promise is not kept."""
        ids = {UUID(bytes=command["request_uuid"]): each for each, command in found.items()}
        assert len(ids) == len(found), "an entry was recovered twice"
        kept = [(uuid, ids[uuid]) for uuid in self.command_ids if uuid in ids]
        lost = [uuid for uuid in self.command_ids if uuid not in ids]
        assert not lost, f"{len(lost)} acknowledged entries are lost: {self._places(lost)}"
        assert all(self.command_ids[uuid] == command_id for uuid, command_id in kept)
        recovered = iter(sorted(found))
        upcoming = next(recovered, None)
        for request, status in zip(self.requests, self.statuses, strict=True):
            uuids = [UUID(entry["request_uuid"]) for entry in request]
            if status != 200 and not any(uuid in ids for uuid in uuids):
                continue
            assert status in (200, None), f"a request answered {status} was recovered"
            for entry in request:
                assert upcoming is not None, "a part of a request was recovered"
                command = found[upcoming]
                assert command["request_uuid"] == UUID(entry["request_uuid"]).bytes, "the order"
                content = b64encode(command["response_data"]).decode()
                assert content == entry["response_data"]
                upcoming = next(recovered, None)
        assert upcoming is None, f"command {upcoming} was never sent"

    def _places(self, uuids: list[UUID]) -> list[int]:
        return sorted(
            number
            for number, request in enumerate(self.requests)
            if any(UUID(entry["request_uuid"]) in uuids for entry in request)
        )


def check_promise(
    conversation: Conversation,
    data_dir: Path,
    database_url: str,
    *,
    others: Sequence[Conversation] = (),
    **settings: object,
) -> None:
    """Recover a copy of a data directory of a service with these settings, and check what is there.

    The copy is made and recovered within this process; Postgres is asked where it can be reached.
    `others` went on at the same time.
    """
    if not data_dir.exists():
        conversation.check({})
        return
    copy = Path(mkdtemp(prefix="journal-copy-")) / "data"
    shutil.copytree(data_dir, copy)
    fields: dict[str, Any] = {name.lower(): value for name, value in settings.items()}
    recover_copy = load_settings({}, **fields, data_dir=copy, database_url=database_url)
    held = asyncio.run(_ask(recover_copy))
    found = dict(_replicated(recover_copy)) if held else {}
    for command_id, command in _recovered(recover_copy, held):
        known = found.setdefault(command_id, command)
        assert known["request_uuid"] == command["request_uuid"]
    foreign = {uuid.bytes for other in others for uuid in other.uuids}
    conversation.check(
        {each: command for each, command in found.items() if command["request_uuid"] not in foreign}
    )
    shutil.rmtree(copy.parent)


async def _ask(settings: Settings) -> EnvironmentSummary | None:
    if "host=/nowhere" in settings.database_url:
        return None
    reader = Reader(settings.database_url, settings.environment)
    try:
        return await reader.environment_summary()
    finally:
        await reader.close()


def _replicated(settings: Settings) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in table_rows(settings.database_url, "engine_commands", settings.environment):
        yield row[0], {"request_uuid": row[1].bytes, "response_data": row[5]}


def _recovered(
    settings: Settings, held: EnvironmentSummary | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    files = FileSystem()
    files.make_directory(settings.wal_dir)
    store = open_store(settings)
    try:
        opened = open_log(files, settings, FdatasyncSyncer(files), held, lambda: 1, store)
        opened.log.close()
    finally:
        store.close()
    for record in read_wal(settings.wal_dir, opened.checkpoint.retained_offset):
        for position, command in enumerate(record.content.get("commands", [])):
            yield record.content["first_command_id"] + position, command
