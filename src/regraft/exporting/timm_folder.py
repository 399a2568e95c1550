"""A run as a folder that timm opens, and as one for the hub, with a card that says what it is worth.

Refuses what timm has no words for: features from the middle of a network, from several places, or a head of more than the class layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from regraft.errors import UserError
from regraft.exporting.model_card import model_card, model_facts, public_plan
from regraft.exporting.parity import Answered, Answers, Pixels
from regraft.inference.network import restore_network
from regraft.models.backbone import Backbone
from regraft.models.transforms import resize_center_crop, storage_size, transform
from regraft.models.weights import build_model
from regraft.plans.schema import InputRules, parse_head
from regraft.runs.folder import Run

TIMM_FILES = frozenset(
    ["config.json", "model.safetensors", "README.md", "plan.toml", "evidence.json"]
)  # all that such a folder ever holds
_WITHOUT_EFFECT = (
    "dropout",
    "pool",
)  # layers of a head that do nothing in use, or what timm does anyway


def check_timm_folder(finished: Run) -> None:
    """Raise `UserError` where a plan's network cannot be a plain timm model."""
    plan = finished.plan
    hidden = [layer.kind for layer in parse_head(plan.head) if layer.kind not in _WITHOUT_EFFECT]
    if len(plan.stages_taken) > 1:
        _refuse(f"takes features at {len(plan.stages_taken)} places")
    if plan.stages_taken:
        _refuse(f"takes features at {plan.stages_taken[0]!r}, in the middle of the network")
    if hidden:
        _refuse(f"has a head of its own ({plan.head})")


def write_timm_folder(finished: Run, path: Path, name: str, for_hub: bool = False) -> None:
    """Write `config.json`, `model.safetensors` and `README.md`, as `timm.create_model("local-dir:PATH", pretrained=True)` reads them.

    Args:
        finished: The run.
        path: A folder; it is made.
        name: What the card calls the model.
        for_hub: Add `plan.toml` and `evidence.json`, so that the folder says everything when it is alone.
    """
    from timm.models import save_for_hf

    check_timm_folder(finished)
    model, top = restore_network(finished, "cpu")
    made: Any = with_classes(model, top[-1], len(finished.classes))
    size, rules = (3, model.resolution, model.resolution), model.rules
    config = {
        "input_size": size,
        "mean": rules.mean,
        "std": rules.std,
        "interpolation": rules.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "num_classes": len(finished.classes),
        "tag": "",
        "license": "",
    }
    forgotten = (
        "test_input_size",
        "test_crop_pct",
        "pool_size",
        "origin_url",
        "paper_ids",
        "paper_name",
        "hf_hub_id",
        "url",
        "file",
    )
    made.pretrained_cfg = {
        **{key: value for key, value in made.pretrained_cfg.items() if key not in forgotten},
        **config,
    }
    save_for_hf(
        made,
        str(path),
        {"label_names": list(finished.classes), "num_classes": len(finished.classes)},
        safe_serialization=True,
    )
    (path / "README.md").write_text(model_card(finished, model, name), encoding="utf-8")
    if for_hub:
        (path / "plan.toml").write_text(public_plan(finished.plan), encoding="utf-8")
        (path / "evidence.json").write_text(
            json.dumps(model_facts(finished), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def with_classes(model: Backbone, layer: nn.Module, classes: int) -> nn.Module:
    """Return timm's own model with a class layer, filled with a backbone's weights and those of the layer; raises `UserError` where they do not fit."""
    made: Any = build_model(model.name, "random", model.resolution, classes)
    last = made.get_classifier()
    if (
        not isinstance(last, nn.Linear)
        or not isinstance(layer, nn.Linear)
        or last.weight.shape != layer.weight.shape
        or last.bias is None
    ):
        _refuse(f"is of {model.name}, whose class layer in timm is another kind of layer")
    fault = made.load_state_dict(model.model.state_dict(), strict=False)
    names = {
        f"{name}.{kind}"
        for name, module in made.named_modules()
        if module is last
        for kind in ("weight", "bias")
    }
    if fault.unexpected_keys or set(fault.missing_keys) != names:
        _refuse(f"is of {model.name}, which timm builds in another way when it has a class layer")
    with torch.no_grad():
        last.weight.copy_(layer.weight)
        last.bias.copy_(layer.bias)
    whole: nn.Module = made.eval()
    return whole


def timm_folder_answers(path: Path) -> Answers:
    """Return the folder as a function from images of one size to probabilities: timm builds the network, pixels are made ready as its config says."""
    import timm
    from timm.data import resolve_model_data_config

    made = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    config = resolve_model_data_config(made)
    rules = InputRules(tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
    side = int(config["input_size"][-1])

    def run(images: Pixels) -> Answered:
        ready = np.stack(
            [
                resize_center_crop(image, storage_size(image.shape[:2], side), rules.interpolation)
                for image in images
            ]
        )
        with torch.inference_mode():
            found: Answered = (
                made(
                    transform(
                        torch.from_numpy(ready),
                        torch.zeros(len(ready), dtype=torch.int64),
                        rules,
                        side,
                    )
                )
                .softmax(dim=1)
                .numpy()
            )
        return found

    return run


def _refuse(why: str) -> None:
    raise UserError(
        f"The run {why}, which a plain timm model cannot express. Export it to onnx, torchscript or safetensors, which can."
    )
