"""Which URIs reach the driver, and which errors are about content."""

from typing import Any

import asyncpg
import pytest

from app.errors import DatabaseUnavailable, ReplicationRefused
from app.replication.connection import (
    SINK_LIMITS,
    advisory_key,
    connect_options,
    is_content_error,
    open_connection,
    sqlstate_of,
    translated,
)


def postgres_error(sqlstate: str, **fields: str) -> Exception:
    """An error as the driver builds it from the server's message."""
    message = {"C": sqlstate, "M": "message", "S": "ERROR", "V": "ERROR"} | fields
    error: Exception = asyncpg.PostgresError.new(message)
    return error


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql://u:p@h/d?sslmode=require"),
        ("postgresql:///d?host=/run/pg&port=5433", "postgresql:///d?host=%2Frun%2Fpg&port=5433"),
        ("postgresql://h/d?channel_binding=require&sslmode=require", "postgresql://h/d?sslmode=require"),
        ("postgresql://h/d?keepalives=1&keepalives_idle=5", "postgresql://h/d"),
        ("postgresql://a:1,b:2/d?target_session_attrs=any", "postgresql://a:1,b:2/d?target_session_attrs=any"),
        ("postgresql://u:p%3Fq%23@h/d?gssencmode=disable", "postgresql://u:p%3Fq%23@h/d"),
    ],
)  # fmt: skip
def test_parameters_that_only_libpq_knows_are_left_out(uri: str, expected: str) -> None:
    assert connect_options(uri, "test", SINK_LIMITS)["dsn"] == expected


@pytest.mark.parametrize(
    ("asked", "expected"), [("", 10), ("?connect_timeout=3", 3), ("?connect_timeout=0", 10)]
)
def test_connect_timeout_of_the_uri_counts(asked: str, expected: float) -> None:
    assert connect_options(f"postgresql://h/d{asked}", "test", SINK_LIMITS)["timeout"] == expected


def test_sessions_commit_synchronously_and_never_wait_without_end() -> None:
    options = connect_options("postgresql://h/d", "test", SINK_LIMITS)
    settings: dict[str, Any] = options["server_settings"]
    assert settings["synchronous_commit"] == "on"
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        assert int(settings[name]) > 0
    assert options["command_timeout"] * 1000 > int(settings["statement_timeout"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (postgres_error("22021"), True),
        (postgres_error("23514"), True),
        (postgres_error("54000"), True),
        (postgres_error("23505", n="engine_events_pkey"), True),
        (postgres_error("23505", n="engine_commands_pkey"), False),
        (postgres_error("40001"), False),
        (postgres_error("40P01"), False),
        (postgres_error("53100"), False),
        (postgres_error("55P03"), False),
        (postgres_error("57P01"), False),
        (postgres_error("57014"), False),
        (asyncpg.InterfaceError("connection is closed"), False),
        (TimeoutError(), False),
        (ConnectionResetError(), False),
        (OverflowError("value out of int64 range"), True),
        (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"), True),
        (ReplicationRefused("x"), False),
    ],
    ids=repr,
)
def test_errors_about_content_are_told_from_the_rest(error: Exception, expected: bool) -> None:
    assert is_content_error(error) is expected


@pytest.mark.parametrize(
    "error",
    [
        postgres_error("57P01"),
        postgres_error("25006"),
        asyncpg.InterfaceError("connection is closed"),
        ConnectionResetError("gone"),
        TimeoutError(),
    ],
    ids=repr,
)
def test_the_rest_is_unavailable_and_names_its_cause(error: Exception) -> None:
    with (
        pytest.raises(DatabaseUnavailable, match=f"replicating: {type(error).__name__}"),
        translated("replicating"),
    ):
        raise error


def test_a_command_id_that_is_taken_is_a_contradiction() -> None:
    with pytest.raises(ReplicationRefused), translated("replicating"):
        raise postgres_error("23505", n="engine_commands_pkey")


@pytest.mark.parametrize(
    "uri", ["postgresql://h:nonsense/d", "postgresql://h/d?sslmode=never", "http://h/d"]
)
async def test_a_uri_that_can_not_be_used_is_reported_without_its_password(uri: str) -> None:
    secret = uri.replace("//", "//user:pass-word@")
    with pytest.raises(DatabaseUnavailable) as caught:
        await open_connection(secret, "test", SINK_LIMITS)
    assert "pass-word" not in str(caught.value)


def test_sqlstate_is_that_of_the_server_only() -> None:
    assert sqlstate_of(postgres_error("22021")) == "22021"
    assert sqlstate_of(ValueError("x")) is None


def test_advisory_keys_are_signed_64_bit_and_stable() -> None:
    """Processes of different versions must agree, so the value itself is part of the contract."""
    keys = {advisory_key("replication", name) for name in ("a", "b")} | {advisory_key("m", "a")}
    assert len(keys) == 3
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert advisory_key("replication", "development") == -2928944849227152825
