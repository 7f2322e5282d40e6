"""Which files and directories the service takes for its own."""

import os
from pathlib import Path

import pytest

from app.errors import StartRefused
from app.service.ownership import check_ownership
from app.settings import Settings

NOBODY = 65534
FILES = (
    "checkpoint.json",
    "reserve",
    "wal/lock",
    "wal/0.wal",
    "wal/0.wal.8.torn",
    "commitments/CURRENT",
    "commitments/000004.log",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data directory as the service makes it."""
    settings = Settings(data_dir=tmp_path / "data")
    for directory in (settings.data_dir, settings.wal_dir, settings.commitments_dir):
        directory.mkdir(mode=0o700)
    for name in FILES:
        (settings.data_dir / name).touch(mode=0o600)
    return settings


def test_what_the_service_makes_is_right_and_so_is_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    check_ownership(settings)
    check_ownership(Settings(data_dir=tmp_path / "new"))
    # As root runs the embedded PostgreSQL.
    settings.data_dir.chmod(0o711)
    check_ownership(settings)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("", mode) for mode in (0o755, 0o750, 0o740, 0o702, 0o777)),
        *(("wal", mode) for mode in (0o755, 0o711, 0o770)),
        *(("commitments", mode) for mode in (0o755, 0o710)),
        *((name, mode) for name in FILES for mode in (0o644, 0o620, 0o602)),
    ],
)
def test_what_others_may_read_or_write_is_refused_with_what_to_do(
    settings: Settings, name: str, mode: int
) -> None:
    path = settings.data_dir / name
    path.chmod(mode)
    with pytest.raises(StartRefused) as caught:
        check_ownership(settings)
    assert str(caught.value).startswith(f"{path} has the mode {mode:04o}; ")
    assert str(caught.value).endswith(f"`chmod go= {path}`")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("name", ["", "wal", "commitments", *FILES])
def test_what_belongs_to_another_user_is_refused(settings: Settings, name: str) -> None:
    path = settings.data_dir / name
    os.chown(path, NOBODY, -1)
    with pytest.raises(StartRefused, match=f"^{path} belongs to the user {NOBODY}"):
        check_ownership(settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_what_a_volume_has_at_its_root_is_not_looked_at(settings: Settings) -> None:
    for directory in (settings.wal_dir, settings.commitments_dir):
        found = directory / "lost+found"
        found.mkdir(mode=0o755)
        os.chown(found, NOBODY, -1)
    check_ownership(settings)
