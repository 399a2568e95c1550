"""The commands that both versions run, and the differences that are meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

RESNET = "test_resnet.r160_in1k"
VIT = "test_vit.r160_in1k"


@dataclass(frozen=True)
class Case:
    """One command: its words, and what it leaves in the folder where it runs."""

    name: str
    words: tuple[str, ...]
    left: str = ""  # file or folder that is read; "" for stdout alone
    needs: str = ""  # file or folder of `parity_data` without which it is skipped
    quick: bool = False


@dataclass(frozen=True)
class Intended:
    """A difference that is meant: in which case, in which items, and why."""

    case: str  # a pattern, as are the items
    items: str
    reason: str


INTENDED = (
    Intended(
        "broken-*",
        "*",
        "the split is decided once, by keys, and broken images only leave their part",
    ),
    Intended("techniques", "stdout/techniques.*", "the sentence on a technique is reworded"),
    Intended(
        "*export*", "stdout/bytes", "version and names of functions in the file have other lengths"
    ),
    Intended("*report", "stdout/runs.*.plan", "one-cycle is called warmup-cosine"),
    Intended("*", "*schedule", "one-cycle is called warmup-cosine; digests of plans stay"),
)


def get_reason(case: str, item: str) -> str:
    """Return why an item of a case may differ; an empty text where it may not."""
    if item == "exit":
        return ""
    for intended in INTENDED:
        if fnmatchcase(case, intended.case) and fnmatchcase(item, intended.items):
            return intended.reason
    return ""


# "auto" decides by measured times in these four, so two runs of one version could differ.
FIXED = ("--device", "cpu", "--precision", "float32")
FIXED_FIT = (*FIXED, "--compile", "off", "--keep", "always", "--set", "train_precision=float32")
TINY = ("--resolution", "32")
SMALL = (*TINY, "--train-images", "150", "--val-images", "80")
TOLD = ("--json", "-q")
RANDOM_RESNET = ("--backbone", RESNET, "--weights", "random")
RANDOM_VIT = ("--backbone", VIT, "--weights", "random")


def fit(name: str, data: str, technique: str, *words: str) -> Case:
    """Return the case of one fit; data other than digits come from the folder beside."""
    own = data == "digits"
    where = data if own else f"../data/{data}"
    run = f"runs/{name}"
    size = TINY if data in ("signs", "broken") else SMALL  # these two have few images
    command = ("fit", where, "--technique", technique, *words, *size, *FIXED_FIT)
    return Case(name, (*command, "--out", run, *TOLD), run, "" if own else data)


def change(*changes: str) -> tuple[str, ...]:
    """Return the words that change these fields of the plan."""
    words: list[str] = []
    for one in changes:
        words += ["--set", one]
    return tuple(words)


def make_fits(techniques: Sequence[str]) -> list[Case]:
    """Return a fit of every technique, and of what a plan can say besides."""
    cases = [fit(technique, "digits", technique, *RANDOM_RESNET) for technique in techniques]
    few = change("phases.0.epochs=2")
    augmented = change(
        "phases.0.augment=standard",
        "phases.0.views=2",
        "phases.0.mixup=0.2",
        "phases.0.ema=0.9",
        "phases.0.epochs=4",
    )
    taught = change("phases.0.cutmix=1.0", "phases.0.augment=light", "phases.0.epochs=3")
    halted = change("phases.0.batch_norm=adapt", "phases.0.patience=2", "class_weights=auto")
    hidden = change("head=flatten, dropout 0.2, dense 32 relu", "phases.0.epochs=4")
    cases += [
        fit("vit-linear-probe", "digits", "linear-probe", *RANDOM_VIT),
        fit("vit-fine-tune-top", "digits", "fine-tune-top", *RANDOM_VIT),
        fit("lite-linear-probe", "digits", "linear-probe"),
        fit("lite-multi-layer-probe", "digits", "multi-layer-probe"),
        fit("lite-fine-tune-top", "digits", "fine-tune-top", *few),
        fit("lite-feature-extraction", "digits", "feature-extraction"),
        fit("augmented", "digits", "feature-extraction", *RANDOM_RESNET, *augmented),
        fit("cutmix", "digits", "fine-tune", *RANDOM_RESNET, *taught),
        fit("batch-norm", "digits", "fine-tune-top", *RANDOM_RESNET, *halted),
        fit("hidden-head", "digits", "feature-extraction", *RANDOM_RESNET, *hidden),
        fit("seeds", "digits", "from-scratch", *RANDOM_RESNET, "--seed", "3", *few),
        fit("split-seed", "digits", "linear-probe", *RANDOM_RESNET, "--split-seed", "5"),
        fit("bfloat16", "digits", "linear-probe", *RANDOM_RESNET, "--set", "precision=bfloat16"),
        fit("signs-linear-probe", "signs", "linear-probe", *RANDOM_RESNET),
        fit("signs-augmented", "signs", "feature-extraction", *RANDOM_RESNET, *augmented),
        fit("cifar-fine-tune-top", "cifar", "fine-tune-top", *RANDOM_RESNET),
        fit("cifar-npz", "cifar.npz", "linear-probe", *RANDOM_RESNET),
        fit("cifar-groups", "cifar.csv", "feature-extraction", *RANDOM_RESNET),
        fit("cifar-lite", "cifar", "linear-probe"),
    ]
    always = fit("keep-never", "digits", "fine-tune-top", *RANDOM_RESNET)
    words = ["never" if word == "always" else word for word in always.words]
    cases.append(replace(always, words=tuple(words)))
    return cases


def make_uses() -> list[Case]:
    """Return the verbs that read a finished run, those of the old version among them."""
    cases = []
    for version in ("runs", "from-old"):
        cases += make_uses_of(version)
    run = "runs/fine-tune"
    onnx = ("export", run, "--to", "onnx", "--out", "run.onnx", *TOLD)
    whole = ("--to", "onnx", "--int8", "--out", "int8.onnx", *TOLD)
    timm = ("export", run, "--to", "timm", "--out", "timm", *TOLD)
    places = ("--until", "layer2", "--out", "layer2.parquet", "--resolution", "32")
    embed = ("embed", "digits", *RANDOM_RESNET, *places, *FIXED, *TOLD)
    other = ("embed", "../data/cifar.csv", *RANDOM_RESNET, "--resolution", "32", *FIXED)
    outside = ("evaluate", "runs/cifar-groups", "../data/cifar", "--split", "all")
    cases += [
        Case("export-onnx", onnx, "run.onnx"),
        Case("export-int8", ("export", "runs/linear-probe", *whole), "int8.onnx"),
        Case("export-timm", timm, "timm"),
        Case("embed", embed, "layer2.parquet", quick=True),
        Case("embed-csv", (*other, "--out", "csv.parquet", *TOLD), "csv.parquet", "cifar.csv"),
        Case("evaluate-others", (*outside, "--device", "cpu", *TOLD), "", "cifar"),
    ]
    return cases


def make_uses_of(folder: str) -> list[Case]:
    """Return the cases that read `FOLDER/fine-tune` and `FOLDER/linear-probe`."""
    run = f"{folder}/fine-tune"
    linear = f"{folder}/linear-probe"
    left = f"{folder}-predicted"
    predict = ("predict", linear, "../data/new", "--device", "cpu", *TOLD)
    sure = ("--min-confidence", "0.5", "--top", "3")
    tensors = ("--to", "safetensors", "--out", f"{folder}.safetensors")
    test = ("--split", "test", "--device", "cpu", *TOLD)
    page = ("--out", f"{folder}.html", "--device", "cpu", *TOLD)
    csv = ("--format", "csv", *sure, "--out", f"{left}.csv")
    lines = ("--format", "json", "--out", f"{left}.jsonl")
    parquet = ("--format", "parquet", "--out", f"{left}.parquet")
    return [
        Case(f"{folder}-predict-csv", (*predict, *csv), f"{left}.csv", quick=True),
        Case(f"{folder}-predict-json", (*predict, *lines), f"{left}.jsonl"),
        Case(f"{folder}-predict-parquet", (*predict, *parquet), f"{left}.parquet"),
        Case(f"{folder}-evaluate-val", ("evaluate", run, "--device", "cpu", *TOLD)),
        Case(f"{folder}-evaluate-test", ("evaluate", linear, *test), linear, quick=True),
        Case(f"{folder}-export", ("export", run, *tensors, *TOLD), f"{folder}.safetensors"),
        Case(f"{folder}-report", ("report", run, linear, *page)),
    ]


def make_comparisons() -> list[Case]:
    """Return the verbs that look at many plans, and those that look at the images alone."""
    ways = "linear-probe,multi-layer-probe,feature-extraction"
    both = ("--backbones", f"{RESNET},{VIT}", "--weights", "random")
    compare = ("compare", "digits", "--techniques", ways, *both, *SMALL, *FIXED_FIT)
    seeds = ("compare", "digits", "--techniques", "linear-probe,fine-tune-top", "--seeds", "2")
    small = ("--train-images", "150", "--val-images", "80")
    looks = (*small, *FIXED, "--compile", "off", *TOLD)
    probe = ("probe", "digits", *both, "--resolutions", "32", *looks)
    signs = ("check", "../data/signs", *TINY, *FIXED, *TOLD)
    planned = ("plan", "digits", *RANDOM_RESNET, *SMALL, *FIXED, "--json")
    resnet = ("--backbones", RESNET, "--weights", "random")
    repeated = (*seeds, *resnet, *SMALL, *FIXED_FIT, "--out", "seeds", *TOLD)
    return [
        Case("compare", (*compare, "--out", "compare", *TOLD), "compare"),
        Case("compare-seeds", repeated, "seeds"),
        Case("probe", (*probe, "--out", "probe"), "probe", quick=True),
        Case("check", ("check", "digits", *RANDOM_RESNET, *SMALL, *FIXED, *TOLD), quick=True),
        Case("check-signs", signs, needs="signs"),
        Case("plan", (*planned, "--save", "plan.toml"), "plan.toml", quick=True),
        Case("plan-gradual", (*planned, "--technique", "gradual-unfreezing")),
    ]


def make_broken() -> list[Case]:
    """Return the cases with images that cannot be read."""
    linear = fit("broken-fit", "broken", "linear-probe", *RANDOM_RESNET, "--skip-bad")
    tuned = fit("broken-fine-tune", "broken", "fine-tune-top", *RANDOM_RESNET, "--skip-bad")
    check = ("check", "../data/broken", *RANDOM_RESNET, "--resolution", "32", *FIXED, *TOLD)
    embed = ("embed", "../data/broken", *RANDOM_RESNET, "--resolution", "32", *FIXED)
    skip = ("--skip-bad", "--out", "broken.parquet", *TOLD)
    return [
        linear,
        tuned,
        Case("broken-check", check, needs="broken"),
        Case("broken-embed", (*embed, *skip), "broken.parquet", "broken"),
    ]
