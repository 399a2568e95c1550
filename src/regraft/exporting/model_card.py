"""What an export says of itself: classes, plan, input and evidence, as metadata and model card.

Refuses what is nobody else's business: no path of this machine gets into an export.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import PurePath
from typing import Any

from regraft.models.transforms import Preprocess
from regraft.plans.schema import Plan
from regraft.plans.toml import plan_to_toml
from regraft.runs.folder import Run

_USAGE = """\
```python
import timm
model = timm.create_model("local-dir:PATH", pretrained=True).eval()  # or "hf-hub:USER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), \
is_training=False)
probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)  \
# classes in the order of label_names in config.json
```"""


def model_facts(finished: Run) -> dict[str, Any]:
    """Return what tells this network from any other, as plain data."""
    plan = finished.plan
    values = {
        "classes": list(finished.classes),
        "plan_digest": plan.digest,
        "split_digest": finished.scores["split_digest"],
        "backbone": plan.backbone,
        "technique": plan.technique,
        "resolution": plan.resolution,
        "data": public_data_name(finished),
        "val": finished.scores["val"],
    }
    if finished.test:
        values["test"] = finished.test["test"]
    values["regraft"] = metadata.version("regraft")
    return values


def public_data_name(finished: Run) -> str:
    """Return what the images are called, without the folders that they lie in."""
    return PurePath(str(finished.scores.get("data", "unknown"))).name


def score_table(finished: Run) -> list[tuple[str, dict[str, Any]]]:
    """Return the scores on validation, and on test once that part was opened, by part."""
    parts = [("validation", finished.scores["val"])]
    if finished.test:
        parts.append(("test", finished.test["test"]))
    return parts


def model_card(finished: Run, preprocess: Preprocess, name: str) -> str:
    """Return a model card in Markdown with the header that the Hugging Face hub reads.

    It says how to use the model, what it reached with intervals, on which data, by which plan.

    Args:
        finished: The run.
        preprocess: How images enter its network.
        name: What the model is called.
    """
    sections = [
        f"---\n{_header(finished, name)}\n---",
        f"# {name}",
        _introduction(finished),
        "## Use",
        _USAGE,
        _input(preprocess),
        "## Evidence",
        _evidence_table(finished),
        _test_sentence(finished),
        "## Data",
        _data_sentence(finished),
        "Classes: " + ", ".join(finished.classes),
        "## Plan",
        _plan_sentence(finished),
        f"```toml\n{to_public_toml(finished.plan).strip()}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def to_public_toml(plan: Plan) -> str:
    """Return the plan as TOML, without the folders that its weights lie in."""
    return plan_to_toml(plan.model_copy(update={"weights": _public(plan.weights)}))


def _header(finished: Run, name: str) -> str:
    """Return the card's header as YAML, with the accuracy of each part."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for part, scores in score_table(finished):
        result = EvalResult(
            "image-classification",
            "custom",
            public_data_name(finished),
            "accuracy",
            scores["accuracy"],
            dataset_split=part,
            task_name="Image classification",
        )
        results.append(result)
    header = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "regraft"],
        model_name=name,
        eval_results=results,
    )
    return str(header.to_yaml())


def _introduction(finished: Run) -> str:
    plan = finished.plan
    weights = _public(finished.scores.get("weights", ""))
    return (
        f"{plan.backbone} ({weights}) carried over to {public_data_name(finished)} by "
        f"{plan.technique}: {len(finished.classes)} classes."
    )


def _input(preprocess: Preprocess) -> str:
    rules = preprocess.rules
    return (
        f"Input: RGB, the shorter side resized to {preprocess.resolution} px "
        f"({rules.interpolation}, antialiased), the centre cut out, scaled to 0 … 1, "
        f"mean {list(rules.mean)}, standard deviation {list(rules.std)}."
    )


def _evidence_table(finished: Run) -> str:
    """Return a table with a row for each part that was scored."""
    rows = [("part", "accuracy", "95 % interval", "log-loss", "images"), ("---",) * 5]
    for part, scores in score_table(finished):
        accuracy = f"{scores['accuracy']:.4f}"
        loss = f"{scores['loss']:.4f}"
        rows.append((part, accuracy, _interval(scores["ci95"]), loss, f"{scores['n']:,}"))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _test_sentence(finished: Run) -> str:
    """Return how often the test part was opened."""
    times = len(finished.test.opened) if finished.test else 0
    if not times:
        return (
            "The validation images were used to choose, so their accuracy flatters a little; "
            "the test part was not opened."
        )
    how_often = "once" if times == 1 else f"{times} times"
    return (
        f"The test part was opened {how_often}, after everything was chosen on validation images."
    )


def _data_sentence(finished: Run) -> str:
    scores = finished.scores
    return (
        f"{public_data_name(finished)}: {scores['train']['n']:,} training images, "
        f"{scores['val']['n']:,} validation images to choose by. "
        f"Split digest `{scores['split_digest']}`."
    )


def _plan_sentence(finished: Run) -> str:
    parameters = finished.scores["parameters"]
    return (
        f"Digest `{finished.plan.digest}`; trained: {parameters['trainable']:,} of "
        f"{parameters['total']:,} parameters."
    )


def _interval(ci95: Sequence[float]) -> str:
    return f"{ci95[0]:.3f}–{ci95[1]:.3f}"


def _public(weights: str) -> str:
    """Return where weights come from, a file without the folders that it lies in."""
    path = weights.removeprefix("weights from ")
    return weights.replace(path, PurePath(path).name) if "/" in path else weights
