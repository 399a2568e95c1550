"""A run as a folder that timm opens, and as one for the Hugging Face hub, with a model card.

Refuses what timm cannot express: features from the middle of a network or from several places,
and a head of more than the class layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from regraft.errors import UserError
from regraft.exporting.model_card import model_card, model_facts, to_public_toml
from regraft.exporting.parity import Answered, Answers, Pixels
from regraft.inference.restore import restore_network
from regraft.models.backbone import Backbone
from regraft.models.transforms import Preprocess
from regraft.models.weights import build_model
from regraft.plans.head import parse_head
from regraft.plans.schema import InputRules
from regraft.runs.folder import Run

# all that such a folder ever holds
TIMM_FILES = frozenset(
    ["config.json", "model.safetensors", "README.md", "plan.toml", "evidence.json"]
)
# layers of a head that do nothing in inference, or what timm does anyway
_WITHOUT_EFFECT = ("dropout", "pool")
# settings of the pretrained model that do not hold for the run
_DROPPED_SETTINGS = (
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


def check_timm_folder(finished: Run) -> None:
    """Raise `UserError` where a plan's network cannot be a plain timm model."""
    plan = finished.plan
    places = plan.stages_taken
    hidden = [layer.kind for layer in parse_head(plan.head) if layer.kind not in _WITHOUT_EFFECT]
    if len(places) > 1:
        raise _inexpressible(f"takes features at {len(places)} places")
    if places:
        raise _inexpressible(f"takes features at {places[0]!r}, in the middle of the network")
    if hidden:
        raise _inexpressible(f"has a head of its own ({plan.head})")


def write_timm_folder(finished: Run, path: Path, for_hub: bool = False) -> None:
    """Write the folder that `timm.create_model("local-dir:PATH", pretrained=True)` reads.

    It holds `config.json`, `model.safetensors` and `README.md`. The model is called as the run is.

    Args:
        finished: The run.
        path: A folder; it is made.
        for_hub: Add `plan.toml` and `evidence.json`, so that the folder says everything when it
            is alone.
    """
    from timm.models import save_for_hf

    check_timm_folder(finished)
    restored = restore_network(finished, "cpu")
    model = restored.backbone
    network: Any = add_class_layer(model, restored.head[-1], len(finished.classes))
    network.pretrained_cfg = _timm_config(network.pretrained_cfg, model, len(finished.classes))
    config = {"label_names": list(finished.classes), "num_classes": len(finished.classes)}
    save_for_hf(network, str(path), config, safe_serialization=True)
    card = model_card(finished, restored.preprocess, finished.path.resolve().name)
    (path / "README.md").write_text(card, encoding="utf-8")
    if for_hub:
        (path / "plan.toml").write_text(to_public_toml(finished.plan), encoding="utf-8")
        evidence = json.dumps(model_facts(finished), indent=2, ensure_ascii=False)
        (path / "evidence.json").write_text(evidence + "\n", encoding="utf-8")


def add_class_layer(model: Backbone, layer: nn.Module, classes: int) -> nn.Module:
    """Return timm's own model with a class layer, in eval mode.

    Args:
        model: The backbone, for the weights.
        layer: The run's class layer.
        classes: How many there are.

    Raises:
        UserError: When timm's model has another kind of class layer, or is built differently.
    """
    network: Any = build_model(model.name, "random", model.resolution, classes)
    last = network.get_classifier()
    if not _is_same_layer(last, layer):
        raise _inexpressible(
            f"is of {model.name}, whose class layer in timm is another kind of layer"
        )
    keys = network.load_state_dict(model.model.state_dict(), strict=False)
    expected = set()
    for name, module in network.named_modules():
        if module is last:
            expected |= {f"{name}.weight", f"{name}.bias"}
    if keys.unexpected_keys or set(keys.missing_keys) != expected:
        raise _inexpressible(
            f"is of {model.name}, which timm builds in another way when it has a class layer"
        )
    with torch.no_grad():
        last.weight.copy_(layer.weight)
        last.bias.copy_(layer.bias)
    whole: nn.Module = network.eval()
    return whole


def timm_folder_answers(path: Path) -> Answers:
    """Return the folder as a function from images of one size to probabilities.

    timm builds the network; images are preprocessed as its config says.
    """
    import timm
    from timm.data import resolve_model_data_config

    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    config = resolve_model_data_config(network)
    rules = InputRules(tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
    preprocess = Preprocess(rules, int(config["input_size"][-1]))

    def answer(images: Pixels) -> Answered:
        with torch.inference_mode():
            stored = np.stack([preprocess.store(image) for image in images])
            logits = network(preprocess(torch.from_numpy(stored)))
            probabilities: Answered = logits.softmax(dim=1).numpy()
        return probabilities

    return answer


def _timm_config(pretrained: dict[str, Any], model: Backbone, classes: int) -> dict[str, Any]:
    """Return timm's settings of a pretrained model with those of the run in their place."""
    config = {key: value for key, value in pretrained.items() if key not in _DROPPED_SETTINGS}
    rules = model.rules
    config["input_size"] = (3, model.resolution, model.resolution)
    config["mean"] = rules.mean
    config["std"] = rules.std
    config["interpolation"] = rules.interpolation
    config["crop_pct"] = 1.0
    config["crop_mode"] = "center"
    config["num_classes"] = classes
    config["tag"] = ""
    config["license"] = ""
    return config


def _is_same_layer(last: nn.Module, layer: nn.Module) -> bool:
    """Return whether both are linear layers with a bias, of one shape."""
    if not isinstance(last, nn.Linear) or not isinstance(layer, nn.Linear):
        return False
    return last.weight.shape == layer.weight.shape and last.bias is not None


def _inexpressible(reason: str) -> UserError:
    return UserError(
        f"The run {reason}, which a plain timm model cannot express. "
        "Export it to onnx, torchscript or safetensors, which can."
    )
