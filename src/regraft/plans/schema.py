"""The fields of a plan and its phases, as frozen validated data with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from regraft.errors import close_matches
from regraft.plans.faults import plan_error
from regraft.plans.head import MAX_TEXT_LENGTH, parse_head

RESERVED_LAYERS = ("head", "all", "end")  # what `train` and `until` take besides stages
L2_PATH = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Augmentation = Literal["none", "flip", "shift", "light", "standard"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)
_OLD_SCHEDULES = {"one-cycle": "warmup-cosine"}  # its name in version 0.1
_BATCH_NORM_SYNONYMS = {"update": "adapt", "freeze": "keep"}
_UNUSED_BY_LBFGS = ("mixup", "cutmix", "ema", "patience", "gradient_clip", "weight_decay")


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


def _check_head(value: object) -> object:
    if isinstance(value, str):
        parse_head(value)
    return value


def _to_schedule(value: object) -> object:
    return _OLD_SCHEDULES.get(value, value) if isinstance(value, str) else value


def _to_batch_norm(value: object) -> object:
    return _BATCH_NORM_SYNONYMS.get(value, value) if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Phase(_Strict):
    """One stretch of training with one optimizer over exactly the trained part."""

    train: str = Field(
        "head",
        max_length=MAX_TEXT_LENGTH,
        description="the first layer that this phase trains: 'head', a stage, or 'all'",
    )
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "lbfgs"] = Field(
        "adamw",
        description="'lbfgs' fits a linear head for every value of `l2`, without batches",
    )
    resolution: int = Field(
        0,
        ge=0,
        le=4096,
        description="side in pixels in this phase, for progressive resizing (Howard 2018); "
        "0 is the plan's",
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
    schedule: Annotated[
        Literal["constant", "cosine", "warmup-cosine"], BeforeValidator(_to_schedule)
    ] = Field(
        "constant",
        description="course of the rate over the phase; 'warmup-cosine' rises over `warmup`, "
        "or a quarter of the steps where that is 0, then falls as a cosine",
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of the steps over which the rate rises"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="mass taken from the true class")
    mixup: float = Field(0.0, ge=0, le=10, description="alpha of mixup (Zhang 2018); 0 is off")
    cutmix: float = Field(0.0, ge=0, le=10, description="alpha of cutmix (Yun 2019); 0 is off")
    augment: Augmentation = Field("none", description="augmentation preset")
    views: int = Field(
        1,
        ge=1,
        le=1000,
        description="augmented views cached of each image where a part of the network is frozen",
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
    batch_norm: Annotated[Literal["adapt", "keep"], BeforeValidator(_to_batch_norm)] = Field(
        "adapt",
        description="BatchNorm statistics of the trained part: 'adapt' (or 'update') them, "
        "or 'keep' (or 'freeze') those of the weights",
    )
    l2: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        L2_PATH,
        min_length=1,
        max_length=1000,
        description="L2 values that 'lbfgs' tries, chosen on val",
    )

    @property
    def looks(self) -> int:
        """Number of views of each image that are cached: one without augmentation.

        There are never more views than epochs.
        """
        return min(self.views, self.epochs) if self.augment != "none" else 1

    @model_validator(mode="after")
    def _check_lbfgs(self) -> Phase:
        if self.optimizer != "lbfgs":
            return self
        if self.train != "head":
            raise ValueError(
                f"optimizer 'lbfgs' fits a head only, but train is {self.train!r}; "
                'use train = "head" or another optimizer'
            )
        if self.augment != "none":
            raise ValueError(
                "optimizer 'lbfgs' sees every image once; "
                'use augment = "none" or another optimizer'
            )
        unused = [name for name in _UNUSED_BY_LBFGS if getattr(self, name)]
        if unused:
            raise ValueError(
                f"optimizer 'lbfgs' has no use for {', '.join(unused)}; "
                "leave them at 0 or take another optimizer"
            )
        return self

    @model_validator(mode="after")
    def _check_cutmix(self) -> Phase:
        if self.cutmix and self.train != "all":
            raise ValueError(
                f"cutmix needs images to cut, but train is {self.train!r}; "
                'use train = "all" or mixup'
            )
        return self

    @model_validator(mode="after")
    def _check_resolution(self) -> Phase:
        if 0 < self.resolution < 8:
            raise ValueError(
                f"resolution {self.resolution} is too small to see anything; "
                "use 8 or more, or 0 for the plan's"
            )
        return self

    @model_validator(mode="after")
    def _check_views(self) -> Phase:
        if self.views > 1 and self.augment == "none":
            raise ValueError(
                "views counts augmented views, but augment is 'none'; "
                "choose a preset or use views = 1"
            )
        return self


class Plan(_Strict):
    """Everything that decides what a run does, apart from the images."""

    backbone: str = Field(
        ...,
        min_length=1,
        max_length=MAX_TEXT_LENGTH,
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
        description="where features are taken; several stages are pooled and concatenated; "
        "'' or 'end' is the end",
    )
    resolution: int = Field(
        ..., ge=8, le=4096, description="side in pixels of what the network sees"
    )
    head: Annotated[str, BeforeValidator(_check_head)] = Field(
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
        description="arithmetic of the trained part; "
        "'auto' measures a few steps where training is long",
    )
    class_weights: Literal["none", "auto"] | dict[str, float] = Field(
        "none", description="'auto' balances; or a weight by class name"
    )
    phases: tuple[Phase, ...] = Field(
        ..., min_length=1, max_length=100, description="what is trained, in order"
    )

    @model_validator(mode="after")
    def _check_lbfgs_head(self) -> Plan:
        hidden = [layer.kind for layer in parse_head(self.head)]
        if hidden and hidden[0] in ("flatten", "pool"):
            hidden = hidden[1:]
        solvers = [phase.optimizer for phase in self.phases]
        if hidden and "lbfgs" in solvers:
            raise ValueError(
                f"phases.{solvers.index('lbfgs')}.optimizer 'lbfgs' fits a linear head, "
                f'but head has {", ".join(hidden)}; use head = ""'
            )
        return self

    @model_validator(mode="after")
    def _check_several_stages(self) -> Plan:
        if len(self.stages_taken) < 2:
            return self
        is_trained = any(phase.train != "head" for phase in self.phases)
        if is_trained or self.head.startswith("flatten"):
            raise ValueError(
                "a list of stages in until is pooled and stays frozen; "
                "use train = \"head\" and no 'flatten'"
            )
        return self

    @model_validator(mode="after")
    def _check_class_weights(self) -> Plan:
        weights = self.class_weights
        if isinstance(weights, dict) and any(weight <= 0 for weight in weights.values()):
            raise ValueError("class_weights must be above 0; remove the class to leave it out")
        return self

    @property
    def stages_taken(self) -> tuple[str, ...]:
        """Where features are taken, always as a tuple; empty for the end of the network alone."""
        stages = (self.until,) if isinstance(self.until, str) else self.until
        return () if stages in (("",), ("end",)) else stages

    def resolution_of(self, phase: Phase) -> int:
        """Return the side in pixels of what the network sees in a phase."""
        return phase.resolution or self.resolution

    @property
    def flattens(self) -> bool:
        """Whether the head wants the feature map itself and not its average."""
        layers = parse_head(self.head)
        return bool(layers) and layers[0].kind == "flatten"

    @property
    def digest(self) -> str:
        """A name for exactly this plan: 16 hexadecimal digits."""
        values = self.model_dump(mode="json")
        for phase in values["phases"]:
            if phase["schedule"] == "warmup-cosine":
                phase["schedule"] = "one-cycle"  # its name in 0.1, whose run folders hold digests
        text = json.dumps(values, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def check(self, model: ModelInfo, classes: Sequence[str]) -> None:
        """Check that this plan fits a model and these classes.

        Raises:
            UserError: With every fault, and near names for those that do not exist.
        """
        faults: list[str] = []
        for number, phase in enumerate(self.phases):
            faults += self._phase_faults(number, phase, model)
        for stage in self.stages_taken:
            if stage != "end" and stage not in model.places:
                faults.append(f"until: {_describe_unknown_stage(stage, model)}")
        if isinstance(self.class_weights, dict):
            for name in self.class_weights.keys() - set(classes):
                faults.append(f"class_weights: {_describe_unknown_class(name, classes)}")
        if faults:
            raise plan_error("The plan", f"does not fit {model.name}", faults)

    def _phase_faults(self, number: int, phase: Phase, model: ModelInfo) -> list[str]:
        faults = []
        if phase.train not in ("head", "all") and phase.train not in model.places:
            unknown = _describe_unknown_stage(phase.train, model)
            faults.append(f"phases.{number}.train: {unknown}")
        if self.resolution_of(phase) == self.resolution:
            return faults
        if model.fixed_resolution:
            faults.append(
                f"phases.{number}.resolution: {model.name} takes one resolution only; use 0"
            )
        if self.flattens:
            faults.append(
                f"phases.{number}.resolution: a head with 'flatten' takes one resolution only; "
                "use 0"
            )
        return faults


def _describe_unknown_stage(stage: str, model: ModelInfo) -> str:
    near = close_matches(stage, model.places) or list(model.stages[-3:])
    return (
        f"{model.name} has no stage {stage!r}, nearest: {', '.join(near)}; "
        f"stages: {', '.join(model.stages)}"
    )


def _describe_unknown_class(name: str, classes: Sequence[str]) -> str:
    near = close_matches(name, classes)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return f"no class is called {name!r}{hint}"
