"""Flags made from option dataclasses, so that the command line and Python cannot drift apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from regraft.errors import UserError

Verb = Callable[..., None]


class Only:
    """Which fields of a dataclass are flags of a verb; all that have a help text without it.

    Args:
        *names: Fields with the help text of the dataclass.
        **texts: Fields with a help text of their own in this verb.
    """

    def __init__(self, *names: str, **texts: str) -> None:
        self.texts = {**dict.fromkeys(names, ""), **texts}


@dataclass(frozen=True)
class _Group:
    """A dataclass among the arguments of a verb, and its fields that are flags."""

    kind: type
    fields: Mapping[str, Field[Any]]
    texts: Mapping[str, str]

    def flags(self) -> Iterator[inspect.Parameter]:
        """Yield a parameter for each flag, as Typer reads it."""
        for name, field in self.fields.items():
            yield _to_flag(field, self.texts.get(name) or field.metadata["help"])

    def build(self, values: Mapping[str, Any]) -> Any:
        """Return the dataclass that the values of its flags make."""
        own = {name: _to_value(field, values[name]) for name, field in self.fields.items()}
        return _build(self.kind, own)


def add_verb(app: typer.Typer, name: str | None = None, epilog: str = "") -> Callable[[Verb], Verb]:
    """Return a decorator that makes a function a verb.

    Its arguments are Typer's, or dataclasses whose fields become flags; `Only` names some.
    """

    def register(function: Verb) -> Verb:
        app.command(name, cls=Command, epilog=epilog or None)(flatten(function))
        return function

    return register


def flatten(function: Verb) -> Verb:
    """Return a function that takes the fields of the function's dataclasses one by one."""
    parameters = []
    flags: list[inspect.Parameter] = []
    groups = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        group = _to_group(parameter.annotation)
        if group is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            groups[parameter.name] = group
            flags += group.flags()

    def verb(**values: Any) -> None:
        arguments = {parameter.name: values[parameter.name] for parameter in parameters}
        for name, group in groups.items():
            arguments[name] = group.build(values)
        function(**arguments)

    verb.__name__ = function.__name__
    verb.__doc__ = function.__doc__
    verb.__signature__ = inspect.Signature([*parameters, *flags])  # type: ignore[attr-defined]
    verb.__annotations__ = {}
    return verb


def iterate_options(kind: type) -> Iterator[Field[Any]]:
    """Yield the fields of a dataclass that are flags, also those of dataclasses inside it."""
    for field in fields(kind):
        if is_dataclass(field.default):
            yield from iterate_options(type(field.default))
        elif "help" in field.metadata:
            yield field


def flag_names(field: Field[Any]) -> tuple[str, ...]:
    """Return how the flag of a field is spelled."""
    dashed = field.name.replace("_", "-")
    own = f"--{dashed}"
    if field.default is True:
        own = f"--{dashed}/--no-{dashed}"
    return field.metadata["flags"] or (own,)


def _to_group(annotation: Any) -> _Group | None:
    """Return what an argument's dataclass makes of flags; None for other arguments."""
    kind, *marks = get_args(annotation) or (annotation,)
    if not isinstance(kind, type) or not is_dataclass(kind):
        return None
    options = {field.name: field for field in iterate_options(kind)}
    chosen: dict[str, str] = dict.fromkeys(options, "")
    for mark in marks:
        chosen = mark.texts
    return _Group(kind, {name: options[name] for name in chosen}, chosen)


def _to_flag(field: Field[Any], text: str) -> inspect.Parameter:
    kind: Any = field.metadata["type"]
    default: Any = field.default
    form = field.metadata["form"]
    if form == "commas":
        kind = str
        default = ",".join(map(str, default or ())) or None
    elif form == "repeat":
        kind = list[kind]
        default = None
    if default is None:
        kind = kind | None
    info = typer.Option(
        *flag_names(field), help=text, min=field.metadata["least"], max=field.metadata["most"]
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, info],
    )


def _to_value(field: Field[Any], value: Any) -> Any:
    """Return the value of a field from that of its flag."""
    if value is None:
        return field.default
    if field.metadata["form"] == "commas":
        return split_commas(value, flag_names(field)[0], field.metadata["type"])
    if field.metadata["form"] == "repeat":
        return tuple(value) or field.default
    return value


def split_commas(text: str, flag: str, kind: type = str) -> tuple[Any, ...]:
    """Return the values of a flag that are separated by commas.

    Raises:
        UserError: When there is none, or one that is not of the kind.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(
            f"{flag} {text!r} names nothing. Expected values separated by commas. Leave it out to "
            "take the default."
        )
    try:
        return tuple(map(kind, words))
    except ValueError:
        raise UserError(
            f"{flag} {text} was given. Expected whole numbers separated by commas. Write for "
            "example 64,96,128."
        ) from None


def _build(kind: type, values: Mapping[str, Any]) -> Any:
    chosen = {}
    for field in fields(kind):
        if is_dataclass(field.default):
            chosen[field.name] = _build(type(field.default), values)
        elif field.name in values:
            chosen[field.name] = values[field.name]
    return kind(**chosen)


def _hide_switch_types(parameters: Sequence[Any]) -> list[Any]:
    """Return parameters, of which switches name no type in the help."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return list(parameters)


class Command(TyperCommand):
    """A verb."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and flags."""
        return _hide_switch_types(super().get_params(ctx))


class Group(TyperGroup):
    """A verb with verbs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and flags."""
        return _hide_switch_types(super().get_params(ctx))
