"""Seen from the kernel: nothing is acknowledged before it is synced, or after a sync has failed."""

import re
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.support.foreign_wal import read_wal
from tests.support.http_entries import accepted, flush, json_entry, post, refused
from tests.support.service import Service
from tests.support.syscalls import Syscall, read_trace, trace
from tests.support.table_audit import table_rows

CLIENTS = 6
SENT = 500
KIB = 1024
_ACKNOWLEDGED = re.compile(r'\\"last_command_id\\":\d+,\\"wal_offset\\":(\d+)')
_MARK = re.compile(r"<mark \d+>")
_SENDING = {"write", "writev", "sendto", "sendmsg"}


@contextmanager
def traced(
    tmp_path: Path, database_url: str, *faults: str, **settings: object
) -> Iterator[Service]:
    with Service(
        tmp_path / "data", database_url, AUTO_MIGRATE="false", WAL_SYNC="fdatasync", **settings
    ) as service:
        trace(service, tmp_path / "trace", *faults)
        yield service


def send_until(
    service: Service, is_enough: Callable[[int], bool], size: int = 200
) -> dict[UUID, int]:
    """Send single entries from several clients at once, until it is enough or the service is gone.

    The `command_data` of each begins with a mark of its own, text that `marks_in` finds.
    """
    numbers = count(1)
    acknowledged: dict[UUID, int] = {}

    def send(_: int) -> None:
        with service.client() as client:
            while not is_enough(number := next(numbers)):
                data = b64encode(b"<mark %d>" % number + bytes(size)).decode()
                entry = json_entry(command_data=data)
                try:
                    answer = accepted(post(client, entry))
                except httpx.TransportError:
                    return
                acknowledged[UUID(entry["request_uuid"])] = answer["first_command_id"]

    with ThreadPoolExecutor(CLIENTS, "client") as executor:
        list(executor.map(send, range(CLIENTS)))
    return acknowledged


def test_nothing_is_acknowledged_or_replicated_before_the_sync_of_its_record_has_returned(
    tmp_path: Path, database_url: str
) -> None:
    # Slow syncs: the next record is written while replication reads the one before.
    with traced(
        tmp_path, database_url, "fdatasync:delay_exit=10000", WAL_SEGMENT_BYTES=64 * KIB
    ) as service:
        service.start()
        acknowledged = send_until(service, lambda number: number > SENT)
        with service.client() as client:
            flush(client)
        assert service.terminate() == 0
        calls = read_trace(tmp_path / "trace")
    synced = list(_synced_ends(calls))

    def synced_before(call: Syscall) -> int:
        return max((end for end, returned in synced if returned < call.began), default=0)

    acks = [
        (int(offset), call)
        for call in calls
        if call.name in _SENDING and "HTTP/1.1 200" in call.arguments
        for offset in _ACKNOWLEDGED.findall(call.arguments)
    ]
    assert len(acks) == len(acknowledged) == SENT
    for offset, ack in acks:
        assert offset <= synced_before(ack), f"{offset} was acknowledged before its sync: {ack}"
    ends = {
        mark: record.end
        for record in read_wal(service.data_dir / "wal")
        for command in record.content.get("commands", [])
        for mark in _MARK.findall(command["command_data"].decode("latin-1"))
    }
    replicated = [
        (mark, call)
        for call in calls
        if call.name in _SENDING
        for mark in _MARK.findall(call.arguments)
    ]
    assert {mark for mark, _ in replicated} == ends.keys()
    for mark, call in replicated:
        assert ends[mark] <= synced_before(call), f"{mark} went to Postgres before its sync"
    segments = list(_named_segments(calls))
    assert len(segments) > 2
    for start, named in segments:
        first = min((ack.began for offset, ack in acks if offset > start), default=2**62)
        assert _is_synced_between(calls, service.data_dir / "wal", named.ended, first), start


