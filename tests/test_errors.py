from __future__ import annotations

from pathlib import Path

from conftest import Regraft
from regraft.errors import UserError, close_matches, join_truncated, unknown_name_error


def test_an_unknown_name_is_answered_with_what_was_given_the_nearest_and_all() -> None:
    error = unknown_name_error("technique", "prob", ["linear-probe", "fine-tune", "probe-all"])
    assert isinstance(error, UserError)
    assert (
        str(error) == "No technique is called 'prob'. Did you mean 'probe-all'? "
        "Known: fine-tune, linear-probe, probe-all."
    )


def test_nothing_near_offers_nothing() -> None:
    assert close_matches("zzz", ["abc"]) == []
    assert "Did you mean" not in str(unknown_name_error("stage", "zzz", ["abc"]))


def test_long_lists_are_counted() -> None:
    assert join_truncated(range(3)) == "0, 1, 2"
    assert join_truncated(range(1005)) == "0, 1, 2, 3, 4 and 1,000 more"


def test_a_path_that_cannot_be_used_is_one_sentence(regraft: Regraft, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words in (
        ("fit", "x" * 300),
        ("predict", "r" * 300, "x.png"),
        ("cache", "size", "--cache", tmp_path / "file"),
    ):
        done = regraft(*words)
        assert (done.code, "Traceback" in done.err) == (2, False), (words, done.err)
        assert "cannot be used (" in done.err, done.err
