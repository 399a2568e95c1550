"""What a run will do, as frozen validated data with a digest; it reports every fault at once.

Refuses to hold objects: everything in a plan is a name or a number, so a plan can be printed, saved, compared and sent.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from regraft.errors import UserError, close_matches
from regraft.system.files import atomic_write

RESERVED_LAYERS = ("head", "all", "end")  # what `train` and `until` take besides stages
AUGMENTATIONS = ("none", "flip", "shift", "light", "standard")
_SHOWN, _WIDEST, _LONGEST = (
    20,
    65_536,
    1_000,
)  # faults that are listed, units of a layer, characters of a name or a head
L2_PATH = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class ModelInfo:
    """What a technique may know of a source model."""

    name: str
    stages: tuple[str, ...]  # in order of depth, as timm groups them
    blocks: tuple[str, ...]  # the same, finer: every block of every stage
    places: frozenset[str]  # every module at which a cut can be named
    resolution: int  # side in pixels at which the weights were trained
    fixed_resolution: bool  # whether another one needs the model rebuilt (ViT, Swin)


@dataclass(frozen=True)
class InputRules:
    """What a network expects of its input; always those of its weights."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str  # "bilinear" or "bicubic"


@dataclass(frozen=True)
class HeadLayer:
    """One word of a head: its name and number ("dense", 256), ("dropout", 0.5), ("bn", None)."""

    kind: str
    value: float | None = None


_LAYERS: dict[str, Callable[[str], float] | None] = {
    "flatten": None,
    "pool": None,
    "bn": None,
    "ln": None,
    "relu": None,
    "gelu": None,
    "silu": None,
    "tanh": None,
    "dense": int,
    "dropout": float,
}


def parse_head(head: str) -> tuple[HeadLayer, ...]:
    """Return the layers that a head's line names; the class layer, always added last, is not among them.

    The line is a comma-separated list: `flatten` (first only; otherwise maps are averaged), `bn`, `ln`, `dense 256`,
    `dense 256 relu`, `dropout 0.5`, `relu`, `gelu`, `silu`, `tanh`.

    Raises:
        ValueError: For an unknown word, a missing or impossible number; says which.
    """
    layers: list[HeadLayer] = []
    if len(head) > _LONGEST:
        raise ValueError(
            f"a head of {len(head):,} characters is too long; use {_LONGEST:,} at most"
        )
    for item in filter(None, (part.strip() for part in head.split(","))):
        words = item.split()
        kind = words.pop(0)
        if kind not in _LAYERS:
            near = close_matches(kind, _LAYERS)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{item!r} is no layer{hint}; known: {', '.join(_LAYERS)}")
        number = _LAYERS[kind]
        value = None
        if number is not None:
            try:
                value = number(words.pop(0))
            except (IndexError, ValueError, OverflowError):
                raise ValueError(
                    f"{item!r} needs a number, as in '{kind} {'256' if kind == 'dense' else '0.5'}'"
                ) from None
            if (kind == "dense" and not 1 <= value <= _WIDEST) or (
                kind == "dropout" and not 0 <= value < 1
            ):
                raise ValueError(
                    f"{item!r} is out of range; dense takes 1 to {_WIDEST:,}, dropout 0 to below 1"
                )
        layers.append(HeadLayer(kind, value))
        if (
            words
            and kind == "dense"
            and len(words) == 1
            and words[0] in ("relu", "gelu", "silu", "tanh")
        ):
            layers.append(HeadLayer(words.pop()))
        if words:
            raise ValueError(f"{item!r} has too many words; separate layers by commas")
    if any(layer.kind in ("flatten", "pool") for layer in layers[1:]):
        raise ValueError("'flatten' and 'pool' can only come first")
    return tuple(layers)


