"""What people read of a plan and of a backbone's layers, made from what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regraft.cli.console import Values, make_table, out, print_lines, remark, say
from regraft.system.timer import format_duration


def print_forecast(values: Values) -> None:
    """Print what a plan would do."""
    plan = values["plan"]
    images = values["images"]
    say(
        f"{plan['technique']} of {plan['backbone']} ({plan['weights']} weights) at "
        f"{plan['resolution']} px on {values['data']}"
    )
    say(
        f"{images['train']:,} images to train on, {images['val']:,} to choose by, "
        f"{images['test']:,} held out; {values['classes']} classes"
    )
    head = f"{plan['head']}, class layer" if plan["head"] else "class layer"
    layers = describe_layers(plan["until"], "the end of the network")
    say(f"features are taken at {layers}; head: {head}")
    for number, phase in enumerate(values["phases"], 1):
        say()
        print_lines(_describe_phase(phase, number))
    parameters = values["parameters"]
    say()
    say(
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters trained in all; about "
        f"{format_duration(values['seconds'])}. Nothing was run."
    )


def describe_layers(layers: str | Sequence[str], end: str) -> str:
    """Return where features are taken; `end` is what the end of the network is called."""
    if not layers:
        return end
    return layers if isinstance(layers, str) else ", ".join(layers)


def _describe_phase(phase: Values, number: int) -> Iterator[str]:
    if phase["optimizer"] == "lbfgs":
        how = " by L-BFGS"
    else:
        how = f", {phase['optimizer']}, up to {phase['epochs']} epochs"
    yield f"Phase {number}: train {phase['train']}{how}"
    if phase["frozen_parameters"]:
        yield f"  frozen: {phase['frozen_parameters']:,} parameters and their buffers"
        if phase["kept"]:
            yield f"  {_describe_cache(phase)}"
        yield f"  {phase['decision']}"
    else:
        yield "  frozen: nothing"
    trained = phase["trained_parameters_of_backbone"]
    yield f"  trained: {trained:,} parameters of the backbone, and the head"
    yield f"  about {format_duration(phase['seconds'])}"


def _describe_cache(phase: Values) -> str:
    saved = max(0.0, phase["seconds_without_cache"] - phase["seconds"])
    size = f"{phase['cache_bytes'] / 1e6:,.1f} MB"
    return f"computed once and cached: {size}; saves about {format_duration(saved)}"


def print_layers(values: Values) -> None:
    """Print the layers at which a backbone can be cut."""
    rules = values["input"]
    name = values["backbone"]
    say(
        f"{name} at {values['resolution']} px, mean {rules['mean']}, std {rules['std']}, "
        f"{rules['interpolation']}"
    )
    table = make_table("stage", "output", "parameters", "multiply-adds", "cached", "pooled")
    for column in table.columns[2:]:
        column.justify = "right"
    for layer in values["places"]:
        table.add_row(
            layer["name"],
            format_shape(layer["shape"]),
            f"{layer['parameters']:,}",
            f"{layer['multiply_adds'] / 1e6:,.1f} M",
            f"{layer['map_bytes']:,} B",
            f"{layer['pooled_bytes']:,} B",
        )
    out.print(table)
    remark(
        "cached: bytes of one image in the cache, float16, where all up to here is frozen   "
        "pooled: the same of pooled features"
    )


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape as "64 × 8 × 8"."""
    return " × ".join(map(str, shape))
