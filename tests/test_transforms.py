"""From images to a network's input: resize, crop, augment, normalise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import toy
from regraft.data.dataset import make_dataset
from regraft.data.images import ArrayImages
from regraft.models.augment import (
    NO_AUGMENTATION,
    PRESETS,
    AugmentedView,
    hashed_uniform,
    sample_ids,
)
from regraft.models.transforms import (
    Preprocess,
    dataset_storage_size,
    resize_center_crop,
    resize_in_two_passes,
    transform,
)
from regraft.plans.schema import AUGMENTATIONS, InputRules

RULES = InputRules((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
DATA = toy()
IMAGES = torch.from_numpy(DATA.images.array)
IDS = torch.from_numpy(sample_ids(DATA))


def test_the_plain_view_is_resized_and_normalised_as_the_weights_want() -> None:
    for interpolation, pillow in (
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
    ):
        for side in (10, 32, 75):
            rules = InputRules(RULES.mean, RULES.std, interpolation)
            seen = transform(IMAGES, IDS, rules, side)
            exact = torch.stack(
                [
                    torch.from_numpy(np.array(Image.fromarray(image).resize((side, side), pillow)))
                    for image in DATA.images.array
                ]
            )
            wanted = (
                exact.permute(0, 3, 1, 2) / 255 - torch.tensor(RULES.mean).view(1, 3, 1, 1)
            ) / torch.tensor(RULES.std).view(1, 3, 1, 1)
            assert (seen - wanted).abs().max() < 2.1 / 255 / 0.224
            assert seen.is_contiguous(memory_format=torch.channels_last)
            on_gpu = resize_in_two_passes(
                IMAGES.permute(0, 3, 1, 2), side, interpolation
            )  # what a device without the uint8 path does
            assert (on_gpu - exact.permute(0, 3, 1, 2)).abs().max() <= 2


def test_images_of_the_right_size_are_only_normalised() -> None:
    seen = transform(IMAGES, IDS, RULES, 16)
    back = seen * torch.tensor(RULES.std).view(1, 3, 1, 1) + torch.tensor(RULES.mean).view(
        1, 3, 1, 1
    )
    assert torch.allclose(back * 255, IMAGES.permute(0, 3, 1, 2).float(), atol=1e-3)


@pytest.mark.parametrize("augment", [name for name in AUGMENTATIONS if name != "none"])
def test_an_augmented_view_is_a_pure_function_of_seed_view_and_image(augment: str) -> None:
    view = AugmentedView(augment, seed=3, number=5)
    whole = transform(IMAGES, IDS, RULES, 24, view)
    assert torch.equal(whole, transform(IMAGES, IDS, RULES, 24, view))
    rows = torch.tensor([7, 3, 100])
    assert torch.allclose(
        whole[rows], transform(IMAGES[rows], IDS[rows], RULES, 24, view), atol=1e-5
    )  # whatever else is in the batch
    others = [AugmentedView(augment, 4, 5), AugmentedView(augment, 3, 6)]
    assert all(not torch.equal(whole, transform(IMAGES, IDS, RULES, 24, other)) for other in others)


def test_every_preset_of_the_plan_exists_and_none_is_plain() -> None:
    assert set(PRESETS) == set(AUGMENTATIONS) - {"none"}
    assert torch.equal(
        transform(IMAGES, IDS, RULES, 24, AugmentedView("none", 9, 9)),
        transform(IMAGES, IDS, RULES, 24, NO_AUGMENTATION),
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resolution", [12, 16, 24, 57])
def test_flip_mirrors_about_half_of_the_images_and_changes_nothing_else(
    resolution: int, interpolation: str
) -> None:
    rules = replace(RULES, interpolation=interpolation)
    plain, flipped = (
        transform(IMAGES, IDS, rules, resolution, AugmentedView(augment))
        for augment in ("none", "flip")
    )
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, flipped, strict=True)]
    mirrored = [
        torch.allclose(a.flip(2), b, atol=1e-4) for a, b in zip(plain, flipped, strict=True)
    ]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert 35 <= sum(mirrored) <= 85


def test_chance_is_uniform_and_independent_between_images_and_draws() -> None:
    drawn = hashed_uniform(torch.arange(20_000), AugmentedView(), 4).numpy()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.03


def test_small_square_images_keep_their_size_and_others_are_cropped_to_the_resolution() -> None:
    assert dataset_storage_size(DATA, 64) == (16, 16)
    assert dataset_storage_size(DATA, 8) == (8, 8)
    wide = make_dataset(
        "wide", np.arange(9) % 3, list("abc"), ArrayImages(np.zeros((9, 10, 20, 3), np.uint8))
    )
    assert dataset_storage_size(wide, 64) == (64, 64)
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 30:50] = 255
    fitted = resize_center_crop(image, (20, 20), "bilinear")
    assert fitted.shape == (20, 20, 3)
    assert fitted[:, 6:14].min() > 240  # the centre, not the whole squeezed


def test_preprocess_stores_and_transforms_as_the_functions_do() -> None:
    preprocess = Preprocess(RULES, 24)
    view = AugmentedView("standard", 1, 2)
    assert torch.equal(preprocess(IMAGES), transform(IMAGES, IDS, RULES, 24))
    assert torch.equal(preprocess(IMAGES, IDS, view), transform(IMAGES, IDS, RULES, 24, view))
    assert preprocess.storage_size(DATA) == dataset_storage_size(DATA, 24) == (16, 16)
    large = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    assert (preprocess.store(large) == resize_center_crop(large, (24, 24), "bicubic")).all()
    assert (preprocess.store(DATA.images.array[0]) == DATA.images.array[0]).all()


def test_a_line_one_pixel_wide_is_cropped_before_it_is_resized() -> None:
    line = np.arange(2**17, dtype=np.uint8).reshape(-1, 1, 1).repeat(3, axis=2)
    assert resize_center_crop(line, (224, 224), "bilinear").shape == (224, 224, 3)
