from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import UserError
from regraft.plans.head import parse_head
from regraft.plans.schema import AUGMENTATIONS, ModelInfo, Phase, Plan
from regraft.plans.toml import override_plan, parse_plan, read_plan, write_plan

FACTS = ModelInfo(
    "net",
    ("stem", "layer1", "layer2"),
    ("stem", "layer1.0", "layer2"),
    frozenset({"stem", "layer1", "layer1.0", "layer2"}),
    224,
    False,
)


def made(**fields: object) -> Plan:
    return Plan.model_validate(
        {"backbone": "net", "resolution": 64, "phases": [{"train": "head"}], **fields}
    )


@given(
    lr=st.floats(1e-8, 10),
    epochs=st.integers(1, 500),
    seed=st.integers(0, 2**31 - 1),
    augment=st.sampled_from(AUGMENTATIONS),
    until=st.sampled_from(["", "layer1", ("layer1", "layer2")]),
    weights=st.sampled_from(["none", "auto", {"a": 0.5}]),
)
def test_a_plan_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory,
    lr: float,
    epochs: int,
    seed: int,
    augment: str,
    until: object,
    weights: object,
) -> None:
    plan = made(
        seed=seed,
        until=until,
        class_weights=weights,
        phases=[{"lr": lr, "epochs": epochs, "augment": augment}],
    )
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    write_plan(plan, path)
    assert read_plan(path) == plan
    assert read_plan(path).digest == plan.digest


def test_changes_are_applied_by_key() -> None:
    plan = override_plan(
        made().model_dump(),
        ["phases.0.lr=3e-4", "head=bn, dense 32 relu", "phases.0.augment=flip", "seed=7"],
    )
    assert (plan.phases[0].lr, plan.head, plan.phases[0].augment, plan.seed) == (
        3e-4,
        "bn, dense 32 relu",
        "flip",
        7,
    )
    assert plan.digest != made().digest


def test_every_fault_is_reported_at_once_with_near_names() -> None:
    with pytest.raises(UserError) as caught:
        parse_plan(
            {
                "backbone": "net",
                "resolutoin": 64,
                "phases": [{"optimizer": "adamv", "lr": -1, "epoch": 3}],
            },
            "p.toml",
        )
    text = str(caught.value)
    assert text.startswith("p.toml is not valid, 5 faults:")
    for part in (
        "resolution: missing",
        "resolutoin: unknown key, did you mean 'resolution'?",
        "did you mean 'adam'?",
        "phases.0.lr",
        "phases.0.epoch: unknown key, did you mean 'epochs'?",
    ):
        assert part in text


def test_a_plan_that_does_not_fit_the_model_names_the_nearest_stage() -> None:
    plan = made(until="layer9", class_weights={"cta": 2.0}, phases=[{"train": "layer3"}])
    with pytest.raises(UserError) as caught:
        plan.check(FACTS, ["cat", "dog"])
    text = str(caught.value)
    assert "3 faults" in text
    assert "phases.0.train: net has no stage 'layer3', nearest: layer" in text
    assert "class_weights: no class is called 'cta', did you mean 'cat'?" in text
    made(phases=[{"train": "layer1.0"}]).check(FACTS, ["cat"])


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("dens 32", "'dens 32' is not a layer, did you mean 'dense'?"),
        ("dense", "'dense' needs a number, as in 'dense 256'"),
        ("dropout 1.5", "'dropout 1.5' is out of range"),
        ("dense 3 relu extra", "'dense 3 relu extra' has too many words"),
        ("bn, flatten", "'flatten' and 'pool' can only come first"),
    ],
)
def test_impossible_heads_are_refused(head: str, says: str) -> None:
    with pytest.raises(UserError, match=".") as caught:
        parse_plan({"backbone": "net", "resolution": 64, "head": head, "phases": [{}]})
    assert says in str(caught.value)


def test_heads_are_read_in_order() -> None:
    kinds = [
        (layer.kind, layer.value)
        for layer in parse_head("flatten, bn, dense 256 relu, dropout 0.5")
    ]
    assert kinds == [
        ("flatten", None),
        ("bn", None),
        ("dense", 256),
        ("relu", None),
        ("dropout", 0.5),
    ]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"phases": [{"train": "layer1", "optimizer": "lbfgs"}]},
            "optimizer 'lbfgs' fits a head only",
        ),
        (
            {"head": "dense 3", "phases": [{"optimizer": "lbfgs"}]},
            "fits a linear head, but head has dense",
        ),
        ({"phases": [{"optimizer": "lbfgs", "augment": "flip"}]}, "sees every image once"),
        (
            {"until": ["a", "b"], "phases": [{"train": "all"}]},
            "a list of stages in until is pooled and stays frozen",
        ),
        ({"phases": []}, "phases"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=".") as caught:
        parse_plan({"backbone": "net", "resolution": 64, "phases": [{}], **fields})
    assert says in str(caught.value)


def test_unreadable_plans_and_changes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("backbone = ")
    for path, says in (
        (tmp_path / "bad.toml", "is not readable TOML"),
        (tmp_path / "none.toml", "There is no plan at"),
    ):
        with pytest.raises(UserError, match=says):
            read_plan(path)
    for change, says in (
        ("lr", "is not a change. Expected KEY=VALUE"),
        ("phases.9.lr=1", "names no field"),
    ):
        with pytest.raises(UserError, match=says):
            override_plan(made().model_dump(), [change])


def test_the_old_name_of_warm_up_and_cosine_is_read_and_digests_stay_those_of_version_0_1(
    tmp_path: Path,
) -> None:
    old = {"backbone": "net", "resolution": 64, "phases": [{"schedule": "one-cycle"}]}
    new = {"backbone": "net", "resolution": 64, "phases": [{"schedule": "warmup-cosine"}]}
    plan = parse_plan(old)
    assert plan.phases[0].schedule == "warmup-cosine"
    assert plan == parse_plan(new)
    assert plan.digest == parse_plan(new).digest == "e1eb414985e5082f"  # as version 0.1 computed it
    write_plan(plan, tmp_path / "plan.toml")
    old_text = (tmp_path / "plan.toml").read_text().replace("warmup-cosine", "one-cycle")
    (tmp_path / "old.toml").write_text(old_text)
    assert read_plan(tmp_path / "old.toml") == plan


def test_names_from_pytorch_are_read_as_those_of_the_plan() -> None:
    phases = [{"batch_norm": "update"}, {"batch_norm": "freeze"}]
    plan = made(phases=phases)
    assert [phase.batch_norm for phase in plan.phases] == ["adapt", "keep"]
    stored = made(phases=[{"batch_norm": "adapt"}, {"batch_norm": "keep"}])
    assert plan.digest == stored.digest
    assert parse_head("linear 256 relu") == parse_head("dense 256 relu")
    assert made(head="linear 256 relu").head == "linear 256 relu"
    with pytest.raises(ValueError, match="'linear' needs a number, as in 'linear 256'"):
        parse_head("linear")


def test_every_field_is_described() -> None:
    fields = {**Phase.model_fields, **Plan.model_fields}
    assert len(fields) >= 30
    assert [name for name, field in fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        (
            {"optimizer": "lbfgs", "mixup": 0.2, "ema": 0.9},
            "optimizer 'lbfgs' has no use for mixup, ema",
        ),
        ({"train": "layer1", "cutmix": 1.0}, "cutmix needs images to cut, but train is 'layer1'"),
        ({"views": 4}, "views counts augmented views, but augment is 'none'"),
    ],
)
def test_what_would_do_nothing_is_refused(phase: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_plan({"backbone": "net", "resolution": 64, "phases": [phase]})
