"""Options that are a length of time."""

import math
from typing import Any

import click


class Duration(click.FloatRange):
    """A number in a range: of nan, click's own type says that it is in every one."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number that was typed, else a usage error."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number
