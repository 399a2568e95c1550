"""Finished runs side by side, on the same images or not at all: leaderboard, evidence and pages."""

from regraft.report.board import build_leaderboard, flat, leaderboard, write

__all__ = ["build_leaderboard", "flat", "leaderboard", "write"]
