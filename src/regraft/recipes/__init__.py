"""The source experiments as plan files, with where they come from and what was reported."""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from regraft import plan as plans
from regraft.errors import unknown
from regraft.plan import Plan

_FOLDER = importlib.resources.files("regraft.recipes")


@dataclass(frozen=True)
class Recipe:
    """A source experiment: its plan by name, and what is known about it."""

    name: str
    source: str  # where it is described
    technique: str  # in the field's words
    about: str
    assumed: str = ""  # where the source leaves something open
    reported: dict[str, Any] = field(default_factory=dict)  # the authors' figures
    counted: dict[str, Any] = field(default_factory=dict)  # how their parameter counts differ

    @property
    def plan(self) -> Plan:
        """The plan that repeats the experiment."""
        file = _FOLDER / "plans" / f"{self.name}.toml"
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        return plans.parse(values, f"The recipe {self.name}")


@cache
def every() -> dict[str, Recipe]:
    """Return all recipes by name, in the order of the write-ups."""
    entries = tomllib.loads((_FOLDER / "reported.toml").read_text(encoding="utf-8"))
    return {name: Recipe(name, **fields) for name, fields in entries.items()}


def find(name: str) -> Recipe:
    """Return a recipe; raises `UserError` for an unknown name, with near ones."""
    if name not in every():
        raise unknown("recipe", name, every(), "`regraft recipes` lists them.")
    return every()[name]
