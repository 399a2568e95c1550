from __future__ import annotations

import io
import json
import pickle
import tarfile
import tracemalloc
import urllib.error
import zipfile
from dataclasses import replace
from pathlib import Path

import dirty
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import toy, write_folder
from regraft.data.dataset import make_dataset
from regraft.data.decode import decode_image, image_size
from regraft.data.hub import TORCHVISION, load_torchvision_parts
from regraft.data.images import ArrayImages, Unreadable
from regraft.data.load import load_dataset
from regraft.data.stream import count_images, iterate_images
from regraft.errors import UserError


def load(given: object, tmp_path: Path):  # type: ignore[no-untyped-def]
    return load_dataset(given, tmp_path / "home")  # type: ignore[arg-type]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same_images(one, other) -> bool:  # type: ignore[no-untyped-def]
    """Whether two datasets hold the same labelled pictures, whatever their keys."""
    found = []
    for dataset in (one, other):
        images = dataset.images.read(np.arange(len(dataset)))
        found.append(
            sorted(
                (image.tobytes(), dataset.classes[label])
                for image, label in zip(images, dataset.labels, strict=True)
            )
        )
    return found[0] == found[1]


def test_digits_are_real_and_offline(tmp_path: Path) -> None:
    digits = load("digits", tmp_path)
    assert (len(digits), len(digits.classes), digits.facts.size) == (1797, 10, (8, 8))
    assert digits.images.array.max() == 255


def test_one_set_of_images_reads_the_same_from_every_form(tmp_path: Path) -> None:
    original = toy(60)
    folder = write_folder(tmp_path / "photos", original)
    files = sorted(folder.rglob("*.png"))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        for file in files:
            packed.write(file, Path("photos") / file.relative_to(folder))
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as packed_tar:
        packed_tar.add(folder, "photos")
    (tmp_path / "list.csv").write_text(
        "path,label\n"
        + "".join(f"photos/{file.relative_to(folder)},{file.parent.name}\n" for file in files)
    )
    table = pa.table(
        {
            "image": pa.array([{"bytes": file.read_bytes(), "path": file.name} for file in files]),
            "label": pa.array([original.classes.index(file.parent.name) for file in files]),
        }
    )
    names = {
        "info": {"features": {"label": {"names": list(original.classes), "_type": "ClassLabel"}}}
    }
    (tmp_path / "hub").mkdir()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(names)}),
        tmp_path / "hub" / "data-00000-of-00001.parquet",
    )
    np.savez(
        tmp_path / "arrays.npz",
        images=original.images.array,
        labels=np.array(original.classes)[original.labels],
    )
    forms = [
        folder,
        tmp_path / "photos.zip",
        tmp_path / "photos.tar.gz",
        tmp_path / "list.csv",
        tmp_path / "hub",
        tmp_path / "arrays.npz",
    ]
    for form in forms:
        assert same_images(original, load(form, tmp_path)), form
    assert len(forms) == 6
    assert same_images(original, load(tmp_path / "photos.zip", tmp_path))  # unpacked already


def test_part_folders_are_kept_in_their_usual_spellings(tmp_path: Path) -> None:
    found = load(write_folder(tmp_path / "photos", toy(), parts=True), tmp_path)
    assert {part: int((found.parts == part).sum()) for part in ("train", "val", "test")} == {
        "train": 60,
        "val": 30,
        "test": 30,
    }


