"""The command line itself: mistakes, lists, folders, help, and flags that equal Python keywords."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st

from conftest import TINY, TINY_FLAGS, Regraft
from regraft.cli.app import app
from regraft.cli.console import Output
from regraft.cli.flags import Only, flag_names, flatten, iterate_options
from regraft.commands.options import (
    ExportRequest,
    PredictionTarget,
    PredictOptions,
    ProbeOptions,
    Ways,
)
from regraft.options import CacheOptions, DataOptions, Options, PlanOverrides, RunDir, Runtime
from regraft.serving.options import ServeOptions
from regraft.system.timer import format_duration

QUICK = ("--backbone", TINY, *TINY_FLAGS, "-q")
VERBS = {
    "fit": (PlanOverrides, Options, Output),
    "compare": (Ways, PlanOverrides, Options, Output),
    "plan": (PlanOverrides, Options, Output),
    "probe": (ProbeOptions, PlanOverrides, Options, Output),
    "check": (PlanOverrides, Options, Output),
    "evaluate": (Options, Output),
    "report": (Options, Output),
    "predict": (PredictOptions, PredictionTarget, Output),
    "export": (ExportRequest, Options, Output),
    "embed": (PlanOverrides, Options, Output),
    "serve": (ServeOptions, Options),
}
OWN = {  # flags that are arguments of the verb's function, by verb
    "fit": {"technique"},
    "compare": {"from_probe"},
    "plan": {"technique", "save"},
    "evaluate": {"split"},
    "report": {"data", "format"},
    "embed": {"layers"},
    "serve": {"max_mb", "max_pixels"},
}
OTHER_NAMES = {"overrides": "--set"}  # flags that are not called as the keyword


def parameters(verb: str) -> dict[str, Any]:
    """Return the flags of a verb, as Typer has them."""
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    flags = {}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            flags[parameter.name] = parameter
    return flags


@pytest.mark.parametrize("verb", VERBS)
def test_flags_have_the_names_and_defaults_of_the_python_keywords(verb: str) -> None:
    flags = parameters(verb)
    options = {field.name: field for kind in VERBS[verb] for field in iterate_options(kind)}
    compared = 0
    for name, flag in flags.items():
        if name in OWN.get(verb, ()):
            continue
        field = options[name]
        usual = "--" + name.replace("_", "-")
        assert OTHER_NAMES.get(name, usual) in flag.opts
        assert as_default(field, flag.default) == field.default, name
        compared += 1
    assert compared == len(flags) - len(OWN.get(verb, ())) >= 5


def as_default(field: Any, default: Any) -> Any:
    """Return the default of a field that the default of its flag stands for."""
    if field.metadata["form"] == "commas" and default is not None:
        return tuple(default.split(","))
    if default is None and field.default in ((), MISSING):
        return field.default
    return default


def test_no_two_groups_of_a_verb_have_a_field_of_one_name_but_the_output_of_export() -> None:
    for verb, kinds in VERBS.items():
        names = [field.name for kind in kinds for field in iterate_options(kind)]
        doubled = {name for name in names if names.count(name) > 1}
        assert doubled == ({"out"} if verb == "export" else set()), verb


def test_every_field_of_the_options_is_a_flag_of_fit_but_the_reporter() -> None:
    flags = parameters("fit")
    left_out = set()
    for group in (PlanOverrides, DataOptions, CacheOptions, Runtime, RunDir):
        left_out |= {field.name for field in fields(group)} - set(flags)
    assert left_out == {"reporter"}
    assert all(is_dataclass(field.default) for field in fields(Options))


def test_a_verb_gets_the_dataclasses_that_its_flags_make() -> None:
    heard: dict[str, Any] = {}

    def verb(word: str, ways: Ways, options: Options, number: int = 3) -> None:
        heard.update(word=word, ways=ways, options=options, number=number)

    verb.__annotations__ = {"word": str, "ways": Ways, "options": Options, "number": int}
    flat = typer.Typer()
    flat.command()(flatten(verb))
    words = ["x", "--techniques", "a,b", "--seeds", "2", "--cache", "home", "--out", "o"]
    flat([*words, "--resume", "--val-images", "5"], standalone_mode=False)
    assert heard["ways"] == Ways(techniques=("a", "b"), seeds=2)
    assert heard["options"] == Options(
        data=DataOptions(val_images=5),
        cache=CacheOptions(cache_dir=Path("home")),
        run_dir=RunDir(out=Path("o"), resume=True),
    )
    assert (heard["word"], heard["number"]) == ("x", 3)


def test_a_flag_that_no_field_has_cannot_be_asked_for() -> None:
    def verb(options: Any) -> None:
        raise AssertionError

    from typing import Annotated

    verb.__annotations__ = {"options": Annotated[Options, Only("no_such_field")]}
    with pytest.raises(KeyError, match="no_such_field"):
        flatten(verb)


def test_old_spellings_of_flags_still_work() -> None:
    cache = next(field for field in fields(CacheOptions) if field.name == "cache_dir")
    assert flag_names(cache) == ("--cache-dir", "--cache")
    assert parameters("embed")["layers"].opts == ["--layers", "--until"]


@given(st.floats(min_value=0, max_value=1e7))
def test_durations_are_close_and_short(seconds: float) -> None:
    text = format_duration(seconds)
    units = {"s": 1, "min": 60, "h": 3600}
    words = text.replace(",", "").split()
    read = sum(float(n) * units[u] for n, u in zip(words[::2], words[1::2], strict=True))
    assert abs(read - seconds) <= max(0.051, 0.06 * seconds)
    assert len(words) in (2, 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (12.4, "12 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (599.7, "10 min"),
        (3473, "58 min"),
        (3599, "1 h"),
        (3780, "1 h 3 min"),
        (360_000, "100 h"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_version_is_printed(regraft: Regraft) -> None:
    assert regraft("--version").out == f"regraft {version('regraft')}\n"


def test_shells_complete_verbs(regraft: Regraft, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--install-completion" in regraft("--help").out
    monkeypatch.setenv("_REGRAFT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "regraft rec")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert regraft().out.split() == ["recipes"]


@pytest.mark.parametrize("verb", ["", *VERBS, "techniques", "recipes run", "cache clear"])
def test_help_names_no_type_of_a_switch_and_no_private_word(
    regraft: Regraft, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = regraft(*verb.split(), "--help")
    assert shown.code == 0, shown.err
    assert "<bool>" not in shown.out
    words = shown.out.split()
    for word in ("shut", "told", "kept", "Watcher"):
        assert word not in words
    assert "--help" in words


MISTAKES = [
    (("--technique", "fine-tun"), "No technique is called 'fine-tun'. Did you mean 'fine-tune'"),
    (("--backbone", "resnet5"), "No backbone is called 'resnet5'. Did you mean"),
    (("--set", "phases.0.trian=all"), "phases.0.trian: unknown key, did you mean 'train'?"),
    (
        ("--set", "phases.0.train=layer9", "--set", "phases.0.optimizer=adam"),
        "test_resnet has no stage 'layer9', nearest: layer",
    ),
    (("--set", "until=layer9"), "until: test_resnet has no stage 'layer9'"),
    (("--resolution", "4"), "resolution: expected greater than or equal to 8, got 4"),
    (("--weights", "none.pth"), "is neither 'pretrained', 'random' nor a file"),
    (("--plan", "none.toml"), "There is no plan at none.toml"),
    (("--train-images", "1"), "--train-images 1 was given"),
    (("--out", "file.txt"), "file.txt is a file. Expected a folder"),
    (("--seed", "many"), "Invalid value for '--seed'"),
    (("--tecnique", "x"), "No such option"),
    (("--keep", "some"), "--keep some was given. Expected auto, always or never."),
    (("--compile", "yes"), "--compile yes was given. Expected auto, on or off."),
    (("--track", "paper"), "--track paper was given. Expected csv, tensorboard, mlflow or wandb."),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_every_mistake_with_a_flag_is_one_sentence_and_exit_2(
    regraft: Regraft, photos: Path, words: tuple[str, ...], says: str
) -> None:
    Path("file.txt").write_text("")
    usual = {"--backbone": TINY, "--weights": "random"}
    flags = [*words]
    for name, value in usual.items():
        if name not in words:
            flags += [name, value]
    result = regraft("fit", photos, *flags, "-q")
    assert result.code == 2, result.err
    assert says in " ".join(result.err.split()), result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("compare", "digits", "--techniques", " , "), "--techniques ' , ' names nothing."),
        (("compare", "digits", "--backbones", ","), "--backbones ',' names nothing."),
        (("probe", "digits", "--resolutions", "64,big"), "--resolutions 64,big was given."),
        (("probe", "digits", "--resolutions", "7"), "--resolutions 7 was given."),
        (("predict", "run", "x.png", "--resume"), "--resume and --overwrite were given without"),
        (("predict", "run", "x.png", "--json", "--format", "csv"), "were both given"),
        (("recipes", "compare", "digits"), "Only 'digits' was given."),
        (("serve", "nowhere", "--port", "70000"), "Invalid value for '--port'"),
    ],
)
def test_flags_that_make_no_sense_are_one_sentence(
    regraft: Regraft, words: tuple[str, ...], says: str
) -> None:
    result = regraft(*words)
    assert (result.code, result.out) == (2, ""), result.err
    assert says in " ".join(result.err.split()), result.err


def test_no_network_for_weights_is_one_sentence(
    regraft: Regraft, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    original = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> object:
        if pretrained:
            raise OSError("no route to host")
        return original(name, pretrained=False, **options)

    monkeypatch.setattr("timm.create_model", offline)
    result = regraft("fit", photos, "--backbone", "resnet18", "-q")
    assert result.code == 2
    assert "The weights of resnet18 cannot be fetched" in result.err
    assert "--weights random" in result.err


@pytest.mark.slow
def test_ctrl_c_stops_in_a_sentence_and_the_run_can_be_resumed(photos: Path) -> None:
    flags = ("--technique", "fine-tune", "--backbone", TINY, "--weights", "random")
    plan = ("--resolution", "64", "--set", "phases.0.epochs=400", "--out", "out")
    command = [sys.executable, "-W", "ignore", "-m", "regraft", "fit", str(photos), *flags, *plan]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    for _ in range(600):
        if Path("out/checkpoints/last.ckpt").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == 2, err
    assert (
        "Stopped. Finished work is kept: repeat the command with --resume to continue fit, compare "
        "or predict --out." in err
    )
    assert "Traceback" not in err
    assert out == ""
    assert not Path("out/scores.json").exists()


def test_lists_are_plain_and_json(regraft: Regraft) -> None:
    assert "linear-probe" in regraft("techniques").out
    techniques = json.loads(regraft("techniques", "--json").out)["techniques"]
    assert set(techniques) >= {"linear-probe", "from-scratch"}
    assert "digits" in regraft("sources").out
    assert "cifar10" in json.loads(regraft("sources", "--json").out)["names"]
    backbones = json.loads(regraft("backbones", "list", "test_*", "--json").out)["backbones"]
    assert TINY in backbones
    assert "resnet50" in regraft("backbones").out.split()
    assert regraft("backbones", "list", "nothing*").code == 2
    shown = regraft("backbones", "show", TINY, "--resolution", 64, "--json")
    layers = [layer["name"] for layer in json.loads(shown.out)["places"]]
    assert layers == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert "layer3" in regraft("backbones", "show", TINY).out


def test_the_cache_is_listed_and_cleared(regraft: Regraft, photos: Path, own_cache: Path) -> None:
    regraft("fit", photos, *QUICK)
    listed = json.loads(regraft("cache", "list", "--json").out)
    assert len(listed["entries"]) == 4
    assert listed["folder"] == str(own_cache)
    assert "4 entries" in regraft("cache", "list").out
    size = json.loads(regraft("cache", "size", "--json").out)
    assert size["bytes"] == sum(entry["bytes"] for entry in listed["entries"])
    assert "MB allowed" in regraft("cache", "size", "--cache-dir", own_cache).out
    assert "MB freed" in regraft("cache", "clear").out
    assert json.loads(regraft("cache", "list", "--json").out)["entries"] == []


def test_folders_are_not_overwritten_unless_asked(regraft: Regraft, photos: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("do not lose me")
    cases = {
        (): "mine is not empty",
        ("--overwrite",): "holds something other than a run, so --overwrite does not touch it",
    }
    compare = ("--backbones", TINY, "--weights", "random", "-q")
    for words, says in cases.items():
        for verb, flags in (("fit", QUICK), ("compare", compare)):
            result = regraft(verb, photos, *flags, "--out", "mine", *words)
            assert (result.code, says in result.err) == (2, True), result.err
    assert Path("mine/thesis.txt").read_text() == "do not lose me"
    regraft("fit", photos, *QUICK, "--out", "out")
    assert regraft("fit", photos, *QUICK, "--out", "out").code == 2
    assert regraft("fit", photos, *QUICK, "--out", "out", "--overwrite").code == 0
    other = regraft("fit", photos, *QUICK, "--out", "out", "--resume", "--seed", 5)
    assert (other.code, "holds another plan" in other.err) == (2, True)
    fewer = regraft("fit", photos, *QUICK, "--out", "out", "--resume", "--train-images", 20)
    assert (fewer.code, "other images or another split" in fewer.err) == (2, True)


@pytest.mark.parametrize("verb", ["fit", "compare", "probe"])
def test_overwrite_touches_no_folder_that_holds_what_is_not_ours(
    regraft: Regraft, photos: Path, verb: str
) -> None:
    words: dict[str, tuple[str, ...]] = {
        "fit": QUICK,
        "compare": ("--backbones", *QUICK[1:], "--techniques", "linear-probe"),
        "probe": ("--backbones", *QUICK[1:4], "--resolutions", *QUICK[5:]),
    }
    out = ("--out", "mine", "--overwrite")
    mine = Path("mine")
    mine.mkdir()
    assert regraft("plan", photos, *QUICK[:-1], "--save", "mine/plan.toml").code == 0
    (mine / "notes").mkdir()
    (mine / "notes" / "one.txt").write_text("mine")
    refused = regraft(verb, photos, *words[verb], *out)
    assert refused.code == 2
    assert "holds something other than a run (notes)" in refused.err
    (mine / "state.json").write_text("{}")  # a run with somebody's folder in it
    assert regraft(verb, photos, *words[verb], *out).code == 2
    assert (mine / "notes" / "one.txt").read_text() == "mine"
    shutil.rmtree("mine")
    assert regraft(verb, photos, *words[verb], *out).code == 0
    assert regraft(verb, photos, *words[verb], *out).code == 0


def test_an_impossible_device_is_refused_in_a_sentence(regraft: Regraft, photos: Path) -> None:
    cases = {"tpu": "--device tpu was given, which is no device"}
    if not torch.cuda.is_available():
        cases["cuda"] = "--device cuda was given, but PyTorch finds no CUDA GPU"
    for device, says in cases.items():
        result = regraft("fit", photos, *QUICK, "--device", device)
        assert (result.code, says in result.err) == (2, True), result.err


def test_a_home_that_nobody_has_is_a_name_like_any_other(regraft: Regraft) -> None:
    done = regraft("fit", "~nobody-of-that-name", *QUICK)
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert "~nobody-of-that-name" in done.err


def test_embed_takes_layers_by_both_names_of_the_flag(regraft: Regraft, photos: Path) -> None:
    words = ("embed", photos, *QUICK, "--overwrite", "--json")
    first = json.loads(regraft(*words, "--layers", "layer3").out)
    second = json.loads(regraft(*words, "--until", "layer3").out)
    assert first == second
    assert first["until"] == "layer3"
    assert (first["path"], first["images"]) == ("features.parquet", 120)
    both = json.loads(regraft(*words, "--layers", "layer3,end").out)
    assert both["features"] > first["features"]
