"""What is wrong with images: planted faults are found, and clean images are left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from regraft.workflow import checking
from regraft.workflow.checking import check
from regraft.workflow.planning import Wish
from regraft.workflow.settings import Settings

from conftest import TINY, toy, write_folder
from regraft.checks.duplicates import NearDuplicate, exact_duplicates, find_near_duplicates
from regraft.checks.findings import (
    CheckedWith,
    Findings,
    ImageIndex,
    ImageRef,
    Suspect,
    describe_doubt,
    describe_findings,
    to_exact_groups,
    to_near_pairs,
    to_odd_files,
    to_suspects,
)
from regraft.checks.labels import SuspectLabels, find_suspect_labels
from regraft.checks.outliers import ClassBalance, Outlier
from regraft.data.dataset import Dataset, make_dataset
from regraft.data.images import ArrayImages
from regraft.data.load import load_dataset
from regraft.data.split import PARTS


def cloud(n: int = 600, d: int = 40, classes: int = 5, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(0, 1, (classes, d))
    return (centres[labels] + rng.normal(0, 1.1, (n, d))).astype(np.float16), labels


def test_exact_duplicates_are_the_groups_with_equal_hashes() -> None:
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(200):
        hashes = rng.integers(0, 30, rng.integers(2, 40)).astype(str)
        found = exact_duplicates(hashes)
        assert all(
            len(group) > 1 and len(set(hashes[group])) == 1 and group == sorted(group)
            for group in found
        )
        assert sum(map(len, found)) == sum(
            count for count in np.unique(hashes, return_counts=True)[1] if count > 1
        )
        seen += 1
    assert seen == 200


def photos_of(n: int, seed: int = 0) -> np.ndarray:
    """Return smooth images that differ."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (n, 5, 5, 3), dtype=np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(one).resize((24, 24), Image.Resampling.BICUBIC))
            for one in coarse
        ]
    )