def test_a_csv_may_name_splits_and_groups(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", toy(60))
    lines = [
        f"{file.relative_to(tmp_path)},{file.parent.name},{'test' if n % 5 == 0 else ''},g{n % 9}"
        for n, file in enumerate(sorted(folder.rglob("*.png")))
    ]
    (tmp_path / "list.csv").write_text("PATH, label ,split,group\n" + "\n".join(lines))
    found = load(tmp_path / "list.csv", tmp_path)
    assert int((found.parts == "test").sum()) == 12
    assert len(set(found.groups)) == 9


def test_parquet_parts_come_from_file_names_and_classes_from_metadata(
    shared_data: Path, tmp_path: Path
) -> None:
    cifar = load(shared_data / "cifar10", tmp_path)
    assert cifar.classes == (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    assert {part: int((cifar.parts == part).sum()) for part in ("train", "test")} == {
        "train": 50_000,
        "test": 10_000,
    }
    assert cifar.images.read(np.arange(3))[0].shape == (32, 32, 3)


def test_photographs_with_exif_rotation_are_upright(shared_data: Path, tmp_path: Path) -> None:
    signs = load(shared_data / "sign-digits", tmp_path)
    assert (len(signs), len(signs.classes)) == (2062, 10)
    sizes = signs.images.sizes(np.arange(len(signs)))
    large = np.flatnonzero(sizes.max(axis=1) > 1000)
    assert len(large) == 3
    for row, image in zip(large, signs.images.read(large), strict=True):
        assert image.shape[:2] == tuple(sizes[row])


RED = np.zeros((4, 6, 3), np.uint8)
RED[..., 0] = 255


def test_decoding_honours_modes_rotation_and_transparency() -> None:
    rgb = Image.fromarray(RED)
    clear = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    palette = Image.new("P", (6, 4))
    palette.putpalette([255, 0, 0] + [0] * 765)
    sixteen = Image.fromarray(np.full((4, 6), 65535, np.uint16))
    cases = {
        "png": (encoded(rgb, "PNG"), (255, 0, 0)),
        "jpeg": (encoded(rgb, "JPEG", quality=100, subsampling=0), (254, 0, 0)),
        "bmp": (encoded(rgb, "BMP"), (255, 0, 0)),
        "webp": (encoded(rgb, "WEBP", lossless=True), (255, 0, 0)),
        "tiff": (encoded(rgb, "TIFF"), (255, 0, 0)),
        "transparent": (encoded(clear, "PNG"), (255, 255, 255)),
        "palette": (encoded(palette, "PNG"), (255, 0, 0)),
        "palette transparent": (encoded(palette, "PNG", transparency=0), (255, 255, 255)),
        "gif": (encoded(palette, "GIF"), (255, 0, 0)),
        "grey": (encoded(Image.new("L", (6, 4), 7), "PNG"), (7, 7, 7)),
        "grey alpha": (encoded(Image.new("LA", (6, 4), (7, 255)), "PNG"), (7, 7, 7)),
        "one bit": (encoded(Image.new("1", (6, 4), 1), "PNG"), (255, 255, 255)),
        "sixteen bit": (encoded(sixteen, "PNG"), (255, 255, 255)),
        "cmyk": (encoded(Image.new("CMYK", (6, 4), (0, 0, 0, 0)), "JPEG"), (255, 255, 255)),
        "float": (encoded(Image.new("F", (6, 4), 0.5), "TIFF"), (128, 128, 128)),
    }
    for name, (content, colour) in cases.items():
        image = decode_image(content)
        assert image.shape == (4, 6, 3), name
        assert image.dtype == np.uint8
        assert np.abs(image.astype(int) - colour).max() <= 2, name
        assert image_size(content) == (4, 6), name
    assert len(cases) == 15


def test_all_eight_exif_orientations_come_out_upright() -> None:
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(Image.fromarray(np.ascontiguousarray(pixels)), "PNG", exif=exif)
        if orientation in (6, 8):  # stored turned the other way round than the array above
            pixels = np.rot90(upright, 1 if orientation == 6 else -1)
            content = encoded(Image.fromarray(np.ascontiguousarray(pixels)), "PNG", exif=exif)
        assert (decode_image(content) == upright).all(), orientation
        assert image_size(content) == (4, 6)
    assert len(stored) == 8


def test_every_undecodable_file_is_named_with_its_reason(photos: Path, tmp_path: Path) -> None:
    whole = sorted(photos.rglob("*.png"))
    whole[0].write_bytes(b"")
    whole[50].write_bytes(whole[50].read_bytes()[:60])
    whole[100].write_bytes(b"<html>")
    found = load(photos, tmp_path)
    with pytest.raises(Unreadable) as caught:
        found.images.read(np.arange(len(found)))
    text = str(caught.value)
    assert "3 images cannot be decoded" in text
    assert "the file is empty" in text
    assert "not an image" in text
    assert all(str(whole[row]) in text for row in (0, 50, 100))
    assert "Repair or remove them; --skip-bad goes on" in text


def test_a_decompression_bomb_is_refused() -> None:
    with pytest.raises(ValueError, match="more pixels than the 178,956,970 allowed"):
        decode_image(encoded(Image.new("1", (20_000, 20_000)), "PNG"))


def test_npz_of_keras_and_medmnist_have_parts(tmp_path: Path) -> None:
    x, y = np.zeros((30, 5, 5), np.float32), np.arange(30).reshape(-1, 1) % 3
    x[:, 0, 0] = np.arange(30) / 30
    np.savez(tmp_path / "keras.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    np.savez(
        tmp_path / "med.npz",
        train_images=x[:15],
        train_labels=y[:15],
        val_images=x[15:21],
        val_labels=y[15:21],
        test_images=x[21:],
        test_labels=y[21:],
    )
    keras, med = load(tmp_path / "keras.npz", tmp_path), load(tmp_path / "med.npz", tmp_path)
    assert int((keras.parts == "test").sum()) == 10
    assert {part: int((med.parts == part).sum()) for part in ("train", "val", "test")} == {
        "train": 15,
        "val": 6,
        "test": 9,
    }
    assert keras.images.array.max() == round(29 / 30 * 255)


def test_labels_of_arrays_may_be_one_hot_and_nothing_else_that_is_wide(tmp_path: Path) -> None:
    x, y = (
        np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 5, 5), np.uint8),
        np.arange(30) % 3,
    )
    seen = 0
    for kind in (bool, np.uint8, np.int64, np.float32):
        np.savez(tmp_path / "hot.npz", images=x, labels=np.eye(3)[y].astype(kind))
        found = load(tmp_path / "hot.npz", tmp_path)
        values = [image[0, 0, 0] % 3 for image in found.images.read(np.arange(30))]
        assert found.labels.tolist() == values, kind
        seen += 1
    assert seen == 4
    for wide in (
        np.stack([y, y], axis=1),
        np.full((30, 3), 1 / 3),
        np.zeros((30, 3)),
        np.ones((30, 3, 1)),
    ):
        np.savez(tmp_path / "wide.npz", images=x, labels=wide)
        with pytest.raises(UserError, match="Expected one label an image"):
            load(tmp_path / "wide.npz", tmp_path)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.float32])
