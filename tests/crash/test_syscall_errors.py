"""System calls on the data directory fail: the outcome is that of the protocol's section 5.

Nothing that was acknowledged is lost by any of it. In CI each call fails with each error, or with
one where a run is long, at a number by chance; `make crash-syscalls` tries all at each number.
"""

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import httpx
import pytest

from app.wal.checkpoint import read_checkpoint
from app.wal.files import FileSystem
from tests.support.data_calls import inject_at, was_injected
from tests.support.foreign_wal import read_wal
from tests.support.http_entries import flush
from tests.support.promise import Conversation, check_promise
from tests.support.service import Service
from tests.support.torn_log import tear
from tests.support.waiting import wait_for

NOWHERE: Final = "postgresql:///postgres?host=/nowhere"
FIRST: Final = "wal/00000000000000000000.wal"
ALL: Final = "CRASH_SYSCALLS" in os.environ
AT_ONCE: Final = 2
REQUESTS: Final = 16
ENTRY_BYTES: Final = 6000
SETTINGS: Final[dict[str, Any]] = {
    "ALLOW_NEW_WAL": "true",
    "BLOCK_COMMANDS": "*",
    "WAL_SYNC": "fdatasync",
    "WAL_SEGMENT_BYTES": 65536,
    "SHUTDOWN_TIMEOUT_S": 0,
}
GIVING_BACK: Final[dict[str, Any]] = {
    "AUTO_MIGRATE": "false",
    "BLOCK_COMMANDS": "*",
    "WAL_SYNC": "fdatasync",
    "DEDUP_WINDOW": 1,
}
GIVEN_UP: Final = {**GIVING_BACK, "ALLOW_NEW_WAL": "true", "WAL_SEGMENT_BYTES": 2_000_000}


class Outcome(Enum):
    """What must come of a fault."""

    UNNOTICED = auto()  # every request is answered 200
    LOGGED = auto()  # likewise, and the log tells of the error
    FULL = auto()  # some are answered 507, and the service goes on by itself
    UNAVAILABLE = auto()  # likewise with 503, and the log tells of the error
    STOPS = auto()  # it ends at once with a status other than 0; nobody is answered
    REFUSED = auto()  # likewise, before it was ready


class Case(NamedTuple):
    """A fault in a call on a path, and its outcome. A fault is strace's, at the `when`th call."""

    call: str
    path: str
    fault: str
    when: int
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.call}({self.path}) {self.fault} at {self.when}"

    @property
    def place(self) -> tuple[str, str]:
        """What fails, whatever the error."""
        return self.call, self.path

    def is_told(self, log: str) -> bool:
        """Whether the log names the error."""
        name = self.fault.partition("error=")[2]
        return bool(name) and os.strerror(getattr(errno, name)) in log

    def at(self, **names: object) -> "Case":
        """The same with the names of files that are not known before."""
        return self._replace(path=self.path.format(**names))


def faults(call: str, path: str, *when: int, **outcomes: Outcome) -> list[Case]:
    """One case for each error and number; `SHORT` is a call that does nothing at all."""
    return [
        Case(call, path, "retval=0" if name == "SHORT" else f"error={name}", number, outcome)
        for name, outcome in outcomes.items()
        for number in when
    ]


