"""Every crash state of busy lives recovers: nothing acknowledged is lost, nothing is made up.

A life of the journal runs on a simulated disk. Between any two of its calls the power may go, and
take any part of what was not synced. Each such state is recovered by the product's own code, gone
on with, and for a part of them cut off again: within the recovery, or right behind it.
"""

import os
from collections.abc import Iterator
from random import Random
from typing import Final
from uuid import UUID

import pytest

from app.model.entry import Entry
from app.service import checkpoints
from tests.support.journal_entries import make_entry
from tests.support.journal_life import SETTINGS, Life, World
from tests.support.journal_workload import Moment, Workload
from tests.support.running_writer import request
from tests.support.simulated_disk import EMPTY, CrashingFiles, Disk, Survivors

STATES: Final = int(os.environ.get("CRASH_STATES") or 10_000)
LIVES: Final = 6
STEPS: Final = 25
# Combinations of what survives that are tried of a moment.
MASKS: Final = 16
SECTOR_BYTES: Final = (512, 512, 4096)
EVERYTHING: Final = -1


@pytest.fixture(autouse=True)
def hasty_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back after every record, so that short logs show it, and pause for nobody."""
    monkeypatch.setattr(checkpoints, "_STEP_BYTES", 1)
    monkeypatch.setattr(checkpoints, "_PAUSE_S", 0)
    monkeypatch.setattr(checkpoints, "_RETRY_S", 0)


@pytest.mark.timeout(0 if STATES > 10_000 else 600)
def test_every_crash_state_recovers_and_goes_on(rng: Random) -> None:
    seen: set[int] = set()
    while len(seen) < STATES:
        for moment in moments_of_lives(rng):
            for disk in crashes(moment.disk, rng):
                state = hash((contents(disk), moment.world.facts))
                if state not in seen:
                    seen.add(state)
                    check(disk, moment, rng)
    print(f"{len(seen)} distinct crash states")  # noqa: T201 - shown by `make crash-states`


def moments_of_lives(rng: Random) -> Iterator[Moment]:
    """Some lives that follow each other, each on what a crash of the one before has left."""
    disk, world, sent = EMPTY, World(), dict[UUID, Entry]()
    for _ in range(LIVES):
        life = Workload(disk, world, rng, sent)
        life.live(rng.randint(1, STEPS))
        yield from life.moments
        last = rng.choice([life.moments[-1], rng.choice(life.moments)])
        # A process that was killed leaves the page cache as it was.
        was_killed = rng.random() < 0.5
        disk = last.disk if was_killed else power_cut(last.disk, rng)
        world = last.world


def crashes(disk: Disk, rng: Random) -> Iterator[Disk]:
    """What power cuts may leave: all combinations where they are few, else some of them."""
    everything = Survivors(EVERYTHING, rng)
    disk.after(everything)
    masks = {0, EVERYTHING, *(rng.getrandbits(everything.asked) for _ in range(MASKS - 2))}
    if everything.asked <= MASKS.bit_length() - 1:
        masks = set(range(1 << everything.asked))
    for mask in sorted(masks):
        yield disk.after(Survivors(mask, rng, rng.choice(SECTOR_BYTES)))


def check(disk: Disk, moment: Moment, rng: Random) -> None:
    """Recover, send again what got no answer, go on; and let the power go a second time."""
    seen: list[Disk] = []
    files = CrashingFiles(disk, lambda call: seen.append(files.disk))
    life = Life(files, moment.world, reachable=rng.random() < 0.7)
    recovering = len(seen)
    if recovering and rng.random() < 0.2:
        again = rng.choice(seen[:recovering])
        recover(power_cut(again, rng), moment.world, rng)
    life.append(*moment.world.waiting, request(entry_of(rng)))
    life.end()
    if rng.random() < 0.5:
        recover(power_cut(files.disk, rng), life.world, rng)


def recover(disk: Disk, world: World, rng: Random) -> None:
    life = Life(CrashingFiles(disk), world, reachable=rng.random() < 0.7)
    life.append(request(entry_of(rng)))
    life.end()


def power_cut(disk: Disk, rng: Random) -> Disk:
    """What one power cut leaves."""
    mask = rng.choice([0, EVERYTHING, rng.getrandbits(256), rng.getrandbits(256)])
    return disk.after(Survivors(mask, rng, rng.choice(SECTOR_BYTES)))


def entry_of(rng: Random) -> Entry:
    return make_entry(request_uuid=UUID(int=rng.getrandbits(128)))


def contents(disk: Disk) -> tuple[tuple[str, bytes], ...]:
    files = {**disk.contents(SETTINGS.data_dir), **disk.contents(SETTINGS.wal_dir)}
    return tuple(sorted(files.items()))