def test_images_of_zeros_and_ones_are_black_and_white(tmp_path: Path, kind: type) -> None:
    x = np.random.default_rng(0).integers(0, 2, (30, 5, 5)).astype(kind)
    np.savez(tmp_path / "masks.npz", images=x, labels=np.arange(30) % 3)
    assert set(np.unique(load(tmp_path / "masks.npz", tmp_path).images.array).tolist()) == {0, 255}


def test_own_sources_come_by_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trayscan.py").write_text(
        "import numpy as np\ndef trays():\n    return np.arange(30 * 12, dtype=np.uint8).reshape(30, 2, 2, 3), ['x', 'y', 'z'] * 10\ndef wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load("trayscan:trays", tmp_path)
    assert (len(found), found.classes) == (30, ("x", "y", "z"))
    for given, says in (
        ("trayscan:wrong", "returned int. Expected a regraft Dataset"),
        ("trayscan:none", "cannot be imported"),
        ("nothing:none", "cannot be imported"),
    ):
        with pytest.raises(UserError, match=says):
            load(given, tmp_path)


def test_no_network_is_one_sentence_with_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    for name in ("cifar10", "mnist", "eurosat"):
        with pytest.raises(
            UserError, match=f"{name} cannot be downloaded .*Give a local copy instead"
        ):
            load(name, tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match="hf:somebody/cats cannot be downloaded"):
        load("hf:somebody/cats", tmp_path)


def test_the_official_cifar_layout_is_read_in_its_own_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = dirty.official_cifar(tmp_path / "home" / "datasets", monkeypatch.setattr)
    dataset = load("cifar10", tmp_path)
    assert (len(dataset), int((dataset.parts == "test").sum())) == (120, 20)
    assert dataset.classes == tuple(f"c{number}" for number in range(10))
    names = [f"data_batch_{number}" for number in range(1, 6)]
    contents = [pickle.loads((top / name).read_bytes()) for name in [*names, "test_batch"]]
    pixels = np.concatenate([content["data"] for content in contents])
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    labels = [label for content in contents for label in content["labels"]]
    parts = ["train"] * 100 + ["test"] * 20
    expected = make_dataset("cifar10", labels, dataset.classes, ArrayImages(images), parts=parts)
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.split().digest == expected.split().digest


