"""The keywords of the Python functions, and how they become plan overrides and options."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from regraft.errors import unknown_name_error
from regraft.options import CacheOptions, DataOptions, Options, PlanOverrides, RunDir, Runtime

if TYPE_CHECKING:
    from regraft.plans.schema import Plan
    from regraft.system.progress import ProgressReporter

F = TypeVar("F", bound=Callable[..., Any])
Group = TypeVar("Group")

GROUPS = (PlanOverrides, DataOptions, CacheOptions, Runtime, RunDir)
"""The dataclasses whose fields are keywords; no two of them share a name."""

_RENAMED = {"changes": "overrides", "home": "cache_dir", "until": "layers"}  # names of 0.1


class DataKeywords(TypedDict, total=False):
    """Which images are used, see `DataOptions`."""

    train_images: int | None
    val_images: int | None
    split_seed: int
    skip_bad: bool


class MachineKeywords(TypedDict, total=False):
    """The cache and the machine, see `CacheOptions` and `Runtime`."""

    cache_dir: str | Path | None
    keep: str
    device: str
    compile: str
    reporter: ProgressReporter


class RunDirKeywords(TypedDict, total=False):
    """The folder that is written, see `RunDir`."""

    out: str | Path | None
    resume: bool
    overwrite: bool
    track: str | None


class PlanKeywords(DataKeywords, MachineKeywords, total=False):
    """Keywords of `plan`: what is asked of the plan, see `PlanOverrides`, images and machine."""

    plan: str | Path | Plan | None
    weights: str | None
    resolution: int | None
    seed: int | None
    overrides: Sequence[str]
    precision: str | None


class FitKeywords(PlanKeywords, RunDirKeywords, total=False):
    """Keywords of `fit`: those of `plan`, and the run's folder."""


class CompareKeywords(DataKeywords, MachineKeywords, RunDirKeywords, total=False):
    """Keywords of `compare`: what every row shares."""

    weights: str | None
    resolution: int | None
    overrides: Sequence[str]
    precision: str | None


class ProbeKeywords(DataKeywords, MachineKeywords, total=False):
    """Keywords of `probe`."""

    weights: str | None
    precision: str | None
    out: str | Path | None
    overwrite: bool


class CheckKeywords(DataKeywords, MachineKeywords, total=False):
    """Keywords of `check`; `out` is an HTML page."""

    weights: str | None
    resolution: int | None
    precision: str | None
    out: str | Path | None
    overwrite: bool


class EvaluateKeywords(MachineKeywords, total=False):
    """Keywords of `evaluate`."""

    skip_bad: bool


class ReportKeywords(MachineKeywords, total=False):
    """Keywords of `report`; `out` is the page."""

    out: str | Path | None
    overwrite: bool


class ExportKeywords(MachineKeywords, total=False):
    """Keywords of `export`."""

    overwrite: bool


class EmbedKeywords(MachineKeywords, total=False):
    """Keywords of `embed`."""

    weights: str | None
    precision: str | None
    split_seed: int
    skip_bad: bool
    overwrite: bool


class PredictKeywords(TypedDict, total=False):
    """Keywords of `predict`, see `PredictOptions`; the last three are of the file `out`."""

    top: int
    batch_size: int
    min_confidence: float | None
    device: str
    reporter: ProgressReporter
    format: str | None
    resume: bool
    overwrite: bool


def to_options(keywords: Mapping[str, object]) -> tuple[PlanOverrides, Options]:
    """Return what keywords ask of the plan, and all other options."""
    options = Options(
        data=pick(DataOptions, keywords),
        cache=pick(CacheOptions, keywords),
        runtime=pick(Runtime, keywords),
        run_dir=pick(RunDir, keywords),
    )
    return pick(PlanOverrides, keywords), options


def pick(group: type[Group], keywords: Mapping[str, object]) -> Group:
    """Return a group of options with those keywords that are its fields."""
    names = [field.name for field in fields(group)]  # type: ignore[arg-type]
    return group(**{name: keywords[name] for name in names if name in keywords})


def takes(keywords: type) -> Callable[[F], F]:
    """Make a function of a verb refuse unknown keywords, and show the known ones in `help()`.

    Args:
        keywords: The typed dict that the function unpacks.
    """

    def decorate(function: F) -> F:
        signature = _flat_signature(function, keywords)
        known = [name for name in signature.parameters if name != "options"]

        @functools.wraps(function)
        def verb(*values: Any, **named: Any) -> Any:
            for name in named:
                if name not in known:
                    raise _unknown_keyword(function.__name__, name, known)
            return function(*values, **named)

        verb.__signature__ = signature  # type: ignore[attr-defined]
        verb.__doc__ = _document(function, keywords)
        return cast(F, verb)

    return decorate


def _unknown_keyword(verb: str, name: str, known: Sequence[str]) -> Exception:
    more = f"Known: {', '.join(known)}."
    if _RENAMED.get(name) in known:
        more = f"It is called {_RENAMED[name]!r}."
    return unknown_name_error(f"keyword of regraft.{verb}", name, known, more)


def _flat_signature(function: Callable[..., Any], keywords: type) -> inspect.Signature:
    """Return a function's signature with the unpacked keywords one by one, with defaults."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[:-1]
    for name, annotation in keywords.__annotations__.items():
        parameter = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_DEFAULTS[name],
            annotation=getattr(annotation, "__forward_arg__", annotation),
        )
        parameters.append(parameter)
    return signature.replace(parameters=parameters)


def _document(function: Callable[..., Any], keywords: type) -> str:
    """Return a function's docstring, with what each keyword means at its end."""
    lines = [inspect.cleandoc(function.__doc__ or ""), "", "Keywords:"]
    for name in keywords.__annotations__:
        lines.append(textwrap.indent(f"{name}: {_HELP[name]}", "    "))
    return "\n".join(lines)


def _option_fields() -> Iterator[Any]:
    for group in GROUPS:
        yield from fields(group)


_DEFAULTS: dict[str, Any] = {
    "top": 1,
    "batch_size": 0,
    "min_confidence": None,
    "format": None,
}
_HELP = {
    "top": "Classes of a row of the file.",
    "batch_size": "Images at once; 0 for what suits the machine.",
    "min_confidence": "Abstain below this calibrated probability, above 0 and at most 1.",
    "format": '"csv", "json" (a line each) or "parquet"; by the name of `out` when None.',
    "reporter": "Hears of messages, progress and metrics.",
}
for _field in _option_fields():
    assert _field.default is not MISSING
    _DEFAULTS[_field.name] = _field.default
    _HELP.setdefault(_field.name, _field.metadata.get("help", ""))
