"""Any damage at all to a WAL ends in a row of the decision table (protocol, section 5)."""

import tempfile
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from hypothesis import given, note, settings
from hypothesis import strategies as st

from app.errors import CorruptionError, StartRefused
from app.replication.rows import Progress
from app.settings import WalTail
from tests.support.wal_files import (
    Record,
    WrittenWal,
    make_settings,
    open_wal,
    progress_at,
    read_commands,
    snapshot,
    write_wal,
)

SEGMENTS = [[1, 3], [2, 1, 2], [1, 2, 1]]


@dataclass(frozen=True)
class Damage:
    """One way to harm a file: where (as a share of its size), how much, and with what."""

    kind: str
    at: float
    length: int
    data: bytes

    def apply(self, content: bytes) -> bytes:
        at = min(int(self.at * len(content)), max(len(content) - 1, 0))
        end = at + self.length
        if not content:
            return self.data
        match self.kind:
            case "flip":
                return content[:at] + bytes([content[at] ^ (self.data[0] or 1)]) + content[at + 1 :]
            case "zero":
                return content[:at] + bytes(len(content[at:end])) + content[end:]
            case "overwrite":
                return content[:at] + self.data + content[at + len(self.data) :]
            case "truncate":
                return content[:at]
            case "append":
                return content + self.data
            case "delete":
                return content[:at] + content[end:]
            case _:
                return content[:end] + content[at:end] + content[end:]


KINDS = ["flip", "zero", "overwrite", "truncate", "append", "delete", "duplicate"]
damages = st.builds(
    Damage,
    kind=st.sampled_from(KINDS),
    at=st.floats(0, 1),
    length=st.integers(1, 400),
    data=st.binary(min_size=1, max_size=40),
)


@given(
    harms=st.lists(st.tuples(st.sampled_from([0, 1, 2, 2]), damages), min_size=1, max_size=2),
    evidence=st.sampled_from([None, 0, 2, 5, 7, 8]),
    progress=st.sampled_from([None, 3, 8]),
    tail=st.sampled_from(list(WalTail)),
)
@settings(max_examples=200)
def test_any_damage_ends_in_a_row_of_the_decision_table(
    harms: list[tuple[int, Damage]],
    evidence: int | None,
    progress: int | None,
    tail: WalTail,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        wal = write_wal(make_settings(Path(directory), wal_tail=tail), SEGMENTS)
        offsets = [0, *(record.end for record in wal.records)]
        if evidence is not None:
            wal.checkpoint(offsets[evidence])
        for index, harm in harms:
            path = wal.genesis[index].path
            path.write_bytes(harm.apply(path.read_bytes()))
        row = progress_at(offsets[progress], progress) if progress is not None else None
        known = max(offsets[evidence or 0], offsets[progress or 0])
        check(wal, known, row)


def check(wal: WrittenWal, evidence: int, progress: Progress | None) -> None:
    """Open the log; it is refused untouched, or nothing that must be there is missing."""
    before = snapshot(wal.settings.data_dir)
    intact = list(takewhile(lambda record: is_intact(record, before), wal.records))
    try:
        opened = open_wal(wal.settings, progress, reachable=progress is not None)
    except (CorruptionError, StartRefused) as error:
        refusal = str(error)
    else:
        refusal = ""
        opened.log.close()
    if refusal:
        note(refusal)
        assert snapshot(wal.settings.data_dir) == before
        assert ".wal: offset " in refusal or "the beginning of the log" in refusal
        return
    kept = [entry.request_uuid for record in intact for entry in record.entries]
    assert read_commands(wal.settings.wal_dir) == dict(enumerate(kept, 1))
    assert opened.next_command_id > len(kept)
    assert all(record in intact for record in wal.records if record.end <= evidence)
    # Whatever was cut: no whole record lay behind the first that is not.
    assert not any(is_intact(record, before) for record in wal.records[len(intact) :])
    assert all(is_kept_or_aside(wal.settings.data_dir / name, before[name]) for name in before)
    after = snapshot(wal.settings.data_dir)
    open_wal(wal.settings, progress, reachable=progress is not None).log.close()
    assert snapshot(wal.settings.data_dir) == after


def is_intact(record: Record, contents: dict[str, bytes]) -> bool:
    content = contents[f"wal/{record.path.name}"]
    return content[record.at : record.at + record.size] == record.data


def is_kept_or_aside(path: Path, data: bytes) -> bool:
    """Whether every byte that was in a file still is in it, or in a copy beside it."""
    kept = path.read_bytes() if path.exists() else b""
    aside = b"".join(copy.read_bytes() for copy in path.parent.glob(f"{path.name}.*.torn"))
    return kept + aside == data