# `{next}` is the first segment that a running log begins. Calls are counted by thread.
LOG_CASES: Final = [
    *faults(
        *("pwrite64", FIRST, *range(1, 6)),
        ENOSPC=Outcome.FULL,
        EDQUOT=Outcome.FULL,
        EIO=Outcome.STOPS,
    ),
    *faults("fdatasync", FIRST, *range(1, 6), EIO=Outcome.STOPS, ENOSPC=Outcome.STOPS),
    *faults(
        *("openat", "wal/{next}.tmp", 1),
        EMFILE=Outcome.UNAVAILABLE,
        ENFILE=Outcome.UNAVAILABLE,
        ENOSPC=Outcome.FULL,
        EIO=Outcome.STOPS,
    ),
    *faults("pwrite64", "wal/{next}.tmp", 1, ENOSPC=Outcome.FULL, EIO=Outcome.STOPS),
    *faults("fdatasync", "wal/{next}.tmp", 1, ENOSPC=Outcome.FULL, EIO=Outcome.STOPS),
    *faults(
        *("rename", "wal/{next}.tmp", 1),
        ENOSPC=Outcome.FULL,
        EIO=Outcome.STOPS,
        EINTR=Outcome.STOPS,
    ),
    *faults("fsync", "wal", 2, 3, EIO=Outcome.STOPS, ENOSPC=Outcome.STOPS),
    *faults("ftruncate", FIRST, 1, EIO=Outcome.STOPS),
    *faults(
        *("fallocate", FIRST, 1),
        EOPNOTSUPP=Outcome.LOGGED,
        ENOSPC=Outcome.LOGGED,
        EIO=Outcome.LOGGED,
    ),
    *faults(
        *("write", "commitments/000004.log", *range(2, 16)),
        EIO=Outcome.STOPS,
        ENOSPC=Outcome.LOGGED,
        EINTR=Outcome.UNNOTICED,
        SHORT=Outcome.UNNOTICED,
    ),
]
START_CASES: Final = [
    *faults("mkdir", ".", 1, EROFS=Outcome.REFUSED),
    *faults("mkdir", "wal", 1, ENOSPC=Outcome.REFUSED),
    *faults("fsync", ".", 1, EIO=Outcome.REFUSED),
    *faults("openat", "wal/lock", 1, EACCES=Outcome.REFUSED),
    *faults("pwrite64", f"{FIRST}.tmp", 1, ENOSPC=Outcome.REFUSED),
    *faults("fdatasync", f"{FIRST}.tmp", 1, EIO=Outcome.REFUSED),
    *faults("rename", f"{FIRST}.tmp", 1, EIO=Outcome.REFUSED, EINTR=Outcome.REFUSED),
    *faults("fsync", "wal", 1, EIO=Outcome.REFUSED),
    *faults(
        *("fdatasync", "commitments/000004.log", 1),
        EIO=Outcome.REFUSED,
        EINTR=Outcome.REFUSED,
    ),
]
# The log ends in a torn record, and all of its blocks have to be derived again. `{last}` is its
# last segment, `{torn}` what its torn end is copied to.
RECOVERY_CASES: Final = [
    *faults("fsync", ".", 1, 2, EIO=Outcome.REFUSED),
    *faults("openat", "wal/lock", 1, EACCES=Outcome.REFUSED),
    *faults("flock", "wal/lock", 1, ENOLCK=Outcome.REFUSED),
    *faults("openat", "wal/{last}", *range(1, 8), EMFILE=Outcome.REFUSED, EIO=Outcome.REFUSED),
    *faults("unlink", "wal/{last}.tmp", 1, EIO=Outcome.REFUSED, EROFS=Outcome.REFUSED),
    *faults("openat", "wal/{torn}.tmp", 1, ENOSPC=Outcome.REFUSED, EIO=Outcome.REFUSED),
    *faults("pwrite64", "wal/{torn}.tmp", 1, ENOSPC=Outcome.REFUSED, EIO=Outcome.REFUSED),
    *faults("fdatasync", "wal/{torn}.tmp", 1, ENOSPC=Outcome.REFUSED, EIO=Outcome.REFUSED),
    *faults("rename", "wal/{torn}.tmp", 1, EIO=Outcome.REFUSED, EINTR=Outcome.REFUSED),
    *faults("fsync", "wal", 1, 2, EIO=Outcome.REFUSED, ENOSPC=Outcome.REFUSED),
    *faults("ftruncate", "wal/{last}", 1, EIO=Outcome.REFUSED),
    *faults("fdatasync", "wal/{last}", 1, 2, EIO=Outcome.REFUSED, ENOSPC=Outcome.REFUSED),
    *faults("pwrite64", "wal/{last}", 1, EIO=Outcome.REFUSED, ENOSPC=Outcome.REFUSED),
    *faults("fallocate", "wal/{last}", 1, EOPNOTSUPP=Outcome.LOGGED, EIO=Outcome.LOGGED),
    *faults(
        *("write", "commitments/000004.log", *range(2, 14)),
        EIO=Outcome.REFUSED,
        ENOSPC=Outcome.REFUSED,
        EINTR=Outcome.UNNOTICED,
        SHORT=Outcome.UNNOTICED,
    ),
]
# Each request is followed by a flush here, and the log is given back.
GIVING_BACK_CASES: Final = [
    *faults("openat", "checkpoint.json.tmp", 1, ENOSPC=Outcome.UNNOTICED, EIO=Outcome.LOGGED),
    *faults("pwrite64", "checkpoint.json.tmp", 1, ENOSPC=Outcome.UNNOTICED, EIO=Outcome.LOGGED),
    *faults("fdatasync", "checkpoint.json.tmp", 1, EIO=Outcome.LOGGED, ENOSPC=Outcome.UNNOTICED),
    *faults(
        *("rename", "checkpoint.json.tmp", 1),
        EIO=Outcome.LOGGED,
        EINTR=Outcome.LOGGED,
        ENOSPC=Outcome.UNNOTICED,
    ),
    *faults("fsync", ".", 3, EIO=Outcome.STOPS, ENOSPC=Outcome.STOPS),
    *faults("unlink", FIRST, 1, EIO=Outcome.LOGGED, EINTR=Outcome.LOGGED),
    *faults(
        *("fallocate", FIRST, 2),
        EOPNOTSUPP=Outcome.LOGGED,
        EIO=Outcome.LOGGED,
        ENOSPC=Outcome.LOGGED,
    ),
]
# A log of three segments is there at the start, which syncs its directory once. All of it is given
# back by one thread.
GIVEN_UP_CASES: Final = [
    *faults("fsync", "wal", 2, EIO=Outcome.STOPS),
    *faults("fdatasync", "commitments/000009.log", 1, EIO=Outcome.STOPS, EINTR=Outcome.STOPS),
]


