"""Entry types without the limits on their values: for reading what is already in the log.

A request is held to the limits at the door. What the log has was acknowledged, so a value beyond
them must not stop everything behind it: it is read as it is, and Postgres decides (protocol,
section 6: dead letters). Structure is another matter: a field that is unknown or of another kind
does not decode.
"""

import types
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Union, get_args, get_origin

from msgspec import NODEFAULT, Struct, defstruct
from msgspec import field as with_default
from msgspec.structs import FieldInfo, fields


@cache
def unbounded(kind: type[Struct]) -> type[Struct]:
    """A subclass of `kind` that takes any value of its fields' types, on every level."""
    return defstruct(
        kind.__name__,
        [(field.name, _bare(field.type), _default(field)) for field in fields(kind)],
        bases=(kind,),
        kw_only=True,
    )


def _bare(annotation: Any) -> Any:
    """A type without the limits that its annotations set."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bare(arguments[0])
    if origin in (Union, types.UnionType):
        return reduce(or_, map(_bare, arguments))
    if origin is not None:
        return origin[tuple(map(_bare, arguments))]
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return unbounded(annotation)
    return annotation


def _default(field: FieldInfo) -> Any:
    if field.default_factory is not NODEFAULT:
        return with_default(default_factory=field.default_factory)
    return NODEFAULT if field.default is NODEFAULT else with_default(default=field.default)
