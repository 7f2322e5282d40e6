"""What the service keeps is its user's alone, and what is not is not served."""

import os
import shutil
import stat

from tests.integration.conftest import MakeService
from tests.support.file_modes import assert_owners_alone
from tests.support.http_entries import accepted, flush, json_entry, post


def test_everything_is_made_for_the_owner_alone_whatever_the_umask_and_refused_when_it_is_not(
    make_service: MakeService,
) -> None:
    umask = os.umask(0)
    try:
        service = make_service(BLOCK_COMMANDS="*", WAL_SEGMENT_BYTES=64 * 1024).start()
    finally:
        os.umask(umask)
    with service.client() as client:
        for _ in range(4):
            entries = [
                json_entry(command_type="Tick", command_data="AYCA" * 1000) for _ in range(9)
            ]
            accepted(post(client, *entries))
        flush(client)
    # The store writes its tables when it closes, with a library of its own.
    assert service.terminate() == 0
    assert {path.name for path in service.data_dir.iterdir()} == {
        "wal",
        "commitments",
        "checkpoint.json",
        "reserve",
    }
    assert_owners_alone(service.data_dir)

    segment = next((service.data_dir / "wal").glob("*.wal"))
    segment.chmod(0o640)
    status, log = service.start_refused()
    assert status != 0
    assert f"{segment} has the mode 0640" in log
    assert "Traceback" not in log
    assert stat.S_IMODE(segment.stat().st_mode) == 0o640


def test_commands_that_make_a_store_make_it_for_the_owner_alone(make_service: MakeService) -> None:
    """RocksDB, which makes its files, knows of no mode but the umask, which is the usual one."""
    service = make_service(BLOCK_COMMANDS="*").start()
    with service.client() as client:
        accepted(post(client, json_entry(command_type="Tick")))
        flush(client)
    assert service.terminate() == 0
    for command in (["commitments", "rebuild"], ["adopt", "--yes"]):
        if command[0] == "adopt":
            shutil.rmtree(service.data_dir)
        done = service.command(*command)
        assert done.returncode == 0, done.stderr
        assert_owners_alone(service.data_dir)
        assert list((service.data_dir / "commitments").glob("*.sst"))
