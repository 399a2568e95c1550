"""What an artefact says of itself: classes, plan, input, evidence; the same facts in a file's metadata and in a model card.

Refuses what is nobody else's business: no path of this machine leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import PurePath
from typing import Any

from regraft.models.backbone import Backbone
from regraft.plans.schema import Plan, plan_to_toml
from regraft.runs.folder import Run

_PARTS = {"val": "validation", "test": "test"}


def model_facts(finished: Run) -> dict[str, Any]:
    """Return what tells this network from any other, as plain data."""
    plan = finished.plan
    return {
        "classes": list(finished.classes),
        "plan_digest": plan.digest,
        "split_digest": finished.scores["split_digest"],
        "backbone": plan.backbone,
        "technique": plan.technique,
        "resolution": plan.resolution,
        "data": public_data_name(finished),
        "val": finished.scores["val"],
        **({"test": finished.test["test"]} if finished.test else {}),
        "regraft": metadata.version("regraft"),
    }


def public_data_name(finished: Run) -> str:
    """Return what the images are called, without the folders that they lie in."""
    return PurePath(str(finished.scores.get("data", "unknown"))).name


def score_table(finished: Run) -> list[tuple[str, dict[str, Any]]]:
    """Return the parts that the run was scored on, with their scores: validation, and test once it was opened."""
    found = {
        "val": finished.scores["val"],
        **({"test": finished.test["test"]} if finished.test else {}),
    }
    return [(_PARTS[name], scores) for name, scores in found.items()]


def model_card(finished: Run, model: Backbone, name: str) -> str:
    """Return a model card in Markdown with the hub's header: how to use it, evidence with intervals, data, and the plan."""
    from huggingface_hub import EvalResult, ModelCardData

    plan, scores = finished.plan, finished.scores
    results = [
        EvalResult(
            "image-classification",
            "custom",
            public_data_name(finished),
            "accuracy",
            one["accuracy"],
            dataset_split=part,
            task_name="Image classification",
        )
        for part, one in score_table(finished)
    ]
    head = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "regraft"],
        model_name=name,
        eval_results=results,
    )
    rules = model.rules
    rows = [
        (
            part,
            f"{one['accuracy']:.4f}",
            _interval(one["ci95"]),
            f"{one['loss']:.4f}",
            f"{one['n']:,}",
        )
        for part, one in score_table(finished)
    ]
    origin = _public(scores.get("weights", ""))
    lines = [
        f"# {name}",
        "",
        f"{plan.backbone} ({origin}) carried over to {public_data_name(finished)} by {plan.technique}: {len(finished.classes)} classes.",
        "",
        "## Use",
        "",
        "```python",
        "import timm",
        'model = timm.create_model("local-dir:PATH", pretrained=True).eval()  # or "hf-hub:USER/NAME"',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
        "probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)  # classes in the order of label_names in config.json",
        "```",
        "",
        f"Input: RGB, the shorter side resized to {model.resolution} px ({rules.interpolation}, antialiased), the centre cut out, scaled to 0 … 1, "
        f"mean {list(rules.mean)}, standard deviation {list(rules.std)}.",
        "",
        "## Evidence",
        "",
        *_table(("part", "accuracy", "95 % interval", "log-loss", "images"), rows),
        "",
        _opened(finished),
        "",
        "## Data",
        "",
        f"{public_data_name(finished)}: {scores['train']['n']:,} training images, {scores['val']['n']:,} to choose by. Split digest `{scores['split_digest']}`.",
        "",
        "Classes: " + ", ".join(finished.classes),
        "",
        "## Plan",
        "",
        f"Digest `{plan.digest}`; trained: {scores['parameters']['trainable']:,} of {scores['parameters']['total']:,} parameters.",
        "",
        "```toml",
        public_plan(plan).strip(),
        "```",
        "",
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n".join(lines)


def public_plan(plan: Plan) -> str:
    """Return the plan as TOML, without the folders that its weights lie in."""
    return plan_to_toml(plan.model_copy(update={"weights": _public(plan.weights)}))


def _opened(finished: Run) -> str:
    times = len((finished.test or {}).get("opened", []))
    if not times:
        return "The validation images were used to choose, so their accuracy flatters a little; the test part was not opened."
    return f"The test part was opened {'once' if times == 1 else f'{times} times'}, after everything was chosen on validation."


def _interval(ci95: Sequence[float]) -> str:
    return f"{ci95[0]:.3f}–{ci95[1]:.3f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def _public(weights: str) -> str:
    """Return where weights come from, a file without the folders that it lies in."""
    given = weights.removeprefix("weights from ")
    return weights.replace(given, PurePath(given).name) if "/" in given else weights
