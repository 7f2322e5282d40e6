"""Log lines: text for people, one JSON object a line for machines. Standard error, nothing else."""

import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from logging.config import dictConfig
from typing import Any, Final

import msgspec

_TEXT: Final = "%(asctime)s %(levelname)-8s %(name)s: %(message)s"


class LogFormat(StrEnum):
    """How log lines look; the default depends on whether standard error is a terminal."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", "error"}`, always one line a record."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object without line breaks."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def logging_config(log_format: LogFormat | None, level: LogLevel) -> dict[str, Any]:
    """The `logging.config.dictConfig` of every process of the service.

    None chooses by the terminal.
    """
    chosen = log_format or (LogFormat.TEXT if sys.stderr.isatty() else LogFormat.JSON)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            LogFormat.TEXT.value: {"format": _TEXT},
            LogFormat.JSON.value: {"()": JsonFormatter},
        },
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": chosen.value,
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"handlers": ["stderr"], "level": level.value.upper()},
        "loggers": {"alembic": {"level": "WARNING"}, "asyncio": {"level": "WARNING"}},
    }


def configure_logging(log_format: LogFormat | None, level: LogLevel) -> None:
    """Set logging up in this process."""
    dictConfig(logging_config(log_format, level))