def suffer(
    directory: Path,
    case: Case,
    talk: Callable[[Service, Conversation], None],
    conversation: Conversation,
    look: Callable[[Service], None] = lambda service: None,
    **settings: Any,
) -> None:
    """Run a service that suffers a fault; check its outcome and what is left, `look` at the rest.

    It is looked at before anything is recovered. The conversation may have begun in earlier lives.
    """
    database_url = str(settings.pop("DATABASE_URL", NOWHERE))
    with Service(directory / "data", database_url, **settings) as service:
        output = directory / "trace"
        fault = f"{case.fault}:when={case.when}"
        inject_at(service, output, case.call, fault, case.path, busy=database_url != NOWHERE)
        before = len(conversation.statuses)
        if service.starts():
            talk(service, conversation)
        outcome = outcome_of(service, conversation.statuses[before:], case)
        assert outcome is case.outcome, f"{outcome}: {conversation.statuses}\n{service.log}"
        assert "Traceback" not in service.log, service.log
        look(service)
        check_promise(conversation, service.data_dir, database_url, **settings)
        assert was_injected(service, output), "the fault was not reached"
    shutil.rmtree(directory)


def talk(service: Service, conversation: Conversation) -> None:
    with service.client() as client:
        conversation.send_all(client, REQUESTS)


def talk_and_flush(service: Service, conversation: Conversation) -> None:
    with service.client() as client:
        try:
            while len(conversation.requests) < 12 and conversation.send(client) is not None:
                flush(client)
        except httpx.TransportError:
            # Gone in a flush: nothing more is answered either.
            conversation.send(client)


def flush_and_talk(service: Service, conversation: Conversation) -> None:
    """A replicated log is given back when later entries need it no more for their duplicates.

    That is begun when the flush is answered: it may take some requests until it ends the service.
    """
    with service.client() as client:
        with suppress(httpx.TransportError):
            flush(client)
            conversation.send(client)
            flush(client)
        wait_for(lambda: conversation.send(client) is None, "the service ends")


def outcome_of(service: Service, statuses: list[int | None], case: Case) -> Outcome:
    """What has become of a service by a fault; it is stopped if it still runs."""
    *earlier, last = statuses or [None]
    if last is None:
        assert set(earlier) <= {200}
        assert service.wait() != 0
        check_last_words(service.log, case, at_once=bool(statuses))
        return Outcome.STOPS if statuses else Outcome.REFUSED
    assert service.terminate() == 0
    assert last == 200, "the service did not go on by itself"
    refusals = set(earlier) - {200}
    if refusals == {507}:
        return Outcome.FULL
    if refusals == {503}:
        assert case.is_told(service.log)
        return Outcome.UNAVAILABLE
    assert not refusals
    return Outcome.LOGGED if case.is_told(service.log) else Outcome.UNNOTICED


def check_last_words(log: str, case: Case, *, at_once: bool) -> None:
    """It ends by this error and by nothing else, and says so once; nothing is drained before."""
    critical = [line for line in log.splitlines() if " CRITICAL " in line]
    assert len(critical) == 1, log
    assert case.is_told(critical[0]), log
    assert ("stopping at once" in critical[0]) == at_once, log
    assert "draining" not in log, log


def suffer_all(
    tmp_path: Path,
    run: Callable[[Path, Case], None],
    cases: list[Case],
    rng: Random,
    *,
    each_error: bool = True,
) -> None:
    """Run for every case; or for each call, with each error or one, at a number by chance."""
    if not ALL:
        rng.shuffle(cases := list(cases))
        some = {(case.place, each_error and case.fault): case for case in cases}
        cases = list(some.values())
    with ThreadPoolExecutor(AT_ONCE, "faults") as executor:
        runs = []
        for number, case in enumerate(cases):
            directory = tmp_path / f"{number:05}"
            directory.mkdir()
            runs.append(executor.submit(run, directory, case))
    errors = [(case, run.exception()) for case, run in zip(cases, runs, strict=True)]
    failures = [f"{case}: {error}" for case, error in errors if error is not None]
    assert not failures, "\n\n".join(failures)