def test_no_other_file_is_taken_for_one_of_cifar_and_no_code_in_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = dirty.official_cifar(tmp_path / "home" / "datasets", monkeypatch.setattr)
    refused = 0
    for path in sorted(top.iterdir()):
        official = path.read_bytes()
        for content in (pickle.dumps(dirty.Evil(tmp_path)), official[:-1], official + b"."):
            path.write_bytes(content)
            with pytest.raises(UserError, match="cifar10 cannot be downloaded"):
                load("cifar10", tmp_path)
            refused += 1
        path.write_bytes(official)
    assert refused == 21
    assert not (tmp_path / "pwned").exists()
    assert len(load("cifar10", tmp_path)) == 120


def test_a_damaged_pickle_takes_no_memory_for_what_it_only_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = dirty.official_cifar(tmp_path / "home" / "datasets", monkeypatch.setattr)
    promises = {
        "bytearray": b"\x80\x05\x96" + (300_000_000).to_bytes(8, "little") + b"ab",
        "memo": b"\x80\x02}r" + (300_000_000).to_bytes(4, "little") + b".",
        "bytes": b"\x80\x04\x8e" + (300_000_000).to_bytes(8, "little") + b"ab",
    }
    for name, content in promises.items():
        (top / "data_batch_2").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(UserError, match="cifar10 cannot be downloaded"):
            load("cifar10", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000, name


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_threads_decodes_the_same(photos: Path, tmp_path: Path, workers: int) -> None:
    rows = np.arange(120)
    images = load(photos, tmp_path).images
    other = replace(load(photos, tmp_path).images, workers=workers)
    assert (other.hashes() == images.hashes()).all()
    assert (other.sizes(rows) == images.sizes(rows)).all()
    assert (np.stack(other.read(rows)) == np.stack(images.read(rows))).all()


def test_archives_cannot_write_outside_their_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as packed:
        info = tarfile.TarInfo("../../escaped.png")
        info.size = 4
        packed.addfile(info, io.BytesIO(b"oops"))
    with pytest.raises(UserError, match="cannot be unpacked"):
        load(tmp_path / "evil.tar", tmp_path)
    assert not list(tmp_path.rglob("escaped.png"))


def bad_inputs(root: Path) -> dict[str, tuple[object, str]]:
    """Every mistake that a person makes with DATA, and what he is told."""
    (root / "empty").mkdir()
    (root / "loose").mkdir()
    (root / "loose" / "a.png").write_bytes(png(RED))
    (root / "mixed" / "train" / "cat").mkdir(parents=True)
    (root / "mixed" / "cat").mkdir()
    one = root / "one" / "cat"
    one.mkdir(parents=True)
    for number in range(4):
        (one / f"{number}.png").write_bytes(png(RED))
    (root / "hollow" / "dog").mkdir(parents=True)
    for number in range(4):
        (root / "hollow" / "cat").mkdir(exist_ok=True)
        (root / "hollow" / "cat" / f"{number}.png").write_bytes(png(RED))
    (root / "columns.csv").write_text("file,labels\na.png,cat\n")
    (root / "paths.csv").write_text("path,label\nnone.png,cat\n")
    (root / "blank.csv").write_text("path,label\nloose/a.png,\n")
    (root / "split.csv").write_text("path,label,split\nloose/a.png,cat,tarin\n")
    (root / "twice.csv").write_text(
        "path,label\n"
        + "loose/a.png,cat\n" * 3
        + "one/cat/1.png,dog\none/cat/2.png,dog\none/cat/3.png,dog\n"
    )
    (root / "broken.zip").write_bytes(b"PK not really")
    (root / "broken.npz").write_bytes(b"nothing")
    np.savez(root / "names.npz", a=np.zeros(3), b=np.zeros(3))
    np.savez(root / "shape.npz", images=np.zeros((9, 7)), labels=np.arange(9) % 3)
    np.savez(root / "values.npz", images=np.full((9, 2, 2), -5.0), labels=np.arange(9) % 3)
    (root / "broken.parquet").write_bytes(b"nothing")
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), root / "columns.parquet")
    (root / "notes.txt").write_text("hello")
    return {
        "unknown": (
            "digit",
            "'digit' is neither a known dataset nor an existing file or folder. Did you mean 'digits'?",
        ),
        "no path": (root / "nowhere", "is neither a known dataset nor an existing file or folder"),
        "empty": (root / "empty", "holds no images"),
        "loose": (root / "loose", "holds 1 images but no class folders"),
        "mixed": (root / "mixed", "mixes part folders (train) with others (cat)"),
        "one class": (root / "one", "has one class only, 'cat'"),
        "empty class": (root / "hollow", "has one class only, 'cat'"),
        "columns": (
            root / "columns.csv",
            "lacks the columns 'path', 'label'; it has 'file', 'labels'",
        ),
        "paths": (root / "paths.csv", "lists 1 files that do not exist: none.png"),
        "blank": (root / "blank.csv", "has no path or label in line 2"),
        "split": (root / "split.csv", "has the split 'tarin'"),
        "twice": (root / "twice.csv", "lists 'loose/a.png' more than once"),
        "zip": (root / "broken.zip", "cannot be unpacked"),
        "npz": (root / "broken.npz", "is no readable .npz"),
        "names": (root / "names.npz", "holds the arrays a, b"),
        "shape": (root / "shape.npz", "has the shape (9, 7)"),
        "values": (root / "values.npz", "has values from -5 to -5"),
        "parquet": (root / "broken.parquet", "is no readable Parquet file"),
        "parquet columns": (root / "columns.parquet", "has the columns a, b"),
        "kind": (root / "notes.txt", "is a file of an unknown kind"),
    }


