"""The source experiments as plan files, with where they come from and what was reported."""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from regraft.errors import unknown_name_error
from regraft.plans.schema import Plan
from regraft.plans.toml import parse_plan

_FOLDER = importlib.resources.files("regraft.plans.recipes")


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
        return parse_plan(values, f"The recipe {self.name}")


@cache
def all_recipes() -> dict[str, Recipe]:
    """Return all recipes by name, in the order of the write-ups."""
    entries = tomllib.loads((_FOLDER / "reported.toml").read_text(encoding="utf-8"))
    return {name: Recipe(name, **fields) for name, fields in entries.items()}


def find_recipe(name: str) -> Recipe:
    """Return a recipe; raises `UserError` for an unknown name, with near ones."""
    if name not in all_recipes():
        raise unknown_name_error("recipe", name, all_recipes(), "`regraft recipes` lists them.")
    return all_recipes()[name]
