"""Names of `regraft.report.plots` that the pictures of a probe use."""

from regraft.report.plots import pyplot, save

__all__ = ["pyplot", "save"]