def test_every_mistake_with_data_is_one_sentence_and_exit_2(tmp_path: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    cases = bad_inputs(tmp_path)
    for name, (given, says) in cases.items():
        result = regraft("fit", given, "--backbone", "test_resnet", "--weights", "random")
        assert result.code == 2, name
        assert says in result.err, (name, result.err)
        assert "Traceback" not in result.err
        assert result.out == ""
    assert len(cases) == 20
    assert not (Path.cwd() / "runs").exists()


def parquet(root: Path, labels: list[object], names: list[str] | None) -> Path:
    image = [
        {"bytes": png(np.full((2, 2, 3), row, np.uint8)), "path": None}
        for row in range(len(labels))
    ]
    table = pa.table({"image": pa.array(image), "label": pa.array(labels)})
    if names:
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
        )
    pq.write_table(table, root / "all.parquet")
    return root / "all.parquet"


def test_class_numbers_are_numbers_even_where_names_look_like_other_numbers(tmp_path: Path) -> None:
    found = load(parquet(tmp_path, [0, 1, 2] * 4, ["1", "2", "0"]), tmp_path)
    images = found.images.read(np.arange(12))
    assert all(
        label == image[0, 0, 0] % 3 for label, image in zip(found.labels, images, strict=True)
    )
    found = load(parquet(tmp_path, [7, 10, 9] * 4, None), tmp_path)
    assert found.classes == ("7", "9", "10")
    with pytest.raises(UserError, match="has 3 rows without a label"):
        load(parquet(tmp_path, [0, 1, 2] * 3 + [None] * 3, ["a", "b", "c"]), tmp_path)


def test_a_parquet_file_is_not_guessed_at(tmp_path: Path) -> None:
    image = [{"bytes": png(np.full((2, 2, 3), row, np.uint8)), "path": None} for row in range(12)]
    weather, animal = ["wet", "dry"] * 6, ["cat", "dog", "cow"] * 4
    pq.write_table(
        pa.table({"image": image, "weather": weather, "animal": animal}), tmp_path / "two.parquet"
    )
    with pytest.raises(UserError, match="weather, animal could each be the label"):
        load(tmp_path / "two.parquet", tmp_path)
    pq.write_table(
        pa.table({"image": image, "animal": pa.array(animal).dictionary_encode()}),
        tmp_path / "one.parquet",
    )
    assert load(tmp_path / "one.parquet", tmp_path).classes == ("cat", "cow", "dog")
    names = json.dumps({"info": {"features": {"animal": {"names": ["cat", "dog", "cow"]}}}})
    told = pa.table(
        {"image": image, "place": list(range(12)), "animal": [0, 1, 2] * 4}
    ).replace_schema_metadata({"huggingface": names})
    pq.write_table(told, tmp_path / "told.parquet")
    assert load(tmp_path / "told.parquet", tmp_path).classes == ("cat", "dog", "cow")