@pytest.mark.parametrize("n", [300, 4500])
@pytest.mark.parametrize("by", ["pixels", "mirrored", "features"])
def test_near_duplicates_are_found_in_every_block_and_nothing_else(n: int, by: str) -> None:
    rng = np.random.default_rng(1)
    pixels, features = photos_of(n), rng.normal(0, 1, (n, 64)).astype(np.float16)
    planted = rng.choice(n, 40, replace=False).reshape(20, 2)
    if by == "features":
        features[planted[:, 1]] = features[planted[:, 0]] + rng.normal(0, 0.05, (20, 64)).astype(
            np.float16
        )
    else:
        again = pixels[planted[:, 0]][:, :, :: -1 if by == "mirrored" else 1]
        pixels[planted[:, 1]] = np.clip(again * 0.8 + 20 + rng.normal(0, 4, again.shape), 0, 255)
    hashes = np.arange(n).astype(str)
    parts = [pixels[: n // 3], pixels[n // 3 :]]
    matches = find_near_duplicates(parts, features, hashes)
    assert {match.rows for match in matches} == {tuple(sorted(pair)) for pair in planted.tolist()}
    assert {match.by for match in matches} == {by}
    cosines = [match.cosine for match in matches]
    assert cosines == sorted(cosines, reverse=True)
    hashes[planted[:, 1]] = hashes[planted[:, 0]]
    assert find_near_duplicates(parts, features, hashes) == []


def test_images_of_one_colour_are_no_duplicates_of_each_other() -> None:
    pixels = np.stack([np.full((8, 8, 3), shade, np.uint8) for shade in range(20, 30)])
    features = np.random.default_rng(0).normal(0, 1, (10, 64))
    hashes = np.arange(10).astype(str)
    assert find_near_duplicates([pixels], features, hashes) == []


def test_flipped_labels_come_first_and_clean_ones_are_mostly_left_alone() -> None:
    seen = 0
    for seed in range(5):
        features, labels = cloud(800, seed=seed)
        rng = np.random.default_rng(seed)
        flipped = rng.choice(len(labels), 16, replace=False)
        wrong = labels.copy()
        wrong[flipped] = (labels[flipped] + rng.integers(1, 5, 16)) % 5
        found = find_suspect_labels(features, wrong, 5)
        assert np.isin(flipped, found.ranking[:32]).mean() >= 0.75
        assert sorted(found.ranking.tolist()) == list(range(800))
        clean = find_suspect_labels(features, labels, 5)
        assert clean.count < found.count
        assert clean.count < 0.1 * 800
        assert (found.predicted[flipped] == labels[flipped]).mean() > 0.7
        seen += 1
    assert seen == 5


def test_a_rare_class_and_its_absence_do_not_trip_the_ranking() -> None:
    features, labels = cloud(200)
    labels[labels == 4] = 3
    found = find_suspect_labels(features, labels, 5)
    assert len(found.ranking) == 200
    assert np.isfinite(found.probabilities).all()


def findings_of(**fields: object) -> Findings:
    """Return findings of a dataset of two classes; without `fields` nothing stands out."""
    usual: dict[str, object] = {
        "data": "pets",
        "images": {"train": 30, "val": 6, "test": 4},
        "split_digest": "abc",
        "network": CheckedWith("test_resnet", 32, "random"),
        "balance": ClassBalance(
            ["cat", "dog"], {"train": [15, 15], "val": [3, 3], "test": [2, 2]}, 1.0, []
        ),
    }
    return Findings(**(usual | fields))  # type: ignore[arg-type]


def pets() -> tuple[Dataset, ImageIndex]:
    """Return images with their index; the first four are in train, train, val and test."""
    labels = np.arange(12) % 2
    pixels = np.zeros((12, 8, 8, 3), dtype=np.uint8)
    keys = [f"{letter}.png" for letter in "abcdefghijkl"]
    images = make_dataset("pets", labels, ["cat", "dog"], ArrayImages(pixels), keys=keys)
    part_of = np.array(["train", "train", "val", "test"] * 3)
    return images, ImageIndex(images, part_of)


def test_findings_are_written_with_the_keys_that_the_report_and_the_docs_name() -> None:
    _, index = pets()
    rows = np.array([3, 2, 1, 0])  # positions in what the checks saw, to rows of the table
    suspects = SuspectLabels(
        ranking=np.array([1, 0, 2, 3]),
        count=1,
        predicted=np.array([1, 1, 1, 0]),
        probabilities=np.array([[0.5, 0.5], [0.25, 0.75], [0, 1], [1, 0]], dtype=np.float32),
    )
    near = [NearDuplicate((0, 2), 0.99, "pixels")]
    found = findings_of(
        balance=ClassBalance(
            ["cat", "dog"], {"train": [28, 2], "val": [3, 3], "test": [2, 2]}, 14.0, ["dog"]
        ),
        exact=to_exact_groups([[2, 3], [1, 3]], rows, index),
        near=to_near_pairs(near, rows, index),
        suspects=to_suspects(suspects, rows, index),
        suspect_count=1,
        odd=to_odd_files([Outlier(1, "one colour throughout")], index),
    )
    assert found.to_json() == {
        "data": "pets",
        "classes": 2,
        "images": {"train": 30, "val": 6, "test": 4},
        "split_digest": "abc",
        "backbone": "test_resnet",
        "resolution": 32,
        "weights": "random",
        "counts": {"exact": 2, "near": 1, "suspects": 1, "odd": 1},
        "across": {"exact": 1, "near": 1},
        "exact": [  # those across parts come first
            {
                "keys": ["c.png", "a.png"],
                "parts": ["val", "train"],
                "labels": ["cat", "cat"],
                "rows": [2, 0],
            },
            {
                "keys": ["b.png", "a.png"],
                "parts": ["train", "train"],
                "labels": ["dog", "cat"],
                "rows": [1, 0],
            },
        ],
        "near": [
            {
                "keys": ["d.png", "b.png"],
                "parts": ["test", "train"],
                "labels": ["dog", "dog"],
                "rows": [3, 1],
                "cosine": 0.99,
                "by": "pixels",
            }
        ],
        "suspects": [
            {
                "row": 2,
                "key": "c.png",
                "part": "val",
                "label": "cat",
                "said": "dog",
                "chance_label": 0.25,
                "chance_said": 0.75,
            }
        ],
        "balance": {
            "classes": [
                {"name": "cat", "train": 28, "val": 3, "test": 2},
                {"name": "dog", "train": 2, "val": 3, "test": 2},
            ],
            "ratio": 14.0,
            "few": ["dog"],
        },
        "odd": [{"key": "b.png", "row": 1, "why": "one colour throughout"}],
        "verdict": "1 images occur byte for byte in more than one part: what is measured on val "
        "and test is flattered; 1 pairs across parts look nearly the same; 1 images occur twice "
        "or more within a part; 1 labels (2.5%) look wrong or doubtful; the largest class has "
        "14.0 times the images of the smallest; 1 classes have fewer than ten training images; "
        "1 files are odd or cannot be read.",
    }
    assert list(found.to_json())[-1] == "verdict"
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_at_most_200_findings_of_a_kind_are_written_and_all_are_counted() -> None:
    _, index = pets()
    rows = np.arange(4)
    written = findings_of(
        exact=to_exact_groups([[0, 1]] * 300 + [[0, 3]], rows, index),
        odd=to_odd_files([Outlier(0, "odd")] * 300, index),
    ).to_json()
    assert written["counts"]["exact"] == 301
    assert written["counts"]["odd"] == 300
    assert len(written["exact"]) == len(written["odd"]) == 200
    assert written["exact"][0]["parts"] == ["train", "test"]


def test_where_nothing_stands_out_the_verdict_says_so() -> None:
    assert describe_findings(findings_of()).startswith("Nothing stands out: no duplicates")


def test_a_split_gives_every_image_its_part() -> None:
    images = toy(60)
    split = images.split()
    index = ImageIndex.of(images, split)
    for part in PARTS:
        assert {index.at(row).part for row in split[part]} == {part}
    reference = index.at(7)
    assert reference.key == images.keys[7]
    assert reference.label == images.classes[images.labels[7]]


def planted(tmp_path: Path) -> Path:
    photos = write_folder(tmp_path / "photos", toy(240), parts=True)
    train, test = (
        sorted((photos / "train").rglob("*.png")),
        sorted((photos / "test").rglob("*.png")),
    )
    for number in range(4):
        shutil.copy(
            next(one for one in train[number * 5 :] if one.parent.name == test[number].parent.name),
            test[number],
        )
    folder = photos / "train" / "class0"
    (folder / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 200, 3), dtype=np.uint8)).save(
        folder / "long.png"
    )
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (3, 3, 3), dtype=np.uint8)).save(
        folder / "small.png"
    )
    Image.new("RGB", (16, 16), "red").save(folder / "plain.png")
    return photos


