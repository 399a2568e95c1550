"""The fastest way to run the trained part on this machine: arithmetic and compilation, chosen by measuring a few steps.

Refuses to guess where it can measure, and to measure where the whole training is shorter than the measuring repays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MEASURE_FROM = 30.0  # seconds of training by estimate from which on arithmetic is compared
COMPILE_FROM = 120.0  # and from which on compiling (20 to 60 s) can repay
_CLEARLY = 0.9  # share of the time below which another way is taken

logging.getLogger("torch.utils.cpp_extension").setLevel(
    logging.ERROR
)  # it misses a CUDA compiler where no GPU is


@dataclass(frozen=True)
class ExecutionPlan:
    """How the trained part runs."""

    precision: str = "float32"
    compiled: bool = False
    why: str = ""

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def choose_execution(
    module: Any,
    batch: tuple[tuple[Tensor, ...], Tensor],
    steps: int,
    precision: str,
    compiling: str,
    known: dict[str, float],
) -> ExecutionPlan:
    """Return the fastest of float32 and bfloat16, eager and compiled, for this many steps; where it was compiled, `module` runs so from now on.

    Args:
        module: The trained part with its head, in train mode; its weights and buffers are left as they were.
        batch: A batch as it will come.
        steps: How many there will be.
        precision: "auto", "float32" or "bfloat16".
        compiling: "auto", "on" or "off".
        known: Seconds a step of each way, measured before; what is measured now is added, so that the choice is the same the next time.
    """
    device = batch[1].device.type
    start = "float32" if precision == "auto" else precision

    def seconds(way: str, run: Callable[..., Tensor]) -> float:
        if way not in known:
            known[way] = _seconds(module, run, batch, way.split()[0])
        return known[way]

    first = seconds(start, module)
    rates = {start: first}
    long = first * steps
    if precision == "auto" and long >= MEASURE_FROM:
        other = seconds("bfloat16", module)
        if other < _CLEARLY * first:
            rates = {"bfloat16": other, start: first}
    best = next(iter(rates))
    said = f"{best} takes {rates[best] * 1e3:,.0f} ms a step" + (
        f", {start} {first * 1e3:,.0f}" if best != start else ""
    )
    if compiling == "off" or (compiling == "auto" and rates[best] * steps < COMPILE_FROM):
        return ExecutionPlan(best, False, said)
    quick: Callable[..., Tensor] = torch.compile(module.forward, dynamic=False)
    try:
        took = seconds(f"{best} compiled", quick)
    except Exception as error:  # inductor fails in as many ways as there are compilers
        return ExecutionPlan(
            best, False, f"{said}; compiling failed ({str(error).strip().splitlines()[0][:160]})"
        )
    said += f", compiled {took * 1e3:,.0f}"
    if took > _CLEARLY * rates[best] and compiling == "auto":
        return ExecutionPlan(best, False, said)
    module.use(quick, len(batch[1]))
    return ExecutionPlan(best, True, f"{said} on {device}")


def _seconds(
    module: Any,
    run: Callable[..., Tensor],
    batch: tuple[tuple[Tensor, ...], Tensor],
    precision: str,
) -> float:
    """Return the shorter of two steps without the optimizer, after one that warms up."""
    features, targets = batch
    buffers = [buffer.clone() for buffer in module.buffers()]
    times = []
    with torch.random.fork_rng(devices=[targets.device] if targets.device.type == "cuda" else []):
        for _ in range(3):
            started = time.perf_counter()
            with torch.autocast(
                targets.device.type, torch.bfloat16, enabled=precision == "bfloat16"
            ):
                loss = functional.cross_entropy(run(*features), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()  # waits for a GPU
            times.append(time.perf_counter() - started)
    for parameter in module.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return min(times[1:])
