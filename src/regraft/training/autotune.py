"""The fastest way to run the trained part on this machine, chosen by measuring a few steps.

Nothing is measured where the whole training is shorter than the measuring repays. What was
measured is remembered, so that the same run takes the same way again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regraft.features.batches import Batches
from regraft.options import CacheOptions, Runtime
from regraft.plans.schema import Plan
from regraft.system.hardware import describe_environment, has_bfloat16, silence_loggers
from regraft.system.output import write_json
from regraft.training.module import Batch, TransferModule

MEASURE_FROM = 30.0  # seconds of training by estimate from which on arithmetic is compared
COMPILE_FROM = 120.0  # and from which on compiling (20 to 60 s) can repay
_CLEARLY_FASTER = 0.9  # share of the time below which another way is taken

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class ExecutionPlan:
    """How the trained part runs.

    Args:
        precision: "float32" or "bfloat16".
        compiled: Whether it is compiled.
        why: The measured times, for people.
    """

    precision: str = "float32"
    compiled: bool = False
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Thresholds:
    """Seconds of training, by estimate, from which on something is measured."""

    measure: float = MEASURE_FROM
    compile: float = COMPILE_FROM


class StepTimer:
    """Seconds a step of each way of running; each way is measured once.

    Args:
        module: The trained part with its head, in train mode; left as it was.
        batch: A batch as it will come.
        known: Seconds that were measured before, by way; new ones are added.
    """

    def __init__(self, module: TransferModule, batch: Batch, known: dict[str, float]) -> None:
        self.module = module
        self.batch = batch
        self.known = known

    def seconds(self, way: str, forward: Forward) -> float:
        """Return the seconds of a step, with `way` naming precision and compilation."""
        if way not in self.known:
            precision = way.split()[0]
            self.known[way] = time_step(self.module, forward, self.batch, precision)
        return self.known[way]


def choose_execution(
    timer: StepTimer,
    steps: int,
    precision: str,
    compiling: str,
    thresholds: Thresholds = Thresholds(),
) -> ExecutionPlan:
    """Return the fastest of float32 and bfloat16, eager and compiled, for a number of steps.

    Where it was compiled, the timer's module runs so from now on.

    Args:
        timer: Measures.
        steps: How many there will be.
        precision: "auto", "float32" or "bfloat16".
        compiling: "auto", "on" or "off".
        thresholds: From how long a training on what is measured.
    """
    module = timer.module
    start = "float32" if precision == "auto" else precision
    eager = timer.seconds(start, module)
    best = start
    fastest = eager
    if precision == "auto" and eager * steps >= thresholds.measure:
        other = timer.seconds("bfloat16", module)
        if other < _CLEARLY_FASTER * eager:
            best = "bfloat16"
            fastest = other
    why = f"{best} takes {fastest * 1e3:,.0f} ms a step"
    if best != start:
        why += f", {start} {eager * 1e3:,.0f}"
    is_short = fastest * steps < thresholds.compile
    if compiling == "off" or (compiling == "auto" and is_short):
        return ExecutionPlan(best, False, why)
    silence_loggers("torch.utils.cpp_extension")  # it misses a CUDA compiler where no GPU is
    compiled: Forward = torch.compile(module.forward, dynamic=False)
    try:
        seconds = timer.seconds(f"{best} compiled", compiled)
    except Exception as error:  # inductor fails in as many ways as there are compilers
        reason = str(error).strip().splitlines()[0][:160]
        return ExecutionPlan(best, False, f"{why}; compiling failed ({reason})")
    why += f", compiled {seconds * 1e3:,.0f}"
    if seconds > _CLEARLY_FASTER * fastest and compiling == "auto":
        return ExecutionPlan(best, False, why)
    targets = timer.batch[1]
    module.use_compiled(compiled, len(targets))
    return ExecutionPlan(best, True, f"{why} on {targets.device.type}")


@dataclass(frozen=True)
class Notes:
    """Where measurements are noted.

    Args:
        run: The file of this run, read first, so that a resumed run goes on as it began.
        cache: The cache folder, where they are remembered for other runs.
    """

    run: Path
    cache: CacheOptions


def autotune(
    module: TransferModule,
    batches: Batches,
    plan: Plan,
    notes: Notes,
    runtime: Runtime,
    thresholds: Thresholds = Thresholds(),
) -> ExecutionPlan:
    """Return how a phase is trained: as the plan says, and as a few steps show where it is open.

    Args:
        module: The trained part and its head.
        batches: What it will be trained on; the first batch is looked at.
        plan: The plan.
        notes: Where measurements are read, and noted.
        runtime: `compile` and `reporter` count.
        thresholds: From how long a training on what is measured.
    """
    precision = plan.train_precision
    if not has_bfloat16(str(module.device.type)):
        precision = "float32"
    remembered = notes.cache.dir / "paces" / f"{_situation(module, batches, plan)}.json"
    known = _read_first(notes.run, remembered)
    before = dict(known)
    first_batch = next(iter(Batches(batches.read, batches.labels, batches.size, batches.seed)))
    timer = StepTimer(module.train_mode(), first_batch, known)
    steps = module.phase.epochs * len(batches)
    execution = choose_execution(timer, steps, precision, runtime.compile, thresholds)
    if known != before or not notes.run.is_file():
        # the shared file first: a run that is killed in between measures the same again
        for path in (remembered, notes.run):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    if len(known) > 1:
        compiled = ", compiled" if execution.compiled else ""
        runtime.reporter.log(f"Training in {execution.precision}{compiled}: {execution.why}.")
    return execution


def _read_first(*paths: Path) -> dict[str, float]:
    for path in paths:
        if path.is_file():
            return _read(path)
    return {}


def _read(path: Path) -> dict[str, float]:
    try:
        values = json.loads(path.read_text())
        return {str(name): float(value) for name, value in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _situation(module: TransferModule, batches: Batches, plan: Plan) -> str:
    """Return a digest of what is run, on what, and by which code."""
    environment = describe_environment()
    parts = (
        str(module.suffix.body),
        repr(module.head),
        module.phase.batch_norm,
        batches.size,
        plan.resolution_of(module.phase),
        str(module.device),
        environment["processor"],
        environment["gpu"],
        environment["threads"],
        torch.__version__,
    )
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(f"{part}\x1e".encode())
    return state.hexdigest()


def time_step(module: TransferModule, forward: Forward, batch: Batch, precision: str) -> float:
    """Return the shorter of two steps without the optimizer, after one that warms up.

    Weights, buffers and random state are left as they were.
    """
    features, targets = batch
    device = targets.device
    buffers = [buffer.clone() for buffer in module.buffers()]
    times = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(3):
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = functional.cross_entropy(forward(*features), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()  # waits for a GPU
            times.append(time.perf_counter() - started)
    for parameter in module.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return min(times[1:])