def _head_line(value: object) -> object:
    if isinstance(value, str):
        parse_head(value)
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Phase(_Strict):
    """One stretch of training with one optimizer over exactly the trained part."""

    train: str = Field(
        "head",
        max_length=_LONGEST,
        description="from where on this phase trains: 'head', a stage, or 'all'",
    )
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "lbfgs"] = Field(
        "adamw",
        description="'lbfgs' solves a linear head over the whole `l2` path instead of iterating batches",
    )
    resolution: int = Field(
        0,
        ge=0,
        le=4096,
        description="side in pixels in this phase, for progressive resizing (Howard 2018); 0 is the plan's",
    )
    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training images at most")
    batch_size: int = Field(64, ge=1, le=65_536, description="images a step")
    lr: float = Field(1e-3, gt=0, le=100, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd and rmsprop")
    weight_decay: float = Field(
        0.0, ge=0, le=10, description="decay of weights; norms and biases have none"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the rate for each stage further from the head"
    )
    schedule: Literal["constant", "cosine", "one-cycle"] = Field(
        "constant", description="course of the rate over the phase"
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of the steps over which the rate rises"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="mass taken from the true class")
    mixup: float = Field(0.0, ge=0, le=10, description="alpha of mixup (Zhang 2018); 0 is off")
    cutmix: float = Field(0.0, ge=0, le=10, description="alpha of cutmix (Yun 2019); 0 is off")
    augment: Literal["none", "flip", "shift", "light", "standard"] = Field(
        "none", description="augmentation preset"
    )
    views: int = Field(
        1,
        ge=1,
        le=1000,
        description="augmented views kept of each image where a frozen part is cached",
    )
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0 is off")
    monitor: Literal["val_loss", "val_accuracy"] = Field(
        "val_accuracy", description="what picks the best epoch"
    )
    patience: int = Field(
        0, ge=0, le=10_000, description="epochs without improvement before stopping; 0 is off"
    )
    min_delta: float = Field(0.0, ge=0, description="what counts as an improvement")
    gradient_clip: float = Field(0.0, ge=0, description="largest norm of the gradient; 0 is off")
    batch_norm: Literal["adapt", "keep"] = Field(
        "adapt", description="whether BatchNorm statistics of the trained part move"
    )
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        L2_PATH,
        min_length=1,
        max_length=1000,
        description="L2 values that 'lbfgs' tries, chosen on val",
    )

    @property
    def looks(self) -> int:
        """In how many views each image is seen where a frozen part comes first: no more than there are epochs, one without augmentation."""
        return min(self.views, self.epochs) if self.augment != "none" else 1

    @model_validator(mode="after")
    def _solved_heads_train_nothing_else(self) -> Phase:
        if self.optimizer == "lbfgs" and self.train != "head":
            raise ValueError(
                f"optimizer 'lbfgs' solves a head only, but train is {self.train!r}; use train = \"head\" or another optimizer"
            )
        if self.optimizer == "lbfgs" and self.augment != "none":
            raise ValueError(
                "optimizer 'lbfgs' looks at every image once; use augment = \"none\" or another optimizer"
            )
        idle = [
            name
            for name in ("mixup", "cutmix", "ema", "patience", "gradient_clip", "weight_decay")
            if getattr(self, name)
        ]
        if self.optimizer == "lbfgs" and idle:
            raise ValueError(
                f"optimizer 'lbfgs' has no use for {', '.join(idle)}; leave them at 0 or take another optimizer"
            )
        if self.cutmix and self.train != "all":
            raise ValueError(
                f'cutmix needs images to cut, but train is {self.train!r}; use train = "all" or mixup'
            )
        if 0 < self.resolution < 8:
            raise ValueError(
                f"resolution {self.resolution} is too small to see anything; use 8 or more, or 0 for the plan's"
            )
        if self.views > 1 and self.augment == "none":
            raise ValueError(
                "views counts augmented looks, but augment is 'none'; choose a preset or use views = 1"
            )
        return self


class Plan(_Strict):
    """Everything that decides what a run does, apart from the images."""

    backbone: str = Field(
        ...,
        min_length=1,
        max_length=_LONGEST,
        description="any timm name, with or without its weight tag",
    )
    weights: str = Field(
        "pretrained",
        min_length=1,
        max_length=4096,
        description="'pretrained', 'random', or a local file",
    )
    technique: str = Field(
        "custom",
        min_length=1,
        max_length=200,
        description="the technique that wrote this plan; a label only",
    )
    until: str | tuple[str, ...] = Field(
        "",
        description="where features are taken; several stages are pooled and concatenated; '' or 'end' is the end",
    )
    resolution: int = Field(
        ..., ge=8, le=4096, description="side in pixels of what the network sees"
    )
    head: Annotated[str, BeforeValidator(_head_line)] = Field(
        "", description="layers before the class layer, see `head_layers`"
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="of weights, order, augmentation and dropout; the split has its own",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="arithmetic of the frozen part; storage is float16"
    )
    train_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="arithmetic of the trained part; 'auto' measures a few steps where training is long",
    )
    class_weights: Literal["none", "auto"] | dict[str, float] = Field(
        "none", description="'auto' balances; or a weight by class name"
    )
    phases: tuple[Phase, ...] = Field(
        ..., min_length=1, max_length=100, description="what is trained, in order"
    )

    @model_validator(mode="after")
    def _solved_heads_are_linear(self) -> Plan:
        hidden = [
            layer.kind for layer in parse_head(self.head) if layer.kind not in ("flatten", "pool")
        ]
        solved = [number for number, phase in enumerate(self.phases) if phase.optimizer == "lbfgs"]
        if hidden and solved:
            raise ValueError(
                f"phases.{solved[0]}.optimizer 'lbfgs' solves a linear head, but head has {', '.join(hidden)}; use head = \"\""
            )
        if len(self.stages_taken) > 1 and (
            self.head.startswith("flatten") or any(p.train != "head" for p in self.phases)
        ):
            raise ValueError(
                "a list of stages in until is pooled and stays frozen; use train = \"head\" and no 'flatten'"
            )
        if isinstance(self.class_weights, dict) and any(
            weight <= 0 for weight in self.class_weights.values()
        ):
            raise ValueError("class_weights must be above 0; remove the class to leave it out")
        return self

    @property
    def stages_taken(self) -> tuple[str, ...]:
        """Where features are taken, always as a tuple; empty for the end of the network alone."""
        taken = (self.until,) if isinstance(self.until, str) else self.until
        return () if taken in (("",), ("end",)) else taken

    def resolution_of(self, phase: Phase) -> int:
        """Return the side in pixels of what the network sees in a phase."""
        return phase.resolution or self.resolution

    @property
    def flattens(self) -> bool:
        """Whether the head wants the map itself and not its average."""
        layers = parse_head(self.head)
        return bool(layers) and layers[0].kind == "flatten"

    @property
    def digest(self) -> str:
        """Name of this very plan: 16 hexadecimal digits."""
        return hashlib.blake2b(
            json.dumps(self.model_dump(mode="json"), sort_keys=True).encode(), digest_size=8
        ).hexdigest()

    def check(self, model: ModelInfo, classes: Sequence[str]) -> None:
        """Raise one `UserError` with every fault of this plan for this model and these classes."""
        faults = []
        for number, phase in enumerate(self.phases):
            if phase.train not in ("head", "all") and phase.train not in model.places:
                faults.append(f"phases.{number}.train: {_no_stage(phase.train, model)}")
            if phase.resolution and phase.resolution != self.resolution:
                if model.fixed_resolution:
                    faults.append(
                        f"phases.{number}.resolution: {model.name} takes one resolution only; use 0"
                    )
                if self.flattens:
                    faults.append(
                        f"phases.{number}.resolution: a head with 'flatten' takes one resolution only; use 0"
                    )
        for stage in self.stages_taken:
            if stage != "end" and stage not in model.places:
                faults.append(f"until: {_no_stage(stage, model)}")
        if isinstance(self.class_weights, dict):
            for name in self.class_weights.keys() - set(classes):
                near = close_matches(name, classes)
                faults.append(
                    f"class_weights: no class is called {name!r}"
                    + (f", did you mean {near[0]!r}?" if near else "")
                )
        if faults:
            raise _faulty("The plan", f"does not fit {model.name}", faults)