def test_check_finds_what_was_planted_and_shows_it(tmp_path: Path, regraft) -> None:
    photos = planted(tmp_path)
    words = ["check", photos, "--backbone", TINY, "--weights", "random", "--resolution", "32", "-q"]
    told = json.loads(regraft(*words, "--json").out)
    assert told["counts"]["exact"] >= 4
    assert told["across"]["exact"] == 4
    assert all(len(set(group["parts"])) == 2 for group in told["exact"][:4])
    why = {Path(one["key"]).name: one["why"] for one in told["odd"]}
    assert "cannot be read" in why["broken.png"]
    assert "only the centre is seen" in why["long.png"]
    assert "3 × 3 pixels" in why["small.png"]
    assert "one colour" in why["plain.png"]
    assert told["verdict"].startswith("4 images occur byte for byte in more than one part")
    out = tmp_path / "check.html"
    done = regraft(*words, "--out", out)
    assert done.code == 0, done.err
    assert told["verdict"] in done.out.replace("\n", " ")
    text = out.read_text()
    assert "Exact duplicates" in text
    assert text.count("data:image/jpeg") >= 8
    assert "exists already" in regraft(*words, "--out", out).err
    assert regraft(*words, "--out", out, "--overwrite").code == 0


def test_the_report_shows_what_the_last_check_found(tmp_path: Path, regraft) -> None:
    photos = write_folder(tmp_path / "photos", toy(150))
    made = ["--backbone", TINY, "--weights", "random", "--resolution", "32", "-q"]
    assert regraft("fit", photos, *made, "--out", "mine").code == 0
    assert regraft("report", "mine", "-q").code == 0
    assert "Not checked yet" in Path("mine/report.html").read_text()
    assert regraft("check", photos, *made).code == 0
    assert regraft("report", "mine", "-q").code == 0
    text = Path("mine/report.html").read_text()
    assert "Not checked yet" not in text
    assert "near duplicates (pairs)" in text


def test_clean_images_are_said_to_be_clean(tmp_path: Path) -> None:
    found = check(
        toy(300, side=24),
        Wish(backbone=TINY, weights="random", resolution=32),
        Settings(home=tmp_path),
    )
    assert found.told["counts"]["exact"] == found.told["counts"]["odd"] == 0
    assert found.told["across"]["exact"] == 0


def test_duplicates_planted_across_parts_and_flipped_labels_are_found_among_real_images(
    shared_data: Path, tmp_path: Path
) -> None:
    images = load_dataset(str(shared_data / "cifar10"), tmp_path)
    rows = images.subset(np.flatnonzero(images.parts == "train"), 1500, 0)
    small = images.take(np.sort(rows))
    pixels = np.stack(small.images.read(np.arange(len(small))))
    rng = np.random.default_rng(0)
    flipped = rng.choice(len(small), 30, replace=False)
    labels = small.labels.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, 30)) % 10
    parts = np.where(np.arange(len(small)) % 5 == 0, "test", "train").astype("<U5")
    donors, victims = np.flatnonzero(parts == "train")[:50], np.flatnonzero(parts == "test")[:50]
    pixels[victims], labels[victims] = pixels[donors], labels[donors]
    keys = [f"{number:05}" for number in range(len(small))]
    made = make_dataset(
        "planted", labels, list(small.classes), ArrayImages(pixels), keys=keys, parts=parts
    )
    found = check(made, Wish(resolution=64), Settings(home=tmp_path)).told
    assert found["across"]["exact"] == 50
    first = {one["key"] for one in found["suspects"][: int(0.06 * len(small))]}
    hits = sum(f"{row:05}" in first for row in flipped if row not in victims)
    assert hits >= 0.6 * sum(row not in victims for row in flipped)


def test_a_doubtful_label_that_is_the_likeliest_all_the_same_is_not_said_to_look_like_itself() -> (
    None
):
    told = {"label": "a", "said": "a", "chance_label": 0.6, "chance_said": 0.6}
    assert checking.doubt(told) == "is not clearly that (60%)"
    assert checking.doubt({**told, "said": "b"}) == "looks like b (60%)"
    assert describe_doubt("a", "a", 0.6) == "is not clearly that (60%)"
    assert describe_doubt("a", "b", 0.6) == "looks like b (60%)"
    image = ImageRef(0, "a.png", "train", "a")
    assert Suspect(image, "b", 0.1, 0.6).doubt == "looks like b (60%)"
