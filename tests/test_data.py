from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import toy, write_folder
from regraft.data.dataset import Columns, Dataset, make_dataset
from regraft.data.images import ArrayImages
from regraft.data.load import load_dataset
from regraft.data.split import PARTS, TEST_SHARE, VAL_SHARE
from regraft.errors import UserError


def named(
    counts: list[int],
    parts: list[str] | None = None,
    groups: list[str] | None = None,
    order: np.ndarray | None = None,
) -> Dataset:
    """Return a dataset with so many images of each class, keys independent of the order of rows."""
    labels = np.repeat(np.arange(len(counts)), counts)
    keys = np.array([f"{label}/{row:05}" for row, label in enumerate(labels)])
    order = np.arange(len(labels)) if order is None else order
    pixels = np.zeros((len(labels), 2, 2, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(labels)) % 251
    columns: Columns = {}
    if parts is not None:
        columns["parts"] = [parts[row] for row in order]
    if groups is not None:
        columns["groups"] = [groups[row] for row in order]
    classes = [f"c{number}" for number in range(len(counts))]
    images = ArrayImages(pixels[order])
    return make_dataset("made", labels[order], classes, images, keys[order], **columns)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(3, 60), min_size=2, max_size=6), seed=st.integers(0, 1000))
def test_parts_are_disjoint_whole_stratified_and_hold_every_class(
    counts: list[int], seed: int
) -> None:
    made = named(counts)
    split = made.split(seed)
    rows = np.concatenate([split.train, split.val, split.test])
    assert sorted(rows) == list(range(len(made)))
    for part, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        for label, count in enumerate(counts):
            there = int((made.labels[split[part]] == label).sum())
            assert there >= 1
            assert abs(there - share * count) <= max(1, np.ceil(0.15 * share * count)) + 1
    assert all((made.labels[split.train] == label).any() for label in range(len(counts)))


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(3, 30), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
    shuffle=st.integers(0, 1000),
)
def test_row_order_changes_nothing(counts: list[int], seed: int, shuffle: int) -> None:
    order = np.random.default_rng(shuffle).permutation(sum(counts))
    one, other = named(counts), named(counts, order=order)
    assert one.fingerprint == other.fingerprint
    assert one.split(seed).digest == other.split(seed).digest
    assert list(one.keys[one.split(seed).test]) == list(other.keys[other.split(seed).test])


def test_added_images_hardly_ever_move_another() -> None:
    moved = seen = 0
    for seed in range(20):
        before, after = named([300, 300]), named([315, 300])
        parts = []
        for made in (before, after):
            split = made.split(seed)
            parts.append({str(made.keys[row]): part for part in PARTS for row in split[part]})
        shared = {key for key in parts[0] if key.startswith("0/")}
        moved += sum(parts[0][key] != parts[1][key] for key in shared)
        seen += len(shared)
    assert seen == 6000
    assert moved <= 20  # three in a thousand, all at a border


def test_a_given_test_part_is_kept_and_val_is_cut_from_train() -> None:
    parts = ["train"] * 40 + ["test"] * 10 + ["train"] * 40 + ["test"] * 10
    made = named([50, 50], parts)
    split = made.split()
    given = {str(key) for key, part in zip(made.keys, made.parts, strict=True) if part == "test"}
    assert {str(key) for key in made.keys[split.test]} == given
    assert len(split.val) == pytest.approx(8, abs=2)
    assert not {str(key) for key in made.keys[split.val]} & given


def test_groups_are_never_torn_apart() -> None:
    groups = [f"g{row % 17}" for row in range(200)]
    made = named([100, 100], groups=groups)
    split = made.split()
    homes = [{str(made.groups[row]) for row in split[part]} for part in PARTS]
    assert not homes[0] & homes[1]
    assert not homes[0] & homes[2]
    assert not homes[1] & homes[2]


def test_a_subset_of_train_is_stratified_and_leaves_the_other_parts_alone() -> None:
    made = named([200, 100, 50])
    whole, some = made.split(), made.split(train_images=70)
    assert len(some.train) == 70
    assert set(some.train) <= set(whole.train)
    assert (some.val == whole.val).all()
    assert (some.test == whole.test).all()
    counts = np.bincount(made.labels[some.train]) / np.bincount(made.labels[whole.train])
    assert counts.max() - counts.min() < 0.05
    assert some.digest != whole.digest


