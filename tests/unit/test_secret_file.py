"""Which files are believed to be secret, and that no error shows what is in them."""

import os
from pathlib import Path

import pytest

from app.errors import SettingsError
from app.keys import load_cold_key
from app.secret_file import Secret, check_private_key
from tests.support.cold_keys import (
    KEY,
    KEY_NAME,
    PASSWORD,
    PASSWORD_NAME,
    KeyFiles,
    assert_nothing_shown,
    keystore_text,
    refusal,
)

pytest.importorskip("coincurve", reason="coincurve has no wheel for this Python")


@pytest.fixture
def write(tmp_path: Path) -> KeyFiles:
    return KeyFiles(tmp_path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o611, 0o700, 0o4600, 0o1600])
@pytest.mark.parametrize("which", ["key", "keystore", "password"])
def test_a_file_of_another_mode_is_refused(write: KeyFiles, mode: int, which: str) -> None:
    modes = {name: mode if name == which else 0o600 for name in ("key", "keystore", "password")}
    if which == "key":
        text = refusal(write(KEY.hex().encode(), mode=modes["key"]))
    else:
        path = write(keystore_text().encode(), mode=modes["keystore"])
        text = refusal(path, write(PASSWORD, "password", modes["password"]))
        assert text.startswith(PASSWORD_NAME if which == "password" else KEY_NAME)
    assert f"has the mode {mode:04o}" in text


def test_a_symbolic_link_is_refused_wherever_it_leads(write: KeyFiles, tmp_path: Path) -> None:
    link = tmp_path / "link"
    for target in (write(KEY.hex().encode()), tmp_path / "nothing", tmp_path, link):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert "is a symbolic link" in refusal(link)
    keystore = write(keystore_text().encode())
    link.unlink()
    link.symlink_to(write(PASSWORD, "password"))
    assert "is a symbolic link" in refusal(keystore, link)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir(mode=0o700)
    # Nobody ever opens its other end.
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is a directory" in refusal(tmp_path / "directory")
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    assert "is not a regular file" in refusal(Path("/dev/null"))
    assert "No such file" in refusal(tmp_path / "nothing")
    assert "Not a directory" in refusal(Path("/dev/null/cold"))
    assert "not the name" in refusal(Path("\0"))


def test_a_file_of_another_user_is_refused(write: KeyFiles) -> None:
    path = Path("/etc/passwd")
    if os.geteuid() == 0:
        path = write(KEY.hex().encode())
        os.chown(path, 65534, 65534)
    assert f"belongs to the user {path.stat().st_uid}" in refusal(path)


def test_a_file_that_is_too_large_is_refused(write: KeyFiles) -> None:
    padding = b" " * (64 * 1024 - len(KEY.hex()))
    load_cold_key(write(KEY.hex().encode() + padding), None)
    assert "more than 65536 bytes" in refusal(write(KEY.hex().encode() + padding + b" "))
    keystore = write(keystore_text().encode())
    assert "can't be opened" in refusal(keystore, write(b"x" * 1024, "password"))
    assert "more than 1024 bytes" in refusal(keystore, write(b"x" * 1025, "password"))


@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize(
    ("owner", "mode", "fault"),
    [
        ("ours", 0o600, None),
        ("ours", 0o400, None),
        ("ours", 0o640, "has the mode 0640"),
        ("ours", 0o604, "has the mode 0604"),
        ("root's", 0o640, None),
        ("root's", 0o660, "has the mode 0660"),
        ("root's", 0o644, "has the mode 0644"),
        ("another's", 0o600, "belongs to the user"),
    ],
)
def test_a_private_key_is_refused_where_others_could_read_or_change_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_link: bool,
    owner: str,
    mode: int,
    fault: str | None,
) -> None:
    """One that the TLS library opens: a link is followed, and root's may be for our group."""
    key = tmp_path / "tls.key"
    key.touch()
    key.chmod(mode)
    if os.geteuid() == 0:
        if owner != "root's":
            os.chown(key, 65534, 65534)
        monkeypatch.setattr(os, "geteuid", lambda: 65533 if owner == "another's" else 65534)
    elif owner != "ours":
        pytest.skip("only root can give a file to somebody else")
    path = tmp_path / "link" if by_link else key
    if by_link:
        path.symlink_to(key)
    if fault is None:
        check_private_key("JOURNAL_TLS_KEY", path)
    else:
        with pytest.raises(SettingsError, match=f"^JOURNAL_TLS_KEY='{path}': {fault}"):
            check_private_key("JOURNAL_TLS_KEY", path)


@pytest.mark.parametrize("text", [KEY.hex(), f"0x{KEY.hex().upper()}"])
def test_a_key_in_place_of_its_path_is_not_shown(text: str) -> None:
    with pytest.raises(SettingsError, match="a key, not a path") as caught:
        load_cold_key(Path(text), None)
    assert_nothing_shown(str(caught.value))


def test_a_secret_shows_nothing() -> None:
    assert_nothing_shown(f"{Secret(KEY)!r} {Secret(KEY)} {[Secret(PASSWORD)]}")
    with pytest.raises(TypeError, match="not copied"):
        Secret(KEY).__reduce__()
