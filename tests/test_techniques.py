from __future__ import annotations

import sys
from pathlib import Path

import pytest

import regraft
from regraft.data.dataset import DatasetInfo
from regraft.errors import UserError
from regraft.evaluation.calibration import fit_temperature
from regraft.plans.schema import ModelInfo
from regraft.plans.techniques import (
    DEFAULT_TECHNIQUES,
    TECHNIQUES,
    make_technique_plan,
    suitable_resolution,
    technique_summary,
)

MODELS = [
    ModelInfo(
        "deep",
        tuple(f"blocks.{n}" for n in range(12)),
        tuple(f"blocks.{n}" for n in range(50)),
        frozenset(f"blocks.{n}" for n in range(50)),
        224,
        True,
    ),
    ModelInfo(
        "flat",
        ("stem", "layer1"),
        ("stem", "layer1.0"),
        frozenset({"stem", "layer1", "layer1.0"}),
        160,
        False,
    ),
    ModelInfo("single", ("body",), ("body",), frozenset({"body"}), 96, False),
]
DATA = [
    DatasetInfo("d", n, ("a", "b"), size)
    for n in (20, 1_000, 50_000)
    for size in ((8, 8), (32, 32), (100, 100), (480, 640))
]


def test_every_technique_gives_a_plan_that_fits_every_model() -> None:
    seen = 0
    for name in TECHNIQUES:
        for model in MODELS:
            for data in DATA:
                plan = make_technique_plan(name, model, data)
                plan.check(model, data.classes)
                assert plan.technique == name
                assert model.fixed_resolution <= (plan.resolution == model.resolution)
                seen += 1
    assert seen == 8 * 3 * 12


def test_small_images_are_enlarged_and_large_ones_follow_the_weights() -> None:
    assert [suitable_resolution(MODELS[1], data) for data in DATA[:4]] == [80, 96, 96, 160]


def test_more_images_mean_fewer_epochs() -> None:
    epochs = [
        make_technique_plan("fine-tune", MODELS[1], data).phases[0].epochs for data in DATA[::4]
    ]
    assert epochs == sorted(epochs, reverse=True)


OWN_MODULE = """
from regraft.plans.techniques import make_technique_plan

def careful(model, data):
    import mylab_names  # another file of the same folder, only when it is called
    plan = make_technique_plan("linear-probe", model, data)
    return plan.model_copy(update={"technique": mylab_names.CAREFUL})

def wrong(model, data):
    return 3
"""


def test_own_techniques_come_by_dotted_path_from_the_current_folder() -> None:
    Path("mylab.py").write_text(OWN_MODULE)
    Path("mylab_names.py").write_text("CAREFUL = 'careful'\n")
    before = list(sys.path)
    assert make_technique_plan("mylab:careful", MODELS[1], DATA[0]).technique == "careful"
    for name, says in (
        ("mylab:wrong", "returned int. Expected a regraft Plan"),
        ("mylab:none", "cannot be imported"),
        ("prob", "Did you mean"),
    ):
        with pytest.raises(UserError, match=says):
            make_technique_plan(name, MODELS[1], DATA[0])
    assert sys.path == before


def test_every_technique_says_what_it_does() -> None:
    assert all(technique_summary(name).endswith(".") for name in TECHNIQUES)
    assert set(DEFAULT_TECHNIQUES) <= set(TECHNIQUES)


def test_the_multi_layer_probe_spreads_over_the_depth_and_always_takes_the_end() -> None:
    plans = [make_technique_plan("multi-layer-probe", model, DATA[0]) for model in MODELS]
    assert [len(plan.stages_taken) for plan in plans] == [14, 2, 1]
    assert [plan.stages_taken[-1] for plan in plans] == [model.blocks[-1] for model in MODELS]


@pytest.mark.slow
def test_a_linear_probe_of_few_images_knows_how_sure_it_is(tmp_path: Path) -> None:
    accuracies = []
    for seed in range(5):
        run = regraft.fit(
            "digits",
            technique="linear-probe",
            train_images=40,
            split_seed=seed,
            out=tmp_path / str(seed),
            cache_dir=tmp_path / "cache",
        )
        found = regraft.evaluate(run, split="test").metrics
        assert found.scores.loss < 1.3, seed
        val = run.predictions("val")
        assert fit_temperature(val["logits"], val["targets"]) < 10, seed
        accuracies.append(found.scores.accuracy)
    assert len(accuracies) == 5
    assert sum(accuracies) / 5 > 0.66
