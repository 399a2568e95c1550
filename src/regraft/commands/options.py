"""What single verbs are asked for; read by the command line, so nothing here loads torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.options import DEFAULT_BACKBONE, Runtime, option

if TYPE_CHECKING:
    from regraft.plans.schema import Plan


@dataclass(frozen=True)
class Ways:
    """What is compared.

    Args:
        techniques: Names of techniques; when None the usual ones, or none where there are plans.
        backbones: timm names.
        seeds: Rows for the seeds 0 … seeds - 1; the split stays the same.
        plans: Plans, or their files, that are rows too, by what the rows are called; they keep
            their backbone, resolution and weights.
    """

    techniques: Sequence[str] | None = option(
        None, "Comma-separated; by default six that cover the ground.", type=str, form="commas"
    )
    backbones: Sequence[str] = option(
        (DEFAULT_BACKBONE,), "Comma-separated timm names.", type=str, form="commas"
    )
    seeds: int = option(1, "Repeat every row with this many seeds.", least=1)
    plans: Mapping[str, Path | Plan] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeOptions:
    """What is probed.

    Args:
        backbones: timm names; one that cannot be had, traced or shown images of a size is skipped
            with the reason.
        resolutions: Sides in pixels; those around what suits the images when empty.
        budget: Time for all of it, such as "90s" or "5m"; None takes every image everywhere.
        runs: Folders of finished runs to compare the scores with; `runs` and `compare` in the
            current folder when None.
    """

    backbones: Sequence[str] = option(
        (DEFAULT_BACKBONE,), "Comma-separated timm names.", type=str, form="commas"
    )
    resolutions: Sequence[int] = option(
        (),
        "Comma-separated sides in pixels; by default four around what suits the images.",
        type=int,
        form="commas",
    )
    budget: str | None = option(
        None,
        "Time for all of it, such as 90s or 5m: few images first, more for the most promising.",
        type=str,
    )
    runs: Sequence[Path] | None = option(
        None,
        "Folders of finished runs to compare the scores with. Repeatable; runs and compare by "
        "default.",
        type=Path,
        form="repeat",
    )


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted.

    Args:
        top: Classes in `ranked`.
        batch_size: Images at once; 0 for what suits the machine.
        min_confidence: Abstain below this calibrated probability, above 0 and at most 1.
        runtime: `device` and `reporter` count.
    """

    top: int = option(1, "Classes to show for each image.", least=1)
    batch_size: int = option(0, "Images at once; 0 takes what suits the machine.")
    min_confidence: float | None = option(
        None,
        "Abstain below this probability; probabilities are then calibrated on the run's "
        "validation images.",
        type=float,
    )
    runtime: Runtime = Runtime()


@dataclass(frozen=True)
class PredictionTarget:
    """The file that predictions are written to.

    Args:
        out: The file; None where predictions are not written.
        format: "csv", "json" (a line each) or "parquet"; by its name when None.
        resume: Resume an interrupted job: images that were written are not read again.
        overwrite: Replace it.
        part_rows: Rows of Parquet that are held in memory until they are written.
    """

    out: str | Path | None = option(None, "File to write to, as results come.", type=Path)
    format: str | None = option(
        None, "table, csv, json (a line each) or parquet; by --out, else table.", type=str
    )
    resume: bool = option(False, "Resume the job that was writing to --out.")
    overwrite: bool = option(False, "Replace what is in --out.")
    part_rows: int = 5_000


@dataclass(frozen=True)
class ExportRequest:
    """What is exported.

    Args:
        to: One of the formats that `regraft export --help` lists.
        out: A file or folder; `exports/` under the run's name when None.
        int8: ONNX in 8-bit integers, its ranges found on training images, its accuracy measured
            on validation images.
        data: The run's images, where the run does not know where they are; without any,
            synthetic ones are compared.
        max_drop: Percentage points of accuracy that int8 may cost.
    """

    to: str = option(
        MISSING, "onnx, safetensors, timm (a folder), torchscript, or hub-folder.", type=str
    )
    out: str | Path | None = option(
        None, "File or folder to write; exports/ under the run's name by default.", type=Path
    )
    int8: bool = option(
        False,
        "8-bit integers, calibrated on training images; the accuracy that this costs on "
        "validation images is reported.",
    )
    data: str | Path | None = option(
        None, "The run's images, where it does not find them itself.", type=str
    )
    max_drop: float = option(
        3.0,
        "Percentage points of accuracy that --int8 may cost; nothing is written if it costs more.",
        least=0,
        most=100,
    )
