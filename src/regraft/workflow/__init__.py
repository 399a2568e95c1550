"""The whole story: split, cache, train, score, write; and many such stories side by side.

Refuses to read the test part except where it is opened on purpose, and records that it was.
"""

from regraft.workflow.checking import Check, check, check_named
from regraft.workflow.comparison import Comparison, compare
from regraft.workflow.cooking import compare_recipes, run_recipe, show_recipe
from regraft.workflow.embedding import embed_named
from regraft.workflow.matrix import Probe, probe
from regraft.workflow.named import (
    compare_named,
    evaluate_named,
    explain_named,
    fit_named,
    probe_named,
)
from regraft.workflow.opening import open_test, score
from regraft.workflow.pages import report_named
from regraft.workflow.planning import Wish, explain, make
from regraft.workflow.settings import Settings
from regraft.workflow.story import fit
from regraft.workflow.using import export_named, predict_named, predict_to

__all__ = [
    "Check",
    "Comparison",
    "Probe",
    "Settings",
    "Wish",
    "check",
    "check_named",
    "compare",
    "compare_named",
    "compare_recipes",
    "embed_named",
    "evaluate_named",
    "explain",
    "explain_named",
    "export_named",
    "fit",
    "fit_named",
    "make",
    "open_test",
    "predict_named",
    "predict_to",
    "probe",
    "probe_named",
    "report_named",
    "run_recipe",
    "score",
    "show_recipe",
]
