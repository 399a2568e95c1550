from __future__ import annotations

import pytest

from regraft.data.dataset import DatasetInfo
from regraft.errors import UserError
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


def test_own_techniques_come_by_dotted_path(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mylab.py").write_text(
        "from regraft.plans.techniques import make_technique_plan as make\ndef careful(model, data):\n    return make('linear-probe', model, data).model_copy(update={'technique': 'careful'})\ndef wrong(model, data):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_technique_plan("mylab:careful", MODELS[1], DATA[0]).technique == "careful"
    for name, says in (
        ("mylab:wrong", "returned int. Expected a regraft Plan"),
        ("mylab:none", "cannot be imported"),
        ("prob", "Did you mean"),
    ):
        with pytest.raises(UserError, match=says):
            make_technique_plan(name, MODELS[1], DATA[0])


def test_every_technique_says_what_it_does() -> None:
    assert all(technique_summary(name).endswith(".") for name in TECHNIQUES)
    assert set(DEFAULT_TECHNIQUES) <= set(TECHNIQUES)


def test_the_multi_layer_probe_spreads_over_the_depth_and_always_takes_the_end() -> None:
    taken = [
        make_technique_plan("multi-layer-probe", model, DATA[0]).stages_taken for model in MODELS
    ]
    assert [len(one) for one in taken] == [14, 2, 1]
    assert [one[-1] for one in taken] == [model.blocks[-1] for model in MODELS]
