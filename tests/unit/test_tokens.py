"""`journal tokens` and its file: a token is shown once, and the file is its owner's alone."""

import json
import re
from base64 import urlsafe_b64decode
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli import main
from app.errors import SettingsError
from app.tokens import MAX_FILE_BYTES, PREFIX, Scope, id_of, read_tokens
from tests.support.bearer_tokens import NAME, TokensFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def run(path: Path, command: str, *arguments: str) -> Result:
    environ = {NAME: str(path)}
    return CliRunner(env=environ).invoke(main, ["tokens", command, *arguments])


def new(path: Path, *arguments: str) -> str:
    """Make a token; what stands on standard output is the token alone."""
    result = run(path, "new", *arguments)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"journal_[A-Za-z0-9_-]{43}\n", result.stdout)
    return result.stdout.strip()


def held(path: Path) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = json.loads(path.read_bytes())["tokens"]
    return tokens


def test_a_token_is_256_random_bits_and_the_file_holds_their_hash_alone(path: Path) -> None:
    tokens = [new(path, f"engine-{number}", "--scope", "write") for number in range(5)]
    bits = {urlsafe_b64decode(token.removeprefix(PREFIX) + "=") for token in tokens}
    assert [len(each) for each in bits] == [32] * 5
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [each["sha256"] for each in held(path)] == [
        sha256(token.encode()).hexdigest() for token in tokens
    ]
    content = path.read_text()
    for token in tokens:
        assert token.removeprefix(PREFIX) not in content


def test_list_shows_everything_but_the_tokens(path: Path) -> None:
    token = new(path, "engine", "--scope", "write", "--entries-per-s", "500")
    new(path, "grafana", "--scope", "read", "--expires-days", "30")
    result = run(path, "list")
    header, engine, grafana = result.stdout.splitlines()
    assert header.split() == ["name", "token", "scopes", "created", "expires", "entries/s"]
    assert engine.split()[:3] == ["engine", sha256(token.encode()).hexdigest()[:12], "write"]
    assert engine.split()[-2:] == ["never", "500"]
    assert grafana.split()[0] == "grafana"
    assert "never" not in grafana
    assert token not in result.output


def test_a_rotation_lets_the_old_token_overlap_and_keeps_scopes_and_quota(path: Path) -> None:
    new(path, "engine", "--scope", "write", "--scope", "read", "--entries-per-s", "7")
    refused = run(path, "new", "engine", "--scope", "write")
    assert refused.exit_code == 2
    assert "--overlap-hours" in refused.stderr
    new(path, "engine", "--overlap-hours", "24")
    old, young = read_tokens(NAME, path)
    assert old.expires is not None
    assert (old.expires - young.created).total_seconds() == 24 * 3600
    assert young.expires is None
    assert (young.scopes, young.entries_per_s) == ([Scope.WRITE, Scope.READ], 7)
    # A rotation never makes a token last longer.
    new(path, "engine", "--overlap-hours", "48")
    assert read_tokens(NAME, path)[0] == old


def test_a_new_token_removes_those_that_expired_long_ago(path: Path) -> None:
    file, day_s = TokensFile(path), 24 * 3600
    file.add("long-ago", Scope.READ, expires_in_s=-30 * day_s - 3600)
    file.add("of-late", Scope.READ, expires_in_s=-30 * day_s + 3600)
    file.add("soon", Scope.READ, expires_in_s=day_s)
    file.add("never", Scope.READ)
    new(path, "engine", "--scope", "write")
    assert [token["name"] for token in held(path)] == ["of-late", "soon", "never", "engine"]


def test_revoking_takes_a_name_or_one_token_of_it(path: Path) -> None:
    new(path, "engine", "--scope", "write")
    new(path, "engine", "--overlap-hours", "24")
    new(path, "prometheus", "--scope", "read")
    first, second, other = (token["sha256"] for token in held(path))
    assert run(path, "revoke", first[:12]).exit_code == 0
    assert [token["sha256"] for token in held(path)] == [second, other]
    assert run(path, "revoke", "engine").exit_code == 0
    assert [token["sha256"] for token in held(path)] == [other]
    result = run(path, "revoke", "engine")
    assert result.exit_code == 2
    assert "'engine'" in result.stderr
    assert path.stat().st_mode & 0o7777 == 0o600


