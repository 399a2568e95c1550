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

_FOLDER = importlib.resources.files(__name__)


@dataclass(frozen=True)
class Recipe:
    """A source experiment.

    Args:
        name: Its name, and that of its plan file.
        source: Where it is described.
        technique: In the field's words.
        about: What it does, in a sentence.
        assumed: What is assumed where the source leaves something open.
        reported: The authors' figures.
        counted: How their parameter counts differ from those here.
    """

    name: str
    source: str
    technique: str
    about: str
    assumed: str = ""
    reported: dict[str, Any] = field(default_factory=dict)
    counted: dict[str, Any] = field(default_factory=dict)

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
    """Return the recipe of a name.

    Raises:
        UserError: For an unknown name; offers similar ones.
    """
    if name not in all_recipes():
        raise unknown_name_error("recipe", name, all_recipes(), "`regraft recipes` lists them.")
    return all_recipes()[name]
