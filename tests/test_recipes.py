"""The source experiments: their parameter tables to the digit, and the verbs that list, show, run and compare them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from regraft.workflow import cooking
from regraft.workflow.planning import Wish

import regraft as api
from regraft.models.backbone import load_backbone, model_info
from regraft.models.layers import matching_stage
from regraft.models.weights import DEFAULT_BACKBONE
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
    told = cooking.show_recipe(name)
    assert (
        {what: told["parameters"][what] for what in counts}
        == counts
        == told["reported"]["parameters"]
    )
    assert sum(row["parameters"] for row in told["layers"]) == told["parameters"]["total"]
    assert (
        sum(row["parameters"] for row in told["layers"] if row["frozen"])
        == told["parameters"]["frozen"]
    )


def test_the_head_and_the_totals_of_the_resnet_are_those_of_the_write_up_but_for_the_biases_that_pytorch_lacks() -> (
    None
):
    told = cooking.show_recipe("resnet50-last-stage")
    head = [
        row["parameters"] + row["statistics"]
        for row in told["layers"]
        if row["name"].startswith("head.") and row["parameters"]
    ]
    assert head == [401_408, 25_690_368, 1_024, 32_896, 512, 8_256, 256, 650]
    counts, counted, reported = told["parameters"], told["counted"], told["reported"]["parameters"]
    assert (
        counts["total"] + counts["statistics"] + counted["biases_total"]
        == reported["total"]
        == 49_723_082
    )
    assert counts["trainable"] + counted["biases_trainable"] == reported["trainable"] == 40_909_770
    biases_frozen = counted["biases_total"] - counted["biases_trainable"]
    assert (
        counts["frozen"] + counts["statistics"] + biases_frozen == reported["frozen"] == 8_813_312
    )
    body = [row for row in told["layers"] if not row["name"].startswith("head.")]
    assert (
        sum(row["parameters"] + row["statistics"] for row in body) + counted["biases_total"]
        == 23_587_712
    )
    assert all(
        row["frozen"] != row["name"].startswith(("layer4", "head.", "flatten"))
        for row in told["layers"]
    )
    assert [row["shape"] for row in told["layers"] if row["name"] == "flatten"] == [[100_352]]


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


def test_a_recipe_runs_on_anybodys_images_and_shows_reported_beside_measured(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    result = regraft(
        "recipes",
        "run",
        "densenet121-transfer",
        photos,
        *TINY[:-2],
        "3",
        "-q",
        "--out",
        "r",
        "--json",
    )
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["reported"]["val_accuracy"] == 0.9272
    assert told["measured"]["epochs"] == 3
    assert told["measured"]["gap"] == pytest.approx(
        told["measured"]["train_accuracy"] - told["measured"]["val_accuracy"]
    )
    assert told["scores"]["technique"] == "densenet121-transfer"
    assert told["measured"]["frozen_every_epoch_seconds"] == pytest.approx(
        3 * told["measured"]["frozen_seconds"], abs=0.2
    )
    never = json.loads(
        regraft(
            "recipes",
            "run",
            "densenet121-transfer",
            photos,
            *TINY,
            "--keep",
            "never",
            "--cache",
            "fresh",
            "--out",
            "n",
            "--json",
        ).out
    )
    assert never["measured"]["frozen_seconds"] is None
    from regraft.system.hardware import has_bfloat16

    assert (told["scores"]["paces"][0]["precision"] == "bfloat16") <= has_bfloat16()
    assert not Path("r/test.json").exists()
    shown = regraft("recipes", "run", "densenet121-transfer", photos, *TINY)
    for word in ("reported", "measured", "0.9272", "the frozen part took"):
        assert word in shown.out


def test_recipes_are_compared_on_shared_axes_with_the_test_part_opened_once(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    words = (
        "densenet121-plain",
        "densenet121-optimised",
        photos,
        *TINY,
        "--train-images",
        "30",
        "--seed",
        "5",
        "--out",
        "c",
    )
    result = regraft("recipes", "compare", *words, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert {one["name"] for one in told["recipes"]} == {row["name"] for row in told["rows"]}
    assert {row["seed"] for row in told["rows"]} == {5}
    assert {one["name"]: one["reported"]["val_accuracy"] for one in told["recipes"]} == {
        "densenet121-plain": 0.8659,
        "densenet121-optimised": 0.9535,
    }
    assert all(len(row["opened"]) == 1 for row in told["rows"])
    assert Path("c/curves.png").is_file()


def test_few_training_images_are_judged_on_as_few_unless_more_are_asked_for(
    regraft, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    from conftest import toy, write_folder

    many = write_folder(tmp_path / "many", toy(300))
    few = json.loads(
        regraft(
            "recipes",
            "run",
            "densenet121-plain",
            many,
            *TINY,
            "--train-images",
            "12",
            "--out",
            "few",
            "--json",
        ).out
    )
    assert few["measured"]["images"] == {"train": 12, "val": 12}
    more = json.loads(
        regraft(
            "recipes",
            "run",
            "densenet121-plain",
            many,
            *TINY,
            "--train-images",
            "12",
            "--val-images",
            "20",
            "--out",
            "more",
            "--json",
        ).out
    )
    assert more["measured"]["images"] == {"train": 12, "val": 20}
    opened = regraft(
        "evaluate", "few", "--split", "test", "-q"
    )  # the run remembers how few there were, so its split is found again
    assert opened.code == 0, opened.err


def test_another_backbone_is_offered_the_stage_at_which_images_have_shrunk_as_much() -> None:
    seen = 0
    for name in ("vgg16-frozen", "vgg16-three-blocks", "resnet50-last-stage"):
        for other in ("tf_efficientnet_lite0", "test_efficientnet", "test_convnext", "test_vit"):
            with pytest.raises(api.UserError, match="has no such stage; its stages are") as caught:
                cooking.recipe_plan(find_recipe(name), Wish(backbone=other))
            offered = (
                str(caught.value)
                .partition("cut with ")[2]
                .partition(". Add that")[0]
                .removeprefix("--set ")
                .split(" --set ")
            )
            plan = cooking.recipe_plan(find_recipe(name), Wish(backbone=other, changes=offered))
            plan.check(model_info(other), [])
            seen += 1
    assert seen == 12
    source = load_backbone("vgg16", "random", 96)
    lite = load_backbone(DEFAULT_BACKBONE, "random", 96)
    assert matching_stage(source, "features.16", lite, False) == "blocks.2"  # an eighth of the side
    assert matching_stage(source, "features.30", lite, False) == "end"
    assert (
        matching_stage(load_backbone("resnet50", "random", 96), "layer4", lite, True) == "blocks.5"
    )


def test_places_that_a_user_names_are_his_and_a_comparison_moves_the_recipes_own(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    lite = Wish(backbone="tf_efficientnet_lite0")
    asked = cooking.recipe_plan(
        find_recipe("vgg16-frozen"),
        Wish(backbone="tf_efficientnet_lite0", changes=['until=["blocks.2", "blocks.4"]']),
    )
    assert asked.until == ("blocks.2", "blocks.4")
    typo = cooking.recipe_plan(
        find_recipe("resnet50-last-stage"),
        Wish(backbone="tf_efficientnet_lite0", changes=["phases.0.train=blocks.9"]),
    )
    with pytest.raises(api.UserError, match="tf_efficientnet_lite0 has no stage 'blocks.9'"):
        typo.check(model_info("tf_efficientnet_lite0"), [])
    with pytest.raises(api.UserError, match=r"--set until=blocks.2"):
        cooking.recipe_plan(find_recipe("vgg16-three-blocks"), lite)
    told = json.loads(
        regraft(
            "recipes",
            "compare",
            "vgg16-three-blocks",
            "vgg16-frozen",
            photos,
            *TINY,
            "--out",
            "c",
            "--json",
        ).out
    )
    assert len(told["rows"]) == 2
    assert not [row for row in told["rows"] if "error" in row]
    until = {
        name: (Path("c") / name / "plan.toml").read_text().split("until = ")[1].split("\n")[0]
        for name in ("vgg16-three-blocks", "vgg16-frozen")
    }
    assert until["vgg16-frozen"] == '"end"' != until["vgg16-three-blocks"]


def test_how_counts_differ_is_told_of_the_reported_network_only(regraft) -> None:  # type: ignore[no-untyped-def]
    assert "26,560" in regraft("recipes", "show", "resnet50-last-stage").out
    for change in (("--classes", 5), ("--set", "phases.0.train=layer3"), ("--resolution", 96)):
        assert "26,560" not in regraft("recipes", "show", "resnet50-last-stage", *change).out


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