@pytest.mark.timeout(600)
def test_a_call_that_fails_while_the_log_is_written(tmp_path: Path, rng: Random) -> None:
    with Service(tmp_path / "data", NOWHERE, **SETTINGS) as service:
        service.start()
        conversation = Conversation(size=ENTRY_BYTES)
        talk(service, conversation)
        assert set(conversation.statuses) == {200}
        service.kill()
    _, second, _, *_ = sorted((service.data_dir / "wal").glob("*.wal"))

    def run(directory: Path, case: Case) -> None:
        case = case.at(next=second.name)
        suffer(directory, case, talk, Conversation(size=ENTRY_BYTES), **SETTINGS)

    suffer_all(tmp_path, run, LOG_CASES, rng)


@pytest.mark.timeout(600)
def test_a_call_that_fails_at_the_first_start_refuses_it_clearly(
    tmp_path: Path, rng: Random
) -> None:
    def run(directory: Path, case: Case) -> None:
        suffer(directory, case, talk, Conversation(size=ENTRY_BYTES), **SETTINGS)

    suffer_all(tmp_path, run, START_CASES, rng)


@pytest.mark.timeout(600)
def test_a_call_that_fails_in_a_recovery_refuses_the_start_clearly(
    tmp_path: Path, rng: Random
) -> None:
    earlier = Conversation(size=ENTRY_BYTES)
    with Service(tmp_path / "data", NOWHERE, **SETTINGS) as service:
        service.start()
        talk(service, earlier)
        service.kill()
    last, end = tear(service.data_dir)

    def run(directory: Path, case: Case) -> None:
        shutil.copytree(service.data_dir, directory / "data")
        case = case.at(last=last, torn=f"{last}.{end}.torn")
        suffer(directory, case, talk, deepcopy(earlier), **SETTINGS)

    suffer_all(tmp_path, run, RECOVERY_CASES, rng)


@pytest.mark.timeout(600)
def test_a_call_that_fails_while_the_log_is_given_back(
    tmp_path: Path, database_url: str, rng: Random
) -> None:
    def run(directory: Path, case: Case) -> None:
        # In segments that are longer than what is given back at once, holes are punched.
        segment_bytes = 4_000_000 if case.call == "fallocate" else 600_000
        settings = {**GIVING_BACK, "DATABASE_URL": database_url, "ENVIRONMENT": directory.name}
        conversation = Conversation(entries=1, size=250_000)
        settings |= {"WAL_SEGMENT_BYTES": segment_bytes}
        suffer(directory, case, talk_and_flush, conversation, **settings)

    suffer_all(tmp_path, run, GIVING_BACK_CASES, rng, each_error=False)


@pytest.mark.timeout(600)
def test_a_sync_that_fails_ends_the_service_before_anything_more_is_given_back(
    tmp_path: Path, database_url: str, rng: Random
) -> None:
    def nothing_more(service: Service) -> None:
        checkpoint = read_checkpoint(FileSystem(), service.data_dir / "checkpoint.json")
        assert checkpoint is not None
        records = list(read_wal(service.data_dir / "wal", checkpoint.retained_offset))
        if "syncing the unlinking" in service.log:
            assert checkpoint.retained_offset >= records[0].offset > 0
        else:
            assert "commitments" in service.log
            assert checkpoint.retained_offset == records[0].offset == 0

    def run(directory: Path, case: Case) -> None:
        settings = {**GIVEN_UP, "ENVIRONMENT": directory.name}
        conversation = Conversation(entries=1, size=250_000)
        with Service(directory / "data", NOWHERE, **settings) as service:
            service.start()
            with service.client() as client:
                assert set(conversation.send_all(client, 18)) == {200}
            service.kill()
        suffer(
            directory,
            case,
            flush_and_talk,
            conversation,
            nothing_more,
            **settings,
            DATABASE_URL=database_url,
        )

    suffer_all(tmp_path, run, GIVEN_UP_CASES, rng)


def test_a_sync_that_fails_at_the_stop_is_not_a_clean_stop(
    tmp_path: Path, database_url: str
) -> None:
    # Longer than the test waits for the end: it must not be what ends the service.
    settings = {**GIVING_BACK, "SHUTDOWN_TIMEOUT_S": 90}
    with Service(tmp_path / "data", database_url, **settings) as service:
        store_log = "commitments/000004.log"
        inject_at(service, tmp_path / "trace", "fdatasync", "error=EIO:when=2", store_log)
        service.start()
        conversation = Conversation()
        with service.client() as client:
            assert conversation.send(client) == 200
        assert service.terminate() != 0
        assert was_injected(service, tmp_path / "trace")
        assert "Input/output error" in service.log
        assert "Traceback" not in service.log
        check_promise(conversation, service.data_dir, database_url, **settings)
