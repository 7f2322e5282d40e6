"""Loads the compiled functions: each life of a service would load them anew in the background."""

from app.service.compiled import GATHERING, GRAMMAR, LANES, load

load(LANES)
load(GATHERING)
if (_grammar := load(GRAMMAR)) is not None:
    _grammar.Grammar(0, ())  # which loads what is loaded at the first call