def parse_plan(values: Mapping[str, Any], where: str = "The plan") -> Plan:
    """Return the plan that plain values describe; raises one `UserError` that names every fault."""
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        inner = {
            one["loc"][:1] for one in found if len(one["loc"]) > 1
        }  # a list of faulty things is also "too short": said once
        kept = [one for one in found if one["type"] != "too_short" or one["loc"] not in inner]
        raise _faulty(where, "is not valid", [_fault(one) for one in kept]) from None


def read_plan(path: Path) -> Plan:
    """Return the plan in a TOML file; raises `UserError` when there is none or it is faulty."""
    return parse_plan(read_plan_values(path), str(path))


def read_plan_values(path: Path) -> dict[str, Any]:
    """Return what a plan's TOML file says, not yet validated; raises `UserError` when it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"There is no plan at {path}. Expected a TOML file; `regraft plan DATA --save plan.toml` writes one."
        ) from None
    except (
        ValueError,
        OSError,
        RecursionError,
    ) as error:  # ValueError: no UTF-8, no TOML, or a number of thousands of digits
        raise UserError(
            f"{path} is no readable TOML: {_short(error)}. Correct it, or write a fresh one with `regraft plan DATA --save`."
        ) from None


def override_plan(
    values: Mapping[str, Any], changes: Sequence[str], where: str = "The plan"
) -> Plan:
    """Return the plan after applying each `key=value`; a value is read as TOML, or as text where it is none."""
    tree: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"--set {change!r} is no change. Expected KEY=VALUE, for example --set phases.0.lr=3e-4."
            )
        _put(tree, key.strip().split("."), _value(text.strip()), change)
    return parse_plan(tree, where)


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan as TOML, every field spelled out."""
    with atomic_write(path) as scratch:
        scratch.write_text(plan_to_toml(plan), encoding="utf-8")


