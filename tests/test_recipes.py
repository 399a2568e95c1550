"""The source experiments: their parameter tables to the digit, and the verbs that list, show, run and compare them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import toy, write_folder
from regraft.commands.evaluate import evaluate
from regraft.commands.recipes import compare_recipes, recipe_plan, run_recipe, show_recipe
from regraft.errors import UserError
from regraft.models.backbone import load_backbone, model_info
from regraft.models.layers import matching_stage
from regraft.options import (
    DEFAULT_BACKBONE,
    CacheOptions,
    DataOptions,
    Options,
    PlanOverrides,
    RunDir,
)
from regraft.plans import recipes
from regraft.plans.recipes import all_recipes, find_recipe
from regraft.plans.schema import Plan

NAMED = {
    "vgg16-frozen",
    "vgg16-three-blocks",
    "vgg16-fine-tune",
    "vgg16-from-scratch",
    "vgg16-stored-features",
    "vgg16-end-to-end",
    "vgg16-end-to-end-augmented",
    "resnet50-last-stage",
    "resnet50-last-stage-sgd",
    "densenet121-plain",
    "densenet121-optimised",
    "densenet121-transfer",
    "vgg16-today",
    "resnet50-today",
    "resnet101-today",
    "densenet121-today",
    "inception_v3-today",
    "tf_efficientnet_lite0-today",
}
RANDOM = PlanOverrides(backbone="test_resnet", resolution=32, weights="random")
LITE = PlanOverrides(backbone="tf_efficientnet_lite0")
TINY = (
    "--backbone",
    "test_resnet",
    "--resolution",
    "32",
    "--weights",
    "random",
    "--epochs",
    "1",
    "-q",
)


def test_every_experiment_is_a_recipe_with_a_source_and_a_plan_that_fits_its_network() -> None:
    assert set(all_recipes()) == NAMED
    assert {path.stem for path in (Path(recipes.__file__).parent / "plans").glob("*.toml")} == NAMED
    digests = set()
    for name, recipe in all_recipes().items():
        assert isinstance(recipe.plan, Plan)
        assert recipe.plan.technique == name
        recipe.plan.check(model_info(recipe.plan.backbone), [])
        assert recipe.source
        assert recipe.about.endswith(".")
        digests.add(recipe.plan.digest)
    assert len(digests) == len(NAMED)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("vgg16-end-to-end", {"total": 27_828_042, "trainable": 13_113_354, "frozen": 14_714_688}),
        (
            "vgg16-end-to-end-augmented",
            {"total": 27_828_042, "trainable": 13_113_354, "frozen": 14_714_688},
        ),
        ("vgg16-stored-features", {"frozen": 14_714_688}),
        ("densenet121-plain", {"trainable": 6_964_106}),
        ("densenet121-optimised", {"trainable": 7_252_746}),
        ("densenet121-transfer", {"trainable": 4_262_026}),
    ],
)
def test_parameters_are_those_that_were_reported_to_the_digit(
    name: str, counts: dict[str, int]
) -> None:
    summary = show_recipe(name)
    reported = summary.recipe.reported["parameters"]
    assert {kind: summary.parameters[kind] for kind in counts} == counts == reported
    assert sum(row.parameters for row in summary.layers) == summary.parameters["total"]
    frozen = sum(row.parameters for row in summary.layers if row.frozen)
    assert frozen == summary.parameters["frozen"]


def test_the_head_and_the_totals_of_the_resnet_are_those_of_the_write_up_but_for_the_biases_that_pytorch_lacks() -> (
    None
):
    summary = show_recipe("resnet50-last-stage")
    body = [row for row in summary.layers if not row.name.startswith("head.")]
    head = [row for row in summary.layers if row.name.startswith("head.") and row.parameters]
    widths = [row.parameters + row.statistics for row in head]
    assert widths == [401_408, 25_690_368, 1_024, 32_896, 512, 8_256, 256, 650]
    counts = summary.parameters
    counted = summary.recipe.counted
    reported = summary.recipe.reported["parameters"]
    total = counts["total"] + counts["statistics"] + counted["biases_total"]
    assert total == reported["total"] == 49_723_082
    assert counts["trainable"] + counted["biases_trainable"] == reported["trainable"] == 40_909_770
    biases_frozen = counted["biases_total"] - counted["biases_trainable"]
    frozen = counts["frozen"] + counts["statistics"] + biases_frozen
    assert frozen == reported["frozen"] == 8_813_312
    of_body = sum(row.parameters + row.statistics for row in body)
    assert of_body + counted["biases_total"] == 23_587_712
    trained = ("layer4", "head.", "flatten")
    assert all(row.frozen != row.name.startswith(trained) for row in summary.layers)
    assert [row.shape for row in summary.layers if row.name == "flatten"] == [[100_352]]


def test_recipes_are_listed_with_what_was_reported_and_shown_layer_by_layer(regraft) -> None:  # type: ignore[no-untyped-def]
    listed = json.loads(regraft("recipes", "list", "--json").out)["recipes"]
    assert {row["name"] for row in listed} == NAMED
    shown = regraft("recipes")
    for word in ("vgg16-frozen", "0.8456", "write-up C", "densenet121-transfer"):
        assert word in shown.out
    told = regraft(
        "recipes",
        "show",
        "tf_efficientnet_lite0-today",
        "--backbone",
        "test_resnet",
        "--resolution",
        "32",
    )
    assert "frozen" not in told.out.split("parameters,")[0].split("layer4")[-1]
    assert "layer4" in told.out
    assert "head.0" in told.out


def test_a_recipe_runs_on_any_images_and_says_what_was_reported_beside_what_was_measured(
    photos: Path,
) -> None:
    name = "densenet121-transfer"
    finished = run_recipe(name, photos, RANDOM, Options(run_dir=RunDir("r")), epochs=3)
    written = finished.to_json()
    assert written["reported"]["val_accuracy"] == 0.9272
    assert written["backbone"] == "test_resnet"
    assert written["path"] == "r"
    measured = finished.measured
    assert written["measured"] == measured.to_json()
    assert measured.epochs == 3
    assert measured.gap == pytest.approx(measured.train_accuracy - measured.val_accuracy)
    scores = finished.run.scores
    assert scores["technique"] == name
    assert measured.frozen_seconds is not None
    assert measured.frozen_every_epoch_seconds == pytest.approx(
        3 * measured.frozen_seconds, abs=0.2
    )
    from regraft.system.hardware import has_bfloat16

    assert (scores["paces"][0]["precision"] == "bfloat16") <= has_bfloat16()
    assert not Path("r/test.json").exists()
    fresh = CacheOptions("fresh", keep="never")
    never = run_recipe(name, photos, RANDOM, Options(cache=fresh, run_dir=RunDir("n")), epochs=1)
    assert never.measured.frozen_seconds is None


def test_the_run_of_a_recipe_is_printed(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("recipes", "run", "densenet121-transfer", photos, *TINY)
    printed = json.loads(regraft(*words, "--out", "r", "--json").out)
    assert printed["reported"]["val_accuracy"] == 0.9272
    assert printed["scores"]["technique"] == "densenet121-transfer"
    shown = regraft(*words)
    for word in ("reported", "measured", "0.9272", "the frozen part took"):
        assert word in shown.out


def test_recipes_are_compared_on_shared_axes_with_the_test_part_opened_once(
    photos: Path,
) -> None:
    names = ("densenet121-plain", "densenet121-optimised")
    overrides = PlanOverrides(backbone="test_resnet", resolution=32, weights="random", seed=5)
    options = Options(data=DataOptions(train_images=30), run_dir=RunDir("c"))
    written = compare_recipes(names, photos, overrides, options, epochs=1).to_json()
    recipes = {recipe["name"]: recipe["reported"]["val_accuracy"] for recipe in written["recipes"]}
    assert set(recipes) == {row["name"] for row in written["rows"]}
    assert {row["seed"] for row in written["rows"]} == {5}
    assert recipes == {"densenet121-plain": 0.8659, "densenet121-optimised": 0.9535}
    assert all(len(row["opened"]) == 1 for row in written["rows"])
    assert Path("c/curves.png").is_file()


def test_few_training_images_are_judged_on_as_few_unless_more_are_asked_for(
    tmp_path: Path,
) -> None:
    many = write_folder(tmp_path / "many", toy(300))
    name = "densenet121-plain"
    few = Options(data=DataOptions(train_images=12), run_dir=RunDir("few"))
    finished = run_recipe(name, many, RANDOM, few, epochs=1)
    assert finished.measured.images == {"train": 12, "val": 12}
    more = Options(data=DataOptions(train_images=12, val_images=20), run_dir=RunDir("more"))
    measured = run_recipe(name, many, RANDOM, more, epochs=1).measured
    assert measured.images == {"train": 12, "val": 20}
    # the run remembers how few there were, so its split is found again
    assert evaluate(finished.run.path, split="test").to_json()["test"]["n"] > 0


CUT = ("vgg16-frozen", "vgg16-three-blocks", "resnet50-last-stage")
OTHERS = ("tf_efficientnet_lite0", "test_efficientnet", "test_convnext", "test_vit")
QUICK = {(0, 0), (0, 2), (1, 1), (1, 3), (2, 2)}  # each recipe, and each kind of network
PAIRS = []
for row, name in enumerate(CUT):
    for column, other in enumerate(OTHERS):
        marks = () if (row, column) in QUICK else pytest.mark.slow
        PAIRS.append(pytest.param(name, other, marks=marks))


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_another_backbone_is_offered_the_stage_at_which_images_have_shrunk_as_much(
    name: str, other: str
) -> None:
    with pytest.raises(UserError, match="has no such stage; its stages are") as caught:
        recipe_plan(find_recipe(name), PlanOverrides(backbone=other))
    offer = str(caught.value).partition("cut with ")[2].partition(". Add that")[0]
    changes = offer.removeprefix("--set ").split(" --set ")
    plan = recipe_plan(find_recipe(name), PlanOverrides(backbone=other, overrides=changes))
    plan.check(model_info(other), [])


def test_stages_at_which_images_have_shrunk_as_much_match() -> None:
    assert len(PAIRS) == 12
    source = load_backbone("vgg16", "random", 96)
    lite = load_backbone(DEFAULT_BACKBONE, "random", 96)
    assert matching_stage(source, "features.16", lite, False) == "blocks.2"  # an eighth of the side
    assert matching_stage(source, "features.30", lite, False) == "end"
    assert (
        matching_stage(load_backbone("resnet50", "random", 96), "layer4", lite, True) == "blocks.5"
    )


@pytest.mark.slow
def test_layers_that_a_user_names_stay_and_a_comparison_moves_those_of_the_recipe(
    photos: Path,
) -> None:
    several = 'until=["blocks.2", "blocks.4"]'
    asked = PlanOverrides(backbone=LITE.backbone, overrides=[several])
    plan = recipe_plan(find_recipe("vgg16-frozen"), asked)
    assert plan.until == ("blocks.2", "blocks.4")
    mistyped = PlanOverrides(backbone=LITE.backbone, overrides=["phases.0.train=blocks.9"])
    plan = recipe_plan(find_recipe("resnet50-last-stage"), mistyped)
    with pytest.raises(UserError, match="tf_efficientnet_lite0 has no stage 'blocks.9'"):
        plan.check(model_info("tf_efficientnet_lite0"), [])
    with pytest.raises(UserError, match=r"--set until=blocks.2"):
        recipe_plan(find_recipe("vgg16-three-blocks"), LITE)
    names = ("vgg16-three-blocks", "vgg16-frozen")
    done = compare_recipes(names, photos, RANDOM, Options(run_dir=RunDir("c")), epochs=1)
    assert len(done.comparison.to_json()["rows"]) == 2
    assert not [row for row in done.comparison.to_json()["rows"] if "error" in row]
    until = {run.run.name: run.run.plan.until for run in done.runs}
    assert until["vgg16-frozen"] == "end" != until["vgg16-three-blocks"]


def test_how_counts_differ_is_said_of_the_reported_network_only() -> None:
    name = "resnet50-last-stage"
    assert show_recipe(name).to_json()["counted"]["biases_total"] == 26_560
    changes = (
        show_recipe(name, classes=5),
        show_recipe(name, overrides=PlanOverrides(overrides=["phases.0.train=layer3"])),
        show_recipe(name, overrides=PlanOverrides(resolution=96)),
    )
    assert [summary.to_json()["counted"] for summary in changes] == [{}, {}, {}]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("run", "vgg16-frosen"),
            "No recipe is called 'vgg16-frosen'. Did you mean 'vgg16-frozen'",
        ),
        (("show", "vgg"), "No recipe is called 'vgg'"),
        (
            ("run", "vgg16-three-blocks", "--set", "until=features.99"),
            "until: vgg16 has no stage 'features.99'",
        ),
        (
            ("run", "vgg16-three-blocks", "--backbone", "tf_efficientnet_lite0"),
            "it is cut with --set until=blocks.2",
        ),
        (("run", "densenet121-plain", "--epochs", "0"), "Invalid value for '--epochs'"),
        (("compare",), "Only '"),
    ],
)
def test_every_mistake_is_one_sentence_and_exit_2(
    regraft, photos: Path, words: tuple[str, ...], says: str
) -> None:  # type: ignore[no-untyped-def]
    given = words if words[0] == "show" else (*words[:2], photos, *words[2:])
    result = regraft("recipes", *given)
    assert result.code == 2
    assert says in result.err
    assert "Traceback" not in result.err
    assert not Path("runs").exists()


def test_weights_that_cannot_be_fetched_have_three_ways_out(
    regraft, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    import timm

    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no route to host")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    result = regraft("recipes", "run", "densenet121-plain", photos, "-q")
    assert result.code == 2
    for way in ("--weights FILE", "--weights random", "--backbone tf_efficientnet_lite0"):
        assert way in result.err
