"""The head line of a plan ("bn, dense 256 relu, dropout 0.5"), read as a list of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regraft.errors import close_matches

MAX_TEXT_LENGTH = 1_000  # characters of a head line or of a name in a plan
_MAX_UNITS = 65_536  # of one linear layer
_ACTIVATIONS = ("relu", "gelu", "silu", "tanh")


@dataclass(frozen=True)
class HeadLayer:
    """One layer of a head: its kind and number ("dense", 256), ("dropout", 0.5), ("bn", None)."""

    kind: str
    value: float | None = None


@dataclass(frozen=True)
class _Number:
    """The number that follows the name of a layer."""

    read: Callable[[str], float]
    is_allowed: Callable[[float], bool]
    example: str


_UNITS = _Number(int, lambda units: 1 <= units <= _MAX_UNITS, "256")
_RATE = _Number(float, lambda rate: 0 <= rate < 1, "0.5")

HEAD_LAYERS: dict[str, _Number | None] = {
    "flatten": None,
    "pool": None,
    "bn": None,
    "ln": None,
    "relu": None,
    "gelu": None,
    "silu": None,
    "tanh": None,
    "dense": _UNITS,
    "linear": _UNITS,
    "dropout": _RATE,
}
_SYNONYMS = {"linear": "dense"}  # PyTorch's name of what Keras calls a dense layer


def parse_head(head: str) -> tuple[HeadLayer, ...]:
    """Return the layers that a head line names, without the class layer, which always comes last.

    Args:
        head: A comma-separated list of `flatten` (first only; otherwise feature maps are averaged),
            `bn`, `ln`, `linear 256` or `dense 256` (the same layer), `linear 256 relu`,
            `dropout 0.5`, `relu`, `gelu`, `silu`, `tanh`. A `Layer` of either is called "dense".

    Raises:
        ValueError: For an unknown layer, or a missing or impossible number; the text says which.
    """
    if len(head) > MAX_TEXT_LENGTH:
        raise ValueError(
            f"a head of {len(head):,} characters is too long; use {MAX_TEXT_LENGTH:,} at most"
        )
    layers: list[HeadLayer] = []
    for item in head.split(","):
        if item.strip():
            layers += _read_item(item.strip())
    if any(layer.kind in ("flatten", "pool") for layer in layers[1:]):
        raise ValueError("'flatten' and 'pool' can only come first")
    return tuple(layers)


def _read_item(item: str) -> list[HeadLayer]:
    """Return the layer of one item of a head line, with the activation that may follow it."""
    word, *rest = item.split()
    if word not in HEAD_LAYERS:
        near = close_matches(word, HEAD_LAYERS)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{item!r} is not a layer{hint}; known: {', '.join(HEAD_LAYERS)}")
    kind = _SYNONYMS.get(word, word)
    number = HEAD_LAYERS[word]
    value = None
    if number is not None:
        value = _read_number(item, word, number, rest)
        rest = rest[1:]
    layers = [HeadLayer(kind, value)]
    if kind == "dense" and len(rest) == 1 and rest[0] in _ACTIVATIONS:
        layers.append(HeadLayer(rest[0]))
        rest = []
    if rest:
        raise ValueError(f"{item!r} has too many words; separate layers by commas")
    return layers


def _read_number(item: str, word: str, number: _Number, rest: list[str]) -> float:
    """Return the number that follows a layer's name."""
    try:
        value = number.read(rest[0])
    except (IndexError, ValueError, OverflowError):
        example = f"{word} {number.example}"
        raise ValueError(f"{item!r} needs a number, as in {example!r}") from None
    if not number.is_allowed(value):
        raise ValueError(
            f"{item!r} is out of range; dense and linear take 1 to {_MAX_UNITS:,}, "
            "dropout 0 to below 1"
        )
    return value
