"""The commitment store lost, in part or as a whole, or at another place than the log."""

import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from tests.support.http_entries import accepted, flush, json_entry, post
from tests.support.service import Service
from tests.support.verification import (
    served_blocks,
    verification,
    write_cold_key,
)
from tests.support.wal_files import snapshot

NOWHERE = "postgresql://postgres@127.0.0.1:1/postgres"
SEGMENT_BYTES = 64 * 1024


def tick() -> dict[str, Any]:
    event = {"event_topic": "ticks", "event_type": "Tick", "event_data": "AQI="}
    return json_entry(command_type="TickSnapshot", events=[event])


@dataclass
class Chain:
    """What a service serves of its blocks."""

    blocks: list[dict[str, Any]]
    authorities: Any
    proofs: list[Any]


def served(service: Service, uuids: list[str]) -> Chain:
    with service.client() as client:
        return Chain(
            served_blocks(client),
            client.get("/authorities").json(),
            [client.get(f"/proofs/inclusion?request_uuid={uuid}").json() for uuid in uuids],
        )


class Kept:
    """The data of a killed service, as it was before its last block and behind it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.key = write_cold_key(directory)
        self.before, self.after = directory / "before", directory / "after"
        self.uuids: list[str] = []
        with self.service(directory / "data") as service:
            for count, kept in ((4, self.before), (1, self.after)):
                service.start()
                with service.client() as client:
                    for _ in range(count):
                        sent = tick()
                        accepted(post(client, json_entry(), sent))
                        self.uuids.append(sent["request_uuid"])
                self.chain = served(service, self.uuids)
                service.kill()
                shutil.copytree(service.data_dir, kept)

    def service(self, data_dir: Path) -> Service:
        """A service on these data; nothing but them says how far the log was durable."""
        return Service(
            data_dir,
            NOWHERE,
            ALLOW_NEW_WAL="true",
            COLD_KEY_FILE=self.key,
            WAL_SEGMENT_BYTES=SEGMENT_BYTES,
        )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def service(kept: Kept, tmp_path: Path) -> Iterator[Service]:
    """A service that is to be started on a copy."""
    shutil.copytree(kept.after, tmp_path / "data")
    with kept.service(tmp_path / "data") as service:
        yield service


def delete(store: Path, kept: Kept) -> None:
    shutil.rmtree(store)


def let_fall_behind(store: Path, kept: Kept) -> None:
    shutil.rmtree(store)
    shutil.copytree(kept.before / "commitments", store)


@pytest.mark.parametrize("lose", [delete, let_fall_behind])
def test_what_the_store_lacks_is_derived_from_the_log(
    service: Service, kept: Kept, lose: Callable[[Path, Kept], None]
) -> None:
    lose(service.data_dir / "commitments", kept)
    service.start()
    assert served(service, kept.uuids) == kept.chain
    assert "up to block 4" in service.log
    with service.client() as client:
        assert accepted(post(client, tick()))["block_height"] == 5
    assert verification(service.url)["status"] == 0


@pytest.mark.parametrize("attempt", range(2))
def test_half_a_store_is_no_other_chain(
    service: Service, kept: Kept, rng: Random, attempt: int
) -> None:
    """Either what is missing is derived again, or the start is refused and says what helps."""
    store = service.data_dir / "commitments"
    files = sorted(store.iterdir())
    lost = list(store.glob("*.log")) if attempt == 0 else rng.sample(files, len(files) // 2)
    for file in lost:
        file.unlink()
    if service.starts():
        assert served(service, kept.uuids) == kept.chain
        return
    assert service.wait() == 1
    assert "`journal commitments rebuild`" in service.log
    assert "Traceback" not in service.log


def test_a_store_ahead_of_the_log_refuses_the_start(service: Service, kept: Kept) -> None:
    """One record that was acknowledged is missing: going on would fork the chain."""
    wal = service.data_dir / "wal"
    shutil.rmtree(wal)
    shutil.copytree(kept.before / "wal", wal)
    before = snapshot(wal)
    status, log = service.start_refused()
    assert status == 1
    assert "the commitment store" in log
    assert "Traceback" not in log
    assert snapshot(wal) == before


@contextmanager
def given_back(directory: Path, database_url: str) -> Iterator[tuple[Service, str]]:
    """A service that has stopped; its log was given back, with its only block."""
    data = b64encode(b"\x01" * 60_000).decode()
    with Service(
        directory / "data",
        database_url,
        COLD_KEY_FILE=write_cold_key(directory),
        WAL_SEGMENT_BYTES=SEGMENT_BYTES,
        DEDUP_WINDOW=1,
    ) as service:
        service.start()
        with service.client() as client:
            block = tick()
            accepted(post(client, block))
            while (service.data_dir / "wal" / f"{0:020}.wal").exists():
                for _ in range(20):
                    accepted(post(client, json_entry(command_data=data)))
                flush(client)
        yield service, block["request_uuid"]


def test_a_store_that_only_postgres_can_replace_is_rebuilt_from_it(
    tmp_path: Path, database_url: str
) -> None:
    with given_back(tmp_path, database_url) as (service, uuid):
        before = served(service, [uuid])
        assert service.terminate() == 0
        shutil.rmtree(service.data_dir / "commitments")
        # With Postgres away nothing says that there was a block: height 0 is not given again.
        for settings in ({}, {"DATABASE_URL": NOWHERE}):
            status, log = service.start_refused(**settings)
            assert status == 1, log
            assert "`journal commitments rebuild`" in log
            assert "Traceback" not in log
        done = service.command("commitments", "rebuild")
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 blocks, each equal to its header" in done.stdout
        service.start()
        assert served(service, [uuid]) == before
        with service.client() as client:
            assert accepted(post(client, tick()))["block_height"] == 1
            flush(client)
        assert service.terminate() == 0

        shutil.rmtree(service.data_dir)
        done = service.command("adopt", "--yes")
        assert done.returncode == 0, done.stderr
        assert "2 blocks were rebuilt" in done.stdout
        service.start()
        with service.client() as client:
            assert served_blocks(client)[0] == before.blocks[0]
            assert accepted(post(client, tick()))["block_height"] == 2
            flush(client)
        for source in (service.url, database_url):
            assert verification(source)["checked"]["blocks"] == 3
