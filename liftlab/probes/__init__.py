"""Probes: each answers one question about a model, and leaves no trace on it.

A probe is a module of this package with a function `probe(base, document, questions, **settings)`. `base` is a base
model, or `Lifted.on(base)`; every setting has a default. It returns a DataFrame with the columns metric, unit and
value (a finite number) and columns of its own; who calls it adds what it was asked of (study, condition, seed, ...). It
raises ValueError where it does not apply. The model is the same before and after: weights, hooks, mode, random numbers.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import pandas as pd

Probe = Callable[..., pd.DataFrame]


def names() -> list[str]:
    """The probes there are: the modules of this package that define `probe`."""
    return [m.name for m in pkgutil.iter_modules(__path__) if hasattr(_module(m.name), "probe")]


def find(name: str) -> Probe:
    """The probe called `name`; ValueError lists what there is."""
    if name not in names():
        raise ValueError(f"probe {name!r} is unknown: choose one of {', '.join(names())}")
    return _module(name).probe


def _module(name: str):
    return importlib.import_module(f"{__name__}.{name}")
