"""The settings of the service: one frozen object, read once from `JOURNAL_*`, checked, passed down.

Protocol, section 4. A bad value raises `SettingsError` with one line that names the setting, the
value and what is allowed. So does a `JOURNAL_` variable that names no setting: a misspelt safeguard
is no safeguard.
"""

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.chain.content import ALL_COMMANDS
from app.environment import COMMAND_VARIABLES, ENV_PREFIX
from app.errors import SettingsError
from app.logs import LogFormat, LogLevel
from app.model.rules import is_type_name

# What a URL has between its user and its host, and all behind a `password=`, in a URL or a list.
_USER_PASSWORD: Final = re.compile(r"(//[^/@:]*:).*@", re.DOTALL)
_NAMED_PASSWORD: Final = re.compile(r"(password\s*=).*", re.IGNORECASE | re.DOTALL)
EMBEDDED: Final = "embedded"
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_DAYS_OF_YEAR: Final = 366
_HOUR_S: Final = 3600


class WalTail(StrEnum):
    """What to do with a last record that is complete but has a zero length or a wrong CRC."""

    STRICT = "strict"
    TOLERANT = "tolerant"


class WalSync(StrEnum):
    """How the WAL is synced."""

    AUTO = "auto"
    IO_URING = "io_uring"
    FDATASYNC = "fdatasync"


def _check_database_url(url: str) -> str:
    if url != EMBEDDED and not url.startswith(("postgresql://", "postgres://")):
        raise ValueError(
            f"{EMBEDDED!r} or a URI that starts with postgresql:// or postgres:// is allowed"
        )
    return url