def test_the_folder_one_stands_in_has_a_name_and_what_regraft_wrote_there_is_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = toy(60)
    folder = write_folder(tmp_path / "photos", original)
    before = load(folder, tmp_path)
    for made in ("compare/photos/a-row", "mine", "runs/one"):
        (folder / made).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / made / "curves.png")
    for holds in ("compare/photos/leaderboard.json", "mine/state.json", "runs/one/state.json"):
        (folder / holds).write_text("{}")
    pq.write_table(pa.table({"key": ["a"], "feature_0": [1.0]}), folder / "features.parquet")
    monkeypatch.chdir(folder)
    found = load(".", tmp_path)
    assert (found.name, found.classes, found.fingerprint) == (
        "photos",
        before.classes,
        before.fingerprint,
    )
    monkeypatch.chdir(folder / original.classes[0])
    assert load("..", tmp_path).name == "photos"
    seen = [one.name for one in iterate_images([folder])]
    assert (len(seen), count_images([folder])) == (60, 60)
    assert not [name for name in seen if "curves" in name]


def test_trainval_counts_only_where_there_is_no_train(tmp_path: Path) -> None:
    def kind(has: set[str]) -> object:
        class Set:
            def __init__(self, root: Path, split: str = "train", download: bool = False) -> None:
                if split not in has:
                    raise ValueError(split)
                self.split = split

        return Set

    found = {
        part: made.split
        for part, made in load_torchvision_parts(
            kind({"train", "val", "trainval", "test"}), tmp_path
        ).items()
    }
    assert found == {"train": "train", "val": "val", "test": "test"}
    found = {
        part: made.split
        for part, made in load_torchvision_parts(kind({"trainval", "test"}), tmp_path).items()
    }
    assert found == {"train": "trainval", "test": "test"}


def test_every_torchvision_name_exists_and_can_be_asked_to_download() -> None:
    import inspect

    from torchvision import datasets

    for name, kind in TORCHVISION.items():
        accepted = inspect.signature(getattr(datasets, kind).__init__).parameters
        assert "download" in accepted or "kwargs" in accepted, name
    assert len(TORCHVISION) >= 20


def test_text_in_another_encoding_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("path,label\ncafé.png,é\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        load(tmp_path / "latin.csv", tmp_path)


def test_string_labels_are_matched_to_given_class_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab.py").write_text(
        "import numpy as np\ndef trays(last='b'):\n    return np.arange(72, dtype=np.uint8).reshape(6, 2, 2, 3), ['b', 'a', 'b', 'a', 'a', last], ['b', 'a']\n"
        "def odd():\n    return trays('c')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert sorted(load("lab:trays", tmp_path).labels.tolist()) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="has the label -1, which is outside its 2 classes"):
        load("lab:odd", tmp_path)


def fill(folder: Path, names: range = range(3)) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.png").write_bytes(png(np.full((4, 4, 3), name, np.uint8)))


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    cases = (
        ("bicycle", "bus", "car", "train"),
        ("valid", "invalid"),
        ("dev", "prod", "staging"),
        ("Train", "Tram", "Bus"),
        ("eval", "quiz"),
    )
    for number, names in enumerate(cases):
        for name in names:
            fill(tmp_path / str(number) / name)
        made = load_dataset(tmp_path / str(number), tmp_path / "home")
        assert made.classes == tuple(sorted(names))
        assert made.parts is None
        assert len(made) == 3 * len(names)
    for name in ("train", "test"):  # nothing tells these two from parts without labels
        fill(tmp_path / "flat" / name)
    with pytest.raises(UserError, match="holds no images"):
        load_dataset(tmp_path / "flat", tmp_path / "home")


def test_folders_of_programs_hold_no_images_wherever_they_are(tmp_path: Path) -> None:
    helpers = (".ipynb_checkpoints", ".thumbnails", ".Trash", "__MACOSX", "@eaDir")
    for label in ("cat", "dog"):
        fill(tmp_path / "pets" / label)
        fill(tmp_path / "pets" / label / "indoors", range(3, 5))
        for helper in helpers:
            fill(tmp_path / "pets" / label / helper)
            fill(tmp_path / "pets" / label / "outdoors" / helper)
    for helper in helpers:
        fill(tmp_path / "pets" / helper)
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as packed:
        for path in sorted((tmp_path / "pets").rglob("*.png")):
            packed.write(path, path.relative_to(tmp_path))
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(tmp_path / "pets", "pets")
    seen = 0
    for name in ("pets", "pets.zip", "pets.tar"):
        assert len(load_dataset(tmp_path / name, tmp_path / "home")) == 10
        assert count_images([tmp_path / name]) == (0 if name.endswith(".tar") else 10)  # 0: unknown
        assert len(list(iterate_images([tmp_path / name]))) == 10
        seen += 1
    assert seen == 3
