"""Prints regraft beside other tools: the same images, initial weights, technique and evaluation, in one run, in alternating order.

    python benchmarks/peers.py --cifar FOLDER [--task frozen|last|all] [--train-images 10000] [--epochs 10] [--full PEER,PEER] [--out peers.json]

Tasks: `frozen` trains a linear head; `last` trains blocks.6, conv_head, bn2 and the head; `all` trains everything. Every participant is a fresh process;
the peers live in their own environment, which is made when it is missing. Images are drawn from CIFAR-10's train file only. Those not named in --full run
--measured epochs and are projected.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import installing, running, table

BATCH = 64
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
KEEP = ("--batch-norm", "keep")  # frozen part in eval mode and without gradients


@dataclass(frozen=True)
class Peer:
    """A tool, the steps of the requirements that it needs, and how its script is started."""

    script: str
    needs: tuple[str, ...]
    flags: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    real_weights: bool = True


PEERS = {
    "plain": Peer("plain.py", ("base",)),
    "plain-eval": Peer("plain.py", ("base",), KEEP),
    "plain-eval-malloc": Peer("plain.py", ("base",), KEEP, tuple(MALLOC.items())),
    "fastai": Peer("fastai_peer.py", ("base", "fastai")),
    "autotimm": Peer("autotimm_peer.py", ("base", "autotimm")),
    "hf-trainer": Peer("hf_trainer.py", ("base", "transformers")),
    "keras-torch": Peer(
        "keras_peer.py",
        ("base", "keras"),
        variables=(("KERAS_BACKEND", "torch"),),
        real_weights=False,
    ),
    "keras-jax": Peer(
        "keras_peer.py",
        ("base", "keras", "jax"),
        variables=(("KERAS_BACKEND", "jax"),),
        real_weights=False,
    ),
}

# Peak rates. Schedules are the tools' own: plain and Keras constant, fastai one cycle, AutoTimm cosine, Trainer linear (its default 5e-5 learns too little).
RATES = {
    "frozen": {"plain": 1e-3, "fastai": 1e-3, "autotimm": 1e-3, "hf": 1e-3, "keras": 1e-3},
    "last": {"plain": 1e-3, "fastai": 1e-3, "autotimm": 1e-3, "hf": 1e-3, "keras": 1e-3},
    "all": {"plain": 5e-4, "fastai": 1e-3, "autotimm": 1e-3, "hf": 1e-3, "keras": 5e-4},
}
SECOND = "regraft second run"  # another head on the features that the first run kept
SECOND_WORDS = ("--technique", "feature-extraction")


def plans(task: str, epochs: int) -> dict[str, tuple[str, ...]]:
    """Return the words of each regraft row: its own recipe first, then the others of this task."""

    def of(technique: str, phase: int = 0, **changes: object) -> tuple[str, ...]:
        return (
            "--technique",
            technique,
            *(
                word
                for key, value in changes.items()
                for word in ("--set", f"phases.{phase}.{key}={value}")
            ),
        )

    if task == "frozen":
        same_work = of(
            "linear-probe",
            optimizer="adam",
            epochs=epochs,
            lr=RATES["frozen"]["plain"],
            batch_size=BATCH,
        )
        return {"regraft": of("linear-probe"), "regraft-epochs": same_work}
    if task == "last":
        return {"regraft": of("fine-tune-top", train="blocks.6", epochs=epochs)}
    return {
        "regraft": of("fine-tune", epochs=epochs),
        "regraft-probe-first": of("probe-then-fine-tune", phase=1, epochs=epochs),
    }


def trial(
    options: argparse.Namespace, place: running.Place, number: int, faults: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield the figures of each participant, in turn forwards and backwards."""
    own = plans(options.task, options.epochs)
    order = [*own, *options.peers]
    for name in order if number % 2 == 0 else order[::-1]:
        about = {"participant": name, "trial": number, "real_weights": True, "comparable": True}
        if name in own:
            yield about | running.regraft(own[name], options.task, options.epochs, place)
            if name == "regraft" and options.task == "frozen":
                about |= {"participant": SECOND, "comparable": False}
                yield about | running.regraft(
                    SECOND_WORDS, options.task, options.epochs, place, warm=True
                )
            continue
        peer = PEERS[name]
        whole = name in options.full
        about |= {"real_weights": peer.real_weights, "comparable": whole and peer.real_weights}
        missing = [faults[step] for step in peer.needs if step in faults]
        if missing:
            yield about | {"error": missing[0]}
            continue
        lr = RATES[options.task][name.partition("-")[0]]
        measured = options.epochs if whole else min(options.epochs, options.measured)
        yield about | running.peer(
            peer.script,
            peer.flags,
            dict(peer.variables),
            options.task,
            lr,
            options.epochs,
            measured,
            place,
        )


def arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar",
        type=Path,
        required=True,
        help="a folder with CIFAR-10 as Parquet; only its train file is opened",
    )
    parser.add_argument("--task", choices=RATES, default="frozen")
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--val-images", type=int, default=1_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument(
        "--peers",
        help="comma-separated, of "
        + ", ".join(PEERS)
        + "; by default all, for task all without plain-eval, which is plain then",
    )
    parser.add_argument(
        "--full",
        default="plain-eval-malloc,autotimm",
        help="peers that run all epochs, comma-separated",
    )
    parser.add_argument("--measured", type=int, default=2, help="epochs that the other peers run")
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument(
        "--venv",
        type=Path,
        help="the peers' environment; by default in the platform's cache folder",
    )
    parser.add_argument(
        "--keep-compiled",
        type=Path,
        metavar="FOLDER",
        help="keep inductor's cache here; by default each process starts without one",
    )
    parser.add_argument(
        "--timeout", type=float, default=7_200, help="seconds that one process may take"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the images drawn")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    usual = [name for name in PEERS if options.task != "all" or name != "plain-eval"]
    options.peers = options.peers.split(",") if options.peers else usual
    options.full = [name for name in options.full.split(",") if name]
    unknown = [name for name in [*options.peers, *options.full] if name not in PEERS]
    if unknown or options.measured < 1 or options.epochs < 1:
        parser.error(
            f"no such peer: {', '.join(unknown)}"
            if unknown
            else "--epochs and --measured must be 1 or more"
        )
    return options


def prepared(options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Write images and weights under `home`; return class names and machine."""
    script = Path(running.__file__).with_name("prepare.py")
    words = {
        "cifar": options.cifar.resolve(),
        "images": home / "images",
        "weights": home / "weights.pt",
    }
    words |= {
        "train-images": options.train_images,
        "val-images": options.val_images,
        "seed": options.seed,
    }
    command = [
        sys.executable,
        str(script),
        *(str(part) for name, value in words.items() for part in (f"--{name}", value)),
    ]
    return dict(
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    )


def told(run: dict[str, Any]) -> str:
    """Return one line about a run that has just ended."""
    if run["error"]:
        return f"trial {run['trial'] + 1}: {run['participant']}: {run['error']}"
    measured = run["measured"]
    projected = f", projected {run['wall']:.1f} s" if run["projected"] else ""
    return f"trial {run['trial'] + 1}: {run['participant']}: {measured['wall']:.1f} s, val accuracy {run['best']:.3f}{projected}"


def main() -> None:
    """Run the trials, print the table, write the JSON."""
    options = arguments()
    venv = (options.venv or installing.default_folder()).expanduser().absolute()
    faults = installing.install(venv)
    names = list(plans(options.task, options.epochs))
    names = [
        *names[:1],
        *([SECOND] if options.task == "frozen" else []),
        *names[1:],
        *options.peers,
    ]
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        known = prepared(options, home)
        place = running.Place(
            home / "images",
            home / "weights.pt",
            home,
            venv,
            options.keep_compiled and options.keep_compiled.absolute(),
            options.train_images,
            options.val_images,
            options.resolution,
            BATCH,
            options.timeout,
        )
        asked = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
            if key not in ("cifar", "venv", "out")
        }
        report = {
            "asked": asked,
            "rates": RATES[options.task],
            "classes": known["classes"],
            "environment": known["environment"],
            "peer_versions": installing.versions(venv),
            "not_available": faults,
            "runs": [],
        }
        for number in range(options.trials):
            for run in trial(options, place, number, faults):
                print(told(run), file=sys.stderr, flush=True)
                report["runs"].append(run)
                report["common_accuracy"], report["rows"] = (
                    table.common(report["runs"]),
                    table.rows(names, report["runs"]),
                )
                if options.out:
                    options.out.write_text(json.dumps(report, indent=2))
    print(
        f"{options.task}: {options.train_images:,} train and {options.val_images:,} val images, {options.resolution} px, {options.epochs} epochs,",
        end=" ",
    )
    print(f"batch {BATCH}, trials: {options.trials}")
    print(table.text(report["rows"], report["common_accuracy"]))
    where = report["environment"]
    print(
        f"{where['processor']}, {where['cores']} cores, Python {where['python']}, {where['packages']}"
    )
    print(f"peers: {report['peer_versions']}")


if __name__ == "__main__":
    main()
