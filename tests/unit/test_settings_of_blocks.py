"""What the settings of blocks and keys allow, and what errors of settings do not show."""

import pytest

from app.errors import SettingsError
from app.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(f"JOURNAL_{field.upper()}", raising=False)


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("TickSnapshot", {"TickSnapshot"}),
        ("TickSnapshot,PlaceOrder", {"TickSnapshot", "PlaceOrder"}),
        (" TickSnapshot , Place_Order2 ", {"TickSnapshot", "Place_Order2"}),
        ("a" * 64, {"a" * 64}),
        ("*", {"*"}),
        (" * ", {"*"}),
    ],
)
def test_block_commands_are_names_or_all(text: str, types: set[str]) -> None:
    assert load_settings({}, block_commands=text).block_command_types == types


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "TickSnapshot,",
        "*,TickSnapshot",
        "Tick Snapshot",
        "1Tick",
        "Tick-x",
        "a" * 65,
        "Tü",
    ],
)
def test_other_block_commands_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({}, block_commands=text)
    assert str(caught.value).startswith(f"JOURNAL_BLOCK_COMMANDS={text!r}: command types")
    assert "\n" not in str(caught.value)


def test_defaults_of_blocks_are_those_of_the_protocol() -> None:
    settings = load_settings({})
    assert settings.block_command_types == {"TickSnapshot"}
    assert (settings.rsm_prune_window, settings.rsm_pruning_enabled) == (10_000, False)
    assert (settings.cold_key_file, settings.cold_key_password_file) == (None, None)
    assert settings.delegation_hours == 24


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "a day", "8785"])
def test_a_life_of_no_or_unlimited_length_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="JOURNAL_DELEGATION_HOURS="):
        load_settings({}, delegation_hours=text)


def test_a_password_without_a_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="COLD_KEY_FILE"):
        load_settings({}, cold_key_password_file="password")


@pytest.mark.parametrize("name", ["JOURNAL_COLD_KEY", "JOURNAL_PASSWORD", "JOURNAL_DATABASE_URI"])
def test_the_value_of_a_setting_that_does_not_exist_is_not_shown(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: there is no such setting") as caught:
        load_settings({name: "hunter2"})
    assert "hunter2" not in str(caught.value)
