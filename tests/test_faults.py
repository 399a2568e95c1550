"""What happens when something goes wrong: killed, stopped, out of room, files gone, two at once; and that the same question gets the same answer."""

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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from regraft.workflow import story

import regraft as api
from conftest import toy, write_folder
from regraft.data.archives import load_archive, unpack_archive
from regraft.data.load import load_dataset
from regraft.errors import DiskFull, UserError
from regraft.features.extract import cached_pixels
from regraft.features.store import evict_entries, list_entries
from regraft.runs import folder as runs
from regraft.runs.folder import Run, load_run
from regraft.system import files
from regraft.system.disk import is_disk_full
from regraft.system.files import atomic_write, is_internal, remove_partials
from regraft.system.locks import lock_path
from regraft.system.output import write_json

FAULTS = Path(__file__).parent / "faults"
QUICK = ("--backbone", "test_resnet", "--weights", "random", "--resolution", "32", "-q")
OPTIONS: dict[str, object] = {"weights": "random", "resolution": 32}


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


def timeless(done: Run) -> list[dict[str, float]]:
    return [
        {key: value for key, value in row.items() if key != "seconds"} for row in done.history()
    ]


def same(one: Run, other: Run) -> bool:
    weights = [made.weights() for made in (one, other)]
    return (
        weights[0].keys() == weights[1].keys()
        and all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
        and timeless(one) == timeless(other)
        and (one.predictions()["logits"] == other.predictions()["logits"]).all()
        and one.scores["val"] == other.scores["val"]
        and one.scores["split_digest"] == other.scores["split_digest"]
        and (one.path / "freeze.json").read_text() == (other.path / "freeze.json").read_text()
    )


# ── killed


@pytest.mark.slow
def test_killed_at_random_moments_and_gone_on_with_a_run_is_the_one_that_was_never_stopped() -> (
    None
):
    done = script("kill.py", "--kills", 8, "--jobs", "gradual-unfreezing,predict csv", "--fresh", 8)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, _, rest = done.stdout.splitlines()[-1].partition(" kills in ")
    assert int(kills) >= 8
    assert ", 0 faults" in rest.replace(";", ",")


STOPPED_EARLY = [
    "phases.0.epochs=6",
    "phases.0.patience=1",
    "phases.0.min_delta=0.3",
    "phases.0.batch_size=16",
]


@pytest.mark.parametrize("moment", ["_keep", "tidy"])
def test_no_epoch_is_trained_twice_once_training_is_over(
    photos: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from regraft.training.module import TransferModule

    options = {**OPTIONS, "changes": STOPPED_EARLY}
    whole = api.fit(str(photos), "feature-extraction", "test_resnet", out="whole", **options)  # type: ignore[arg-type]
    assert len(whole.history()) < 6  # patience ran out

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            *((story._Work, "_keep", dies) if moment == "_keep" else (runs, "tidy", dies))
        )
        with pytest.raises(KeyboardInterrupt):
            api.fit(str(photos), "feature-extraction", "test_resnet", out="parts", **options)  # type: ignore[arg-type]
    steps: list[int] = []
    original = TransferModule.training_step
    monkeypatch.setattr(
        TransferModule, "training_step", lambda *given: steps.append(1) or original(*given)
    )
    resumed = api.fit(
        str(photos), "feature-extraction", "test_resnet", out="parts", resume=True, **options
    )  # type: ignore[arg-type]
    assert steps == []
    assert same(whole, resumed)
    assert {one.name for one in (resumed.path / "checkpoints").iterdir()} == {
        "last.ckpt",
        "best.ckpt",
    }


def test_checkpoints_stay_until_the_scores_are_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: Path, values: object) -> None:
        if path.name == "scores.json":
            raise KeyboardInterrupt
        write(path, values)

    write = write_json
    monkeypatch.setattr("regraft.run.write_json", dies)
    with pytest.raises(KeyboardInterrupt):
        api.fit(
            str(photos),
            "probe-then-fine-tune",
            "test_resnet",
            out="out",
            changes=["phases.1.epochs=1"],
            **OPTIONS,
        )  # type: ignore[arg-type]
    assert {one.name for one in Path("out/checkpoints").glob("phase-*")} == {
        f"phase-{n}.{kind}" for n in (0, 1) for kind in ("json", "safetensors")
    }


