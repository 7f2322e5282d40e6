"""What the guard says of those it refuses: nothing from which their secret could be learned."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.access import Access
from app.api.problems import HttpProblem
from app.api.security import Guard
from app.tokens import PREFIX, Scope, digest_of, id_of
from tests.support.bearer_tokens import TokensFile

# What the identifier of a token looks like.
_ID = re.compile(r"\b[0-9a-f]{12}\b")


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    """A new one for each case: a log of refusals says each reason once in a while only."""
    access = Access(TokensFile(tmp_path / "tokens.json").path)
    access.load()
    return Guard(access)


def refuse(guard: Guard, authorization: bytes) -> HttpProblem:
    scope: dict[str, Any] = {"method": "GET", "path": "/checkpoint", "client": ("192.0.2.1", 1)}
    with pytest.raises(HttpProblem) as refused:
        guard.admit(scope, authorization, Scope.READ)
    assert refused.value.status == 401
    return refused.value


@pytest.mark.parametrize(
    "sent",
    [b"hunter2", b"journal", PREFIX.encode()[:-1], b"x" + PREFIX.encode() + b"A" * 43, b"\xff"],
)
def test_of_what_is_no_token_not_even_a_hash_is_told(
    guard: Guard, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    caplog.clear()
    problem = refuse(guard, b"Bearer " + sent)
    (record,) = caplog.records
    said = record.getMessage()
    assert "something that is no token" in said
    assert digest_of(sent)[:6] not in said + str(problem)
    assert not _ID.search(said)


def test_a_token_that_is_not_known_is_named_by_its_id_alone(
    guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    sent = PREFIX.encode() + b"A" * 43
    problem = refuse(guard, b"Bearer " + sent)
    (record,) = caplog.records
    assert f"token {id_of(digest_of(sent))}" in record.getMessage()
    assert b"A" * 43 not in (record.getMessage() + str(problem)).encode()


@pytest.mark.parametrize("authorization", [b"", b"Bearer", b"Bearer  ", b"Basic aHVudGVyMg=="])
def test_who_shows_no_token_is_nobody(
    guard: Guard, caplog: pytest.LogCaptureFixture, authorization: bytes
) -> None:
    caplog.clear()
    refuse(guard, authorization)
    (record,) = caplog.records
    assert "by nobody, from 192.0.2.1" in record.getMessage()
    assert not _ID.search(record.getMessage())


def is_let_in(guard: Guard, client: tuple[str, int] | None, host: bytes | None = None) -> bool:
    headers = [] if host is None else [(b"accept", b"*/*"), (b"host", host)]
    scope = {"method": "POST", "path": "/entries", "client": client, "headers": headers}
    try:
        guard.admit(scope, b"", Scope.WRITE)
    except HttpProblem as refused:
        if (refused.status, refused.reason) != (403, "not_local"):
            raise
        return guard.trusts(scope, b"")
    return guard.trusts(scope, b"")


@pytest.mark.parametrize(
    "client", [("127.0.0.1", 1), ("127.9.9.9", 1), ("::1", 1), ("::ffff:127.0.0.1", 1), None]
)
def test_without_tokens_this_machine_is_let_in(client: tuple[str, int] | None) -> None:
    assert is_let_in(Guard(Access(None)), client)


@pytest.mark.parametrize("host", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "testclient"])
def test_without_tokens_other_machines_are_let_in_only_where_everybody_is(host: str) -> None:
    """Whatever address the server listens on, which may not be the service's own."""
    assert not is_let_in(Guard(Access(None)), (host, 1))
    assert is_let_in(Guard(Access(None, allow_anonymous=True)), (host, 1))


LOOPBACK = ("127.0.0.1", 1)


@pytest.mark.parametrize(
    "host",
    [
        b"", b"localhost", b"localhost:8000", b"LOCALHOST.:8000", b"127.0.0.1", b"127.0.0.1:8000",
        b"[::1]:8000", b"[::1]", b"journal:8000", b"a.localhost",
    ],
)  # fmt: skip
def test_without_tokens_the_service_may_be_called_by_what_nobody_else_can_own(host: bytes) -> None:
    assert is_let_in(Guard(Access(None)), LOOPBACK, host)


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"EVIL.EXAMPLE.:8000",
        b"127.0.0.1.evil.example",
        b"localhost.evil",
        b"1.2:3",
    ],
)
def test_without_tokens_a_name_that_others_point_to_this_machine_is_refused(host: bytes) -> None:
    """A page of that name, open in a browser here, would write and read."""
    assert not is_let_in(Guard(Access(None)), LOOPBACK, host)
    assert is_let_in(Guard(Access(None, allow_anonymous=True)), LOOPBACK, host)
