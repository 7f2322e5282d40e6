"""Options that several commands share: settings as options."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from app.settings import Settings, load_settings, setting_name

Command = TypeVar("Command", bound=Callable[..., Any])
_KIB: Final = 1024


def settings_options(*names: str) -> Callable[[Command], Command]:
    """Give a command the settings of these names as options; without names, all of them.

    Values arrive as text (flags as booleans), None where an option was not given: the settings
    alone say what is allowed.
    """

    def decorate(command: Command) -> Command:
        # Decorators are listed from the last one on.
        for name in reversed(names or tuple(Settings.model_fields)):
            command = _option(name, Settings.model_fields[name])(command)
        return command

    return decorate


def given(options: Mapping[str, str | bool | None]) -> dict[str, Any]:
    """The options that were given, as the text their environment variables would hold."""
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in options.items()
        if value is not None
    }


def settings_of(options: Mapping[str, str | bool | None]) -> Settings:
    """The settings of a command that does not listen: HOST, which an image sets, asks no leave."""
    return load_settings(**given(options), host="localhost")


@contextmanager
def database_of(settings: Settings) -> Iterator[str]:
    """The URL of the database; the embedded one is started for the time, unless it runs already.

    Raises `StartRefused` where that would be in another user's data directory: root would hand the
    database over to a user of its own.
    """
    if not settings.embedded:
        yield settings.database_url
        return
    from app.embedded import (  # noqa: PLC0415 - most commands need no database
        EmbeddedPostgres,
        running_url,
    )
    from app.service.ownership import check_ownership  # noqa: PLC0415 - likewise

    directory = settings.data_dir / "postgres"
    if (url := running_url(directory)) is not None:
        yield url
        return
    check_ownership(settings)
    postgres = EmbeddedPostgres(directory)
    try:
        yield postgres.start()
    finally:
        postgres.stop()


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    dashed = name.replace("_", "-")
    types = _types(field.annotation)
    meaning = field.description or ""
    help_text = f"{meaning[:1].upper()}{meaning[1:]}{_default(field)}. [env: {setting_name(name)}]"
    if bool in types:
        return click.option(f"--{dashed}/--no-{dashed}", name, default=None, help=help_text)
    choices = [str(member) for kind in types if issubclass(kind, StrEnum) for member in kind]
    metavar = f"[{'|'.join(choices)}]" if choices else _metavar(types)
    return click.option(f"--{dashed}", name, default=None, metavar=metavar, help=help_text)


def _types(annotation: Any) -> tuple[type, ...]:
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _types(part))
    origin = get_origin(annotation)
    if origin is not None and not isinstance(annotation, type):
        return _types(get_args(annotation)[0])
    return (annotation,) if isinstance(annotation, type) else ()


def _metavar(types: tuple[type, ...]) -> str:
    if int in types:
        return "INTEGER"
    if float in types:
        return "NUMBER"
    return "TEXT" if str in types else "PATH"


def _default(field: FieldInfo) -> str:
    if field.default is None or isinstance(field.default, bool):
        return "" if field.default is None else f" (default: {'yes' if field.default else 'no'})"
    value = field.default
    if isinstance(value, int) and value >= _KIB * _KIB and value % (_KIB * _KIB) == 0:
        return f" (default: {value}, which is {value // (_KIB * _KIB)} MiB)"
    return f" (default: {value})"