@pytest.mark.parametrize("end", ["killed", "a sync failed"])
def test_recovery_writes_the_last_record_again_and_syncs_it_before_anything_is_built_upon_it(
    tmp_path: Path, database_url: str, end: str
) -> None:
    nowhere = f"postgresql:///postgres?host={tmp_path}"
    with traced(tmp_path, database_url, ALLOW_NEW_WAL="true") as service:
        wrapper, service.wrapper = service.wrapper, ()
        if end == "killed":
            service.start(DATABASE_URL=nowhere)
            send_until(service, lambda number: number > 20)
            service.kill()
        else:
            trace(service, tmp_path / "first", "fdatasync:error=EIO:when=10")
            service.start(DATABASE_URL=nowhere)
            send_until(service, lambda number: number > 1000)
            assert service.wait() != 0
            assert "Input/output error" in service.log
        *_, last = read_wal(service.data_dir / "wal")
        service.wrapper = wrapper
        service.start()
        with service.client() as client:
            flush(client)
            accepted(post(client, json_entry()))
        assert service.terminate() == 0
        calls = read_trace(tmp_path / "trace")
    written = next(call for call in calls if call.name == "pwrite64")
    start = int(last.segment.stem)
    assert written.path == str(last.segment)
    assert written.arguments.endswith(f", {last.end - last.offset}, {last.offset - start}")
    synced = next(call for call in calls if call.name == "fdatasync" and call.began > written.ended)
    assert (synced.path, synced.result) == (str(last.segment), 0)
    uses = [
        call
        for call in calls
        if call.name in _SENDING and (_MARK.search(call.arguments) or _is_ack(call))
    ]
    assert len(uses) > 1
    assert min(call.began for call in uses) > synced.ended


def test_new_directories_are_synced_into_the_ones_above_before_anything_is_acknowledged(
    tmp_path: Path, database_url: str
) -> None:
    with traced(tmp_path, database_url) as service:
        service.start()
        with service.client() as client:
            accepted(post(client, json_entry()))
        assert service.terminate() == 0
        calls = read_trace(tmp_path / "trace")
    made = {
        Path(call.arguments.split('"')[1]): call
        for call in calls
        if call.name in {"mkdir", "mkdirat"} and call.result == 0
    }
    first = next(call for call in calls if _is_ack(call)).began
    for directory in (service.data_dir, service.data_dir / "wal"):
        assert _is_synced_between(calls, directory.parent, made[directory].ended, first)


def test_a_failed_sync_ends_the_service_and_nothing_of_its_record_is_acknowledged(
    tmp_path: Path, database_url: str
) -> None:
    # Without Postgres no checkpoint is written, so the writer's thread alone comes to this many.
    failing = 60
    nowhere = f"postgresql:///postgres?host={tmp_path}"
    with traced(
        tmp_path, database_url, f"fdatasync:error=EIO:when={failing}", ALLOW_NEW_WAL="true"
    ) as service:
        service.start(DATABASE_URL=nowhere)
        acknowledged = send_until(service, lambda number: number > 1000)
        assert service.wait() != 0
        assert "Input/output error" in service.log
        failed = [call for call in read_trace(tmp_path / "trace") if call.name == "fdatasync"]
        assert [call.result for call in failed].count(-1) == 1
        assert failed[-1].result == -1, "the service went on syncing after a failure"
        batches = list(read_wal(service.data_dir / "wal"))[1:]
        synced = _command_ids(batches[: failing - 1])
        assert acknowledged
        assert acknowledged.items() <= synced.items()
        service.wrapper = ()
        service.start()
        with service.client() as client:
            flush(client)
    found = {row[1]: row[0] for row in table_rows(database_url, "engine_commands")}
    assert acknowledged.items() <= found.items()


def test_a_write_that_finds_no_room_is_answered_507_and_the_service_goes_on(
    tmp_path: Path, database_url: str
) -> None:
    with traced(tmp_path, database_url, "pwrite64:error=ENOSPC:when=3") as service:
        service.start()
        with service.client() as client:
            entries = [json_entry() for _ in range(5)]
            answers = [post(client, entry) for entry in entries]
            problem = refused(answers.pop(2), 50701, retriable=True)
            assert "room" in problem["detail"]
            answers.insert(2, post(client, entries[2]))
            ids = [accepted(answer)["first_command_id"] for answer in answers]
            assert all(not accepted(answer)["duplicates"] for answer in answers)
            flush(client)
            assert client.get("/readyz").status_code == 200
        assert service.terminate() == 0
    found = {str(row[1]): row[0] for row in table_rows(database_url, "engine_commands")}
    assert found == dict(zip((entry["request_uuid"] for entry in entries), ids, strict=True))


