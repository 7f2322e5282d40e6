"""The service is killed at the system calls that touch its data directory, one run each.

A kill comes in the place of the call: what the call would have done is not done. In CI, the first
call of every kind (name, kind of file) is tried, of fewer where a run is long or the file is the
commitment store's, and some others; `make crash-syscalls` tries them all.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import pytest

from tests.support.data_calls import (
    DataCall,
    data_calls,
    has_been_killed,
    inject,
    killing,
    kinds,
    record,
    recording,
)
from tests.support.http_entries import flush
from tests.support.promise import Conversation, check_promise
from tests.support.service import Service
from tests.support.tools import need_io_uring
from tests.support.torn_log import tear

ALL: Final = "CRASH_SYSCALLS" in os.environ
# The processors of a CI machine: a start is bound by them.
AT_ONCE: Final = 2
MORE: Final = 2
# The kinds of calls on files of the commitment store are many, and RocksDB's own.
STORE_KINDS: Final = 3
ATTEMPTS: Final = 4
REQUESTS: Final = 12
FLUSHED: Final = 8
ENTRY_BYTES: Final = 6000
LOG_CALLS: Final = {"openat", "pwrite64", "fdatasync", "fallocate", "ftruncate"}
NOWHERE: Final = "postgresql:///postgres?host=/nowhere"
SETTINGS: Final[dict[str, Any]] = {
    "ALLOW_NEW_WAL": "true",
    "BLOCK_COMMANDS": "*",
    "WAL_SEGMENT_BYTES": 65536,
    "SHUTDOWN_TIMEOUT_S": 0,
}


def converse(service: Service, conversation: Conversation, count: int) -> Conversation:
    """Start the service, let a client talk to it and stop it; it may die at any point of that."""
    if service.starts():
        talk(service, conversation, count)
    return conversation


def talk(
    service: Service, conversation: Conversation, count: int, *, flushing: bool = False
) -> None:
    """Let a client talk to a running service and stop it, likewise."""
    answered = False
    with service.client() as client, suppress(httpx.TransportError):
        answered = all(
            conversation.send(client) and (not flushing or flush(client)) for _ in range(count)
        )
    if answered:
        service.terminate()
    else:
        assert service.wait() != 0, "a service without its worker is no success"


def chosen(calls: list[DataCall], rng: Random, *, every: int = 1) -> list[DataCall]:
    """The calls to be killed at: with `CRASH_SYSCALLS` all, else some.

    That is the first call of each kind, or of some kinds, one in `every` of them, and some others.

    A kill at a call that changes nothing leaves what one at the next call that does leaves.
    """
    if ALL:
        return calls
    first = [of_kind[0] for of_kind in kinds(call for call in calls if call.changes).values()]
    of_store = [call for call in first if call.of_store]
    of_log = [call for call in first if not call.of_store]
    rest = [call for call in calls if call.changes and call not in first]
    return [
        *rng.sample(of_log, -(-len(of_log) // every)),
        *rng.sample(of_store, min(len(of_store), STORE_KINDS)),
        *rng.sample(rest, MORE),
    ]


def kill_at_each(calls: list[DataCall], run: Callable[[DataCall, str], bool]) -> None:
    """Run once for each call, and again where the kill did not come to pass: `run` says so.

    Every call must have been reached in the end, save for those on the files of the commitment
    store: which of RocksDB's threads takes which, under which number, is not the same in every run.
    """
    left = calls
    for attempt in range(ATTEMPTS):
        with ThreadPoolExecutor(AT_ONCE, "kills") as executor:
            runs = [
                executor.submit(run, call, f"{attempt}-{number:05}")
                for number, call in enumerate(left)
            ]
        errors = [(call, outcome.exception()) for call, outcome in zip(left, runs, strict=True)]
        failures = [f"killed at {call}: {error}" for call, error in errors if error is not None]
        assert not failures, "\n".join(failures)
        left = [call for call, outcome in zip(left, runs, strict=True) if not outcome.result()]
        print(f"attempt {attempt}: not reached: {[str(call) for call in left]}")  # noqa: T201
    of_store = [call for call in calls if call.of_store]
    assert not of_store or set(of_store) - set(left), "no kill at a call of the store was reached"
    missed = [call for call in left if not call.of_store]
    assert not missed, [str(call) for call in missed]


def kill_in_run(
    directory: Path,
    call: DataCall,
    run: Callable[[Service], Conversation],
    database_url: str,
    **settings: Any,
) -> bool:
    """Run a service that is killed at `call`, and check what is left; whether it was killed."""
    with Service(directory / "data", database_url, **settings) as service:
        inject(service, directory / "trace", call, "signal=SIGKILL")
        conversation = run(service)
        check_promise(conversation, service.data_dir, database_url, **settings)
        killed = has_been_killed(service, directory / "trace")
    shutil.rmtree(directory)
    return killed


def record_calls(
    directory: Path,
    run: Callable[[Service], Conversation],
    database_url: str,
    **settings: Any,
) -> list[DataCall]:
    """What an undisturbed run does to its data directory."""
    with Service(directory / "data", database_url, **settings) as service:
        record(service, directory / "trace")
        conversation = run(service)
        assert set(conversation.statuses) == {200}
        return data_calls(service, directory / "trace")


def new_directory(tmp_path: Path, name: str) -> Path:
    directory = tmp_path / str(name)
    directory.mkdir()
    return directory


@pytest.mark.timeout(1800)
def test_a_kill_at_any_call_from_the_first_start_to_the_stop_keeps_the_promise(
    tmp_path: Path, rng: Random
) -> None:
    settings = {**SETTINGS, "WAL_SYNC": "fdatasync"}

    def run(service: Service) -> Conversation:
        return converse(service, Conversation(size=ENTRY_BYTES), REQUESTS)

    def kill(call: DataCall, name: str) -> bool:
        return kill_in_run(new_directory(tmp_path, name), call, run, NOWHERE, **settings)

    calls = record_calls(new_directory(tmp_path, "recorded"), run, NOWHERE, **settings)
    assert {name for name, path in kinds(calls) if path == "wal/N.wal"} >= LOG_CALLS
    kill_at_each(chosen(calls, rng), kill)


def test_a_kill_at_any_call_of_io_uring_keeps_the_promise(tmp_path: Path, rng: Random) -> None:
    need_io_uring()
    settings = {**SETTINGS, "WAL_SYNC": "io_uring"}

    def run(service: Service) -> Conversation:
        return converse(service, Conversation(size=ENTRY_BYTES), REQUESTS)

    def kill(call: DataCall, name: str) -> bool:
        return kill_in_run(new_directory(tmp_path, name), call, run, NOWHERE, **settings)

    calls = record_calls(new_directory(tmp_path, "recorded"), run, NOWHERE, **settings)
    syncs = [call for call in calls if call.name == "io_uring_enter"]
    assert len(syncs) >= REQUESTS
    kill_at_each(syncs if ALL else [syncs[0], rng.choice(syncs[1:])], kill)


@pytest.mark.timeout(1800)
def test_a_kill_at_any_call_of_a_recovery_keeps_the_promise_to_the_earlier_lives(
    tmp_path: Path, rng: Random
) -> None:
    settings = {**SETTINGS, "WAL_SYNC": "fdatasync"}
    earlier = Conversation(size=ENTRY_BYTES)
    with Service(tmp_path / "data", NOWHERE, **settings) as service:
        service.start()
        with service.client() as client:
            earlier.send_all(client, REQUESTS)
        service.kill()
    tear(service.data_dir)

    def crashed(name: str) -> Path:
        directory = new_directory(tmp_path, name)
        shutil.copytree(service.data_dir, directory / "data")
        return directory

    def run(service: Service) -> Conversation:
        return converse(service, deepcopy(earlier), 2)

    def kill(call: DataCall, name: str) -> bool:
        return kill_in_run(crashed(name), call, run, NOWHERE, **settings)

    calls = record_calls(crashed("recorded"), run, NOWHERE, **settings)
    assert ("openat", "wal/N.wal.N.torn.tmp") in kinds(calls)
    log_calls = [call for call in calls if not call.of_store]
    kill_at_each(chosen(calls if ALL else log_calls, rng), kill)


@pytest.mark.timeout(1800)
def test_a_kill_at_any_call_that_gives_the_log_back_keeps_the_promise(
    tmp_path: Path, database_url: str, rng: Random
) -> None:
    settings = {
        "AUTO_MIGRATE": "false",
        "BLOCK_COMMANDS": "*",
        "WAL_SYNC": "fdatasync",
        "WAL_SEGMENT_BYTES": 600_000,
        "DEDUP_WINDOW": 1,
    }

    @contextmanager
    def ready(name: str) -> Iterator[tuple[Service, Conversation, Path]]:
        """A running service whose first checkpoint is written: what follows gives back."""
        directory = new_directory(tmp_path, name)
        conversation = Conversation(entries=1, size=250_000)
        # The name is in the log: as long as any other, so that segments are named alike.
        named: dict[str, Any] = {**settings, "ENVIRONMENT": name}
        with Service(directory / "data", database_url, **named) as service:
            service.start()
            with service.client() as client:
                assert conversation.send(client) == 200
                flush(client)
            yield service, conversation, directory / "trace"
            check_promise(conversation, service.data_dir, database_url, **named)
        shutil.rmtree(directory)

    def kill(call: DataCall, name: str) -> bool:
        with ready(name) as (service, conversation, trace):
            with killing(service, trace, call) as was_killed:
                talk(service, conversation, FLUSHED, flushing=True)
            return was_killed()

    with ready("0-first") as (service, conversation, trace):
        with recording(service, trace) as recorded:
            talk(service, conversation, FLUSHED, flushing=True)
        # Those without a path are RocksDB's reads.
        calls = [call for call in recorded() if call.path]
    assert set(conversation.statuses) == {200}
    assert kinds(calls).keys() >= {("unlink", "wal/N.wal"), ("punch", "wal/N.wal")}
    kill_at_each(chosen(calls, rng, every=2), kill)