def _check_block_commands(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if names != [ALL_COMMANDS] and not all(map(is_type_name, names)):
        raise ValueError(
            "command types (a letter, then up to 63 letters, digits or underscores), comma "
            f"separated, or {ALL_COMMANDS!r} are allowed"
        )
    return ",".join(names)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Settings(BaseSettings):
    """Everything that can be set. Units are in the names."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on")
    tls_cert: Path | None = Field(None, description="PEM file with the server's certificate chain")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with the authorities whose certificates clients must show"
    )
    tokens_file: Path | None = Field(
        None, description="file of `journal tokens new`; callers need a token from it, then"
    )
    allow_anonymous: bool = Field(
        False, description="listen on other than loopback addresses without TOKENS_FILE"
    )
    data_dir: Path = Field(Path("./data"), description="everything the service keeps")
    database_url: Annotated[str, AfterValidator(_check_database_url)] = Field(
        EMBEDDED,
        description="'embedded', or the libpq URI of a PostgreSQL database; every user of this "
        "machine sees the option: leave a password to PGPASSFILE",
    )
    auto_migrate: bool | None = Field(
        None, description="run migrations at start (default: when embedded)"
    )
    environment: Name = Field("development", description="partition key of every table")
    allow_new_wal: bool = Field(
        False, description="begin a WAL in an empty DATA_DIR without asking Postgres"
    )
    channel_capacity: int = Field(
        3000, ge=1, description="entries that may wait for the WAL writer"
    )
    max_queue_bytes: int = Field(
        64 * _MIB, ge=1, description="bytes that may wait for the WAL writer"
    )
    max_batch_size: int = Field(
        1000, ge=1, description="entries after which a WAL batch takes no more requests"
    )
    max_batch_bytes: int = Field(
        8 * _MIB, ge=1, description="bytes after which a WAL batch takes no more"
    )
    replication_batch_size: int = Field(1000, ge=1, description="entries of a Postgres transaction")
    flush_interval_ms: int = Field(
        10, ge=0, le=60_000, description="longest wait for a fuller transaction"
    )
    persist_digests: bool = Field(True, description="whether digests go to Postgres")
    wal_segment_bytes: int = Field(
        64 * _MIB, ge=64 * _KIB, description="segment size and preallocation step"
    )
    wal_retain_bytes: int = Field(
        0, ge=0, description="replicated WAL to keep beyond the duplicate window"
    )
    wal_tail: WalTail = Field(WalTail.STRICT, description="what to do with a damaged last record")
    wal_sync: WalSync = Field(WalSync.AUTO, description="how the WAL is synced")
    block_commands: Annotated[str, AfterValidator(_check_block_commands)] = Field(
        "TickSnapshot", description="command types that blocks commit to, comma separated, or '*'"
    )
    rsm_prune_window: int = Field(10_000, ge=1, description="state-tree versions kept when pruning")
    rsm_pruning_enabled: bool = Field(False, description="whether older state-tree versions go")
    cold_key_file: Path | None = Field(
        None, description="keystore JSON or hex key file of mode 0600; without it, no signatures"
    )
    cold_key_password_file: Path | None = Field(
        None, description="file of mode 0600 with the keystore's password"
    )
    delegation_hours: float = Field(
        24, ge=0.001, le=24 * _DAYS_OF_YEAR, description="life of a hot key"
    )
    dedup_window: int = Field(
        262_144, ge=1, description="newest entries that the duplicate index covers"
    )
    max_body_bytes: int = Field(
        16 * _MIB, ge=_KIB, le=512 * _MIB, description="largest request body"
    )
    max_entries: int = Field(10_000, ge=1, description="most entries in a request")
    max_field_bytes: int = Field(_MIB, ge=1, description="longest bytes field of an entry")
    header_timeout_s: float = Field(
        10,
        ge=0.1,
        le=_HOUR_S,
        description="for a connection's first request, and for all of a request's header",
    )
    body_timeout_s: float = Field(30, ge=0.1, le=_HOUR_S, description="for all of a request's body")
    idle_timeout_s: float = Field(
        60,
        ge=1,
        le=_HOUR_S,
        description="between requests; over HTTP/1.1 HEADER_TIMEOUT_S holds there, too",
    )
    flood_ban_s: float = Field(
        60,
        ge=0,
        le=_HOUR_S,
        description="in which three floods keep an address from connecting; 0: never, as behind a "
        "proxy, whose address all clients share",
    )
    shutdown_timeout_s: float = Field(
        30, ge=0, description="for draining to the WAL and to Postgres"
    )
    log_format: LogFormat | None = Field(
        None, description="'text' or 'json' (default: text on a terminal)"
    )
    log_level: LogLevel = Field(LogLevel.INFO, description="least severe level that is logged")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values given in code win over the environment; no file is ever read."""
        return init_settings, env_settings

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS_CERT and TLS_KEY must be set together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("TLS_CLIENT_CA is allowed together with TLS_CERT and TLS_KEY alone")
        if self.cold_key_file is None and self.cold_key_password_file is not None:
            raise ValueError("COLD_KEY_PASSWORD_FILE is allowed together with COLD_KEY_FILE alone")
        guarded = self.tokens_file is not None or self.allow_anonymous
        if not guarded and not is_loopback(self.host):
            raise ValueError(
                f"HOST={self.host!r} can be reached from other machines and no tokens guard it; "
                "a loopback address, TOKENS_FILE or ALLOW_ANONYMOUS=true is allowed"
            )
        return self

    @property
    def embedded(self) -> bool:
        """Whether the service runs a PostgreSQL of its own."""
        return self.database_url == EMBEDDED

    @property
    def migrates_at_start(self) -> bool:
        """Whether Alembic migrations run at start."""
        return self.embedded if self.auto_migrate is None else self.auto_migrate

    @property
    def block_command_types(self) -> frozenset[str]:
        """The names in BLOCK_COMMANDS, or `*` alone."""
        return frozenset(self.block_commands.split(","))

    @property
    def commitments_dir(self) -> Path:
        """Where the commitment store is."""
        return self.data_dir / "commitments"

    @property
    def wal_dir(self) -> Path:
        """Where the segments are."""
        return self.data_dir / "wal"

    @property
    def checkpoint_path(self) -> Path:
        """The checkpoint file."""
        return self.data_dir / "checkpoint.json"


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` (by field name) win.

    Raises `SettingsError` with a single line.
    """
    names = os.environ if environ is None else environ
    for name in sorted(names):
        if (
            name.startswith(ENV_PREFIX)
            and name not in COMMAND_VARIABLES
            and name.removeprefix(ENV_PREFIX).lower() not in Settings.model_fields
        ):
            # Its value may be a key or a password under a name that was misspelt.
            raise SettingsError(
                f"{name}: there is no such setting; `journal serve --help` lists them"
            )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_first_line(error)) from None


def setting_name(field: str) -> str:
    """The environment variable of a settings field."""
    return ENV_PREFIX + field.upper()


def _first_line(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    field = str(fault["loc"][0])
    value = _NAMED_PASSWORD.sub(r"\1…", str(fault["input"]))
    value = _USER_PASSWORD.sub(r"\1…@", value)
    return f"{setting_name(field)}={value!r}: {message}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
