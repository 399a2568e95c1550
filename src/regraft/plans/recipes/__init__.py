"""The source experiments as plans, with where they come from and what their authors reported.

Refuses to run anything: a recipe is data, plan files in `plans/` and one table of provenance.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from regraft.errors import unknown_name_error
from regraft.plans.schema import Plan, parse_plan

_FOLDER = importlib.resources.files("regraft.plans.recipes")


@dataclass(frozen=True)
class Recipe:
    """A plan by name, with its source, the technique in the field's words, what was assumed where the source says nothing, and what was reported."""

    name: str
    source: str
    technique: str
    about: str
    assumed: str = ""
    reported: dict[str, Any] = field(default_factory=dict)
    counted: dict[str, Any] = field(
        default_factory=dict
    )  # how the reported parameter counts differ from PyTorch's

    @property
    def plan(self) -> Plan:
        """What it does."""
        return parse_plan(
            tomllib.loads((_FOLDER / "plans" / f"{self.name}.toml").read_text(encoding="utf-8")),
            f"The recipe {self.name}",
        )


@cache
def all_recipes() -> dict[str, Recipe]:
    """Return all recipes by name, in the order of the write-ups."""
    told = tomllib.loads((_FOLDER / "reported.toml").read_text(encoding="utf-8"))
    return {name: Recipe(name, **values) for name, values in told.items()}


def find_recipe(name: str) -> Recipe:
    """Return a recipe; raises `UserError` for an unknown name, with near ones."""
    if name not in all_recipes():
        raise unknown_name_error("recipe", name, all_recipes(), "`regraft recipes` lists them.")
    return all_recipes()[name]
