"""Every kind of bad or odd file at least once, and what the command line says of them.

The long form is `python tests/faults/dirty.py`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import dirty
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import toy, write_folder
from regraft.data.decode import decode_image, image_size
from regraft.data.load import load_dataset
from regraft.data.stream import iterate_images
from regraft.errors import UserError, escape_control
from regraft.models.transforms import decode_pixels, resize_center_crop
from regraft.plans.head import parse_head
from regraft.plans.toml import override_plan, read_plan
from regraft.probing.halving import parse_duration
from regraft.system.output import write_csv

SLOW = {
    "a_million_rows",
    "ten_thousand_classes",
    "large_images",
    "tar_bombs",
    "promised_but_absent",
}  # in the long form only
ANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


CODE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import dirty
for found in dirty.every(True, sys.argv[2:]):
    print(json.dumps([found.variants, *found.faults]), flush=True)
"""


def tried(kinds: list[str], folder: Path) -> int:
    """Try two variants of each kind of file; returns how many there were."""
    faults = str(Path(__file__).with_name("faults"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, faults, *kinds],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[1:] for row in rows if len(row) > 1] == []
    assert len(rows) == len(kinds)
    return sum(row[0] for row in rows)


FAST = [name for name in dirty.KINDS if name not in SLOW]


def test_every_fifth_kind_is_decoded_as_documented_or_named_in_a_sentence(tmp_path: Path) -> None:
    assert len(FAST[::5]) >= 11
    assert tried(FAST[::5], tmp_path) >= 20


@pytest.mark.slow
def test_every_kind_is_decoded_as_documented_or_named_in_a_sentence(tmp_path: Path) -> None:
    assert len(FAST) >= 55
    assert tried(FAST, tmp_path) >= 100


def test_there_are_sixty_kinds() -> None:
    assert len(dirty.KINDS) >= 60
    assert set(dirty.KINDS) > SLOW


