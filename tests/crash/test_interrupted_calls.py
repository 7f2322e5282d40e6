"""Calls on the data directory that a signal interrupts are made again, and nobody notices.

Not those that change names, of which nobody could say whether they were done, nor those of the
commitment store, which are RocksDB's own: see `test_syscall_errors.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.data_calls import inject_at, kind_of_path, record, traced_calls
from tests.support.http_entries import flush
from tests.support.postgres_cluster import Cluster
from tests.support.promise import Conversation, check_promise
from tests.support.service import Service

# One of each thread's calls of a name, and then every second one: each is made again at once.
EACH: Final = "when=1+2"
REQUESTS: Final = 12
SETTINGS: Final[dict[str, Any]] = {
    "AUTO_MIGRATE": "false",
    "BLOCK_COMMANDS": "*",
    "WAL_SYNC": "fdatasync",
    # What is given back does not end where a segment does: holes are punched, too.
    "WAL_SEGMENT_BYTES": 1_000_000,
    "DEDUP_WINDOW": 1,
}
# Calls that fail so, how, and on files of which kinds all of them.
CASES: Final = {
    "opened": (
        "openat",
        "error=EINTR",
        {"wal/lock", "wal/N.wal.tmp", "wal/N.wal", "checkpoint.json.tmp"},
    ),
    "locked": ("flock", "error=EINTR", {"wal/lock"}),
    "written": ("pwrite64", "error=EINTR", {"wal/N.wal.tmp", "wal/N.wal", "checkpoint.json.tmp"}),
    "nothing-written": (
        "pwrite64",
        "retval=0",
        {"wal/N.wal.tmp", "wal/N.wal", "checkpoint.json.tmp"},
    ),
    "synced": (
        "fdatasync,fsync",
        "error=EINTR",
        {"wal/N.wal.tmp", "wal/N.wal", "checkpoint.json.tmp", "wal", "."},
    ),
    "sized": ("ftruncate,fallocate", "error=EINTR", {"wal/N.wal"}),
}


def live(service: Service) -> Conversation:
    """Start, take requests, give the log back, and stop; every request is answered 200."""
    service.start()
    conversation = Conversation(entries=1, size=250_000)
    with service.client() as client:
        for _ in range(REQUESTS):
            assert conversation.send(client) == 200
            flush(client)
    assert service.terminate() == 0
    return conversation


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, cluster: Cluster
) -> Iterator[tuple[str, set[str]]]:
    """A database, and the paths that a life into it touches in its data directory."""
    database_url = cluster.create_migrated()
    directory = tmp_path_factory.mktemp("undisturbed")
    with Service(directory / "data", database_url, ENVIRONMENT="a", **SETTINGS) as service:
        record(service, directory / "trace", busy=True)
        live(service)
        touched = traced_calls(service, directory / "trace")
    assert any("PUNCH_HOLE" in call.arguments for _, call in touched)
    yield database_url, {path for path, _ in touched}
    cluster.drop(database_url)


@pytest.mark.parametrize("case", CASES)
def test_every_call_that_is_interrupted_or_writes_nothing_is_made_again(
    tmp_path: Path, undisturbed: tuple[str, set[str]], case: str
) -> None:
    names, fault, expected = CASES[case]
    database_url, paths = undisturbed
    suffering = {path for path in paths if kind_of_path(path) in expected}
    # The name is in the log: as long as any other, so that segments are named alike.
    settings = {**SETTINGS, "ENVIRONMENT": str(list(CASES).index(case))}
    output = tmp_path / "trace"
    with Service(tmp_path / "data", database_url, **settings) as service:
        inject_at(service, output, names, f"{fault}:{EACH}", *sorted(suffering), busy=True)
        conversation = live(service)
        assert "Interrupted" not in service.log
        assert "ERROR" not in service.log
        check_promise(conversation, service.data_dir, database_url, **settings)
        calls_of: dict[tuple[int, str], list[tuple[str, str]]] = {}
        suffered = set()
        for path, call in traced_calls(service, output):
            calls_of.setdefault((call.thread, call.name), []).append((path, call.arguments))
            if call.result == (-1 if "error" in fault else 0):
                suffered.add(path)
    assert suffered == suffering
    assert {kind_of_path(path) for path in suffered} == expected
    for each in calls_of.values():
        assert each[::2] == each[1::2], "another call came in between"
