"""What may befall the process: its files taken away, no descriptors, no memory."""

import shutil
import socket
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.support.http_entries import json_entry, post, refused
from tests.support.memory_cgroup import memory_cgroup
from tests.support.promise import Conversation, check_promise
from tests.support.service import Service
from tests.support.syscalls import holding, read_trace
from tests.support.waiting import wait_for

NOWHERE: Final = "postgresql:///postgres?host=/nowhere"
MIB: Final = 1 << 20
CROWD: Final = 12
SETTINGS: Final[dict[str, Any]] = {
    "ALLOW_NEW_WAL": "true",
    "WAL_SEGMENT_BYTES": 65536,
    "SHUTDOWN_TIMEOUT_S": 0,
}


def segments(service: Service) -> list[Path]:
    return sorted((service.data_dir / "wal").glob("*.wal"))


@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_an_older_segment_that_is_taken_away_before_it_was_replicated_ends_the_service(
    tmp_path: Path, how: str
) -> None:
    with Service(tmp_path / "data", NOWHERE, **SETTINGS) as service:
        service.start()
        conversation = Conversation(size=6000)
        with service.client() as client:
            while len(segments(service)) < 3:
                assert conversation.send(client) == 200
            oldest = segments(service)[0]
            copy = tmp_path / "copy"
            shutil.copyfile(oldest, copy)
            if how == "replaced":
                shutil.copyfile(copy, oldest.with_suffix(".other")).replace(oldest)
            else:
                oldest.unlink()
            before = len(segments(service))
            # It is noticed before the next segment begins, which has room for ten requests.
            assert None in conversation.send_all(client, 12)
            assert len(segments(service)) == before
        assert service.wait() != 0
        assert f"{oldest.name} was {how} under the running service" in service.log
        assert "Traceback" not in service.log
        shutil.copyfile(copy, oldest)
        check_promise(conversation, service.data_dir, NOWHERE, **SETTINGS)


def test_more_connections_than_descriptors_keep_nobody_from_journaling(tmp_path: Path) -> None:
    with Service(tmp_path / "data", NOWHERE, **SETTINGS) as service, ExitStack() as stack:
        service.wrapper = ("prlimit", "--nofile=256:256")
        service.start()
        conversation = Conversation(size=6000)
        client = stack.enter_context(service.client())
        assert conversation.send(client) == 200
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        assert set(conversation.send_all(client, 30)) == {200}
        assert len(segments(service)) > 3
        assert "Traceback" not in service.log
        service.kill()
        check_promise(conversation, service.data_dir, NOWHERE, **SETTINGS)


def test_a_process_without_any_descriptor_left_refuses_what_needs_one_until_it_has(
    tmp_path: Path,
) -> None:
    with Service(tmp_path / "data", NOWHERE, **SETTINGS) as service:
        service.start()
        conversation = Conversation(size=6000)
        with service.client() as client:
            assert conversation.send(client) == 200
            worker = psutil.Process(service.worker_pid)
            limits = worker.rlimit(psutil.RLIMIT_NOFILE)
            # Of the numbers below it none is ever free, whatever else is closed meanwhile.
            worker.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
            statuses = conversation.send_all(client, 15)
            assert set(statuses) == {200, 503}
            assert set(statuses[statuses.index(503) :]) == {503}
            large = json_entry(response_data=b64encode(bytes(60_000)).decode())
            problem = refused(post(client, large), 50301, retriable=True)
            assert "no file descriptors are left" in problem["detail"]
            assert str(tmp_path) not in problem["detail"]
            # What is left of the segment is enough.
            small = Conversation(entries=1, size=100)
            assert small.send(client) == 200
            worker.rlimit(psutil.RLIMIT_NOFILE, limits)
            assert set(conversation.send_all(client, 15)) == {200}
        assert len(segments(service)) > 2
        assert service.log.count("Too many open files") == 1
        assert "Traceback" not in service.log
        service.kill()
        check_promise(conversation, service.data_dir, NOWHERE, others=[small], **SETTINGS)


def test_a_process_that_is_killed_for_want_of_memory_in_mid_commit_keeps_the_promise(
    tmp_path: Path,
) -> None:
    settings = {**SETTINGS, "WAL_SYNC": "fdatasync"}
    with (
        memory_cgroup() as group,
        Service(tmp_path / "data", NOWHERE, **settings) as service,
        ThreadPoolExecutor(1 + CROWD, "clients") as executor,
    ):

        def send(conversation: Conversation) -> int | None:
            with service.client() as client:
                return conversation.send(client)

        service.start()
        first = Conversation(size=6000)
        assert send(first) == 200
        worker = psutil.Process(service.worker_pid)
        (segment,) = segments(service)
        end = segment.stat().st_size
        group.limit(24 * MIB)
        group.join(worker.pid)
        crowd = [Conversation(entries=4, size=1_000_000) for _ in range(CROWD)]
        with holding(worker.pid, tmp_path / "trace", "fdatasync"):
            committing = executor.submit(send, first)
            wait_for(lambda: segment.stat().st_size > end, "a record is written")
            # They wait for the writer, and need more memory than there is.
            waiting = [executor.submit(send, conversation) for conversation in crowd]
            wait_for(group.kills, "the kernel kills the process")
        assert service.wait() != 0
        assert group.kills() == 1
        assert {sent.result() for sent in (committing, *waiting)} == {None}
        syncs = [call for call in read_trace(tmp_path / "trace") if call.name == "fdatasync"]
        assert [(call.path, call.result) for call in syncs] == [(str(segment), -1)]
        assert segment.stat().st_size > end
        for each in (first, *crowd):
            others = [other for other in (first, *crowd) if other is not each]
            check_promise(each, service.data_dir, NOWHERE, others=others, **settings)