def test_a_dirty_folder_is_named_whole_and_skipped_on_request(tmp_path: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    top = write_folder(tmp_path / "photos", toy(60))
    bad = {
        "empty.png": b"",
        "noise.jpg": b"\xff\xd8\xff" + bytes(100),
        "cut.png": dirty.PNG[:40],
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "lfs.png": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for name, content in bad.items():
        (top / "class0" / name).write_bytes(content)
    (top / "class0" / "link.png").symlink_to("gone.png")
    (top / "class0" / "\x1b]0;title\x07.png").write_bytes(b"x")
    words = (
        "fit",
        top,
        "--backbone",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        32,
        "-q",
        "--out",
        tmp_path / "run",
    )
    refused = regraft(*words)
    assert refused.code == 2
    assert "images cannot be decoded" in refused.err
    assert "Traceback" not in refused.err
    assert "\x1b" not in refused.err
    done = regraft(*words, "--skip-bad", "--json")
    assert done.code == 0
    told = json.loads(done.out)
    assert told["train"]["n"] + told["val"]["n"] <= 60


@pytest.mark.parametrize(
    "words",
    [("fit", "--skip-bad"), ("compare", "--techniques", "linear-probe", "--skip-bad"), ("check",)],
)
def test_where_no_image_can_be_decoded_one_sentence_says_so(
    words: tuple[str, ...], tmp_path: Path, regraft
) -> None:  # type: ignore[no-untyped-def]
    top = write_folder(tmp_path / "photos", toy(60))
    for path in top.rglob("*.png"):
        path.write_bytes(path.name.encode())
    refused = regraft(
        words[0],
        top,
        "--backbone" if words[0] != "compare" else "--backbones",
        "test_resnet",
        "--weights",
        "random",
        *words[1:],
        "-q",
    )
    assert (refused.code, refused.out) == (2, "")
    assert (
        "No image of photos can be decoded" in refused.err
        or "images were left out because they cannot be decoded: " in refused.err
    )
    assert "(not an image)" in refused.err
    assert "Traceback" not in refused.err


def test_a_part_that_cannot_be_decoded_is_odd_and_the_others_are_checked(
    tmp_path: Path, regraft
) -> None:  # type: ignore[no-untyped-def]
    top = write_folder(tmp_path / "photos", toy(60), parts=True)
    broken = list((top / "valid").rglob("*.png"))
    for path in broken:
        path.write_bytes(path.name.encode())
    done = regraft(
        "check",
        top,
        "--backbone",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        32,
        "-q",
        "--json",
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert {one["key"].split("/")[0] for one in told["odd"]} == {"valid"}
    assert told["counts"]["odd"] == len(broken) > 5


def test_what_is_printed_does_nothing_to_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    from regraft.cli.console import out, print_pairs
    from regraft.cli.progress import progress

    evil = "\x1b]0;pwned\x07 \u202ecat \x9b31m [red]x[/red]"
    out.print(evil, markup=False)
    print_pairs({evil: evil})
    with progress(False) as reporter:
        reporter.log(evil)
    said = "".join(capfd.readouterr())
    assert said.count("\\x1b]0;pwned") >= 3  # rich drops the bell itself
    assert not set(said) & dirty.UNSEEN
    assert escape_control("déjà vu 🙂\n") == "déjà vu 🙂\n"


def test_names_in_tables_are_no_formulas_and_come_back(tmp_path: Path) -> None:
    rows = [{"name": name, "value": -1.5} for name in ("=1+1", "@x", "+a", "-b", "\tc", "plain")]
    write_csv(tmp_path / "t.csv", rows)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[1:5] == ["'=1+1,-1.5", "'@x,-1.5", "'+a,-1.5", "'-b,-1.5"]
    assert lines[6] == "plain,-1.5"


def test_a_line_of_pixels_is_cut_and_not_stretched_and_ordinary_images_stay_as_they_were() -> None:
    long = np.zeros((1, 30_000, 3), np.uint8)
    long[:, 14_000:16_000] = 200
    assert resize_center_crop(long, (64, 64), "bicubic").min() == 200
    assert (
        resize_center_crop(np.ascontiguousarray(long.transpose(1, 0, 2)), (64, 64), "bicubic").min()
        == 200
    )


def test_large_images_are_read_a_few_at_a_time() -> None:
    chunks = list(decode_pixels(toy(95), (16, 16), "bicubic", area=16 * 16 * 10))
    assert [len(chunk) for chunk in chunks] == [10] * 9 + [5]
    assert (np.concatenate(chunks) == toy(95).images.read(np.arange(95))).all()


def test_strips_convert_as_the_whole_image_does() -> None:
    seen = 0
    for form, mode in (
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "L"),
        ("PNG", "LA"),
        ("TIFF", "F"),
        ("TIFF", "I"),
        ("TIFF", "CMYK"),
        ("PNG", "1"),
    ):
        content = dirty.saved(dirty.picture(37, 23).convert(mode), form)
        whole = decode_image(content)
        assert (decode_image(content, strip=50) == whole).all(), mode
        seen += 1
    assert seen == 9


@ANY
@given(st.binary(max_size=300), st.sampled_from(dirty.FORMS), st.integers(0, 300))
def test_whatever_bytes_are_decoded_or_refused(
    noise: bytes, form: tuple[str, str], at: int
) -> None:
    whole = dirty.saved(dirty.picture(8, 8), form[0])
    content = whole[:at] + noise + whole[at + len(noise) :]
    for work in (decode_image, image_size):
        with contextlib.suppress(OSError, ValueError, SyntaxError, EOFError):
            work(content)


@ANY
@given(
    st.sampled_from([".zip", ".tar", ".tar.gz", ".csv", ".parquet", ".npz"]),
    st.binary(max_size=300),
)
def test_whatever_is_in_a_container_is_read_or_refused(
    tmp_path: Path, suffix: str, noise: bytes
) -> None:
    starts = {
        ".zip": b"PK\x03\x04",
        ".tar.gz": b"\x1f\x8b\x08\0",
        ".csv": b"path,label\n",
        ".parquet": b"PAR1",
        ".npz": b"PK\x05\x06",
    }
    path = dirty.file(tmp_path, f"x{suffix}", starts.get(suffix, b"") + noise)
    with pytest.raises(UserError):
        load_dataset(path, tmp_path / "home")
    for one in iterate_images([path]):
        assert one.name


@ANY
@given(st.text(max_size=200) | st.sampled_from(["dense 5", "bn, relu", "90s"]))
def test_whatever_words_are_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes((dirty.HEAD + text).encode("utf-8", "surrogatepass"))
    for work in (
        lambda: read_plan(path),
        lambda: override_plan({}, [text]),
        lambda: parse_duration(text),
    ):
        with contextlib.suppress(UserError):
            work()
    with contextlib.suppress(ValueError):
        assert len(parse_head(text)) <= 1000


def test_a_class_that_links_back_is_refused_and_one_that_leads_elsewhere_is_read(
    tmp_path: Path,
) -> None:
    top = dirty.good(tmp_path / "photos")
    (tmp_path / "elsewhere").mkdir()
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / f"{number}.png")
    (top / "c").symlink_to(tmp_path / "elsewhere")
    assert load_dataset(top, tmp_path).classes == ("a", "b", "c")
    (top / "d").symlink_to(top)
    with pytest.raises(UserError, match="is a link to .*around or within"):
        load_dataset(top, tmp_path)


def test_what_an_archive_holds_besides_images_stays_packed(tmp_path: Path) -> None:
    path = dirty.file(
        tmp_path,
        "x.zip",
        dirty.zipped(dirty.photos({"a/inner.zip": b"PK", "run.py": b"import os"})),
    )
    assert len(load_dataset(path, tmp_path / "home")) == 8
    assert {one.suffix for one in (tmp_path / "home").rglob("*") if one.is_file()} == {".png"}
