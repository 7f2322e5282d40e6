"""The kernel writes a part of a record: the rest follows, or the part is never taken for a record.

These writes are truly partial. A process may not write beyond RLIMIT_FSIZE, nor a file grow beyond
its volume: the write that gets there writes what fits, and the one after it fails.
"""

import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psutil

from tests.support.data_calls import inject_at
from tests.support.promise import Conversation, check_promise
from tests.support.service import Service
from tests.support.small_volume import FileSystemKind, enlarge, small_volume
from tests.support.syscalls import Syscall, read_trace, trace
from tests.support.waiting import wait_for

NOWHERE: Final = "postgresql:///postgres?host=/nowhere"
FIRST: Final = "wal/00000000000000000000.wal"
FRAME_BYTES: Final = 8
ENTRY_BYTES: Final = 6000
SETTINGS: Final[dict[str, Any]] = {
    "ALLOW_NEW_WAL": "true",
    "WAL_SYNC": "fdatasync",
    "SHUTDOWN_TIMEOUT_S": 0,
}


def limit_files(service: Service, size: int) -> None:
    """Let the process that owns the log write up to `size` in any file."""
    worker = psutil.Process(service.worker_pid)
    worker.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def short_writes(calls: list[Syscall]) -> list[Syscall]:
    """The writes at an offset that wrote something, but not all that was asked for."""
    return [
        call
        for call in calls
        if call.name == "pwrite64" and 0 < call.result < int(call.arguments.rsplit(", ", 2)[1])
    ]


def test_a_write_that_the_kernel_cuts_short_is_continued(tmp_path: Path) -> None:
    with (
        Service(tmp_path / "data", NOWHERE, **SETTINGS) as service,
        ThreadPoolExecutor(1, "client") as executor,
        ExitStack() as stack,
    ):
        # The third record's write takes its time to return, so that the limit can be lifted.
        inject_at(service, tmp_path / "trace", "pwrite64", "delay_exit=3000000:when=3", FIRST)
        service.start()
        client = stack.enter_context(service.client())
        conversation = Conversation(size=ENTRY_BYTES)
        assert conversation.send_all(client, 2) == [200, 200]
        segment = service.data_dir / FIRST
        end = segment.stat().st_size + 1000
        limit_files(service, end)
        sent = executor.submit(conversation.send, client)
        wait_for(lambda: segment.stat().st_size == end, "a part of the record is written")
        limit_files(service, resource.RLIM_INFINITY)
        assert sent.result() == 200
        assert conversation.send(client) == 200
        assert service.terminate() == 0
        assert [call.result for call in short_writes(read_trace(tmp_path / "trace"))] == [1000]
        check_promise(conversation, service.data_dir, NOWHERE, **SETTINGS)


def test_a_write_that_is_cut_short_and_can_not_be_continued_ends_the_service(
    tmp_path: Path,
) -> None:
    conversation = Conversation(size=ENTRY_BYTES)
    with Service(tmp_path / "data", NOWHERE, **SETTINGS) as service:
        segment = service.data_dir / FIRST
        # Within the frame, right behind it, and all but the last byte.
        for part in (FRAME_BYTES - 3, FRAME_BYTES, -1):
            service.start()
            with service.client() as client:
                assert conversation.send(client) == 200
                before = segment.stat().st_size
                assert conversation.send(client) == 200
                end = segment.stat().st_size
                limit = end + (part if part > 0 else end - before + part)
                limit_files(service, limit)
                assert conversation.send(client) is None
            assert service.wait() != 0
            assert segment.stat().st_size == limit
            check_promise(conversation, service.data_dir, NOWHERE, **SETTINGS)
        service.start()
        with service.client() as client:
            assert conversation.send(client) == 200
        assert service.terminate() == 0
        assert service.log.count("File too large") == service.log.count("cut a torn tail") == 3
        assert "Traceback" not in service.log
        check_promise(conversation, service.data_dir, NOWHERE, **SETTINGS)


def test_a_record_that_the_end_of_the_volume_cuts_short_is_cut_off_and_the_service_goes_on(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    conversation = Conversation(size=ENTRY_BYTES)
    # One segment fills the volume: it is the record that finds no room, not the segment.
    with (
        small_volume(data, FileSystemKind.TMPFS, 1, "wal") as volume,
        Service(data, NOWHERE, **SETTINGS) as service,
    ):
        trace(service, tmp_path / "trace")
        service.start()
        with service.client() as client:
            wait_for(lambda: conversation.send(client) == 507, "no room", interval_s=0)
            assert client.get("/readyz").status_code == 503
            enlarge(volume, 2)
            assert client.get("/readyz").status_code == 200
            assert set(conversation.send_all(client, 3)) == {200}
        assert service.terminate() == 0
        calls = read_trace(tmp_path / "trace")
        short, *_ = short_writes(calls)
        offset = int(short.arguments.rsplit(", ", 1)[1])
        later = [call for call in calls if call.began > short.began]
        cut = next(call for call in later if call.name == "ftruncate")
        assert cut.arguments.endswith(f", {offset}")
        assert next(call for call in later if call.name == "fdatasync").began > cut.ended
        assert "Traceback" not in service.log
        check_promise(conversation, service.data_dir, NOWHERE, **SETTINGS)
