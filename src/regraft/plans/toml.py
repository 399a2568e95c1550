"""Plans as TOML: read, validated with every fault at once, changed by key, and written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from regraft.errors import UserError, close_matches
from regraft.plans.faults import plan_error, shorten
from regraft.plans.schema import Phase, Plan
from regraft.system.files import atomic_write

_UNION_STEPS = ("str", "tuple[str, ...]", "dict[str,float]")  # pydantic's, not keys of the plan


def parse_plan(values: Mapping[str, Any], subject: str = "The plan") -> Plan:
    """Return the plan that plain values describe.

    Args:
        values: By field, as a TOML file gives them.
        subject: What is read, as an error begins ("The plan", the path of a file).

    Raises:
        UserError: With every fault, and near names for unknown keys and values.
    """
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise plan_error(subject, "is not valid", _describe_faults(error)) from None


def read_plan(path: Path) -> Plan:
    """Return the plan in a TOML file; raises `UserError` when there is none or it is faulty."""
    return parse_plan(read_plan_values(path), str(path))


def read_plan_values(path: Path) -> dict[str, Any]:
    """Return the values in a plan's TOML file, not yet validated.

    Raises:
        UserError: When there is no file, or it cannot be read as TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"There is no plan at {path}. Expected a TOML file; "
            "`regraft plan DATA --save plan.toml` writes one."
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        # ValueError: no UTF-8, no TOML, or a number of thousands of digits
        raise UserError(
            f"{path} is not readable TOML: {shorten(error)}. "
            "Correct it, or write a fresh one with `regraft plan DATA --save`."
        ) from None


def override_plan(
    values: Mapping[str, Any], changes: Sequence[str], subject: str = "The plan"
) -> Plan:
    """Return the plan after applying changes to its values.

    Args:
        values: By field, as a TOML file gives them.
        changes: Each `key=value`; the value is read as TOML, or as text where it is none.
        subject: What is read, as an error begins.

    Raises:
        UserError: For a change that is not `key=value` or names no place, or a faulty plan.
    """
    tree: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for change in changes:
        key, equals, written = change.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"--set {change!r} is not a change. "
                "Expected KEY=VALUE, for example --set phases.0.lr=3e-4."
            )
        _set_value(tree, key.strip().split("."), _read_value(written.strip()), change)
    return parse_plan(tree, subject)


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan as TOML, every field spelled out."""
    with atomic_write(path) as scratch:
        scratch.write_text(plan_to_toml(plan), encoding="utf-8")


def plan_to_toml(plan: Plan) -> str:
    """Return the plan as TOML, every field spelled out."""
    return tomli_w.dumps(plan.model_dump(mode="json"))


def _set_value(tree: Any, keys: list[str], value: Any, change: str) -> None:
    """Put a value into nested dicts and lists, where the keys lead to."""
    *parents, last = keys
    try:
        for key in parents:
            if isinstance(tree, list):
                tree = tree[int(key)]
            else:
                tree = tree.setdefault(key, {})
        if isinstance(tree, list):
            tree[int(last)] = value
        else:
            tree[last] = value
    except (IndexError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"--set {change!r} names no field. Expected a key of the plan; "
            "phases are numbered from 0, as in phases.0.lr."
        ) from None


def _read_value(text: str) -> Any:
    """Return a value read as TOML, or as text where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _describe_faults(error: ValidationError) -> list[str]:
    """Return a line for each fault that pydantic met."""
    details = error.errors()
    faulty_lists = {detail["loc"][:1] for detail in details if len(detail["loc"]) > 1}
    lines = []
    for detail in details:
        # a list of faulty things is also "too short": that would be a second line for one fault
        if detail["type"] != "too_short" or detail["loc"] not in faulty_lists:
            lines.append(_describe_fault(detail))
    return lines


def _describe_fault(detail: Any) -> str:
    """Return the place of a fault and what is wrong there, from an item of pydantic's `errors`."""
    steps = [str(step) for step in detail["loc"] if step not in _UNION_STEPS]
    place = ".".join(steps)
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown key{_suggest_key(place)}"
    if detail["type"] == "missing":
        return f"{place}: missing"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
    if detail["type"] == "literal_error":
        message += _suggest_value(detail)
    if detail["type"] != "value_error":
        message += f", got {shorten(repr(detail['input']))}"
    return f"{place or 'plan'}: {message}"


def _suggest_key(place: str) -> str:
    fields = Phase.model_fields if place.startswith("phases.") else Plan.model_fields
    key = place.rpartition(".")[2]
    return _suggest(close_matches(key, fields))


def _suggest_value(detail: Any) -> str:
    allowed = detail["ctx"]["expected"].replace(" or ", ", ").split(",")
    names = [word.strip(" '") for word in allowed]
    return _suggest(close_matches(str(detail["input"]), names))


def _suggest(near: list[str]) -> str:
    return f", did you mean {near[0]!r}?" if near else ""