def test_what_a_killed_process_left_in_the_cache_is_removed_by_the_next_and_nothing_else(
    tmp_path: Path,
) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    home = tmp_path / "home"
    mine, others = (home / f".scratch-abc-{host}-{gone}-0" for host in (files._host(), "elsewhere"))
    alive, old = (
        home / f".scratch-abc-{files._host()}-{os.getppid()}-0",
        home / f".scratch-abc-elsewhere-{gone}-1",
    )
    for folder in (mine, others, alive, old):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    cached_pixels(toy(9), 32, "bicubic", home)
    assert {path for path in (mine, others, alive, old) if path.exists()} == {others, alive}


@pytest.mark.parametrize(
    ("verb", "how"),
    [
        ("fit", signal.SIGTERM),
        pytest.param("compare", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("probe", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("predict", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_within_seconds_and_says_how_to_go_on(
    photos: Path, verb: str, how: signal.Signals
) -> None:
    stage = {
        "fit": "training_step",
        "compare": "training_step",
        "probe": "judge",
        "predict": "add",
    }[verb]
    fitted = ("--technique", "fine-tune", *QUICK, "--set", "phases.0.epochs=400", "--out", "out")
    words = {
        "fit": ("fit", photos, *fitted),
        "compare": (
            "compare",
            photos,
            "--techniques",
            "fine-tune",
            "--backbones",
            "test_resnet",
            *QUICK[2:],
            "--set",
            "phases.0.epochs=400",
            "--out",
            "out",
        ),
        "probe": (
            "probe",
            photos,
            "--backbones",
            "test_resnet",
            "--weights",
            "random",
            "--resolutions",
            "32,48",
            "-q",
            "--out",
            "out",
        ),
        "predict": ("predict", "done", photos, "--batch-size", "4", "-q", "--out", "out.csv"),
    }[verb]
    if verb == "predict":
        api.fit(str(photos), "linear-probe", "test_resnet", out="done", **OPTIONS)  # type: ignore[arg-type]
    code = (
        "import sys, time; from regraft.train.tune import Tuning; from regraft.predict import Results; from regraft.workflow.matrix import _Work\n"
        f"for owner, name in ((Tuning, 'training_step'), (Results, 'add'), (_Work, '_judge')):\n"
        f"    if {stage!r} in name:\n"
        "        def outer(*given, inner=getattr(owner, name)):\n"
        "            open('reached', 'w').close(); time.sleep(0.2); return inner(*given)\n"
        "        setattr(owner, name, outer)\n"
        f"sys.argv = ['regraft', *{list(map(str, words))!r}]\nfrom regraft.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
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
    assert (
        "Stopped. What was finished is kept; fit, compare and predict --out go on from there with the same command and --resume."
        in err
    )
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
    "scores": ("regraft.evaluate.scores", full),  # any place: the log, a table
}


@pytest.mark.parametrize("where", list(FULL))
def test_a_run_whose_disk_is_full_stops_in_a_sentence_and_goes_on_when_there_is_room(
    photos: Path, where: str
) -> None:
    options = {**OPTIONS, "changes": ["phases.1.epochs=2", "phases.1.batch_size=16"]}
    whole = api.fit(str(photos), "probe-then-fine-tune", "test_resnet", out="whole", **options)  # type: ignore[arg-type]
    full_disk = pytest.MonkeyPatch()  # one of its own: undoing the test's would undo its cache too
    full_disk.setattr(*FULL[where])  # type: ignore[arg-type]
    with pytest.raises(
        DiskFull, match="out cannot be written further: no space left on its disk. .* --resume"
    ):
        api.fit(str(photos), "probe-then-fine-tune", "test_resnet", out="out", **options)  # type: ignore[arg-type]
    full_disk.undo()
    assert not [path for path in Path("out").rglob("*") if ".part" in path.name]
    assert not Path("out/scores.json").exists()
    assert same(
        whole,
        api.fit(
            str(photos), "probe-then-fine-tune", "test_resnet", out="out", resume=True, **options
        ),
    )  # type: ignore[arg-type]


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
    full_disk = pytest.MonkeyPatch()
    full_disk.setattr(*FULL["predictions"])  # type: ignore[arg-type]
    with pytest.raises(DiskFull):
        api.compare(str(photos), ways, ["test_resnet"], out="out", **OPTIONS)  # type: ignore[arg-type]
    full_disk.undo()
    assert not Path("out/leaderboard.json").exists()
    done = api.compare(str(photos), ways, ["test_resnet"], out="out", resume=True, **OPTIONS)  # type: ignore[arg-type]
    assert [len(one.test["opened"]) for one in done.runs if one.test] == [1, 1]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_predictions_on_a_full_disk_keep_what_was_written(
    regraft, photos: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:  # type: ignore[no-untyped-def]
    api.fit(str(photos), "linear-probe", "test_resnet", out="done", **OPTIONS)  # type: ignore[arg-type]
    words = ("predict", "done", photos, "--batch-size", 16, "-q")
    assert regraft(*words, "--out", f"whole.{kind}").code == 0
    write, calls = write_json, list[Path]()

    def soon_full(path: Path, values: object) -> None:
        calls.append(path)
        full() if len(calls) > 4 else write(path, values)

    monkeypatch.setattr("regraft.predict.results._PART", 20)
    with monkeypatch.context() as patch:
        patch.setattr("regraft.run.write_json", soon_full)
        stopped = regraft(*words, "--out", f"out.{kind}")
    assert (
        stopped.code,
        "no space left on its disk" in stopped.err,
        "Traceback" in stopped.err,
    ) == (2, True, False), stopped.err
    went_on = json.loads(regraft(*words, "--out", f"out.{kind}", "--resume", "--json").out)
    assert went_on["rows"] == 120
    assert went_on["new"] < 120
    if kind != "parquet":
        assert Path(f"out.{kind}").read_bytes() == Path(f"whole.{kind}").read_bytes()


def test_an_image_that_vanishes_is_named(photos: Path, tmp_path: Path) -> None:
    data = load_dataset(photos, tmp_path / "home")
    lost = Path(data.images.names[data.split().train[3]])  # type: ignore[attr-defined]
    lost.unlink()
    with pytest.raises(
        api.errors.UserError,
        match=rf"1 image cannot be decoded: {lost} \(the file does not exist any more\).* --skip-bad",
    ):
        api.fit(data, "linear-probe", "test_resnet", out="out", **OPTIONS)  # type: ignore[arg-type]
    assert not Path("out").exists()


def test_what_cannot_be_written_is_said_before_any_work(
    regraft, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    api.fit(str(photos), "linear-probe", "test_resnet", out="done", **OPTIONS)  # type: ignore[arg-type]
    Path("shut").mkdir()
    allowed = os.access
    monkeypatch.setattr(
        "os.access",
        lambda path, mode, **more: "shut" not in str(path) and allowed(path, mode, **more),
    )

    def works(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    for place in (
        "regraft.sources.load",
        "regraft.backbone.load",
        "regraft.predict.restored",
        "regraft.report.evidence.gathered",
        "regraft.predict.Classifier",
    ):
        monkeypatch.setattr(place, works)
    cases = [
        ("fit", photos, *QUICK, "--out", "shut/run"),
        ("compare", photos, "--out", "shut/run"),
        ("probe", photos, "--out", "shut/probe"),
        ("predict", "done", photos, "--out", "shut/p.csv"),
        ("report", "done", "--out", "shut/r.html"),
        ("check", photos, "--out", "shut/c.html"),
        ("export", "done", "--to", "safetensors", "--out", "shut/e"),
        ("plan", photos, "--save", "shut/plan.toml"),
        ("embed", photos, "--out", "shut/f.parquet"),
    ]
    for words in cases:
        result = regraft(*words)
        assert (
            result.code,
            "cannot be written" in result.err,
            "shut allows no writing" in result.err,
        ) == (2, True, True), (words, result.err)
    assert list(Path("shut").iterdir()) == []


# ── two at once


def test_a_folder_has_one_writer_at_a_time_and_the_second_is_told_who_it_is(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    code = "import sys, time; from pathlib import Path; from regraft import files\nwith files.held(Path('out')): print('held', flush=True); time.sleep(60)"
    first = subprocess.Popen(
        [sys.executable, "-c", code, "fit", "photos"], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    try:
        for verb, *words in (
            ("fit", *QUICK),
            ("fit", *QUICK, "--overwrite"),
            ("fit", *QUICK, "--resume"),
            ("compare", *QUICK[2:], "--backbones", "test_resnet"),
        ):
            second = regraft(verb, photos, *words, "--out", "out")
            assert second.code == 2
            assert (
                f"out is being written by process {first.pid} (-c fit photos, since 2" in second.err
            ), second.err
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert regraft("fit", photos, *QUICK, "--out", "out").code == 0  # a dead process holds nothing
    assert not Path("out/.lock.json").exists()


@pytest.fixture
def holding() -> Iterator[Callable[[str, str], int]]:
    """Another process that holds a folder, or a file in it; it is killed at the end."""
    others = []

    def hold(folder: str, file: str = "") -> int:
        code = """
import sys, time
from pathlib import Path
from regraft import files
with files.held(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""
        other = subprocess.Popen(
            [sys.executable, "-c", code, folder, file], stdout=subprocess.PIPE, text=True
        )
        others.append(other)
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        return other.pid

    yield hold
    for other in others:
        other.kill()
        other.communicate()


def test_what_other_verbs_write_has_one_writer_too(
    regraft, photos: Path, holding, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("regraft.workflow.opening._PATIENCE", 0.5)
    assert regraft("fit", photos, *QUICK, "--out", "mine").code == 0
    before = contents(Path("mine"))
    for (folder, file), words in (
        (
            ("seen", ""),
            (
                "probe",
                photos,
                "--backbones",
                "test_resnet",
                "--weights",
                "random",
                "--resolutions",
                "32",
                "--out",
                "seen",
                "-q",
            ),
        ),
        (("mine", ""), ("evaluate", "mine", "--split", "test", "-q")),
        ((".", "rows.csv"), ("predict", "mine", photos, "--out", "rows.csv", "-q")),
        (
            (".", "rows.parquet"),
            ("predict", "mine", photos, "--out", "rows.parquet", "--overwrite", "-q"),
        ),
    ):
        pid = holding(folder, file)
        second = regraft(*words)
        assert (second.code, f"is being written by process {pid} (" in second.err) == (2, True), (
            words,
            second.err,
        )
    assert not Path("rows.csv").exists()
    assert contents(Path("mine")) == before
    assert (
        regraft("predict", "mine", photos, "--out", "other.csv", "-q").code == 0
    )  # another file beside it
    assert [path.name for path in Path().glob(".other*")] == []


def test_a_run_that_is_opened_elsewhere_is_waited_for(regraft, photos: Path, holding) -> None:  # type: ignore[no-untyped-def]
    assert regraft("fit", photos, *QUICK, "--out", "mine").code == 0
    other = holding("mine")
    soon = threading.Timer(2, os.kill, (other, signal.SIGKILL))
    soon.start()
    opened = regraft("evaluate", "mine", "--split", "test", "-q")
    assert not soon.is_alive()
    assert opened.code == 0, opened.err


def test_overwrite_removes_nothing_while_another_process_writes_to_something_in_the_folder(
    regraft, photos: Path, holding
) -> None:  # type: ignore[no-untyped-def]
    words = (
        "compare",
        photos,
        "--techniques",
        "linear-probe",
        *QUICK[2:],
        "--backbones",
        "test_resnet",
        "--out",
        "board",
    )
    assert regraft(*words).code == 0
    before = contents(Path("board"))
    for folder, file in (("board/linear-probe", ""), ("board/linear-probe", "rows.csv")):
        other = holding(folder, file)
        second = regraft(*words, "--overwrite")
        assert (second.code, f"is being written by process {other} (" in second.err) == (2, True), (
            second.err
        )
        assert before.items() <= contents(Path("board")).items()
        os.kill(other, signal.SIGKILL)
        while Path(f"/proc/{other}/exe").exists():
            time.sleep(0.05)
    assert regraft(*words, "--overwrite").code == 0
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evict = evict_entries

    def greedy(
        folder: Path, keep: object, *more: object
    ) -> list[str]:  # as another process might, the moment the entry has its name
        shutil.rmtree(folder / next(iter(keep)))  # type: ignore[call-overload]
        return evict(folder, keep, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("regraft.cache.store.evict", greedy)
    data = toy(30)
    made = cached_pixels(data, 32, "bicubic", tmp_path / "home")
    assert (made.arrays[0] == np.stack(data.images.read(np.arange(30)))).all()
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
from regraft import run
weights = {"a": torch.zeros(50_000_000)}
print("now", flush=True)
while True:
    run.write_weights(Path(sys.argv[1]), weights)
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
    code = "import os, signal, sys; from pathlib import Path; from regraft import files\nwith files.whole(Path(sys.argv[1])) as scratch: scratch.touch(); os.kill(os.getpid(), signal.SIGKILL)"
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
    code = "import sys; from pathlib import Path; from regraft import run\nfor n in range(400): run.write_json(Path(sys.argv[1]), {'n': n, 'more': 'x' * 5000})"
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


@pytest.mark.slow
def test_the_same_command_gives_the_same_run_in_any_process_order_cache_and_number_of_threads(
    regraft, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    data = toy(90)
    photos = write_folder(tmp_path / "photos", data)
    paths = sorted(photos.rglob("*.png"))
    tables = {}
    for name, order in (("forth", paths), ("back", paths[::-1])):
        tables[name] = tmp_path / f"{name}.csv"
        tables[name].write_text(
            "path,label\n"
            + "".join(f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in order)
        )
    words = (
        "--technique",
        "probe-then-fine-tune",
        *QUICK,
        "--set",
        "phases.1.epochs=2",
        "--set",
        "phases.1.augment=light",
        "--set",
        "phases.1.mixup=0.2",
    )
    cases = {  # a table, a cache, threads that decode
        "first": ("forth", "cold", 4),
        "warm": ("forth", "cold", 4),
        "back": ("back", "other", 4),
        "one": ("forth", "third", 1),
    }
    code = """
import concurrent.futures, sys
count = int(sys.argv.pop(1))
class Pool(concurrent.futures.ThreadPoolExecutor):
    def __init__(self, max_workers=None, *given, **more):
        super().__init__(count, *given, **more)
concurrent.futures.ThreadPoolExecutor = Pool
sys.argv[0] = "regraft"
from regraft.cli import main
main()
"""
    for out, (table, home, workers) in cases.items():
        given = ["fit", str(tables[table]), *words, "--cache", home, "--out", out]
        done = subprocess.run(
            [sys.executable, "-c", code, str(workers), *given],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    made = {name: load_run(Path(name)) for name in cases}
    assert made["warm"].scores["cache"]["hit"]
    assert not made["back"].scores["cache"]["hit"]
    assert [name for name in cases if not same(made["first"], made[name])] == []


def test_looking_changes_no_later_run(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    words = (*QUICK, "--technique", "linear-probe")
    assert regraft("fit", photos, *words, "--out", "before", "--cache", "untouched").code == 0
    looks = [
        ("plan", photos, *QUICK[:-1], "--technique", "linear-probe"),
        (
            "probe",
            photos,
            "--backbones",
            "test_resnet",
            *QUICK[2:4],
            "--resolutions",
            "32,48",
            "-q",
        ),
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