def test_a_flush_does_not_wait_for_a_record_that_found_no_room_in_a_new_segment(
    tmp_path: Path, database_url: str
) -> None:
    # The writer's third write is the record behind a genesis that was written and stays.
    with traced(
        tmp_path, database_url, "pwrite64:error=ENOSPC:when=3", WAL_SEGMENT_BYTES=64 * KIB
    ) as service:
        service.start()
        with service.client() as client:
            large = "A" * 48 * KIB
            accepted(post(client, json_entry(response_data=large)))
            refused(post(client, json_entry(response_data=large)), 50701, retriable=True)
            flush(client, 10)
        assert service.terminate() == 0


@pytest.mark.parametrize("how", ["unlinked", "replaced"])
@pytest.mark.parametrize("wal_sync", ["auto", "fdatasync"])
def test_a_segment_that_is_not_the_logs_any_more_ends_the_service_without_an_acknowledgement(
    tmp_path: Path, database_url: str, how: str, wal_sync: str
) -> None:
    with Service(
        tmp_path / "data", database_url, AUTO_MIGRATE="false", WAL_SYNC=wal_sync
    ) as service:
        service.start()
        kept, lost = json_entry(), json_entry()
        with service.client() as client:
            accepted(post(client, kept))
            flush(client)
            [segment] = (service.data_dir / "wal").glob("*.wal")
            copy = segment.with_name("copy")
            shutil.copy(segment, copy)
            if how == "replaced":
                copy.replace(segment)
            else:
                segment.unlink()
            with pytest.raises(httpx.TransportError):
                post(client, lost)
        assert service.wait() != 0
        assert how in service.log
        if how == "unlinked":
            copy.replace(segment)
        service.start()
        with service.client() as client:
            assert client.get(f"/entries/{kept['request_uuid']}").status_code == 200
            assert client.get(f"/entries/{lost['request_uuid']}").status_code == 404


def _is_ack(call: Syscall) -> bool:
    return call.name in _SENDING and _ACKNOWLEDGED.search(call.arguments) is not None


def _synced_ends(calls: list[Syscall]) -> Iterator[tuple[int, int]]:
    """Each sync of a segment: how far the log was written when it began; when it returned."""
    written: dict[str, list[tuple[int, int]]] = {}
    for call in calls:
        if call.name == "pwrite64" and call.path.endswith(".wal"):
            size, offset = call.arguments.rsplit(", ", 2)[1:]
            end = int(Path(call.path).stem) + int(offset) + int(size)
            written.setdefault(call.path, []).append((end, call.ended))
    for call in calls:
        if call.name == "fdatasync" and call.result == 0 and call.path in written:
            ends = [end for end, ended in written[call.path] if ended < call.began]
            yield max(ends, default=0), call.ended


def _named_segments(calls: list[Syscall]) -> Iterator[tuple[int, Syscall]]:
    for call in calls:
        if call.name.startswith("rename") and call.result == 0:
            target = Path(call.arguments.split('"')[3])
            if target.suffix == ".wal":
                yield int(target.stem), call


def _is_synced_between(calls: list[Syscall], directory: Path, after: int, before: int) -> bool:
    return any(
        call.name == "fsync"
        and call.result == 0
        and call.path == str(directory)
        and after < call.began
        and call.ended < before
        for call in calls
    )


def _command_ids(batches: list[Any]) -> dict[UUID, int]:
    return {
        UUID(bytes=command["request_uuid"]): command_id
        for batch in batches
        for command_id, command in enumerate(
            batch.content["commands"], batch.content["first_command_id"]
        )
    }
