"""What happens when something goes wrong: killed, stopped, no room, files gone, two at once.

And that the same question gets the same answer.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import toy, write_folder
from regraft.commands.compare import Comparison
from regraft.commands.compare import compare as run_compare
from regraft.commands.evaluate import open_test
from regraft.commands.fit import fit as run_fit
from regraft.commands.options import PredictionTarget, PredictOptions, Ways
from regraft.commands.predict import predict_to
from regraft.data.archives import load_archive, unpack_archive
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.errors import DiskFull, UserError
from regraft.features.entry import Entry
from regraft.features.extract import store_pixels
from regraft.features.store import list_entries
from regraft.models.backbone import get_input_rules
from regraft.models.transforms import Preprocess
from regraft.options import CacheOptions, Options, PlanOverrides, RunDir, Runtime
from regraft.runs.folder import Run, load_run
from regraft.system.disk import is_disk_full
from regraft.system.files import atomic_write, is_internal, make_scratch_dir, remove_partials
from regraft.system.locks import lock_path

FAULTS = Path(__file__).parent / "faults"
QUICK = ("--backbone", "test_resnet", "--weights", "random", "--resolution", "32", "-q")
FEW = ["phases.1.epochs=2", "phases.1.batch_size=16"]


def fit(
    data: str | Path | Dataset,
    technique: str = "linear-probe",
    out: str = "out",
    changes: Sequence[str] = (),
    **run_dir: bool,
) -> Run:
    """Return a run of the smallest network; `resume` and `overwrite` are options of the folder."""
    overrides = PlanOverrides(
        backbone="test_resnet", weights="random", resolution=32, overrides=changes
    )
    return run_fit(data, technique, overrides, Options(run_dir=RunDir(out, **run_dir)))


def compare(data: Path, techniques: Sequence[str], out: str, **run_dir: bool) -> Comparison:
    overrides = PlanOverrides(weights="random", resolution=32)
    options = Options(run_dir=RunDir(out, **run_dir))
    return run_compare(data, Ways(techniques, ("test_resnet",)), overrides, options)


def cached_pixels(data: Dataset, home: Path) -> Entry:
    """Return the entry with the decoded images of a dataset."""
    preprocess = Preprocess(get_input_rules("test_resnet"), 32)
    return store_pixels(data, preprocess, CacheOptions(home), Runtime()).entry


def script(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(FAULTS / name), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not is_internal(path)
    }


def timeless(run: Run) -> list[dict[str, float]]:
    rows = []
    for row in run.history():
        rows.append({key: value for key, value in row.items() if key != "seconds"})
    return rows


def same(one: Run, other: Run) -> bool:
    mine = one.weights()
    others = other.weights()
    return (
        mine.keys() == others.keys()
        and all(torch.equal(value, others[name]) for name, value in mine.items())
        and timeless(one) == timeless(other)
        and (one.predictions()["logits"] == other.predictions()["logits"]).all()
        and one.scores["val"] == other.scores["val"]
        and one.scores["split_digest"] == other.scores["split_digest"]
        and one.freeze_checks() == other.freeze_checks()
    )


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs, and whole runs on them that tests share and only read."""
    top = tmp_path_factory.mktemp("shelf")
    write_folder(top / "photos", toy())
    return top


@pytest.fixture
def photos(shelf: Path) -> Path:
    return shelf / "photos"


def whole_run(shelf: Path, technique: str, changes: Sequence[str] = ()) -> Run:
    """Return the run that nothing stopped; it is fitted once."""
    path = shelf / technique
    if not path.exists():
        fit(shelf / "photos", technique, str(path), changes)
    return load_run(path)


@contextmanager
def outside(name: str, value: object) -> Iterator[None]:
    """Replace something of the outside world while the block runs."""
    patch = pytest.MonkeyPatch()  # one of its own: undoing the test's would undo its cache too
    patch.setattr(name, value)
    try:
        yield
    finally:
        patch.undo()


