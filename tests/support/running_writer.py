"""A WAL writer that runs on real files, and requests for it."""

from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

from app.model.codec import PreparedRequest, pack
from app.model.entry import Entry
from app.model.packing import pack_array
from app.settings import Settings
from app.wal.writer import Appended, Committed, Outcome, WalWriter
from tests.support.faulty_files import Call, WatchedFiles
from tests.support.foreign_wal import ForeignRecord, read_wal
from tests.support.journal_entries import make_entry
from tests.support.waiting import wait_for
from tests.support.wal_files import make_settings, open_wal

NO_LIMIT = 1 << 40


def request(*entries: Entry) -> PreparedRequest:
    keys = [entry.request_uuid.int for entry in entries]
    array = bytes(pack_array(len(entries), [pack(entries)]))
    return PreparedRequest(keys, memoryview(array), list(entries))


def fresh(count: int = 1) -> PreparedRequest:
    return request(*(make_entry() for _ in range(count)))


def entry(number: int, **fields: Any) -> Entry:
    return make_entry(request_uuid=UUID(int=number), **fields)


class Running:
    """A writer on a log of its own; `hold` keeps it from taking what is submitted meanwhile."""

    def __init__(self, settings: Settings, files: WatchedFiles, **limits: Any) -> None:
        self.settings = settings
        self.files = files
        self.passes: list[Committed] = []
        self.fatal: list[BaseException] = []
        self._arrived, self._released = Event(), Event()
        self._released.set()
        opened = open_wal(settings, files=files)
        files.calls.clear()
        self.writer: WalWriter[Any] = WalWriter(
            opened.log,
            opened.index,
            next_command_id=opened.next_command_id,
            **{
                "max_batch_entries": 1000,
                "max_batch_bytes": NO_LIMIT,
                "queue_entries": 1000,
                "queue_bytes": NO_LIMIT,
                **limits,
            },
            deliver=self._deliver,
            on_fatal=self.fatal.append,
        )
        self.writer.start()

    def append(self, *requests: PreparedRequest) -> list[Outcome]:
        """What becomes of requests that all wait when the writer takes the first of them."""
        answers = self.submit(*requests)
        wait_for(lambda: all(answers), "every request is answered")
        return [answer[0] for answer in answers]

    def submit(self, *requests: PreparedRequest) -> list[list[Outcome]]:
        """Submit requests while the writer is held; returns where their outcomes will be."""
        self.hold()
        answers: list[list[Outcome]] = [[] for _ in requests]
        for each, answer in zip(requests, answers, strict=True):
            self.writer.submit(each, answer.append)
        self.release()
        return answers

    def hold(self) -> None:
        self._arrived.clear()
        self._released.clear()
        self.writer.barrier(lambda _: None)
        assert self._arrived.wait(10)

    def release(self) -> None:
        self._released.set()

    def wait_fatal(self) -> BaseException:
        wait_for(lambda: self.fatal, "the writer gives up")
        return self.fatal[0]

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.settings.wal_dir.glob("*.wal"))

    def _deliver(self, committed: Committed) -> None:
        held = not self._released.is_set()
        self._arrived.set()
        assert self._released.wait(10)
        if not held:
            self.files.calls.append(Call("deliver", ""))
            self.passes.append(committed)
        for submission, outcome in committed.outcomes:
            submission.deliver(outcome)


def started(directory: Path, files: WatchedFiles, segment_bytes: int, **limits: int) -> Running:
    settings = make_settings(directory, allow_new_wal=True, wal_segment_bytes=segment_bytes)
    return Running(settings, files, **limits)


def appended(outcome: Outcome) -> Appended:
    assert isinstance(outcome, Appended), outcome
    return outcome


def batches(settings: Settings) -> list[ForeignRecord]:
    return [each for each in read_wal(settings.wal_dir) if each.content["kind"] == "batch"]
