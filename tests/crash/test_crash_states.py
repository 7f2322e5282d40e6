"""Every crash state of busy lives recovers: nothing acknowledged is lost, nothing is made up.

A life of the journal runs on a simulated disk. Between any two of its calls the power may go, and
take any part of what was not synced. Each such state is recovered by the product's own code, gone
on with, and for a part of them cut off again: within the recovery, or right behind it.
"""

import os
from collections.abc import Hashable, Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

import pytest

from app.model.entry import Entry
from app.service import checkpoints
from tests.support.journal_entries import make_entry
from tests.support.journal_life import SETTINGS, Life
from tests.support.journal_workload import Moment, Workload
from tests.support.journal_world import World
from tests.support.running_writer import request
from tests.support.simulated_disk import Survivors
from tests.support.simulated_machine import NO_KEYS, Machine, StoreImage

ENOUGH: Final = 10_000
STATES: Final = int(os.environ.get("CRASH_STATES") or ENOUGH)
LIVES: Final = 8
STEPS: Final = 12
# Combinations of what survives that are tried of a moment.
MASKS: Final = 16
SECTOR_BYTES: Final = (512, 512, 4096)
EVERYTHING: Final = -1
# What the lives of so many states do, without and with blocks by turns: a call that came no more
# would leave its states untried.
BUSY: Final = {
    *(("write", ".wal"), ("sync", ".wal"), ("truncate", ".wal")),
    *(("rename", ".wal"), ("sync directory", "wal")),
    *(("rename", ".json"), ("sync directory", "data")),
    *(("punch", ".wal"), ("unlink", ".wal")),
    *(("apply", "commitments"), ("sync", "commitments")),
}


@pytest.fixture(autouse=True)
def hasty_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back after every record, so that short logs show it, and pause for nobody."""
    monkeypatch.setattr(checkpoints, "_STEP_BYTES", 1)
    monkeypatch.setattr(checkpoints, "_PAUSE_S", 0)
    monkeypatch.setattr(checkpoints, "_RETRY_S", 0)


@pytest.mark.timeout(0 if STATES > ENOUGH else 600)
def test_every_crash_state_recovers_and_goes_on(rng: Random) -> None:
    done: set[tuple[str, str]] = set()
    for machine, world in islice(distinct_states(rng, done), STATES):
        check(machine, world, rng)
    assert STATES < ENOUGH or done >= BUSY, f"no life did {BUSY - done}"


@pytest.mark.parametrize("store", [None, NO_KEYS], ids=["without blocks", "with blocks"])
def test_a_seed_gives_the_same_lives_in_every_byte(rng: Random, store: StoreImage | None) -> None:
    """Or a state that fails could not be had again."""
    seed = rng.getrandbits(32)
    lives, again = (list(moments_of_lives(Random(seed), store)) for _ in range(2))
    assert [moment.call for moment in lives] == [moment.call for moment in again]
    for one, other in zip(lives, again, strict=True):
        assert one.machine == other.machine
        assert one.world.settled == other.world.settled


def distinct_states(rng: Random, done: set[tuple[str, str]]) -> Iterator[tuple[Machine, World]]:
    """One after the other, for ever, with what is known outside.

    Of the calls between which they lie, operation and kind of file are added to `done`.
    """
    seen: set[int] = set()
    for store in cycle([None, NO_KEYS]):
        for moment in moments_of_lives(rng, store):
            done.add((moment.call.operation, Path(moment.call.name).suffix or moment.call.name))
            for machine in crashes(moment.machine, rng):
                state = hash((contents(machine), moment.world.facts))
                if state not in seen:
                    seen.add(state)
                    yield machine, moment.world


def moments_of_lives(rng: Random, store: StoreImage | None) -> Iterator[Moment]:
    """Some lives that follow each other, each on what a crash of the one before has left."""
    machine, world, sent = Machine(store=store), World(), dict[UUID, Entry]()
    for _ in range(LIVES):
        life = Workload(machine, world, rng, sent)
        life.live(rng.randint(1, STEPS))
        yield from life.moments
        _, machine, world = rng.choice([life.moments[-1], rng.choice(life.moments)])
        if rng.random() < 0.5:
            machine = power_cut(machine, rng)


def crashes(machine: Machine, rng: Random) -> Iterator[Machine]:
    """The process is killed; or the power goes, and takes what was not synced.

    All combinations of that where they are few, else some of them.
    """
    yield machine
    everything = Survivors(EVERYTHING, rng)
    machine.after(everything)
    masks = {0, EVERYTHING, *(rng.getrandbits(everything.asked) for _ in range(MASKS - 2))}
    if everything.asked <= MASKS.bit_length() - 1:
        masks = set(range(1 << everything.asked))
    for mask in sorted(masks):
        yield machine.after(Survivors(mask, rng, rng.choice(SECTOR_BYTES)))


def check(machine: Machine, world: World, rng: Random) -> None:
    """Recover, send again what got no answer, go on; and let the power go a second time."""
    steps: list[Machine] = []
    life = Life(
        machine,
        world,
        rng,
        reachable=rng.random() < 0.7,
        before=lambda life, call: steps.append(life.machine),
    )
    if steps and rng.random() < 0.1:
        recover(power_cut(rng.choice(steps), rng), world, rng)
    # Where a process was killed, what it left in the page cache alone may not be trusted.
    was_killed = not machine.disk.is_durable
    if was_killed or rng.random() < 0.1:
        recover(power_cut(life.machine, rng), life.world, rng)
    life.append(*world.waiting, request(entry_of(rng)))
    life.end()
    if was_killed:
        recover(life.machine.after(Survivors(0, rng)), life.world, rng)
    elif rng.random() < 0.2:
        recover(power_cut(life.machine, rng), life.world, rng)


def recover(machine: Machine, world: World, rng: Random) -> None:
    life = Life(machine, world, rng, reachable=rng.random() < 0.7)
    life.append(request(entry_of(rng)))
    life.end()


def power_cut(machine: Machine, rng: Random) -> Machine:
    """What one power cut leaves."""
    mask = rng.choice([0, EVERYTHING, rng.getrandbits(256), rng.getrandbits(256)])
    return machine.after(Survivors(mask, rng, rng.choice(SECTOR_BYTES)))


def entry_of(rng: Random) -> Entry:
    """One that may need a segment of its own, and a block."""
    return make_entry(
        request_uuid=UUID(int=rng.getrandbits(128)),
        command_type=rng.choice([None, "TickSnapshot"]),
        command_data=bytes(rng.choice([1, 1, SETTINGS.wal_segment_bytes])),
    )


def contents(machine: Machine) -> tuple[Hashable, ...]:
    """What tells one state from another: what a reader sees, and how much of that can be lost."""
    disk, store = machine.disk, machine.store
    files = {**disk.contents(SETTINGS.data_dir), **disk.contents(SETTINGS.wal_dir)}
    return (
        *sorted(files.items()),
        (disk.is_durable, len(disk.nodes), sum(len(n.changes) for n in disk.nodes.values())),
        store and (len(store.pairs), len(store.batches)),
    )