def test_identical_images_without_names_fall_into_the_same_part() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (200, 4, 4, 3), dtype=np.uint8)
    images = np.concatenate([images, images[:100], images[:50], images[:20]])
    labels = np.concatenate(
        [np.arange(200) % 2, np.arange(100) % 2, np.arange(50) % 2, 1 - np.arange(20) % 2]
    )  # the last ones under the other class
    made = make_dataset("twins", labels, ["a", "b"], ArrayImages(images))
    for seed in range(20):
        split = made.split(seed)
        parts = [set(made.hashes[split[part]].tolist()) for part in ("train", "val", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 200
        for label in (0, 1):
            counts = [
                len(set(made.hashes[split[part]][made.labels[split[part]] == label].tolist()))
                for part in ("val", "test")
            ]
            assert 6 <= counts[0] <= 20, counts
            assert 14 <= counts[1] <= 34, counts
    assert len(set(made.keys.tolist())) == 370


def test_an_image_that_is_there_too_often_is_for_training() -> None:
    rng, seen = np.random.default_rng(0), 0
    for copies in (13, 30, 60, 200):
        images = rng.integers(0, 255, (100, 4, 4, 3), dtype=np.uint8)
        images = np.concatenate([images, np.repeat(images[:1], copies - 1, axis=0)])
        made = make_dataset(
            "blank",
            np.concatenate([np.arange(100) % 2, np.zeros(copies - 1, int)]),
            ["a", "b"],
            ArrayImages(images),
        )
        often = Counter(made.hashes.tolist()).most_common(1)[0][0]
        for seed in range(20):
            split = made.split(seed)
            assert often not in made.hashes[split.val].tolist() + made.hashes[split.test].tolist()
            assert 2 <= len(split.val) <= 20
            seen += 1
    assert seen == 80


def test_a_class_of_hardly_different_images_is_in_every_part() -> None:
    for different in (1, 2, 3):
        images = np.zeros((60, 2, 2, 3), np.uint8)
        images[:, 0, 0, 0] = np.arange(60) % different
        images[30:, 1, 1] = np.arange(30)[:, None] + 1
        made = make_dataset("few", [0] * 30 + [1] * 30, ["a", "b"], ArrayImages(images))
        for seed in range(10):
            split = made.split(seed)
            assert all(
                set(made.labels[split[part]].tolist()) == {0, 1}
                for part in ("train", "val", "test")
            ), (different, seed)


def test_a_table_without_images_says_so() -> None:
    with pytest.raises(UserError, match="empty"):
        toy(12).take(np.zeros(0, np.int64)).split()


def test_identical_images_get_different_keys() -> None:
    made = make_dataset(
        "same", [0, 0, 0, 1, 1, 1], ["a", "b"], ArrayImages(np.zeros((6, 2, 2, 3), np.uint8))
    )
    assert len(set(made.keys)) == 6


def test_the_fingerprint_sees_pixels_labels_and_names() -> None:
    made = toy()
    changed = made.images.array.copy()
    changed[0, 0, 0, 0] ^= 1
    others = [
        make_dataset("x", made.labels, made.classes, ArrayImages(changed), made.keys),
        make_dataset("x", np.roll(made.labels, 1), made.classes, made.images, made.keys),
        make_dataset("x", made.labels, ["a", "b", "c"], made.images, made.keys),
    ]
    assert len({made.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("labels", "classes", "keys", "says"),
    [
        (
            [],
            ["a", "b"],
            None,
            "bad holds no images. Expected labelled images of at least two classes.",
        ),
        ([0, 0, 0], ["a"], None, "bad has one class only, 'a'. Expected at least two."),
        (
            [0, 0, 0, 1],
            ["a", "b"],
            None,
            "bad has too few images of class 'b' (1). Expected at least 3 a class",
        ),
        (
            [0, 0, 0, 7],
            ["a", "b"],
            None,
            "bad has the label 7, which is outside its 2 classes (0 … 1).",
        ),
        (
            [0, 0, 0, 1, 1, 1],
            ["a", "b"],
            list("pqrstt"),
            "bad lists 't' more than once. Expected every image under a key of its own.",
        ),
    ],
)
def test_impossible_tables_are_refused(
    labels: list[int], classes: list[str], keys: list[str] | None, says: str
) -> None:
    with pytest.raises(UserError, match=".") as caught:
        make_dataset(
            "bad",
            labels,
            classes,
            ArrayImages(np.zeros((len(labels), 2, 2, 3), np.uint8)),
            keys,
        )
    assert says in str(caught.value)


def test_too_small_and_too_large_subsets_are_refused() -> None:
    for wanted in (1, 10_000):
        with pytest.raises(
            UserError, match=f"--train-images {wanted:,} was given, but the train part has"
        ):
            toy().split(train_images=wanted)


def test_a_group_that_spans_everything_is_refused() -> None:
    with pytest.raises(UserError, match="part of made is empty"):
        named([50, 50], groups=["one"] * 100).split()


def test_open_images_follow_the_part_that_their_group_was_given() -> None:
    groups = [f"g{row // 6}" for row in range(120)]
    parts = ["test" if row // 6 % 4 == 0 and row % 6 == 0 else "" for row in range(120)]
    made = named([60, 60], parts, groups)
    split = made.split()
    assert {str(made.groups[row]) for row in split.test} == {
        f"g{number}" for number in range(0, 20, 4)
    }
    assert len(split.test) == 30
    with pytest.raises(UserError, match="The group 'g0' of made spans the parts test and val"):
        named([60, 60], ["test", "val", *parts[2:]], groups).split()


def test_facts_and_names_stay_short() -> None:
    assert repr(toy()) == "Dataset('toy', 120 images, 3 classes)"


def test_a_class_with_one_image_beside_a_given_test_part_is_for_training() -> None:
    for count in (1, 2):
        parts = ["train"] * (60 + count) + ["test"] * 21
        labels = [0] * 30 + [1] * 30 + [2] * count + [0] * 10 + [1] * 10 + [2]
        made = make_dataset(
            "given",
            labels,
            ["a", "b", "c"],
            ArrayImages(np.zeros((len(labels), 2, 2, 3), np.uint8)),
            [f"{row:03}" for row in range(len(labels))],
            parts=parts,
        )
        for seed in range(10):
            split = made.split(seed)
            assert 2 in made.labels[split.train]


def test_labels_that_are_fractions_are_refused() -> None:
    images = ArrayImages(np.zeros((6, 2, 2, 3), np.uint8))
    with pytest.raises(UserError, match="no whole numbers"):
        make_dataset("f", np.array([0, 1, 0, 1, 0, 1.5]), ["a", "b"], images, list("abcdef"))
    assert make_dataset(
        "f", np.array([0.0, 1, 0, 1, 0, 1]), ["a", "b"], images, list("abcdef")
    ).labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_images_that_cannot_be_decoded_leave_their_part_and_the_digest_stays(
    tmp_path: Path,
) -> None:
    from regraft.features.parts import open_parts
    from regraft.models.backbone import get_input_rules
    from regraft.models.transforms import Preprocess
    from regraft.options import CacheOptions, DataOptions, Options

    home = tmp_path / "home"
    table = load_dataset(write_folder(tmp_path / "photos", toy(90)), home)
    split = table.split()
    broken = [int(split.train[3]), int(split.train[0]), int(split.val[1])]
    for row in broken:
        Path(table.images.names[table.images.rows[row]]).write_bytes(b"no image")
    table = load_dataset(tmp_path / "photos", home)
    again = table.split()
    assert again.train.tolist() == split.train.tolist()  # keys alone decide
    options = Options(data=DataOptions(skip_bad=True), cache=CacheOptions(home))
    preprocess = Preprocess(get_input_rules("test_resnet"), 32)
    opened = open_parts(table, again, preprocess, options)
    assert opened.split.digest == again.digest
    assert opened.rows["train"].tolist() == np.delete(split.train, [0, 3]).tolist()
    assert opened.rows["train"].dtype == split.train.dtype
    assert opened.rows["val"].tolist() == np.delete(split.val, 1).tolist()
    assert opened.rows["test"].tolist() == split.test.tolist()
    assert set(opened.skipped) == {str(table.keys[row]) for row in broken}
    assert set(opened.skipped_in("val")) == {str(table.keys[broken[2]])}
    assert opened["train"].labels.tolist() == table.labels[opened.rows["train"]].tolist()


def test_hashes_that_are_known_are_not_computed_again() -> None:
    made = toy(12)
    known = np.array([f"{row:032}" for row in range(12)])
    copy = replace(made, known_hashes=known)
    assert (copy.hashes == known).all()
    assert (copy.take(np.arange(3, 6)).hashes == known[3:6]).all()
    assert copy.fingerprint != made.fingerprint


def test_reshaped_images_are_other_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 60, 80, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    shapes = ((60, 80), (80, 60), (40, 120), (120, 40), (30, 160))
    fingerprints = set()
    hashes = set()
    for height, width in shapes:
        images = ArrayImages(pixels.reshape(12, height, width, 3))
        made = make_dataset("torn", labels, ["a", "b"], images)
        fingerprints.add(made.fingerprint)
        hashes.update(made.hashes)
    assert len(fingerprints) == len(shapes) == 5
    assert len(hashes) == 12 * len(shapes)
