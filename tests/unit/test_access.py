"""What the tokens in force allow, on a clock of the test's own."""

import logging
from pathlib import Path

import pytest

from app.access import Access, Quota, RefusalLog
from app.errors import SettingsError
from app.tokens import Scope
from tests.support.bearer_tokens import TokensFile


class Clock:
    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens.json")


def test_a_quota_lets_its_rate_through_over_time_whatever_the_sizes(clock: Clock) -> None:
    quota = Quota(100, clock)
    passed = 0
    for sizes in (1, 7, 100, 1000):
        for _ in range(10_000):
            clock.now_s += 0.01
            if not quota.wait_s():
                quota.take(sizes)
                passed += sizes
    # 400 s at 100 a second, one second saved up, and what the last request may owe.
    assert passed + 1000 >= 400 * 100
    assert passed <= 401 * 100 + 1000


def test_a_quota_saves_up_one_second_and_no_more(clock: Clock) -> None:
    quota = Quota(10, clock)
    for _ in range(3):
        clock.now_s += 3600
        for _ in range(10):
            assert quota.wait_s() == 0
            quota.take(1)
        # Nothing is owed yet: one more is let in, and then there is a wait.
        quota.take(1)
        assert quota.wait_s() == pytest.approx(0.1)


def test_a_request_larger_than_a_second_is_let_in_and_paid_off(clock: Clock) -> None:
    quota = Quota(10, clock)
    quota.take(1000)
    assert quota.wait_s() == pytest.approx(99)
    clock.now_s += 98.9
    assert quota.wait_s() == pytest.approx(0.1)
    clock.now_s += 0.1001
    assert quota.wait_s() == 0


def test_a_token_ends_at_its_expiry(tokens: TokensFile) -> None:
    token = tokens.add("engine", Scope.WRITE, expires_in_s=60)
    expires = next(iter(tokens.read())).expires_at_s
    clock = Clock(expires - 0.001)
    access = Access(tokens.path, clock)
    access.load()
    grant = access.find(token.encode())
    assert grant is not None
    assert not access.expired(grant)
    clock.now_s = expires
    assert access.expired(grant)


def test_admin_includes_the_others_which_include_nothing(tokens: TokensFile) -> None:
    access = Access(tokens.path)
    made = {scope: tokens.add(scope.value, scope) for scope in Scope}
    access.load()
    for scope, included in (
        (Scope.READ, {Scope.READ}),
        (Scope.WRITE, {Scope.WRITE}),
        (Scope.ADMIN, set(Scope)),
    ):
        grant = access.find(made[scope].encode())
        assert grant is not None
        assert grant.scopes == included


def test_two_tokens_of_one_holder_share_a_quota_which_a_reload_keeps(tokens: TokensFile) -> None:
    made = [tokens.add("engine", Scope.WRITE, entries_per_s=10) for _ in range(2)]
    made.append(tokens.add("other", Scope.WRITE, entries_per_s=10))
    access = Access(tokens.path)
    access.load()
    first, second, other = (access.find(token.encode()) for token in made)
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.quota is second.quota
    assert first.quota is not other.quota
    access.reload()
    again = access.find(made[1].encode())
    assert again is not None
    assert again.quota is first.quota


def test_a_reload_of_a_bad_file_keeps_what_is_in_force_and_a_first_load_raises(
    tokens: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    token = tokens.add("engine", Scope.WRITE).encode()
    access = Access(tokens.path)
    access.load()
    tokens.path.write_text("{")
    access.reload()
    assert access.find(token) is not None
    assert "stay in force" in caplog.text
    with pytest.raises(SettingsError):
        Access(tokens.path).load()


def test_without_a_file_nothing_is_enforced() -> None:
    access = Access(None)
    access.load()
    access.reload()
    assert not access.enforced


def test_a_reason_is_logged_now_and_then_with_the_number_of_those_left_out(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = RefusalLog(clock)
    for number in range(100):
        log.refused("token_invalid", f"request {number}")
    log.refused("scope_missing", "another reason has a line of its own")
    clock.now_s += 60
    log.refused("token_invalid", "request 100")
    assert [record.getMessage() for record in caplog.records] == [
        "token_invalid: request 0",
        "scope_missing: another reason has a line of its own",
        "token_invalid: request 100 (99 more since)",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
