"""The scikit-learn estimator and embeddings: searches, pipelines, clones and pickles."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import (
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
)

import regraft as api
from conftest import toy
from regraft.data.dataset import make_dataset
from regraft.data.images import ArrayImages
from regraft.data.split import PARTS
from regraft.errors import UserError
from regraft.features.store import clear_cache
from regraft.options import default_cache_dir

Tiny = dict[str, object]
TINY: Tiny = {"backbone": "test_resnet", "weights": "random", "resolution": 32}
IMAGES = toy(240)
X, Y = (
    np.stack(IMAGES.images.read(np.arange(240))),
    np.array([IMAGES.classes[label] for label in IMAGES.labels]),
)


@pytest.fixture
def looked() -> Iterator[list[int]]:
    """How many images went through a network, batch by batch, without trials on a blank or a single one."""
    seen: list[int] = []

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            images = inputs[0]
            is_blank = bool((images.flatten(2).std(-1) == 0).all())
            if len(images) > 1 and not is_blank:
                seen.append(len(images))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    yield seen
    hook.remove()


@pytest.mark.parametrize(
    "labels",
    [
        Y,
        IMAGES.labels * 7 - 3,
        IMAGES.labels.astype(float),
        np.array(["10", "9", "0"])[IMAGES.labels],
        Y.tolist(),
        IMAGES.labels == 1,
    ],
)
def test_labels_of_every_kind_come_back_as_they_were_given(labels: object) -> None:
    made = api.TransferClassifier(**TINY).fit(X, labels)
    said = made.predict(X)
    assert said.dtype == np.asarray(labels).dtype
    assert made.classes_.tolist() == sorted(set(np.asarray(labels).tolist()))
    assert made.score(X, labels) == np.mean(said == np.asarray(labels)) > 0.9
    chances = made.predict_proba(X)
    assert chances.shape == (240, len(made.classes_))
    assert np.allclose(chances.sum(axis=1), 1)
    assert (made.classes_[chances.argmax(axis=1)] == said).all()


def test_no_image_is_wasted_on_a_test_part_and_validation_is_split_off_inside() -> None:
    made = api.TransferClassifier(**TINY).fit(X, Y)
    parts = made.files_["split.csv"].decode().splitlines()
    counts = {part: sum(line.endswith("," + part) for line in parts) for part in PARTS}
    assert counts["test"] == 0
    assert counts["train"] + counts["val"] == 240
    assert 0.05 < counts["val"] / 240 < 0.15
    assert (made.scores_["train"]["n"], made.scores_["val"]["n"]) == (
        counts["train"],
        counts["val"],
    )
    pairs = np.concatenate([np.flatnonzero(name == Y)[:2] for name in IMAGES.classes])
    few = api.TransferClassifier(**TINY).fit(
        X[pairs], Y[pairs]
    )  # two of each class: one to learn from, one to choose on
    assert (few.scores_["train"]["n"], few.scores_["val"]["n"]) == (3, 3)


def test_paths_give_what_arrays_give(tmp_path: Path) -> None:
    paths = [tmp_path / f"{row}.png" for row in range(240)]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image).save(path)
    by_path, by_array = (api.TransferClassifier(**TINY).fit(given, Y) for given in (paths, X))
    assert np.allclose(
        by_path.predict_proba([str(path) for path in paths]), by_array.predict_proba(X), atol=0.02
    )  # split by another hash: other training images
    again = by_array.predict_proba(paths)
    assert np.array_equal(again, by_array.predict_proba(X))
    assert np.array_equal(by_array.predict_proba(np.array(list(map(str, paths)))), again)
    few = by_array.predict_proba(
        paths[:5]
    )  # they take another way; a processor may add up the products of a small batch in another order
    assert np.allclose(few, again[:5], rtol=1e-2, atol=1e-5)


@pytest.mark.slow
def test_cross_validation_searches_pipelines_and_clones_work() -> None:
    one = api.TransferClassifier(**TINY)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    assert cross_val_score(one, X, Y, cv=folds).min() > 0.9
    assert cross_val_predict(one, X, Y, cv=folds, method="predict_proba").shape == (240, 3)
    pipe = make_pipeline(FunctionTransformer(lambda x: x[:, ::-1]), one)
    assert cross_val_score(pipe, X, Y, cv=folds).min() > 0.9
    search = GridSearchCV(
        pipe,
        {"transferclassifier__overrides": [("phases.0.l2=[0.001]",), ("phases.0.l2=[1.0]",)]},
        cv=2,
    )
    search.fit(X, Y)
    assert len(search.cv_results_["params"]) == 2
    assert search.best_score_ > 0.9
    assert search.predict(X[:3]).tolist() == Y[:3].tolist()
    other = clone(one).set_params(technique="fine-tune-top", overrides=["phases.0.epochs=1"])
    assert (
        one.get_params()["technique"],
        other.get_params()["technique"],
        other.get_params()["resolution"],
    ) == ("linear-probe", "fine-tune-top", 32)
    assert other.fit(X, Y).plan_.technique == "fine-tune-top"
    assert not hasattr(clone(other), "classes_")


def test_a_search_over_heads_computes_the_features_of_a_fold_once(looked: list[int]) -> None:
    heads = [None, "dense 8 relu", "bn, dense 8 relu, dropout 0.2", "dense 16 tanh"]
    counts = []
    for candidates in (heads[:1], heads):
        clear_cache(default_cache_dir())
        looked.clear()
        kind = api.TransferClassifier(
            **TINY, technique="feature-extraction", overrides=("phases.0.epochs=1",)
        )
        GridSearchCV(kind, {"head": candidates}, cv=2, refit=False, return_train_score=True).fit(
            X, Y
        )
        counts.append(sum(looked))
    assert counts[0] == counts[1]
    assert (
        counts[0] == 240 + 240
    )  # each half to learn and choose from, and each half to be judged on, whichever fold asks


def test_a_pickle_carries_files_and_no_network_and_predicts_the_same() -> None:
    made = api.TransferClassifier(**TINY).fit(X, Y)
    said = made.predict_proba(X)
    content = pickle.dumps(made)
    globals_ = {
        argument for code, argument, _ in pickletools.genops(content) if code.name == "GLOBAL"
    }
    strings = [
        argument for code, argument, _ in pickletools.genops(content) if isinstance(argument, str)
    ]
    assert not [
        text
        for text in (*globals_, *strings)
        if text.split(".")[0] in ("torch", "timm", "lightning")
    ]
    assert made.files_["model.safetensors"] in content
    assert json.loads(made.files_["scores.json"])["val"]["n"] == made.scores_["val"]["n"]
    again = pickle.loads(content)
    assert np.array_equal(again.predict_proba(X), said)
    assert again.get_params() == made.get_params()
    assert (again.classes_ == made.classes_).all()


def test_what_is_saved_is_a_run_that_everything_else_takes(tmp_path: Path) -> None:
    made = api.TransferClassifier(**TINY).fit(X, Y)
    path = made.save(tmp_path / "run")
    loaded = api.load(path, "cpu")
    assert loaded.predict(X) == made.predict(X).tolist()
    assert (
        np.abs(loaded.predict_proba(X) - made.predict_proba(X)).max() < 0.02
    )  # float32 at once, against 16 bit kept
    with pytest.raises(UserError, match="is not empty"):
        made.save(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        made.save(tmp_path / "file")


def test_the_plan_and_the_seed_are_obeyed(tmp_path: Path) -> None:
    made = api.TransferClassifier(
        **TINY, technique="fine-tune-top", seed=3, overrides=("phases.0.epochs=1",)
    ).fit(X, Y)
    assert (made.plan_.seed, made.plan_.phases[0].epochs, made.plan_.phases[0].train) == (
        3,
        1,
        "layer4",
    )
    by_plan = api.TransferClassifier(plan=made.plan_, seed=None).fit(X, Y)
    assert by_plan.plan_ == made.plan_
    assert np.allclose(by_plan.predict_proba(X), made.predict_proba(X), atol=1e-4)
    (tmp_path / "plan.toml").write_bytes(made.files_["plan.toml"])
    assert api.TransferClassifier(plan=tmp_path / "plan.toml", seed=4).fit(
        X, Y
    ).plan_ == made.plan_.model_copy(update={"seed": 4})


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (
            X[..., :1],
            Y,
            "has the shape (240, 16, 16, 1) and the type uint8. Expected images (n, h, w, 3) of uint8",
        ),
        (X / 255, Y, "and the type float64. Expected"),
        (X.reshape(240, -1), Y, "has the shape (240, 768)"),
        ("photos", Y, "X is the single path 'photos'"),
        (list(X), Y, "X holds ndarray. Expected paths of image files, or one array"),
        (X, Y[:-1], "X holds 240 images, y 239 labels"),
        (X, np.zeros(240, int), "has one class only"),
        (
            X[:4],
            ["a", "a", "a", "b"],
            "has too few images of class 'b' (1). Expected at least 2 a class, so that every part can each have one",
        ),
        (
            ["nothing.png", "here.png", "nor.png", "there.png"],
            [0, 0, 1, 1],
            "4 images cannot be decoded: ",
        ),
    ],
)
def test_mistakes_are_said_in_a_sentence(x: object, y: object, text: str) -> None:
    with pytest.raises(UserError) as caught:
        api.TransferClassifier(**TINY).fit(x, y)
    assert text in str(caught.value)
    made = api.TransferClassifier(**{**TINY, "technique": "linear-prob"})
    with pytest.raises(UserError, match="Did you mean 'linear-probe'"):
        made.fit(X, Y)


def test_before_fit_it_says_so_and_a_failed_fit_changes_nothing() -> None:
    new = api.TransferClassifier(**TINY)
    with pytest.raises(NotFittedError):
        new.predict(X)
    with pytest.raises(NotFittedError):
        new.save("x")
    with pytest.raises(ValueError, match="Unknown label type"):
        new.fit(X, np.linspace(0, 1, 240))
    made = api.TransferClassifier(**TINY).fit(X, Y)
    said = made.predict_proba(X[:4])
    with pytest.raises(UserError):
        made.fit(X[:2], Y[:2])
    assert np.array_equal(made.predict_proba(X[:4]), said)
    assert made.predict(X[:0]).shape == (0,)


def test_what_of_scikit_learns_own_checks_makes_sense_for_images_holds() -> None:
    one = api.TransferClassifier(**TINY)
    check_no_attributes_set_in_init("TransferClassifier", one)
    check_parameters_default_constructible("TransferClassifier", one)
    before = one.get_params()
    assert one.fit(X, Y) is one
    assert one.get_params() == before
    assert "TransferClassifier(" in repr(one)
    assert one.__sklearn_tags__().estimator_type == "classifier"
    assert set(api.TransferClassifier().get_params()) == {
        "backbone",
        "technique",
        "resolution",
        "plan",
        "seed",
        "head",
        "overrides",
        "weights",
        "split_seed",
        "device",
        "keep",
        "cache_dir",
    }


def test_an_attribute_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'TransferClassifer'"):
        api.TransferClassifer  # noqa: B018


# ── features


def test_features_are_those_of_a_fit_in_the_order_of_the_keys_and_come_from_the_cache(
    looked: list[int],
) -> None:
    images = toy(120)
    seen = []
    for order in (np.arange(120), np.random.default_rng(0).permutation(120)):
        pixels = np.stack(images.images.read(order))
        mixed = make_dataset("mixed", images.labels[order], images.classes, ArrayImages(pixels))
        features = api.embed(mixed, "test_resnet", 32, weights="random").features
        seen.append(features)
        assert (features.shape, features.dtype) == ((120, 96), np.float32)
    assert np.array_equal(*seen)
    assert sum(looked) == 120
    api.fit(images, backbone="test_resnet", weights="random", resolution=32)
    assert sum(looked) == 120  # a fit on the same images finds them there
    assert np.allclose(
        api.embed(images, "test_resnet", 32, weights="random", keep="never").features,
        seen[0],
        atol=2e-2,
        rtol=1e-2,
    )


def test_the_table_says_key_label_part_features_and_how(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    words = (
        "embed",
        photos,
        "--backbone",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        32,
        "-q",
    )
    done = regraft(*words, "--until", "layer2,end", "--out", "deep/features.parquet", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    read = pq.read_table("deep/features.parquet")
    assert read.column_names == ["key", "label", "part", "features"]
    assert (read.num_rows, told["images"], told["until"]) == (120, 120, ["layer2", "end"])
    keys = read["key"].to_pylist()
    assert keys == sorted(keys)
    assert all(
        key.startswith(label + "/")
        for key, label in zip(keys, read["label"].to_pylist(), strict=True)
    )
    counts = {part: read["part"].to_pylist().count(part) for part in PARTS}
    assert sum(counts.values()) == 120
    assert min(counts.values()) > 5
    features = np.stack(read["features"].to_numpy())
    whole = api.embed(photos, "test_resnet", 32, weights="random").features
    assert features.shape[1] == told["features"] > whole.shape[1]
    assert np.allclose(features[:, -whole.shape[1] :], whole, atol=2e-2, rtol=1e-2)
    assert json.loads(read.schema.metadata[b"regraft"]) | {"precision": ""} == {
        "backbone": "test_resnet",
        "weights": "random",
        "until": ["layer2", "end"],
        "resolution": 32,
        "precision": "",
    }
    table = api.embed(str(photos), "test_resnet", 32, weights="random").to_table()
    assert table["key"].to_pylist() == keys
    assert "120 images from test_resnet at 32 px written to features.parquet" in regraft(*words).out


def test_mistakes_of_embed_are_said_in_a_sentence(regraft, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = (
        "embed",
        photos,
        "--backbone",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        32,
        "-q",
    )
    Path("there.parquet").write_text("")
    (tmp_path / "file").write_text("")
    cases = [
        (
            ("--out", "there.parquet"),
            "there.parquet exists already. Expected a new file for the features",
        ),
        (("--out", "x.csv"), "--out x.csv was given. Expected the name of a Parquet file"),
        (("--until", "layer9"), "test_resnet has no stage 'layer9'"),
        (("--out", tmp_path / "file" / "x.parquet"), "cannot be written"),
    ]
    for more, text in cases:
        done = regraft(*words, *more)
        assert (done.code, text in done.err) == (2, True), done.err
    assert regraft(*words, "--out", "there.parquet", "--overwrite").code == 0
    (photos / "class0" / "0000.png").write_bytes(b"no image")
    done = regraft(*words, "--out", "new.parquet")
    assert (done.code, "1 image cannot be decoded" in done.err) == (2, True)
    assert not Path("new.parquet").exists()
    assert regraft(*words, "--out", "new.parquet", "--skip-bad").code == 0
    assert pq.read_table(io.BytesIO(Path("new.parquet").read_bytes())).num_rows == 119


def test_embedding_leaves_no_image_out(photos: Path) -> None:
    embedding = api.embed(photos, "test_resnet", 32, weights="random")
    assert len(embedding.features) == 120
    assert (np.abs(embedding.features).sum(axis=1) > 0).all()
    with pytest.raises(UserError, match="No keyword of regraft.embed is called 'train_images'"):
        api.embed(photos, "test_resnet", 32, train_images=10)  # type: ignore[call-arg]
