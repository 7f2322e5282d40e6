"""Settings: the defaults of the protocol's section 4, and one clear line for every bad value."""

import os
from pathlib import Path
from typing import Any

import pytest

from app.environment import ENV_PREFIX
from app.errors import SettingsError
from app.settings import Settings, WalSync, WalTail, load_settings, setting_name

MIB = 1024 * 1024
DEFAULTS: dict[str, Any] = {
    "HOST": "127.0.0.1",
    "PORT": 8080,
    "TLS_CERT": None,
    "TLS_KEY": None,
    "TLS_CLIENT_CA": None,
    "TOKENS_FILE": None,
    "DATA_DIR": Path("./data"),
    "DATABASE_URL": "embedded",
    "ENVIRONMENT": "development",
    "ALLOW_NEW_WAL": False,
    "CHANNEL_CAPACITY": 3000,
    "MAX_QUEUE_BYTES": 64 * MIB,
    "MAX_BATCH_SIZE": 1000,
    "MAX_BATCH_BYTES": 8 * MIB,
    "REPLICATION_BATCH_SIZE": 1000,
    "FLUSH_INTERVAL_MS": 10,
    "PERSIST_DIGESTS": True,
    "WAL_SEGMENT_BYTES": 64 * MIB,
    "WAL_RETAIN_BYTES": 0,
    "WAL_TAIL": WalTail.STRICT,
    "WAL_SYNC": WalSync.AUTO,
    "DEDUP_WINDOW": 262_144,
    "MAX_BODY_BYTES": 16 * MIB,
    "MAX_ENTRIES": 10_000,
    "MAX_FIELD_BYTES": MIB,
    "HEADER_TIMEOUT_S": 10,
    "BODY_TIMEOUT_S": 30,
    "IDLE_TIMEOUT_S": 60,
    "FLOOD_BAN_S": 60,
    "SHUTDOWN_TIMEOUT_S": 30,
    "ALLOW_ANONYMOUS": False,
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_default_is_the_one_of_the_protocol(name: str) -> None:
    assert getattr(load_settings(), name.lower()) == DEFAULTS[name]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "0", 0),
        ("DATA_DIR", "/var/lib/journal", Path("/var/lib/journal")),
        ("DATABASE_URL", "postgresql://u@/db?host=/run/pg", "postgresql://u@/db?host=/run/pg"),
        ("DATABASE_URL", "postgres://u@h/db", "postgres://u@h/db"),
        ("ALLOW_NEW_WAL", "true", True),
        ("PERSIST_DIGESTS", "false", False),
        ("WAL_TAIL", "tolerant", WalTail.TOLERANT),
        ("WAL_SYNC", "io_uring", WalSync.IO_URING),
        ("ENVIRONMENT", "prod-eu.1", "prod-eu.1"),
        ("SHUTDOWN_TIMEOUT_S", "0.5", 0.5),
    ],
)
def test_a_value_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(ENV_PREFIX + name, text)
    assert getattr(load_settings(), name.lower()) == value


def test_a_value_given_in_code_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_PORT", "1")
    assert load_settings(port=2).port == 2


BAD = [
    ("PORT", "65536", "less than or equal to 65535"),
    ("PORT", "http", "valid integer"),
    ("CHANNEL_CAPACITY", "0", "greater than or equal to 1"),
    ("MAX_QUEUE_BYTES", "0", "greater than or equal to 1"),
    ("MAX_BATCH_SIZE", "-1", "greater than or equal to 1"),
    ("FLUSH_INTERVAL_MS", "-1", "greater than or equal to 0"),
    ("WAL_SEGMENT_BYTES", "1", "greater than or equal to 65536"),
    ("WAL_RETAIN_BYTES", "-1", "greater than or equal to 0"),
    ("WAL_TAIL", "loose", "'strict' or 'tolerant'"),
    ("WAL_SYNC", "fsync", "'auto', 'io_uring' or 'fdatasync'"),
    ("DEDUP_WINDOW", "0", "greater than or equal to 1"),
    ("MAX_BODY_BYTES", "16MiB", "valid integer"),
    ("HEADER_TIMEOUT_S", "0", "greater than or equal to 0.1"),
    ("BODY_TIMEOUT_S", "nan", "less than or equal to 3600"),
    ("BODY_TIMEOUT_S", "inf", "less than or equal to 3600"),
    ("IDLE_TIMEOUT_S", "0.5", "greater than or equal to 1"),
    ("ENVIRONMENT", "", "match pattern"),
    ("ENVIRONMENT", "a b", "match pattern"),
    ("ENVIRONMENT", "x" * 65, "match pattern"),
    ("DATABASE_URL", "mysql://h/db", "'embedded' or a URI that starts with postgresql://"),
    ("PERSIST_DIGESTS", "perhaps", "valid boolean"),
    ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
    ("LOG_FORMAT", "xml", "'text' or 'json'"),
]