@contextmanager
def stopped_at(name: str) -> Iterator[None]:
    """Stop the block, as by Ctrl-C, before a file of this name appears or is removed."""
    replace, unlink = os.replace, os.unlink

    def stop(path: object) -> None:
        if Path(str(path)).name == name:
            raise KeyboardInterrupt

    def stopping_replace(source: str, target: str) -> None:
        stop(target)
        replace(source, target)

    def stopping_unlink(path: str, **more: object) -> None:
        stop(path)
        unlink(path, **more)  # type: ignore[arg-type]

    with (
        outside("os.replace", stopping_replace),
        outside("os.unlink", stopping_unlink),
        pytest.raises(KeyboardInterrupt),
    ):
        yield


# ── killed


def killed_and_resumed(kills: int, jobs: str, fresh: int) -> None:
    done = script("kill.py", "--kills", kills, "--jobs", jobs, "--fresh", fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    count, _, rest = done.stdout.splitlines()[-1].partition(" kills in ")
    assert int(count) >= kills
    assert ", 0 faults" in rest.replace(";", ",")


@pytest.mark.slow
def test_killed_at_some_moment_and_resumed_a_run_is_the_one_that_was_never_stopped() -> None:
    killed_and_resumed(1, "probe-then-fine-tune", 100)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_runs_are_those_that_were_never_stopped() -> None:
    killed_and_resumed(8, "gradual-unfreezing,predict csv", 8)


STOPPED_EARLY = [
    "phases.0.epochs=6",
    "phases.0.patience=1",
    "phases.0.min_delta=0.3",
    "phases.0.batch_size=16",
]


@pytest.mark.parametrize("moment", ["phase-0.safetensors", "phase-0.json"])
def test_no_epoch_is_trained_twice_once_training_is_over(
    shelf: Path, photos: Path, moment: str
) -> None:
    whole = whole_run(shelf, "feature-extraction", STOPPED_EARLY)
    assert len(whole.history()) < 6  # patience ran out
    with stopped_at(moment):
        fit(photos, "feature-extraction", "parts", STOPPED_EARLY)
    assert not Path("parts/scores.json").exists()
    steps: list[int] = []
    backward = torch.Tensor.backward

    def counted(*given: object, **more: object) -> None:
        steps.append(1)
        backward(*given, **more)  # type: ignore[arg-type]

    with outside("torch.Tensor.backward", counted):
        resumed = fit(photos, "feature-extraction", "parts", STOPPED_EARLY, resume=True)
    assert steps == []
    assert same(whole, resumed)
    left = {path.name for path in (resumed.path / "checkpoints").iterdir()}
    assert left == {"last.ckpt", "best.ckpt"}


def test_a_run_stopped_while_its_checkpoints_are_removed_is_finished_and_tidied(
    shelf: Path, photos: Path
) -> None:
    whole = whole_run(shelf, "feature-extraction", STOPPED_EARLY)
    unlink = Path.unlink

    def stopping(path: Path, **more: bool) -> None:
        if path.name.startswith("phase-"):
            raise KeyboardInterrupt
        unlink(path, **more)

    with outside("pathlib.Path.unlink", stopping), pytest.raises(KeyboardInterrupt):
        fit(photos, "feature-extraction", "parts", STOPPED_EARLY)
    assert Path("parts/checkpoints/phase-0.json").exists()
    resumed = fit(photos, "feature-extraction", "parts", STOPPED_EARLY, resume=True)
    assert same(whole, resumed)
    left = {path.name for path in (resumed.path / "checkpoints").iterdir()}
    assert left == {"last.ckpt", "best.ckpt"}


def test_checkpoints_stay_until_the_scores_are_written(photos: Path) -> None:
    with stopped_at("scores.json"):
        fit(photos, "probe-then-fine-tune", changes=["phases.1.epochs=1"])
    kinds = ("json", "safetensors")
    expected = {f"phase-{number}.{kind}" for number in (0, 1) for kind in kinds}
    assert {path.name for path in Path("out/checkpoints").glob("phase-*")} == expected


def test_what_a_killed_process_left_in_the_cache_is_removed_by_the_next_and_nothing_else(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    code = """
import sys
from pathlib import Path
from regraft.system.files import make_scratch_dir
print(make_scratch_dir(Path(sys.argv[1])))
"""
    words = [sys.executable, "-c", code, str(home / "abc")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    ended = Path(done.stdout.strip())
    alive = make_scratch_dir(home / "abc")
    host = ended.name.split("-")[-3]
    elsewhere = ended.with_name(ended.name.replace(host, "elsewhere"))
    old = ended.with_name(ended.name.replace(host, "elsewhere") + "0")
    for folder in (elsewhere, old):
        folder.mkdir()
    os.utime(old, (1, 1))
    cached_pixels(toy(9), home)
    there = {path for path in (ended, elsewhere, alive, old) if path.exists()}
    assert there == {elsewhere, alive}


SLOWED = """
import os, sys, time

stage = sys.argv[2]

def reached():
    open("reached", "w").close()
    time.sleep(0.2)

def hear(event, values):
    if event == "os.rename" and stage in os.fsdecode(values[1]):
        reached()

if stage == "training":
    import torch
    backward = torch.Tensor.backward
    def slow(*given, **more):
        reached()
        return backward(*given, **more)
    torch.Tensor.backward = slow
else:
    sys.addaudithook(hear)
sys.argv = ["regraft", *sys.argv[3:]]
from regraft.cli import main
main()
"""
COMPARE_400 = ("--techniques", "fine-tune", "--backbones", *QUICK[1:])
LONG = ("--set", "phases.0.epochs=400", "--out", "out")
PROBE = ("--backbones", *QUICK[1:4], "--resolutions", "32,48", "-q", "--out", "out")
PREDICT = ("--batch-size", "4", "-q", "--out", "out.csv")
SLOW = pytest.mark.slow
STOPPED = [  # verb, signal, what is under way then, further words
    pytest.param(
        "fit", signal.SIGTERM, "training", ("--technique", "fine-tune", *QUICK, *LONG), marks=SLOW
    ),
    pytest.param("compare", signal.SIGINT, "training", (*COMPARE_400, *LONG), marks=SLOW),
    pytest.param("probe", signal.SIGTERM, "/cache/", PROBE, marks=SLOW),
    pytest.param("predict", signal.SIGTERM, ".job.json", PREDICT, marks=SLOW),
]


@pytest.mark.parametrize(("verb", "how", "stage", "words"), STOPPED)
def test_a_signal_stops_within_seconds_and_says_how_to_go_on(
    shelf: Path, verb: str, how: signal.Signals, stage: str, words: tuple[str, ...]
) -> None:
    data = [str(shelf / "photos")]
    if verb == "predict":
        data.insert(0, str(whole_run(shelf, "linear-probe").path))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOWED, "--", stage, verb, *data, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not Path("reached").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(how)
    began = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == 2, err
    assert "Stopped. Finished work is kept" in err
    assert "repeat the command with --resume to continue" in err
    assert "Traceback" not in err
    assert out == ""


# ── full disks and vanished files


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half(path: object, *_: object, **__: object) -> None:
    Path(str(path)).write_bytes(b"half")
    full()


FULL = {
    "checkpoint": (
        "lightning.fabric.plugins.io.torch_io.TorchCheckpointIO.save_checkpoint",
        lambda self, state, path, *_: half(path),
    ),
    "weights": ("safetensors.torch.save_file", lambda tensors, path: half(path)),
    "predictions": ("numpy.savez_compressed", half),
    "table": ("csv.DictWriter.writerows", full),
}


@pytest.mark.parametrize("place", list(FULL))
def test_a_run_whose_disk_is_full_stops_in_a_sentence_and_goes_on_when_there_is_room(
    shelf: Path, photos: Path, place: str
) -> None:
    whole = whole_run(shelf, "probe-then-fine-tune", FEW)
    sentence = "out cannot be written further: no space left on its disk. .* --resume"
    with outside(*FULL[place]), pytest.raises(DiskFull, match=sentence):
        fit(photos, "probe-then-fine-tune", changes=FEW)
    assert not [path for path in Path("out").rglob("*") if ".part" in path.name]
    assert not Path("out/scores.json").exists()
    assert same(whole, fit(photos, "probe-then-fine-tune", changes=FEW, resume=True))


def test_torch_and_safetensors_say_that_a_disk_is_full_in_words_of_their_own() -> None:
    small = Path("/dev/full")
    if not small.exists():
        pytest.skip("this system has no /dev/full")
    for write in (
        lambda: torch.save({"a": torch.zeros(100_000)}, small),
        lambda: small.write_bytes(b"0" * 100_000),
    ):
        with pytest.raises((OSError, RuntimeError)) as caught:
            write()
        assert is_disk_full(caught.value), caught.value
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(None)


def test_a_comparison_on_a_full_disk_stops_instead_of_failing_row_after_row(photos: Path) -> None:
    ways = ["linear-probe", "multi-layer-probe"]
    with outside(*FULL["predictions"]), pytest.raises(DiskFull):
        compare(photos, ways, "out")
    assert not Path("out/leaderboard.json").exists()
    done = compare(photos, ways, "out", resume=True)
    assert [len(run.test["opened"]) for run in done.runs if run.test] == [1, 1]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_predictions_on_a_full_disk_keep_what_was_written(
    shelf: Path, photos: Path, kind: str
) -> None:
    run = whole_run(shelf, "linear-probe")
    options = PredictOptions(batch_size=16)
    predict_to(run, [photos], PredictionTarget(Path(f"whole.{kind}")), options)
    notes: list[str] = []
    replace = os.replace

    def soon_full(source: str, target: str) -> None:
        if Path(target).name == f"out.{kind}.job.json":
            notes.append(target)
            if len(notes) > 4:
                full()
        replace(source, target)

    target = PredictionTarget(Path(f"out.{kind}"), part_rows=20)
    with (
        outside("os.replace", soon_full),
        pytest.raises(DiskFull, match="no space left on its disk"),
    ):
        predict_to(run, [photos], target, options)
    resumed = PredictionTarget(Path(f"out.{kind}"), resume=True, part_rows=20)
    summary = predict_to(run, [photos], resumed, options)
    assert summary.rows == 120
    assert 0 < summary.new < 120
    if kind != "parquet":
        assert Path(f"out.{kind}").read_bytes() == Path(f"whole.{kind}").read_bytes()


def test_an_image_that_vanishes_is_named(tmp_path: Path) -> None:
    data = load_dataset(write_folder(tmp_path / "photos", toy(30)), tmp_path / "home")
    lost = Path(data.images.names[data.split().train[3]])  # type: ignore[attr-defined]
    lost.unlink()
    sentence = (
        rf"1 image cannot be decoded: {lost} \(the file does not exist any more\).* --skip-bad"
    )
    with pytest.raises(UserError, match=sentence):
        fit(data)
    assert not Path("out").exists()


def test_what_cannot_be_written_is_said_before_any_work(
    regraft, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(whole_run(shelf, "linear-probe").path, "done")
    for name in ("model.safetensors", "predictions.npz"):  # no work could be done with it
        Path("done", name).unlink()
    Path("shut").mkdir()
    allowed = os.access
    monkeypatch.setattr(
        "os.access",
        lambda path, mode, **more: "shut" not in str(path) and allowed(path, mode, **more),
    )
    cases = [  # data that does not exist is met only after that
        ("fit", "nowhere", *QUICK, "--out", "shut/run"),
        ("compare", "nowhere", "--out", "shut/run"),
        ("probe", "nowhere", "--out", "shut/probe"),
        ("predict", "done", "nowhere", "--out", "shut/p.csv"),
        ("report", "done", "--out", "shut/r.html"),
        ("check", "nowhere", "--out", "shut/c.html"),
        ("export", "done", "--to", "safetensors", "--out", "shut/e"),
        ("plan", "nowhere", "--save", "shut/plan.toml"),
        ("embed", "nowhere", "--out", "shut/f.parquet"),
    ]
    for words in cases:
        result = regraft(*words)
        assert result.code == 2, (words, result.err)
        assert "cannot be written" in result.err, (words, result.err)
        assert "shut allows no writing" in result.err, (words, result.err)
    assert list(Path("shut").iterdir()) == []


# ── two at once


HOLD = """
import sys, time
from pathlib import Path
from regraft.system.locks import lock_path
with lock_path(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start another process that holds a folder, or a file in it; it is killed at the end."""
    others = []

    def hold(folder: str, file: str = "", *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, folder, file, *words]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        others.append(other)
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        return other

    yield hold
    for other in others:
        other.kill()
        other.communicate()


def test_a_folder_has_one_writer_at_a_time_and_the_second_is_told_who_it_is(
    regraft, photos: Path, holding
) -> None:  # type: ignore[no-untyped-def]
    first = holding("out", "", "fit", "photos")
    for verb, *words in (
        ("fit", *QUICK),
        ("fit", *QUICK, "--overwrite"),
        ("fit", *QUICK, "--resume"),
        ("compare", *QUICK[2:], "--backbones", "test_resnet"),
    ):
        second = regraft(verb, photos, *words, "--out", "out")
        assert second.code == 2
        holder = f"out is being written by process {first.pid} (-c out '' fit photos, since 2"
        assert holder in second.err, second.err
    first.kill()
    first.wait()
    assert fit(photos).path == Path("out")  # a dead process holds nothing
    assert not Path("out/.lock.json").exists()


def test_what_other_verbs_write_has_one_writer_too(
    regraft, shelf: Path, photos: Path, holding
) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(whole_run(shelf, "linear-probe").path, "mine")
    before = contents(Path("mine"))
    probe = ("--backbones", *QUICK[1:4], "--resolutions", "32", "--out", "seen", "-q")
    parquet = ("--out", "rows.parquet", "--overwrite", "-q")
    for folder, file, words in (
        ("seen", "", ("probe", photos, *probe)),
        (".", "rows.csv", ("predict", "mine", photos, "--out", "rows.csv", "-q")),
        (".", "rows.parquet", ("predict", "mine", photos, *parquet)),
    ):
        other = holding(folder, file)
        second = regraft(*words)
        assert second.code == 2, (words, second.err)
        assert f"is being written by process {other.pid} (" in second.err, (words, second.err)
    other = holding("mine")
    data = load_dataset(photos, Path("home"))
    with pytest.raises(UserError, match=f"is being written by process {other.pid} "):
        open_test(load_run("mine"), data, wait=0.5)
    assert not Path("rows.csv").exists()
    assert contents(Path("mine")) == before
    target = PredictionTarget(Path("other.csv"))
    assert predict_to("mine", [photos], target).rows == 120  # another file beside it
    assert [path.name for path in Path().glob(".other*")] == []


def test_a_run_that_is_opened_elsewhere_is_waited_for(shelf: Path, photos: Path, holding) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(whole_run(shelf, "linear-probe").path, "mine")
    other = holding("mine")
    soon = threading.Timer(1, os.kill, (other.pid, signal.SIGKILL))
    soon.start()
    opened = open_test(load_run("mine"), load_dataset(photos, Path("home")))
    assert not soon.is_alive()
    assert opened.test is not None


def test_overwrite_removes_nothing_while_another_process_writes_to_something_in_the_folder(
    photos: Path, holding
) -> None:  # type: ignore[no-untyped-def]
    ways = ["linear-probe"]
    compare(photos, ways, "board")
    before = contents(Path("board"))
    for folder, file in (("board/linear-probe", ""), ("board/linear-probe", "rows.csv")):
        other = holding(folder, file)
        with pytest.raises(UserError, match=f"is being written by process {other.pid} "):
            compare(photos, ways, "board", overwrite=True)
        assert before.items() <= contents(Path("board")).items()
        other.kill()
        other.wait()
    compare(photos, ways, "board", overwrite=True)
    assert [path for path in Path("board").rglob(".*") if "lock" in path.name] == []


def test_a_lock_of_who_came_later_is_left_to_him(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with lock_path(folder):
        shutil.rmtree(folder)  # by hand
        later = lock_path(folder)
        later.__enter__()
    assert (folder / ".lock").is_file()
    with pytest.raises(UserError, match="is being written by process"), lock_path(folder):
        pass
    later.__exit__(None, None, None)
    assert not folder.exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_knows_no_locks_everything_goes_on_without(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn
) -> None:  # type: ignore[no-untyped-def]
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock_path(tmp_path / "out"):
        (tmp_path / "out" / "row").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["row"]
    assert not recwarn.list


def test_a_file_name_with_hardly_room_for_a_lock_is_written_or_refused_in_a_sentence(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for length in (200, 239, 240, 244, 245, 249):
        with lock_path(folder, "a" * length):
            pass
        assert list(folder.iterdir()) == [], length
    for length in (250, 255):
        with (
            pytest.raises(UserError, match="name too long"),
            lock_path(folder, "a" * length),
        ):
            pass
        assert list(folder.iterdir()) == [], length


def test_an_entry_removed_before_it_is_read_is_there_all_the_same_for_who_wrote_it(
    tmp_path: Path,
) -> None:
    removed = []
    usage = shutil.disk_usage

    def greedy(folder: Path) -> object:  # as another process might, when the entry has its name
        for meta in folder.glob("[!.]*/meta.json"):
            shutil.rmtree(meta.parent)
            removed.append(meta.parent)
        return usage(folder)

    data = toy(30)
    with outside("shutil.disk_usage", greedy):
        made = cached_pixels(data, tmp_path / "home")
    assert (made.arrays[0] == np.stack(data.images.read(np.arange(30)))).all()
    assert len(removed) == 1
    assert list_entries(tmp_path / "home") == []


@pytest.mark.slow
def test_two_processes_on_one_cache_that_is_too_small_get_right_entries() -> None:
    done = script("together.py", "--rounds", 10)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 rounds" in done.stdout
    assert "0 wrong entries" in done.stdout


def test_what_is_left_of_weights_whose_writing_was_killed_is_swept(tmp_path: Path) -> None:
    code = """
import sys, torch
from pathlib import Path
from regraft.runs.writer import write_weights
weights = {"a": torch.zeros(50_000_000)}
print("now", flush=True)
while True:
    write_weights(Path(sys.argv[1]), weights)
"""
    for _ in range(20):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "here" / "weights.safetensors")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.3)
        writer.kill()
        writer.communicate()
        if any(path.name != "weights.safetensors" for path in (tmp_path / "here").iterdir()):
            break
    else:
        pytest.fail("no killed process left anything; this test sees nothing")
    remove_partials(tmp_path / "here")
    assert {path.name for path in (tmp_path / "here").iterdir()} <= {"weights.safetensors"}


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again_and_nobody_elses(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pace[1].json"
    code = """
import os, signal, sys
from pathlib import Path
from regraft.system.files import atomic_write
with atomic_write(Path(sys.argv[1])) as scratch:
    scratch.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "pace1.json")], check=False)
    left = [one.name for one in tmp_path.glob(".pace*")]
    assert len(left) == 2, left  # the second of the first file removed what the first had left
    with atomic_write(path) as mine:
        mine.touch()
        assert [one.name for one in tmp_path.glob(".pace*") if one.name in left] == [
            one for one in left if one.startswith(".pace1.")
        ]


def test_files_written_by_two_processes_never_meet(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from regraft.system.output import write_json
for n in range(400):
    write_json(Path(sys.argv[1]), {"n": n, "more": "x" * 5000})
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "shared.json")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert json.loads((tmp_path / "shared.json").read_text())["n"] == 399


def test_one_archive_unpacked_by_two_is_unpacked_once(photos: Path, tmp_path: Path) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    other = tmp_path / "other"

    def slower(path: Path, target: Path) -> None:
        unpack_archive(path, target)
        if not other.exists():  # another process is done first
            other.mkdir()
            assert len(load_dataset(packed, tmp_path / "home")) == 120

    assert len(load_archive(packed, tmp_path / "home", unpack=slower)) == 120
    assert len(list((tmp_path / "home" / "archives").iterdir())) == 1


# ── the same answer twice


REPEATED = """
import concurrent.futures, sys
count = int(sys.argv[1])
class Pool(concurrent.futures.ThreadPoolExecutor):
    def __init__(self, max_workers=None, *given, **more):
        super().__init__(count, *given, **more)
concurrent.futures.ThreadPoolExecutor = Pool
from regraft.commands.fit import fit
from regraft.options import CacheOptions, Options, PlanOverrides, RunDir
table, home, out = sys.argv[2:5]
overrides = PlanOverrides(
    backbone="test_resnet", weights="random", resolution=32, overrides=sys.argv[5:]
)
options = Options(cache=CacheOptions(home), run_dir=RunDir(out))
fit(table, "probe-then-fine-tune", overrides, options)
"""


@pytest.mark.slow
def test_the_same_command_gives_the_same_run_in_any_process_order_cache_and_number_of_threads(
    tmp_path: Path,
) -> None:
    photos = write_folder(tmp_path / "photos", toy(90))
    paths = sorted(photos.rglob("*.png"))
    for name, order in (("forth", paths), ("back", paths[::-1])):
        rows = [f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in order]
        (tmp_path / f"{name}.csv").write_text("path,label\n" + "".join(rows))
    changes = ["phases.1.epochs=2", "phases.1.augment=light", "phases.1.mixup=0.2"]
    cases = {  # threads that decode, a table, a cache
        "first": ("4", "forth", "cold"),
        "back": ("4", "back", "other"),
        "one": ("1", "forth", "third"),
        "warm": ("4", "forth", "cold"),
    }

    def start(out: str) -> subprocess.Popen[str]:
        threads, table, home = cases[out]
        words = [threads, str(tmp_path / f"{table}.csv"), home, out, *changes]
        command = [sys.executable, "-c", REPEATED, *words]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    for names in (("first", "back", "one"), ("warm",)):
        for process in [start(name) for name in names]:
            errors = process.communicate(timeout=120)[1]
            assert process.returncode == 0, errors
    runs = {name: load_run(Path(name)) for name in cases}
    assert runs["warm"].scores["cache"]["hit"]
    assert not runs["back"].scores["cache"]["hit"]
    assert [name for name in cases if not same(runs["first"], runs[name])] == []


def test_looking_changes_no_later_run(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    words = (*QUICK, "--technique", "linear-probe")
    assert regraft("fit", photos, *words, "--out", "before", "--cache", "untouched").code == 0
    looks = [
        ("plan", photos, *QUICK[:-1], "--technique", "linear-probe"),
        ("probe", photos, "--backbones", *QUICK[1:4], "--resolutions", "32,48", "-q"),
        ("check", photos, *QUICK),
        ("embed", photos, *QUICK),
        ("report", "before", "-q"),
        ("evaluate", "before", "--split", "test", "-q"),
        ("evaluate", "before", "-q"),
        ("predict", "before", photos, "-q"),
    ]
    for look in looks:
        result = regraft(*look, *(() if look[0] == "predict" else ("--cache", "looked-into")))
        assert result.code == 0, (look, result.err)
    assert regraft("fit", photos, *words, "--out", "after", "--cache", "looked-into").code == 0
    after = load_run(Path("after"))
    assert after.scores["cache"]["hit"]  # so that it stands on what was kept while looking
    assert same(load_run(Path("before")), after)
