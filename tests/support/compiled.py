"""Loads the compiled functions: each life of a service would load them anew in the background."""

from app.service.compiled import GRAMMAR, LANES, load

for _module in (LANES, GRAMMAR):
    load(_module)