@pytest.mark.parametrize(("name", "text", "allowed"), BAD)
def test_a_bad_value_is_named_with_its_setting_and_what_is_allowed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, allowed: str
) -> None:
    monkeypatch.setenv(ENV_PREFIX + name, text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(f"JOURNAL_{name}={text!r}: ")
    assert allowed in message
    assert "\n" not in message


def test_a_variable_that_names_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt safeguard is no safeguard."""
    monkeypatch.setenv("JOURNAL_WAL_TIAL", "strict")
    with pytest.raises(SettingsError, match=r"JOURNAL_WAL_TIAL: there is no such setting"):
        load_settings()


def test_other_variables_are_no_concern_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNALX", "1")
    monkeypatch.setenv("PORT", "99")
    assert load_settings().port == 8080


@pytest.mark.parametrize("given", [{"tls_cert": "c.pem"}, {"tls_key": "k.pem"}])
def test_a_certificate_needs_its_key_and_the_other_way_round(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="must be set together"):
        load_settings(**given)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_are_kept_out_unless_anonymous_use_is_allowed(host: str) -> None:
    with pytest.raises(SettingsError, match="ALLOW_ANONYMOUS=true is allowed"):
        load_settings(host=host)
    assert load_settings(host=host, allow_anonymous=True).host == host
    assert load_settings(host=host, tokens_file="tokens.json").host == host


def test_client_certificates_need_tls() -> None:
    with pytest.raises(SettingsError, match="TLS_CLIENT_CA is allowed together with TLS_CERT"):
        load_settings(tls_client_ca="ca.pem")


def test_the_token_of_the_command_line_is_no_setting_and_its_misspelling_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOURNAL_TOKEN", "journal_x")
    load_settings()
    monkeypatch.setenv("JOURNAL_TOKEN_FILE", "tokens.json")
    with pytest.raises(SettingsError, match="JOURNAL_TOKEN_FILE: there is no such setting"):
        load_settings()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_addresses_need_no_leave(host: str) -> None:
    assert load_settings(host=host).host == host


def test_migrations_run_at_start_when_embedded_unless_told_otherwise() -> None:
    url = "postgresql://h/db"
    assert load_settings().migrates_at_start
    assert not load_settings(database_url=url).migrates_at_start
    assert load_settings(database_url=url, auto_migrate=True).migrates_at_start
    assert not load_settings(auto_migrate=False).migrates_at_start


def test_everything_is_kept_below_the_data_directory() -> None:
    settings = load_settings(data_dir="/d")
    assert settings.wal_dir == Path("/d/wal")
    assert settings.checkpoint_path == Path("/d/checkpoint.json")


def test_settings_do_not_change() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_says_what_it_means(field: str) -> None:
    assert Settings.model_fields[field].description
    assert setting_name(field) == f"JOURNAL_{field.upper()}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://user:hunter2@host/db", "mysql://user:…@host/db"),
        ("mysql://user:/hunter2@hunter2/@host/db", "mysql://user:…@host/db"),
        ("mysql://host/db?user=u&password=hunter2@", "mysql://host/db?user=u&password=…"),
        ("mysql://h:5432/db?password=hunter2@hunter2", "mysql://h:5432/db?password=…"),
        ("mysql://u:hunter2@h/db?sslpassword=hunter2", "mysql://u:…@h/db?sslpassword=…"),
        ("host=h PASSWORD = 'hunter2 hunter2' user=u", "host=h PASSWORD =…"),
    ],
)
def test_the_password_in_a_refused_database_url_is_not_shown(url: str, shown: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(database_url=url)
    assert "hunter2" not in str(caught.value)
    assert f"JOURNAL_DATABASE_URL='{shown}':" in str(caught.value)