def test_no_change_gets_lost_when_several_are_made_at_once(path: Path) -> None:
    TokensFile(path)
    names = {f"engine-{number}" for number in range(20)}

    def make(name: str) -> None:
        main.main(
            ["tokens", "new", name, "--scope", "write", "--tokens-file", str(path)],
            standalone_mode=False,
        )

    with ThreadPoolExecutor(len(names)) as executor:
        list(executor.map(make, names))
    assert {token["name"] for token in held(path)} == names


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("trading engine", id="space"),
        pytest.param("alice@example.com", id="at-sign"),
        pytest.param("ops/prom", id="slash"),
        pytest.param("ключ", id="cyrillic"),
        pytest.param("engine\n", id="line-break"),
        pytest.param(".engine", id="dot-first"),
        pytest.param("e" * 65, id="too-long"),
    ],
)
def test_a_name_that_the_file_may_not_hold_is_refused_before_it_is_written(
    path: Path, name: str
) -> None:
    new(path, "e" * 64, "--scope", "read")
    before = path.read_bytes()
    result = run(path, "new", "--scope", "write", "--", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"journal: NAME={name!r}: 1 to 64 of A-Z")
    assert result.stderr.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("days", ["1e7", "1e300", "inf", "nan", "-1", "0"])
def test_an_expiry_that_no_calendar_has_is_refused(path: Path, days: str) -> None:
    result = run(path, "new", "engine", "--scope", "write", "--expires-days", days)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value for '--expires-days': " in result.stderr
    assert not path.exists()


@pytest.mark.parametrize("hours", ["1e7", "1e300", "inf", "nan", "-1"])
def test_an_overlap_that_no_calendar_has_is_refused(path: Path, hours: str) -> None:
    new(path, "engine", "--scope", "write")
    before = path.read_bytes()
    result = run(path, "new", "engine", "--overlap-hours", hours)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value for '--overlap-hours': " in result.stderr
    assert path.read_bytes() == before


def test_a_file_that_would_be_too_large_to_read_again_is_not_written(path: Path) -> None:
    each = len(json.dumps(GOOD, separators=(",", ":"))) + 1
    digests = [f"{number:012x}{0:052x}" for number in range(MAX_FILE_BYTES // each)]
    tokens = [GOOD | {"sha256": digest} for digest in digests]
    path.write_text(json.dumps({"tokens": tokens}, separators=(",", ":")))
    path.chmod(0o600)
    before = path.read_bytes()
    result = run(path, "new", "engine", "--scope", "write")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"journal: {NAME}='{path}': would have ")
    assert f"{MAX_FILE_BYTES} are allowed" in result.stderr
    assert result.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert run(path, "revoke", id_of(digests[-1])).exit_code == 0
    assert len(read_tokens(NAME, path)) == len(digests) - 1


GOOD = {"name": "a", "sha256": "0" * 64, "scopes": ["read"], "created": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "no tokens file"),
        (b"\xff", "no tokens file"),
        (b"[]", "Expected `object`"),
        ({}, "missing required field `tokens`"),
        ({"tokens": [], "more": 1}, "unknown field `more`"),
        ({"tokens": [GOOD | {"sha256": "0" * 63}]}, r"tokens[0].sha256"),
        ({"tokens": [GOOD | {"sha256": "G" * 64}]}, r"tokens[0].sha256"),
        ({"tokens": [GOOD | {"scopes": []}]}, r"tokens[0].scopes"),
        ({"tokens": [GOOD | {"scopes": ["all"]}]}, r"tokens[0].scopes"),
        ({"tokens": [GOOD | {"name": "a\nb"}]}, r"tokens[0].name"),
        ({"tokens": [GOOD | {"name": ""}]}, r"tokens[0].name"),
        ({"tokens": [GOOD | {"entries_per_s": 0}]}, r"tokens[0].entries_per_s"),
        ({"tokens": [GOOD | {"expires": "2027-01-01T00:00:00"}]}, r"tokens[0].expires"),
        ({"tokens": [GOOD | {"scope": "read"}]}, "unknown field `scope`"),
        ({"tokens": [GOOD, GOOD | {"name": "b"}]}, "token 000000000000 twice"),
    ],
)
def test_a_file_that_is_not_right_is_refused_whole(path: Path, content: Any, fault: str) -> None:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(0o600)
    with pytest.raises(SettingsError, match=re.escape(fault)) as caught:
        read_tokens(NAME, path)
    assert str(caught.value).startswith(f"{NAME}='{path}': ")
    # Nor does the command line go over it.
    before = path.read_bytes()
    assert run(path, "new", "c", "--scope", "read").exit_code == 2
    assert path.read_bytes() == before


def test_a_file_that_others_may_change_is_refused(path: Path) -> None:
    TokensFile(path)
    path.chmod(0o660)
    result = run(path, "list")
    assert result.exit_code == 2
    assert "0660" in result.stderr
    path.chmod(0o600)
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))
    assert "symbolic link" in run(path, "new", "a", "--scope", "read").stderr


def test_without_a_file_or_a_scope_it_says_what_is_missing(path: Path) -> None:
    result = CliRunner().invoke(main, ["tokens", "list"])
    assert result.exit_code == 2
    assert NAME in result.stderr
    result = run(path, "new", "engine")
    assert result.exit_code == 2
    assert "--scope" in result.stderr
    assert not path.exists()
    assert "directory" in run(path / "x" / "y", "new", "engine", "--scope", "read").stderr