def plan_to_toml(plan: Plan) -> str:
    """Return the plan as TOML, every field spelled out."""
    return tomli_w.dumps(plan.model_dump(mode="json"))


def _put(tree: Any, keys: list[str], value: Any, change: str) -> None:
    try:
        for key in keys[:-1]:
            tree = tree[int(key)] if isinstance(tree, list) else tree.setdefault(key, {})
        if isinstance(tree, list):
            tree[int(keys[-1])] = value
        else:
            tree[keys[-1]] = value
    except (IndexError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"--set {change!r} points nowhere. Expected a key of the plan; phases are numbered from 0, as in phases.0.lr."
        ) from None


def _value(written: str) -> Any:
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except (ValueError, RecursionError):
        return written


def _fault(error: Any) -> str:
    place = ".".join(
        str(part)
        for part in error["loc"]
        if part not in ("str", "tuple[str, ...]", "dict[str,float]")
    )
    if error["type"] == "extra_forbidden":
        fields = Phase.model_fields if place.startswith("phases.") else Plan.model_fields
        near = close_matches(place.rsplit(".", 1)[-1], fields)
        return f"{place}: unknown key" + (f", did you mean {near[0]!r}?" if near else "")
    if error["type"] == "missing":
        return f"{place}: missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
    if error["type"] == "literal_error":
        near = close_matches(
            str(error["input"]),
            [
                word.strip(" '")
                for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")
            ],
        )
        message += f", did you mean {near[0]!r}?" if near else ""
    given = f", got {_short(repr(error['input']))}" if error["type"] != "value_error" else ""
    return f"{place or 'plan'}: {message}{given}"


def _no_stage(given: str, model: ModelInfo) -> str:
    near = close_matches(given, model.places) or list(model.stages[-3:])
    return f"{model.name} has no stage {given!r}, nearest: {', '.join(near)}; stages: {', '.join(model.stages)}"


def _short(given: object) -> str:
    text = str(given)
    return text if len(text) <= _SHOWN * 10 else f"{text[: _SHOWN * 10]}…"


def _faulty(what: str, how: str, faults: Sequence[str]) -> UserError:
    if len(faults) == 1:
        return UserError(f"{what} {how}: {faults[0]}. Correct it and try again.")
    lines = "".join(f"\n  - {fault}" for fault in faults[:_SHOWN]) + (
        f"\n  - and {len(faults) - _SHOWN:,} more" if len(faults) > _SHOWN else ""
    )
    return UserError(f"{what} {how}, {len(faults)} faults:{lines}\nCorrect them and try again.")
