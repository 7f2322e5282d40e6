"""A small volume runs full under load: 507, the service lives, and goes on when there is room."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.database import outage
from tests.support.http_entries import flush
from tests.support.postgres_cluster import Cluster
from tests.support.promise import Conversation, check_promise
from tests.support.service import Service
from tests.support.small_volume import FileSystemKind, small_volume
from tests.support.waiting import wait_for

MIB: Final = 1 << 20
ENTRY_BYTES: Final = 100_000
CLIENTS: Final = 4
SETTINGS: Final[dict[str, Any]] = {
    "AUTO_MIGRATE": "false",
    "WAL_SYNC": "fdatasync",
    "WAL_SEGMENT_BYTES": MIB,
    "DEDUP_WINDOW": 1,
}
# With and without blocks: then the commitment store runs out of room too.
VOLUMES: Final = pytest.mark.parametrize(
    ("kind", "block_commands"),
    [(FileSystemKind.EXT4, "*"), (FileSystemKind.TMPFS, "TickSnapshot")],
)


def fill(conversation: Conversation, client: httpx.Client) -> None:
    """Send until there is no room, and some more: smaller gaps are left than a record."""
    wait_for(lambda: conversation.send(client) == 507, "the volume is full", interval_s=0)
    for _ in range(20):
        assert conversation.send(client) in (200, 507)


def await_room(conversation: Conversation, client: httpx.Client) -> None:
    """Go on sending until the service takes entries again, by itself, and then takes all."""
    # The room comes by and by.
    wait_for(lambda: set(conversation.send_all(client, 5)) == {200}, "entries are taken again")
    assert client.get("/readyz").status_code == 200


def in_all(
    conversations: list[Conversation],
    service: Service,
    do: Callable[[Conversation, httpx.Client], None],
) -> None:
    """At the same time, so that requests of others wait for the log when one finds no room."""

    def converse(conversation: Conversation) -> None:
        with service.client() as client:
            do(conversation, client)

    with ThreadPoolExecutor(CLIENTS) as executor:
        for _ in executor.map(converse, conversations):
            pass


@VOLUMES
def test_a_full_volume_is_answered_507_until_something_else_gives_it_room(
    tmp_path: Path, database_url: str, kind: FileSystemKind, block_commands: str
) -> None:
    settings = {**SETTINGS, "BLOCK_COMMANDS": block_commands}
    nowhere = "postgresql:///postgres?host=/nowhere"
    with small_volume(tmp_path, kind, 56) as volume:
        ballast = volume / "ballast"
        ballast.write_bytes(os.urandom(10 * MIB))
        with Service(volume / "data", nowhere, ALLOW_NEW_WAL="true", **settings) as service:
            service.log_path = tmp_path / "log"
            service.start()
            conversations = [Conversation(entries=1, size=ENTRY_BYTES) for _ in range(CLIENTS)]
            in_all(conversations, service, fill)
            with service.client() as client:
                assert client.get("/healthz").status_code == 200
            ballast.unlink()
            in_all(conversations, service, await_room)
            assert "Traceback" not in service.log
            service.kill()
            settings["ALLOW_NEW_WAL"] = "true"
            for each in conversations:
                others = [other for other in conversations if other is not each]
                check_promise(each, service.data_dir, nowhere, others=others, **settings)
            service.start(DATABASE_URL=database_url)
            with service.client() as client:
                flush(client)


@VOLUMES
def test_a_volume_full_of_log_empties_itself_when_replication_catches_up(
    tmp_path: Path,
    cluster: Cluster,
    database_url: str,
    kind: FileSystemKind,
    block_commands: str,
) -> None:
    settings = {**SETTINGS, "BLOCK_COMMANDS": block_commands}
    with (
        small_volume(tmp_path, kind, 56) as volume,
        Service(volume / "data", database_url, **settings) as service,
    ):
        service.log_path = tmp_path / "log"
        service.start()
        conversation = Conversation(entries=1, size=ENTRY_BYTES)
        with service.client() as client:
            with outage(cluster, database_url):
                fill(conversation, client)
            await_room(conversation, client)
            flush(client)
        assert "Traceback" not in service.log
        assert service.terminate() == 0
        check_promise(conversation, service.data_dir, database_url, **settings)


def test_a_start_whose_reserve_is_used_up_is_not_ready_until_there_is_room_again(
    tmp_path: Path,
) -> None:
    """With Postgres away nothing else moves, and no first request says that the disk is full."""
    nowhere = "postgresql:///postgres?host=/nowhere"
    with (
        small_volume(tmp_path, FileSystemKind.EXT4, 56) as volume,
        Service(
            volume / "data", nowhere, ALLOW_NEW_WAL="true", LOG_LEVEL="debug", **SETTINGS
        ) as service,
    ):
        service.log_path = tmp_path / "log"
        service.start()
        conversation = Conversation(entries=1, size=ENTRY_BYTES)
        with service.client() as client:
            assert conversation.send(client) == 200
        service.kill()
        # Opening the commitment store takes a part of it; what is left is too little for another.
        reserve, ballast = service.data_dir / "reserve", volume / "ballast"
        reserve.unlink()
        with reserve.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, MIB // 2)
        reserve.chmod(0o600)
        with ballast.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, free_bytes(volume) - 4096)
        service.start_unready()
        wait_for(lambda: f"can't keep {MIB} bytes back" in service.log, "the least is tried")
        with service.client() as client:
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["parts"]["disk"]) == (503, {"state": "full"})
            assert conversation.send(client) == 507
            ballast.unlink()
            await_room(conversation, client)


def free_bytes(volume: Path) -> int:
    status = os.statvfs(volume)
    return status.f_bavail * status.f_frsize
